"""Faster ways to run the chapters compute the same: compiled blocks, and a clip alone or in a batch."""

import copy

import pytest
import torch

from minltx import fast_gpu
from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate
from minltx.vae import ResGroup, VAEConfig, VideoVAE

STRIDE = (8, 8, 8)
SMALL = VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("res", 1), ("down", (2, 1, 1), 16)),
                  decoder_blocks=(("res", 1), ("up", (2, 1, 1), 16), ("up", (2, 2, 2), 8)))


def randomised(module, std=0.15):
    """No table, norm or projection at its special starting value."""
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=std)
    return module


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradients(module, *outputs):
    return torch.autograd.grad(sum(out.square().sum() for out in outputs), list(module.parameters()),
                               allow_unused=True)


# --- Compiled ---------------------------------------------------------------------------------------------

@pytest.fixture
def compiled(monkeypatch, tmp_path_factory):
    """compiled(module): compile it in place, and fail at a graph break; afterwards all is forgotten. torch's
    own cache may hold code that was made for other instructions (ATEN_CPU_CAPABILITY), so it is not used."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    try:
        torch.compile(torch.sin)(torch.zeros(2))
        torch._dynamo.utils.counters.clear()
    except Exception as error:                                      # no compiler, unsupported Python ...
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    torch._dynamo.reset()
    yield lambda module: module.compile(fullgraph=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0               # it was compiled
    torch._dynamo.reset()


def check_compiled(eager, fast, *inputs):
    """Equal values with and without gradients, and equal gradients."""
    with torch.no_grad():
        close(fast(*inputs), eager(*inputs))
    out, wanted = fast(*inputs), eager(*inputs)
    close(out, wanted)
    for one, other in zip(gradients(fast, out), gradients(eager, wanted)):
        close(one, other, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [lambda model: model, accelerate], ids=["plain", "accelerated"])
def test_compiled_transformer_blocks_equal_eager_ones(compiled, prepare):
    config = DiTConfig(4, 48, 2, 4, 32, STRIDE, (2.0, 64.0, 64.0), 100.0)
    eager, fast = randomised(DiT(config)), prepare(randomised(DiT(config)))
    for block in fast.blocks:
        compiled(block)
    mask = torch.ones(2, 5)
    mask[0, 3:] = 0
    latent, t, text = torch.randn(2, 4, 3, 2, 4), torch.tensor([0.3, 0.8]), torch.randn(2, 5, 32)
    check_compiled(eager, fast, latent, t, text, mask)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("prepare", [lambda model: model, accelerate], ids=["plain", "accelerated"])
def test_compiled_residual_blocks_equal_eager_ones(compiled, batch, prepare):
    eager, fast = (randomised(ResGroup(16, 1, causal=True, conditioned=True)) for _ in range(2))
    for block in prepare(fast).res_blocks:
        compiled(block)
    check_compiled(eager, fast, torch.randn(batch, 16, 3, 4, 5), torch.full((batch,), 50.0))


# --- One clip ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prepare", [lambda model: model, accelerate], ids=["plain", "accelerated"])
def test_a_clip_alone_equals_the_clip_in_a_batch_values_and_gradients(prepare):
    """torch's convolution of a batch of 1 takes another path; `accelerate` replaces it by a third one."""
    model = prepare(randomised(VideoVAE(SMALL), 0.2))
    video, t = torch.rand(2, 3, 9, 16, 24) * 2 - 1, torch.tensor([0.05, 0.05])

    def through(video):
        mean, logvar = model.encode(video)
        return mean, logvar, model.decode(mean, t[: len(video)])

    with torch.no_grad():
        together = through(video)
        for i in range(2):
            for alone, both in zip(through(video[i : i + 1]), together):
                close(alone[0], both[i])
    for i in range(2):
        alone = gradients(model, *through(video[i : i + 1]))
        both = gradients(model, *(out[i] for out in through(video)))
        assert [g is None for g in alone] == [g is None for g in both]
        for one, other in zip(alone, both):
            if one is not None:
                assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.slow
@torch.no_grad()
def test_a_network_prepared_for_a_gpu_computes_the_same(compiled):
    """`fast_gpu.accelerate` on a CPU: more kinds of block than torch compiles by default, each for three
    sizes, and convolutions in channels_last_3d. Names and values of the parameters stay."""
    del compiled                                                    # only that torch.compile works here
    config = VAEConfig(4, 2, 8, (("res", 1), ("down", (1, 2, 2), 16)),
                       16, (("res", 1), ("res", 2), ("up", (1, 2, 2), 8), ("res", 1)))
    vae = randomised(VideoVAE(config)).eval()
    fast = fast_gpu.accelerate(copy.deepcopy(vae))
    assert list(fast.state_dict()) == list(vae.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), vae.state_dict().values()))
    weight = fast.decoder.up_blocks[0].res_blocks[0].conv1.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    for size in ((3, 8, 8), (2, 12, 8), (1, 4, 4)):
        latent, t = torch.randn(1, 4, *size), torch.tensor([0.05])
        exact = vae.decode(latent, t)
        assert (fast.decode(latent, t) - exact).abs().max() < 1e-5 * exact.std()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12     # four blocks, three sizes
