"""Spatio-temporal guidance: what is skipped, the formula, and a network that is always put back together."""

import copy

import pytest
import torch

from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate
from minltx.pretrained.stg import MODES, SpatioTemporalGuidance, skip
from minltx.sampler import Guidance, Sampling, sample_latent

STRIDE = (8, 8, 8)


def network():
    torch.manual_seed(0)
    dit = DiT(DiTConfig(4, 24, 2, 2, 16, STRIDE))
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return dit


def captions(count=2):
    """A caption and the null caption, each (embeddings, mask)."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(count, length, 16, generator=generator), torch.ones(count, length))
            for length in (5, 3)]


def inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 4, 3, 2, 2, generator=generator), torch.tensor([0.4, 0.7])


def predictor(dit):
    latent, t = inputs()
    return lambda text, mask: dit(latent, t, text, mask).flatten(2)


def skipped_by_hand(dit, mode):
    """A copy of the network, with block 1 changed in the plainest way."""
    dit = copy.deepcopy(dit)
    block, attention = dit.blocks[1], dit.blocks[1].attn1
    if mode == "attention_values":
        attention.forward = lambda x, **_: attention.to_out(attention.to_v(x))
    elif mode == "attention_skip":
        attention.forward = lambda x, **_: attention.to_out(x)
    else:
        block.forward = lambda h, *_: h
    return dit


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_each_mode_skips_what_it_says_and_nothing_else(mode, fast):
    dit = network()
    latent, t = inputs()
    text, plain, by_hand = captions()[0], network(), skipped_by_hand(dit, mode)
    dit = accelerate(dit) if fast else dit
    with skip(dit, (1,), mode):
        skipped = dit(latent, t, *text)
    with skip(dit, (), mode):
        whole = dit(latent, t, *text)
    torch.testing.assert_close(skipped, by_hand(latent, t, *text), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, plain(latent, t, *text), rtol=0, atol=1e-5)
    assert (skipped - whole).abs().max() > 1e-3
    assert torch.equal(dit(latent, t, *text), whole)                       # and afterwards nothing is skipped


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_restored_after_an_error_and_keep_their_own_class(mode):
    class Own(type(network().blocks[0])):
        """A subclass of the user's."""

    dit = network()
    dit.blocks[1].__class__ = Own
    before = [type(module) for module in dit.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):
        with skip(dit, (0, 1, 1), mode):
            assert [type(module) for module in dit.modules()] != before
            raise RuntimeError("out of memory")
    assert [type(module) for module in dit.modules()] == before


@pytest.mark.parametrize("cfg", [3.0, 1.0])
@pytest.mark.parametrize("rescale", [1.0, 0.7, 0.0])
@torch.no_grad()
def test_the_velocity_is_the_formula(rescale, cfg):
    """v = v_null + g (v_text - v_null) + s (v_text - v_skipped), then its spread is pulled to v_text's, for
    each sample (SPEC 5.2). With g = 1 the null caption is not needed."""
    dit, (text, null) = network(), captions()
    guidance = SpatioTemporalGuidance(cfg, 0.8, (1,), rescale=rescale).of(dit)
    out = guidance.velocity(predictor(dit), text, null if cfg > 1 else None)
    v_text, v_null = predictor(dit)(*text), predictor(dit)(*null)
    v_skipped = predictor(skipped_by_hand(dit, "attention_values"))(*text)
    v = v_null + cfg * (v_text - v_null) + 0.8 * (v_text - v_skipped)
    for b in range(2):
        factor = 1.0 if rescale == 1.0 else rescale * v_text[b].std() / v[b].std() + 1 - rescale
        torch.testing.assert_close(out[b], factor * v[b], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_a_scale_it_is_classifier_free_guidance():
    dit, (text, null) = network(), captions()
    for cfg in (1.0, 3.0):
        pair = [guidance.velocity(predictor(dit) if cfg == 1 else both(dit), text, null)
                for guidance in (Guidance(cfg), SpatioTemporalGuidance(cfg, 0.0, (7,), rescale=0.7))]
        assert torch.equal(*pair)


def both(dit):
    """A predictor for both captions in one batch."""
    latent, t = inputs()
    return lambda text, mask: dit(latent.repeat(2, 1, 1, 1, 1), t.repeat(2), text, mask).flatten(2)


@pytest.mark.parametrize("guidance, captions_run", [
    (SpatioTemporalGuidance(1.0), [2]), (SpatioTemporalGuidance(3.0), [4]),
    (SpatioTemporalGuidance(1.0, 1.0, (1,)), [2, 2]), (SpatioTemporalGuidance(3.0, 1.0, (1,)), [2, 2, 2])])
def test_a_step_runs_the_network_only_as_often_as_needed(guidance, captions_run, monkeypatch):
    """Batch sizes of the calls in one step of two samples."""
    dit, (text, null), calls = network(), captions(), []
    forward = dit.forward_tokens
    monkeypatch.setattr(dit, "forward_tokens", lambda z, *rest: calls.append(len(z)) or forward(z, *rest))
    noise = inputs()[0]
    out = sample_latent(dit, noise, text, null, Sampling(torch.tensor([1.0, 0.0]), guidance.of(dit)))
    assert calls == captions_run and out.shape == noise.shape


def test_impossible_settings_name_the_fix():
    with pytest.raises(ValueError, match="attention_values, attention_skip, transformer_block"):
        SpatioTemporalGuidance(stg_mode="residual")
    for blocks in ((), (2,), (0, -1), ("a",)):
        with pytest.raises(ValueError, match="this transformer has 0 to 1; give other stg_blocks"):
            SpatioTemporalGuidance(1.0, 1.0, blocks).of(network())
    assert SpatioTemporalGuidance(1.0, 0.0, (19,)).of(network()).cfg == 1.0         # nothing will be skipped
