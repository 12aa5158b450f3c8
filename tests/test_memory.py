"""The estimates of minltx/training/memory.py are what real passes hold, and near what autograd keeps."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_releases import VAES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minltx.dit import DiT, DiTConfig
from minltx.objectives import VAERecipe, vae_objective
from minltx.training import memory
from minltx.training.settings import TOY
from minltx.vae import VAEConfig, VideoVAE

GIB = 2**30
SMALL = DiTConfig(8, 48, 2, 4, 20)
BOTH = pytest.mark.parametrize("precision", ["float32", "bf16"])


# --- Counting ---------------------------------------------------------------------------------------------

def test_living_tensors_are_counted_once_and_until_they_are_freed():
    outside = torch.ones(500)
    with memory.LiveTensors() as live:
        a = outside[:100] + 1                                           # 400 bytes
        b, view = a * 2, a.view(10, 10)[1]                              # 400 more; a view is free
        assert live.now == 800
        del a
        assert live.now == 800                                          # the view keeps it
        del view, b
        c = outside * 2                                                 # 2000
        assert live.now == 2000 and live.peak == 2000
        del c
    assert live.now == 0


def test_copies_that_autocast_makes_of_weights_are_not_counted_as_activations():
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8)
    with memory.LiveTensors() as live, torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert live.now == 2 * y.numel() + 2 * x.numel()                    # the result, and x in bfloat16


def test_a_convolution_copies_its_input_and_output_into_its_own_layout():
    weight = torch.zeros(6, 4, 1, 1, 1)
    with memory.LiveTensors(layouts=True) as live:
        x = torch.zeros(1, 4, 3, 8, 8)
        y = nn.functional.conv3d(x, weight)
    assert live.now == x.nbytes + y.nbytes and live.peak == 2 * live.now


def real_dit(config, tokens, words, batch=1, times=1, precision="float32", checkpointing=False):
    dit, inputs = DiT(config), memory.dit_inputs(config, tokens, words, batch, times)
    return dit, lambda: dit.forward_tokens(*inputs).float().square().mean()


def real_vae(config, size, batch=1, precision="float32", checkpointing=False):
    vae, video = VideoVAE(config), torch.rand(batch, 3, *size) * 2 - 1
    return vae, lambda: vae_objective(vae, video, VAERecipe(), None, foreground=1.0)[0]


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_training_step_holds_what_is_estimated(precision, checkpointing):
    """Fake tensors only save the computing: with contents the peak is the same, to the byte."""
    how = {"precision": precision, "checkpointing": checkpointing}
    for times in (1, 32):
        step = real_dit(SMALL, 32, 5, 2, times)
        assert memory.training_peak(*step, **how) == memory.dit_activations(SMALL, 32, 5, 2, times, **how)
    step = real_vae(TOY.model.vae, (9, 16, 16), 2)
    assert memory.training_peak(*step, **how) == memory.vae_activations(TOY.model.vae, (9, 16, 16), 2, **how)


@BOTH
def test_a_real_pass_without_gradients_holds_what_is_estimated(precision):
    config, size, found = TOY.model, (9, 16, 16), []
    with memory.made_in(memory.DTYPES[precision]), torch.no_grad():
        dit, vae = DiT(config.dit), VideoVAE(config.vae)
        inputs = memory.dit_inputs(config.dit, 3 * 2 * 2, 11, 2)
        video, latent, t = torch.rand(1, 3, *size), torch.randn(1, 4, 3, 2, 2), torch.rand(1)
        for work in (lambda: dit.forward_tokens(*inputs), lambda: vae.encode(video),
                     lambda: vae.decode(latent, t)):
            with memory.LiveTensors() as live:
                work()
            found.append(live.peak)
    assert found == memory.sampling_peaks(config.dit, config.vae, size, 11, 2, precision)


# --- Against what autograd says that it keeps -------------------------------------------------------------

def saved_bytes(module, work, precision):
    """What autograd keeps of work() for its backward pass, each storage once, without parameters and
    autocast's copies of them."""
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage         # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = work()                           # kept, and so is its graph
    total = sum(storage.nbytes() for storage in saved.values())
    del loss
    return total - memory.copies(module, precision)


def check_what_is_kept(step, estimated, precision, most):
    """`LiveTensors` and autograd agree on what a forward pass keeps, and the estimate is a little more: the
    backward pass needs memory of its own, which in a wide and deep network is a small part."""
    with FakeTensorMode():
        network, loss_of = step()
        kept = saved_bytes(network, loss_of, precision)
        with memory.LiveTensors() as live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        assert live.now == pytest.approx(kept, rel=0.03) and loss.ndim == 0
    assert kept <= estimated <= most * kept


@BOTH
@pytest.mark.parametrize("width, depth, tokens, words, batch", [
    (192, 4, 320, 12, 2), pytest.param(96, 5, 60, 16, 3, marks=pytest.mark.slow),
    pytest.param(2048, 3, 6144, 256, 1, marks=pytest.mark.slow)])
def test_what_the_transformer_keeps(width, depth, tokens, words, batch, precision):
    config = DiTConfig(16, width, depth, 4, 24)
    for times in (1, tokens):
        estimated = memory.dit_activations(config, tokens, words, batch, times, precision)
        check_what_is_kept(lambda: real_dit(config, tokens, words, batch, times), estimated, precision, 1.15)


@BOTH
@pytest.mark.parametrize("name, size, batch, most", [
    ("toy", (17, 32, 32), 2, 1.2), ("0.9.5", (17, 96, 64), 1, 1.5),
    pytest.param("0.9.1", (9, 64, 64), 2, 1.5, marks=pytest.mark.slow),
    pytest.param("full width", (25, 256, 256), 1, 1.2, marks=pytest.mark.slow)])
def test_what_the_autoencoder_keeps(name, size, batch, most, precision):
    config = {**VAES, "toy": TOY.model.vae, "full width": VAEConfig()}[name]
    estimated = memory.vae_activations(config, size, batch, precision)
    check_what_is_kept(lambda: real_vae(config, size, batch), estimated, precision, most)


@BOTH
def test_with_checkpointing_a_block_keeps_its_input_only(precision):
    tokens, width, batch = 256, 96, 2
    config = DiTConfig(16, width, 4, 4, 24)
    deep, deeper = (memory.dit_activations(replace(config, depth=n), tokens, 8, batch, 1, precision, True)
                    for n in (4, 5))
    assert deeper - deep == pytest.approx(4 * batch * tokens * width, rel=0.02)
    whole = memory.dit_activations(config, tokens, 8, batch, 1, precision)
    one = memory.dit_activations(replace(config, depth=1), tokens, 8, batch, 1, precision)
    assert deep == pytest.approx(one + 3 * 4 * batch * tokens * width, rel=0.15) and deep < whole / 2
    vae = [memory.vae_activations(TOY.model.vae, (17, 32, 32), 1, precision, flag) for flag in (False, True)]
    assert vae[1] < vae[0]


# --- Estimates --------------------------------------------------------------------------------------------

def test_what_is_shared_among_ranks():
    def estimate(**plan):
        return memory.estimate_dit(config, 32, 5, **plan)

    config = replace(SMALL, depth=4)
    P = sum(p.numel() for p in DiT(config).parameters())
    alone = estimate()
    assert alone["weights"] == alone["gradients"] == alone["averaged weights"] == 4 * P
    assert alone["optimiser (adamw)"] == 8 * P
    assert estimate(optimizer="muon", ema=False)["optimiser (muon)"] == 4 * P
    ddp = estimate(parallel="ddp", ranks=4)
    assert sum(ddp.values()) == sum(alone.values())                     # gradients are views of the buckets
    ddp = estimate(parallel="ddp", ranks=4, micro_batches=2)
    assert sum(ddp.values()) == sum(alone.values()) + 4 * P             # they are copied there last
    ddp = estimate(parallel="ddp", micro_batches=2)
    assert sum(ddp.values()) == sum(alone.values())                     # one rank has no buckets
    fsdp = estimate(parallel="fsdp", ranks=4)
    assert fsdp["weights"] == P and fsdp["optimiser (adamw)"] == 2 * P
    assert fsdp["activations"] == alone["activations"]
    assert 0 < fsdp["one gathered block"] < 8 * P / 2
    assert not [name for name in fsdp if "sums" in name]
    several = estimate(parallel="fsdp", ranks=4, micro_batches=2)
    assert sum(several.values()) == sum(fsdp.values()) + 4 * P
    ours, lean = (estimate(precision="bf16", parallel=parallel, ranks=4)
                  for parallel in ("fsdp", "fsdp-bf16"))
    assert ours["one gathered block"] == 2 * lean["one gathered block"]
    different = {"one gathered block", "bf16 copies of the weights"}
    assert ours["bf16 copies of the weights"] and set(ours) - set(lean) < different
    assert all(ours[name] == lean[name] for name in set(lean) - different)


def test_the_autoencoder_among_ranks():
    config, size = TOY.model.vae, (17, 32, 32)
    vae = memory.estimate_vae(config, size)
    assert vae["weights"] == 4 * sum(p.numel() for p in VideoVAE(config).parameters())
    assert memory.weights_of(VideoVAE, config) == vae["weights"] and not vae["averaged weights"]
    twice = memory.estimate_vae(config, size, batch=2)
    assert twice["activations"] == pytest.approx(2 * vae["activations"], rel=0.01)
    ddp, fsdp = (memory.estimate_vae(config, size, parallel=parallel, ranks=2, micro_batches=2)
                 for parallel in ("ddp", "fsdp"))
    assert ddp == fsdp                                                  # FSDP2 leaves it to DDP
    assert memory.estimate_vae(config, size, checkpointing=True)["activations"] < vae["activations"]


@pytest.mark.slow
def test_the_released_model_fits_where_it_should():
    """Six thousand tokens in float32 on one GPU of 80 GB: only with checkpointing."""
    config = DiTConfig()
    assert sum(memory.estimate_dit(config, 6144, 256, ema=False).values()) / GIB > 66
    assert sum(memory.estimate_dit(config, 6144, 256, checkpointing=True).values()) / GIB < 45
    sampling = memory.estimate_sampling(config, VAEConfig(), (121, 512, 768), precision="bf16")
    assert 8 < sum(sampling.values()) / GIB < 16


def test_the_table_and_its_warning():
    estimate = memory.estimate_dit(SMALL, 32, 5)
    lines = memory.table(estimate, limit=10**12)
    assert "together, on each rank" in lines and "more than" not in lines
    assert "use a smaller batch" in memory.table(estimate, limit=1000)
    assert memory.device_memory("cpu") is None or memory.device_memory("cpu") > 2**28


@pytest.mark.parametrize("wrong, message", [
    ({"precision": "fp8"}, "use one of float32, bf16"), ({"ranks": 8}, "ddp or fsdp"),
    ({"parallel": "tp"}, "none, ddp, fsdp"), ({"batch": 0}, "use 1 or more"),
    ({"parallel": "fsdp-bf16"}, "use precision bf16"), ({"micro_batches": 0}, "use 1 or more")])
def test_settings_without_an_estimate(wrong, message):
    with pytest.raises(ValueError, match=message):
        memory.estimate_dit(SMALL, 32, 5, **wrong)


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(memory, "DiTConfig", lambda: SMALL)
    monkeypatch.setattr(memory, "VAEConfig", lambda: TOY.model.vae)
    for stage, line in (("dit", "optimiser (adamw)"), ("vae", "activations"),
                        ("sample", "weights of the autoencoder")):
        memory.main(["--stage", stage, "--size", "9x16x16"])
        assert line in capsys.readouterr().out
    for size in ("10x16x16", "9x16"):
        with pytest.raises(SystemExit):
            memory.main(["--size", size])
        assert "such as" in capsys.readouterr().err


def test_tokens_are_counted_as_the_autoencoder_makes_them(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(memory, "estimate_dit", lambda config, tokens, words, **plan: asked.append(
        (tokens, words, plan["batch"])) or {"weights": 0})
    memory.main(["--size", "121x512x768", "--batch", "3"])
    assert asked == [(math.prod((16, 16, 24)), 256, 3)]
