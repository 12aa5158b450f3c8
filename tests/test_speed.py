"""What was made faster stays the same function: compiled or not, in place or not, alone or in company, one
caption at a time or both, prepared once or every time."""

import pytest
import torch
import torch.nn.functional as F

from minltx import sampler, vae
from minltx.dit import Block, DiT, DiTConfig
from minltx.layers import FeedForward, RMSNorm, modulate, rms_norm
from minltx.rope import as_pairs, latent_coordinates, rope_tables, rotate, turn_
from minltx.sampler import Guidance, sample_latent
from minltx.vae import CausalConv3d, ResBlock, ResGroup, VAEConfig, VideoVAE

STRIDE = (8, 8, 8)
SMALL = VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("res", 1), ("down", (2, 1, 1), 16)),
                  decoder_blocks=(("res", 1), ("up", (2, 1, 1), 16), ("width", 8), ("up", (2, 2, 2), 8)))


def randomised(module, std=0.15):
    """No table, norm or projection at its special starting value."""
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=std)
    return module


def transformer(attention="full"):
    return randomised(DiT(DiTConfig(4, 48, 2, 4, 32, STRIDE, (2.0, 64.0, 64.0), 100.0, attention=attention)))


def captions(batch, length, seed=0):
    return (torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(seed)),
            torch.ones(batch, length))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradients(module, *outputs):
    return torch.autograd.grad(sum(out.square().sum() for out in outputs), list(module.parameters()),
                               allow_unused=True)


# --- Compiled ---------------------------------------------------------------------------------------------

@pytest.fixture
def compiled():
    """compiled(module): compile it in place, and fail at a graph break; afterwards all is forgotten."""
    try:
        torch.compile(torch.sin)(torch.zeros(2))
        torch._dynamo.utils.counters.clear()
    except Exception as error:                                      # no compiler, no supported Python ...
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    torch._dynamo.reset()
    yield lambda module: module.compile(fullgraph=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0               # it was compiled indeed
    torch._dynamo.reset()


@pytest.mark.parametrize("attention", ["full", "space-time"])
def test_compiled_transformer_blocks_are_the_eager_ones(compiled, attention):
    eager, fast = transformer(attention), transformer(attention)
    for block in fast.blocks:
        compiled(block)
    latent, (text, mask) = torch.randn(2, 4, 3, 2, 4), captions(2, 5)
    mask[0, 3:] = 0
    t = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        close(fast(latent, t, text, mask), eager(latent, t, text, mask))
    out, wanted = fast(latent, t, text, mask), eager(latent, t, text, mask)
    close(out, wanted)
    for one, other in zip(gradients(fast, out), gradients(eager, wanted)):
        close(one, other, 1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_compiled_residual_blocks_are_the_eager_ones(compiled, batch):
    def group():
        return randomised(ResGroup(16, 1, causal=True, conditioned=True, noisy=False))

    eager, fast = group(), group()
    for block in fast.res_blocks:
        compiled(block)
    x, t = torch.randn(batch, 16, 3, 4, 5), torch.full((batch,), 50.0)
    with torch.no_grad():
        close(fast(x, t), eager(x, t))
    out, wanted = fast(x, t), eager(x, t)
    close(out, wanted)
    for one, other in zip(gradients(fast, out), gradients(eager, wanted)):
        close(one, other, 1e-4)


# --- The small clip that is alone -------------------------------------------------------------------------

def test_a_lone_clip_is_the_one_of_a_batch_values_and_gradients():
    """Alone it takes oneDNN's convolution directly; in a batch torch chooses."""
    model = randomised(VideoVAE(SMALL), 0.2)
    video = torch.rand(2, 3, 9, 16, 24) * 2 - 1
    t = torch.tensor([0.05, 0.05])

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


@pytest.mark.parametrize("stride", [1, (2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_lone_float32_clips_leave_torchs_own_convolution(monkeypatch, dtype, stride):
    layer, x = CausalConv3d(4, 6, stride=stride).to(dtype), torch.randn(1, 4, 5, 6, 6, dtype=dtype)
    plain, calls, direct = F.conv3d, [], getattr(torch, "mkldnn_convolution", None)
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *args: calls.append(args) or direct(*args))
    padded = torch.cat([x[:, :, :1]] * 2 + [x], dim=2)
    wanted = plain(padded, layer.conv.weight, layer.conv.bias, stride, (0, 1, 1))
    close(layer(x), wanted)
    assert len(calls) == (dtype == torch.float32 and vae.FAST_ON_CPU)
    calls.clear()
    layer(torch.cat([x, x]))
    monkeypatch.setattr(vae, "FAST_ON_CPU", False)
    close(layer(x), wanted)
    assert not calls


# --- In place ---------------------------------------------------------------------------------------------

def layers():
    """Name -> a layer as a function of x, and x."""
    torch.manual_seed(0)
    ff, norm, block = FeedForward(12), randomised(RMSNorm(12), 1.0), randomised(ResBlock(8, 8, True, True))
    wider, time = randomised(ResBlock(8, 16, False)), torch.randn(1, 4, 8)
    transformer_block, text = randomised(Block(24, 2, "rms")), torch.randn(1, 3, 24)
    modulation = torch.randn(1, 1, 6, 24)
    rope = transformer().prepare(latent_coordinates((1, 2, 2), STRIDE, 8, True), torch.zeros(1, 1, 32))[1]
    attention = randomised(Block(48, 4, "none")).attn1
    return {
        "feed-forward": (ff, torch.randn(2, 5, 12)),
        "norm": (norm, torch.randn(2, 5, 12)),
        "residual block": (lambda x: block(x, time), torch.randn(1, 8, 2, 4, 4)),
        "residual block to another width": (wider, torch.randn(1, 8, 2, 4, 4)),
        "transformer block": (lambda x: transformer_block(x, text, None, modulation, None),
                              torch.randn(1, 4, 24)),
        "attention that turns what no norm has copied": (lambda x: attention(x, rotate=rope),
                                                         torch.randn(1, 4, 48)),
    }


@pytest.mark.parametrize("name", layers())
def test_with_and_without_gradients_are_equal_and_leave_their_input(name):
    layer, x = layers()[name]
    kept = x.clone()
    with torch.no_grad():
        fast = layer(x)
    assert torch.equal(x, kept)
    leaf = x.clone().requires_grad_()
    slow = layer(leaf)
    close(fast, slow.detach(), 1e-6)
    slow.square().sum().backward()                  # raises if a tensor that it needs was overwritten
    assert torch.equal(leaf.detach(), kept) and leaf.grad.abs().sum() > 0


def test_a_whole_network_with_and_without_gradients():
    dit, model = transformer(), randomised(VideoVAE(SMALL), 0.2)
    latent, (text, mask), video = torch.randn(2, 4, 3, 2, 4), captions(2, 5), torch.rand(1, 3, 9, 16, 16)
    t, inputs = torch.tensor([0.3, 0.8]), (latent.clone(), text.clone(), video.clone())
    slow = dit(latent, t, text, mask), *model.encode(video), model.decode(latent, t)
    with torch.no_grad():
        fast = dit(latent, t, text, mask), *model.encode(video), model.decode(latent, t)
    for one, other in zip(fast, slow):
        close(one, other.detach())
    assert all(map(torch.equal, inputs, (latent, text, video)))


# --- Fewer passes -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 64])                               # 64 mod 6 = 4 channels do not turn
@pytest.mark.parametrize("batched", [False, True])
def test_turning_is_rotating_values_and_gradients(dtype, width, batched):
    where = latent_coordinates((2, 2, 3), STRIDE, 8, True)
    where = torch.stack([where, where + 0.5]) if batched else where
    cos, sin = rope_tables(where, width, (2.0, 64.0, 64.0), 100.0)
    x, tolerance = torch.randn(2, 12, width, dtype=dtype), 1e-6 if dtype == torch.float32 else 1e-2
    one, other = (x.clone().requires_grad_() for _ in range(2))
    turned, rotated = turn_(one * 1, as_pairs(cos, sin)), rotate(other * 1, cos, sin)
    assert turned.dtype == dtype
    close(turned, rotated, tolerance)
    weights = torch.randn_like(turned)
    (turned * weights).sum().backward()
    (rotated * weights).sum().backward()
    close(one.grad, other.grad, tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3),
                                              (torch.float64, 1e-13)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rms_norm_is_its_formula(dtype, tolerance, size):
    x = (torch.randn(3, 7, 64, dtype=torch.float64) * size).to(dtype)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = rms_norm(x)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), exact, rtol=tolerance, atol=tolerance)


def test_modulation_is_its_formula():
    x, shift, scale = torch.randn(2, 5, 6), torch.randn(2, 1, 6), torch.randn(2, 5, 6)
    close(modulate(x, shift, scale), x * (1 + scale) + shift, 1e-6)


# --- Once per sampling, and both captions at once ---------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "space-time"])
def test_prepared_steps_are_whole_forwards(attention):
    """Also a second and third time: a step leaves what was prepared as it was."""
    dit, (text, mask) = transformer(attention), captions(2, 5)
    mask[1, 2:] = 0
    where = latent_coordinates((3, 2, 4), STRIDE, 8, True)
    prepared = dit.prepare(where, text, mask)
    for t in (0.9, 0.5, 0.1):
        tokens, times = torch.randn(2, 24, 4), torch.full((2, 1), t)
        assert torch.equal(dit.step(tokens, times, prepared),
                           dit.forward_tokens(tokens, times, where, text, mask))
        each = times.expand(2, 24)
        assert torch.equal(dit.step(tokens, each, prepared),
                           dit.forward_tokens(tokens, each, where, text, mask))


def sampled(dit, monkeypatch, few, guidance=Guidance(3.0), batch=2):
    """A sampling in five steps -> latent, how often prepare was called, batch sizes of the steps."""
    monkeypatch.setattr(sampler, "FEW_TOKENS", few)
    prepare, step, prepared, batches = dit.prepare, dit.step, [], []
    monkeypatch.setattr(dit, "prepare", lambda *args: prepared.append(args) or prepare(*args))
    monkeypatch.setattr(dit, "step", lambda z, *args: batches.append(len(z)) or step(z, *args))
    noise = torch.randn(batch, 4, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    known, null = captions(batch, 7), captions(batch, 2, seed=1)
    known[1][-1, 4:] = 0
    out = sample_latent(dit, noise, torch.linspace(1, 0, 6), known, null, guidance)
    monkeypatch.undo()
    return out, len(prepared), batches


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(3.0, 0.8, (1,), rescale=0.7)])
def test_both_captions_at_once_are_the_two_asked_in_turn(monkeypatch, guidance):
    """The captions are of different lengths, so the shorter one is padded and masked."""
    dit, blind = transformer(), guidance.stg > 0
    apart, together = sampled(dit, monkeypatch, 0, guidance), sampled(dit, monkeypatch, 512, guidance)
    close(together[0], apart[0])
    assert set(apart[2]) == {2} and len(apart[2]) == 5 * (2 + blind)
    assert sorted(together[2]) == [2] * 5 * blind + [4] * 5


def test_captions_and_positions_are_prepared_once_per_sampling(monkeypatch):
    dit = transformer()
    assert sampled(dit, monkeypatch, 0, Guidance(1.0))[1] == 1
    assert sampled(dit, monkeypatch, 0)[1] == 2                                       # one for each caption
    assert sampled(dit, monkeypatch, 512)[1] <= 2


def test_a_few_tokens_are_counted_with_the_batch(monkeypatch):
    dit = transformer()
    assert set(sampled(dit, monkeypatch, 48)[2]) == {4}                               # 2 videos of 24 tokens
    assert set(sampled(dit, monkeypatch, 47)[2]) == {2}
