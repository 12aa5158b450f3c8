"""fast_cpu.py: every faster module computes what its plain original computes."""

import copy

import pytest
import torch
from torch import nn

from minltx import fast_cpu
from minltx.dit import Block, DiT, DiTConfig
from minltx.fast_cpu import (FastBlock, FastCausalConv3d, FastFeedForward, FastLinear, FastRMSNorm,
                             accelerate, fast_rms_norm, fast_rotate)
from minltx.layers import FeedForward, RMSNorm, rms_norm, swap_class
from minltx.rope import latent_coordinates, rope_tables, rotate
from minltx.toy import load_toy
from minltx.vae import CausalConv3d, VAEConfig, VideoVAE


def randomised(module, std=0.15):
    """No table, norm or projection at its special starting value."""
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=std)
    return module


def transformer(width=48):
    return randomised(DiT(DiTConfig(4, width, 2, 4, 32, (8, 8, 8), (2.0, 64.0, 64.0), 100.0)))


def layers():
    """Name -> plain module, its faster class, and its inputs."""
    torch.manual_seed(0)
    rotation = transformer().rotation(latent_coordinates((1, 2, 2), (8, 8, 8), 8, True))
    block = [torch.randn(2, 4, 48), torch.randn(2, 1, 6, 48), rotation, torch.randn(2, 3, 48)]
    per_token = [block[0], torch.randn(2, 4, 6, 48), None, block[3], torch.tensor([[1.0, 1, 0], [1, 1, 1]])]
    return {
        "block": (randomised(Block(48, 4)), FastBlock, block),
        "block with a time per token and a text mask": (randomised(Block(48, 4)), FastBlock, per_token),
        "feed-forward of a few tokens": (FeedForward(12), FastFeedForward, [torch.randn(2, 5, 12)]),
        "feed-forward of many tokens": (FeedForward(64), FastFeedForward, [torch.randn(2, 1100, 64)]),
        "RMS norm": (randomised(RMSNorm(12), 1.0), FastRMSNorm, [torch.randn(2, 5, 12)]),
        "linear layer of many tokens": (nn.Linear(64, 48), FastLinear, [torch.randn(2, 1100, 64)]),
        "causal convolution": (CausalConv3d(4, 6), FastCausalConv3d, [torch.randn(1, 4, 5, 6, 6)]),
        "convolution of one frame": (CausalConv3d(4, 6), FastCausalConv3d, [torch.randn(1, 4, 1, 6, 6)]),
        "strided convolution": (CausalConv3d(4, 6, stride=(2, 2, 2)), FastCausalConv3d,
                                [torch.randn(1, 4, 5, 6, 6)]),
        "convolution that is not causal": (CausalConv3d(4, 6, causal=False), FastCausalConv3d,
                                           [torch.randn(1, 4, 5, 6, 6)]),
        "convolution of a batch": (CausalConv3d(4, 6), FastCausalConv3d, [torch.randn(2, 4, 5, 6, 6)])}


@pytest.mark.parametrize("name", layers())
def test_each_module_equals_its_plain_original(name):
    plain, fast_class, inputs = layers()[name]
    fast = swap_class(copy.deepcopy(plain), type(plain), fast_class)
    assert type(fast) is fast_class and fast.state_dict().keys() == plain.state_dict().keys()
    kept = inputs[0].clone()
    with torch.no_grad():
        wanted, out = plain(*inputs), fast(*inputs)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(inputs[0], kept)                                     # the input is left as it was


@pytest.mark.parametrize("name", layers())
def test_with_gradients_or_in_float64_it_is_the_plain_module(name):
    plain, fast_class, inputs = layers()[name]
    fast = swap_class(copy.deepcopy(plain), type(plain), fast_class)
    x = inputs[0].clone().requires_grad_()
    out, wanted = fast(x, *inputs[1:]), plain(x, *inputs[1:])
    assert torch.equal(out, wanted)
    weights = torch.randn_like(out)
    one, other = (torch.autograd.grad((y * weights).sum(), x, retain_graph=True)[0] for y in (out, wanted))
    assert torch.equal(one, other)
    doubles = [a.double() if torch.is_tensor(a) else a for a in inputs]
    with torch.no_grad():
        assert torch.equal(fast.double()(*doubles), plain.double()(*doubles))


def test_the_fused_operators_are_really_called(monkeypatch):
    """Where oneDNN is there: otherwise the tests above would compare plain modules with themselves."""
    if not fast_cpu.FUSED_LINEAR:
        pytest.skip("this torch has no oneDNN")
    calls, direct = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *args: calls.append(1) or direct(*args))
    convolution = swap_class(CausalConv3d(4, 6), CausalConv3d, FastCausalConv3d)
    with torch.no_grad():
        convolution(torch.randn(1, 4, 5, 6, 6))
        assert len(calls) == 1
        convolution(torch.randn(2, 4, 5, 6, 6))
    convolution(torch.randn(1, 4, 5, 6, 6))
    assert len(calls) == 1
    feed_forward = swap_class(FeedForward(64), FeedForward, FastFeedForward)
    with torch.no_grad(), torch.profiler.profile() as profile:
        feed_forward(torch.randn(2, 1100, 64))
    assert any("_linear_pointwise" in event.key for event in profile.key_averages())


@torch.no_grad()
@pytest.mark.parametrize("width", [48, 64])                     # of 64 channels, 64 mod 6 = 4 never rotate
@pytest.mark.parametrize("batched", [False, True])
def test_rotation_by_a_complex_product(width, batched):
    where = latent_coordinates((2, 2, 3), (8, 8, 8), 8, True)
    where = torch.stack([where, where + 0.5]) if batched else where
    cos, sin = rope_tables(where, width, (2.0, 64.0, 64.0), 100.0)
    turns, x = torch.complex(cos[..., ::2], sin[..., ::2]), torch.randn(2, 12, width)
    torch.testing.assert_close(fast_rotate(x, turns, cos, sin), rotate(x, cos, sin), rtol=1e-6, atol=1e-6)
    x = x.bfloat16()
    assert torch.equal(fast_rotate(x, turns, cos, sin), rotate(x, cos, sin))


@torch.no_grad()
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_faster_rms_norm(size):
    x = torch.randn(3, 7, 64) * size
    torch.testing.assert_close(fast_rms_norm(x), rms_norm(x), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_whole_networks():
    config = VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                       encoder_blocks=(("down", (2, 2, 2), 16), ("res", 1), ("down", (2, 1, 1), 16)),
                       decoder_blocks=(("noisy", 1), ("up", (2, 1, 1), 16), ("res", 1), ("up", (2, 2, 2), 8)))
    dit, vae = transformer(), randomised(VideoVAE(config), 0.2)
    fast_dit, fast_vae = accelerate(copy.deepcopy(dit)), accelerate(copy.deepcopy(vae))
    latent, text, t = torch.randn(2, 4, 3, 2, 4), torch.randn(2, 5, 32), torch.tensor([0.3, 0.8])
    each = torch.rand(2, 3, 2, 4)
    for times in (t, each):
        one, other = fast_dit(latent, times, text), dit(latent, times, text)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for batch in (1, 2):
        video = torch.rand(batch, 3, 9, 16, 24) * 2 - 1
        for one, other in zip(fast_vae.encode(video), vae.encode(video)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        noise = lambda: torch.Generator().manual_seed(1)
        one, other = (v.decode(latent[:batch], t[:batch], noise()) for v in (fast_vae, vae))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_toy_draws_the_same_clip():
    plain, fast = load_toy(), accelerate(load_toy())
    one, other = (model.generate(["a red 7 moving left"], [0], steps=4) for model in (plain, fast))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    fast.load_state_dict(plain.state_dict())                                # the keys are the same


def test_a_variant_of_a_module_is_not_swapped():
    class NoGates(Block):
        def forward(self, h, modulation, rotate, text, text_mask=None):
            return h

    dit = accelerate(swap_class(transformer(), Block, NoGates))
    assert all(type(block) is NoGates for block in dit.blocks)
