"""The estimates of minltx/workshop/memory.py are near what autograd really keeps."""

import math

import pytest
import torch
from tiny_releases import VAES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import minltx.vae
import train_tiny
from minltx.dit import DiT, DiTConfig
from minltx.losses import LossConfig, vae_loss
from minltx.pretrained.releases import VAE_091
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop import memory

TOY = train_tiny.TOY.model


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("width, depth, grid, words, batch", [
    (48, 1, (2, 4, 4), 7, 1), (96, 5, (3, 4, 5), 16, 3), (192, 2, (5, 8, 8), 12, 2),
    (2048, 3, (16, 16, 24), 256, 1)])
def test_what_the_transformer_keeps(width, depth, grid, words, batch, precision):
    config, tokens = DiTConfig(16, width, depth, 4, 24), math.prod(grid)
    for per_token in (False, True):
        counted = memory.saved_by_dit(config, grid, words, batch, per_token, precision)
        times = tokens if per_token else 1
        formula = memory.dit_activations(config, tokens, words, batch, times, precision)
        assert formula == pytest.approx(counted, rel=0.15)


def test_without_contents_the_same_is_kept_as_with():
    """FakeTensorMode is only a way not to compute: a true forward pass keeps as much, to the byte."""
    config, grid, words = DiTConfig(8, 48, 2, 4, 20), (2, 4, 4), 5
    dit, inputs = memory.dit_and_inputs(config, grid, words, batch=2)
    assert memory.saved_bytes(dit, lambda: dit(*inputs)) == memory.saved_by_dit(config, grid, words, batch=2)


def test_measuring_leaves_the_autoencoders_fast_path_as_it_was(monkeypatch):
    """Without contents it cannot be taken; with them it keeps as much."""
    for fast in (True, False):
        monkeypatch.setattr(minltx.vae, "FAST_ON_CPU", fast)
        without = memory.saved_by_vae(TOY.vae, (9, 16, 16))
        assert minltx.vae.FAST_ON_CPU is fast
        with pytest.raises(ZeroDivisionError), memory.without_contents():
            raise ZeroDivisionError
        assert minltx.vae.FAST_ON_CPU is fast
        vae, video = VideoVAE(TOY.vae), torch.randn(1, 3, 9, 16, 16)

        def work():
            mean, logvar = vae.encode(video)
            output = vae.decode(mean, torch.rand(1))
            return vae_loss(video, output, mean, logvar, LossConfig(foreground=1.0))

        assert memory.saved_bytes(vae, work) == without


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("width, depth, grid", [(96, 8, (4, 8, 8)), (256, 12, (5, 8, 8)),
                                                (1024, 6, (8, 16, 16))])
def test_with_checkpointing_inputs_are_kept_and_one_block(width, depth, grid, per_token):
    """All that is alive after the forward pass, and at the fullest moment of the backward pass. The
    parameters' gradients are there before, since the estimate has them in another line."""
    config, tokens, words = DiTConfig(16, width, depth, 4, 24), math.prod(grid), 8
    with FakeTensorMode():
        dit, arguments = memory.dit_and_inputs(config, grid, words, per_token=per_token)
        for block in dit.blocks:
            block.forward = checkpointed(block.forward)
        for p in dit.parameters():
            p.grad = torch.zeros_like(p)
        with memory.Live() as live:
            v = dit(*arguments)
            kept = live.now
            v.square().sum().backward()
    times = tokens if per_token else 1
    formula = memory.dit_activations(config, tokens, words, times=times, checkpointing=True)
    one_block = memory.block_activations(config, tokens, words, times)
    assert formula - one_block == pytest.approx(kept, rel=0.15)
    assert formula == pytest.approx(live.peak, rel=0.15)


def checkpointed(forward):
    def run(*args):
        return checkpoint(forward, *args, use_reentrant=False)
    return run


VAE_SIZES = {"toy": ((17, 32, 32), 2), "0.9.0": ((17, 64, 96), 1), "0.9.1": ((9, 64, 64), 2),
             "0.9.5": ((17, 96, 64), 1), "full width": ((25, 256, 256), 1)}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", VAE_SIZES)
def test_what_the_autoencoder_keeps(name, precision):
    config = {**VAES, "toy": TOY.vae, "full width": VAEConfig()}[name]
    size, batch = VAE_SIZES[name]
    counted = memory.saved_by_vae(config, size, batch, precision)
    assert memory.vae_activations(config, size, batch, precision) == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_is_alive_without_gradients(precision):
    for width, depth, grid in ((96, 2, (4, 8, 8)), (512, 4, (8, 8, 8))):
        config = DiTConfig(16, width, depth, 4, 24)
        counted = memory.live_in_dit(config, grid, 8, 2, precision)
        assert memory.live_dit(config, math.prod(grid), 2, precision) == pytest.approx(counted, rel=0.1)
    for config, size in ((VAES["0.9.0"], (17, 64, 96)), (TOY.vae, (17, 32, 32)), (VAE_091, (49, 256, 256)),
                         (VAEConfig(), (49, 256, 256))):
        counted = memory.live_in_vae(config, size, 1, precision)
        assert memory.live_vae(config, size, 1, precision) == pytest.approx(counted, rel=0.1)


def test_what_is_shared_among_ranks():
    config = DiTConfig(8, 48, 4, 4, 20)
    P = sum(p.numel() for p in DiT(config).parameters())
    alone = memory.estimate_dit(config, 32, 5)
    assert alone["weights"] == alone["gradients"] == alone["averaged weights"] == 4 * P
    assert alone["optimiser (adamw)"] == 8 * P
    assert memory.estimate_dit(config, 32, 5, optimizer="muon", ema=False)["optimiser (muon)"] == 4 * P
    ddp = memory.estimate_dit(config, 32, 5, parallel="ddp", ranks=4)
    assert sum(ddp.values()) == sum(alone.values())                     # gradients lie in the buckets
    ddp = memory.estimate_dit(config, 32, 5, parallel="ddp", ranks=4, micro_batches=2)
    assert sum(ddp.values()) == sum(alone.values()) + 4 * P             # they go there last
    ddp = memory.estimate_dit(config, 32, 5, parallel="ddp", micro_batches=2)
    assert sum(ddp.values()) == sum(alone.values())                     # one rank has no buckets
    fsdp = memory.estimate_dit(config, 32, 5, parallel="fsdp", ranks=4)
    assert fsdp["weights"] == P and fsdp["optimiser (adamw)"] == 2 * P
    assert fsdp["activations"] == alone["activations"]
    assert 0 < fsdp["one block put together"] < 8 * P / 2
    assert not fsdp["gradients added up, not cut"]
    several = memory.estimate_dit(config, 32, 5, parallel="fsdp", ranks=4, micro_batches=2)
    assert sum(several.values()) == sum(fsdp.values()) + 4 * P
    ours, lean = (memory.estimate_dit(config, 32, 5, precision="bf16", parallel=parallel, ranks=4)
                  for parallel in ("fsdp", "fsdp-bf16"))
    assert ours["one block put together"] == 2 * lean["one block put together"]
    together = {"one block put together", "bf16 copies of the weights"}
    assert ours["bf16 copies of the weights"] and set(ours) - set(lean) < together
    assert all(ours[name] == lean[name] for name in set(lean) - together)
    vae = memory.estimate_vae(TOY.vae, (17, 32, 32))
    assert vae["weights"] == 4 * sum(p.numel() for p in VideoVAE(TOY.vae).parameters())
    twice = memory.estimate_vae(TOY.vae, (17, 32, 32), batch=2)
    assert twice["activations"] == 2 * vae["activations"]
    both = (memory.estimate_vae(TOY.vae, (17, 32, 32), parallel=parallel, ranks=2, micro_batches=2)
            for parallel in ("ddp", "fsdp"))
    assert next(both) == next(both)                                     # FSDP2 leaves it to DDP
    assert memory.weights_of(VideoVAE, TOY.vae) == vae["weights"]
    less = memory.estimate_vae(TOY.vae, (17, 32, 32), checkpointing=True)
    assert less["activations"] < vae["activations"]


def test_the_released_model_fits_where_it_should():
    """Six thousand tokens in float32 on one GPU of 80 GB: not as it is, with checkpointing it does."""
    gib = 2**30
    config = DiTConfig()
    assert sum(memory.estimate_dit(config, 6144, 256, ema=False).values()) / gib > 66
    assert sum(memory.estimate_dit(config, 6144, 256, checkpointing=True).values()) / gib < 45
    sampling = memory.estimate_sampling(config, VAEConfig(), (121, 512, 768), precision="bf16")
    assert 8 < sum(sampling.values()) / gib < 16


def test_the_table_and_what_cannot_be_estimated(capsys):
    estimate = memory.estimate_dit(DiTConfig(8, 48, 2, 4, 20), 32, 5)
    lines = memory.table(estimate, limit=10**12)
    assert "together, on each rank" in lines and "more than" not in lines
    assert "use a smaller batch" in memory.table(estimate, limit=1000)
    assert memory.device_memory("cpu") is None or memory.device_memory("cpu") > 2**28
    for wrong, message in (({"precision": "fp8"}, "use one of float32, bf16"), ({"ranks": 8}, "ddp or fsdp"),
                           ({"parallel": "tp"}, "none, ddp, fsdp"), ({"batch": 0}, "use 1 or more"),
                           ({"parallel": "fsdp-bf16"}, "use precision bf16"),
                           ({"micro_batches": 0}, "use 1 or more")):
        with pytest.raises(ValueError, match=message):
            memory.estimate_dit(DiTConfig(8, 48, 2, 4, 20), 32, 5, **wrong)
    memory.main(["--stage", "sample", "--size", "9", "64", "64"])
    assert "weights of the autoencoder" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        memory.main(["--size", "120", "512", "768"])
