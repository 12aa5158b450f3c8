"""From noise to video with stand-in networks whose answer is known."""

from types import SimpleNamespace

import pytest
import torch

from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.rope import latent_coordinates
from minltx.sampler import (STG_MODES, Condition, Guidance, check_condition, decode, place, sample_latent,
                            token_times)

STRIDE, FPS = (8, 16, 16), 20.0


def words(batch, value):
    return torch.full((batch, 2, 3), value), torch.ones(batch, 2)


class Recorder:
    """A transformer that heads for `target` where the caption is 1, for 0 where it is the null one, -1, and,
    where it is made blind, for `blind`. It takes the last tokens for the video's."""

    config = SimpleNamespace(stride=STRIDE, causal_time=True)

    def __init__(self, target, blind=None):
        self.target, self.blind, self.asked, self.times, self.places = target, blind, [], [], []

    def prepare(self, coordinates, text, mask):
        self.places.append(coordinates)
        return text[:, 0, 0]

    def step(self, z, t, prepared, perturb):
        self.asked += [perturb] if perturb else prepared.tolist()
        self.times.append(t)
        end = torch.zeros_like(z)
        target = flatten_latent(self.blind if perturb else self.target)
        end[:, -target.shape[1]:] = target.repeat(len(z) // len(target), 1, 1)
        end[prepared < 0] = 0
        return (z - end) / t.unsqueeze(-1).clamp_min(1e-3)


SCHEDULE = torch.tensor([1.0, 0.6, 0.3, 0.0])


def test_a_given_first_frame_comes_out_exactly_and_the_rest_lands():
    torch.manual_seed(0)
    (target, noise), first = torch.randn(2, 2, 4, 3, 2, 2), torch.randn(2, 4, 1, 2, 2)
    dit = Recorder(target)
    out = sample_latent(dit, noise, SCHEDULE, words(2, 1.0), conditions=[Condition(first)])
    assert torch.equal(out[:, :, :1], first)
    torch.testing.assert_close(out[:, :, 1:], target[:, :, 1:], rtol=0, atol=1e-5)
    assert all((t[:, :4] == 0).all() and (t[:, 4:] == s).all() for t, s in zip(dit.times, SCHEDULE))


def test_a_keyframe_is_extra_tokens_where_its_frame_is():
    (target, noise), key = torch.randn(2, 1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    dit = Recorder(target)
    out = sample_latent(dit, noise, SCHEDULE, words(1, 1.0), fps=FPS, conditions=[Condition(key, frame=5)],
                        generators=[torch.Generator()])
    torch.testing.assert_close(out, target, rtol=0, atol=1e-5)          # the grid is generated whole
    where, grid = dit.places[0], latent_coordinates((3, 2, 2), STRIDE, FPS, True)
    assert where.shape == (3, 4 + 12) and torch.equal(where[:, 4:], grid)
    assert torch.equal(where[0, :4], torch.full((4,), 5 / FPS)) and torch.equal(where[1:, :4], grid[1:, :4])
    assert all((t[:, :4] == 0).all() and (t[:, 4:] == s).all() for t, s in zip(dit.times, SCHEDULE))


def test_a_clip_at_the_end_is_two_latent_frames_of_extra_tokens_and_the_rest_in_place():
    """Four latent frames from pixel frame 8 on: they show frames 8, 9-16, 17-24 and 25-32."""
    clip, noise = torch.randn(1, 4, 4, 1, 2), torch.randn(1, 4, 5, 1, 2)
    clean, strength, where = place([Condition(clip, frame=8, strength=0.7)], noise, STRIDE, FPS, True)
    assert torch.equal(clean[:, :4], flatten_latent(clip[:, :, :2]))
    assert torch.equal(clean[:, 4 + 6:], flatten_latent(clip[:, :, 2:])) and not clean[:, 4 : 4 + 6].any()
    assert strength[0, :, 0].tolist() == pytest.approx([0.7] * 4 + [0.0] * 6 + [0.7] * 4)
    assert (where[0, :4] * FPS).tolist() == pytest.approx([8, 8, 9, 9])
    assert (where[0, 4:] * FPS).tolist() == pytest.approx([0, 0, 1, 1, 9, 9, 17, 17, 25, 25])


def test_conditions_of_every_kind_hold_to_their_strength():
    torch.manual_seed(0)
    given, noise = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 3, 2, 2)
    still = Recorder(noise)
    still.step = lambda z, *_: torch.zeros_like(z)       # nothing moves: the start stays to be seen
    for strength in (0.0, 0.3, 1.0):
        out = sample_latent(still, noise, SCHEDULE, words(1, 1.0), conditions=[Condition(given, 0, strength)])
        torch.testing.assert_close(out[:, :, :2], (1 - strength) * noise[:, :, :2] + strength * given)
        assert torch.equal(out[:, :, 2:], noise[:, :, 2:])


def test_times_and_turns_of_soft_tokens():
    strength = torch.tensor([0.0, 0.4, 1.0]).view(1, 3, 1)
    times, moves = token_times(0.8, strength)
    assert (times.tolist() == [pytest.approx([0.8, 0.6, 0.0])]
            and moves.flatten().tolist() == [True, False, False])
    times, moves = token_times(torch.tensor([0.9, 0.6]).view(2, 1, 1), strength)
    assert times.tolist() == [pytest.approx([0.9, 0.6, 0.0]), pytest.approx([0.6, 0.6, 0.0])]
    assert moves[:, :, 0].tolist() == [[True, False, False], [True, True, False]]


def test_noise_on_conditions_shrinks_with_t_squared_and_spares_soft_ones():
    torch.manual_seed(0)
    first, noise, seen = torch.randn(1, 4, 1, 2, 2), torch.randn(1, 4, 3, 2, 2), []
    dit = Recorder(noise)
    dit.step = lambda z, *_: seen.append(z) or torch.zeros_like(z)
    for strength, wanted in ((1.0, [0.15, 0.15 * 0.36, 0.15 * 0.09]), (0.9, [0.0, 0.0, 0.0])):
        seen.clear()
        sample_latent(dit, noise, SCHEDULE, words(1, 1.0), conditions=[Condition(first, 0, strength)],
                      condition_noise=0.15, generators=[torch.Generator().manual_seed(1)])
        generator = torch.Generator().manual_seed(1)
        start = torch.lerp(flatten_latent(noise)[:, :4], flatten_latent(first), strength)
        for z, scale in zip(seen, wanted):
            fresh = torch.randn(12, 4, generator=generator)[None, :4]
            torch.testing.assert_close(z[:, :4], start + scale * fresh)


@pytest.mark.parametrize("condition, says", [
    (dict(frame=17), "put it at 0 to 16"), (dict(frame=-1), "put it at 0 to 16"),
    (dict(frame=5, frames=2), "use a multiple of 8, for instance 0 or 8"),
    (dict(frames=4), "longer than the video"),
    (dict(size=(3, 2)), "resize the picture"), (dict(strength=1.5), "use 0 to 1")])
def test_impossible_conditions_name_the_fix(condition, says):
    latent = torch.zeros(1, 4, condition.pop("frames", 1), *condition.pop("size", (2, 2)))
    with pytest.raises(ValueError, match=says):
        check_condition(Condition(latent, **condition), (3, 2, 2), STRIDE)


def test_video_to_video_begins_where_it_is_told():
    start, noise = torch.randn(2, 1, 4, 3, 2, 2)
    dit = Recorder(start)
    dit.step = lambda z, t, *_: dit.times.append(t) or torch.zeros_like(z)
    out = sample_latent(dit, noise, torch.tensor([0.6, 0.3, 0.0]), words(1, 1.0), start=start)
    torch.testing.assert_close(out, 0.4 * start + 0.6 * noise)
    assert [t.item() for t in dit.times] == pytest.approx([0.6, 0.3])


def test_guidance_asks_only_what_it_needs():
    target, noise = torch.randn(2, 1, 4, 1, 2, 2)
    perturb = ("attention_skip", (1,))
    for guidance, asked in ((Guidance(1.0), {1.0}), (Guidance(0.0), {1.0}), (Guidance(2.0), {1.0, -1.0}),
                            (Guidance(1.0, 1.0, (1,), "attention_skip"), {1.0, perturb}),
                            (Guidance(2.0, 1.0, (1,), "attention_skip"), {1.0, -1.0, perturb})):
        dit = Recorder(target, torch.zeros_like(target))
        out = sample_latent(dit, noise, SCHEDULE[[0, 2, 3]], words(1, 1.0), words(1, -1.0), guidance)
        assert set(dit.asked) == asked
        if len(asked) == 1:
            torch.testing.assert_close(out, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rescale", [1.0, 0.7, 0.0])
def test_one_step_of_guidance_is_the_formula(rescale):
    """v = v_null + g (v_text - v_null) + s (v_text - v_blind),
    then its spread is pulled to v_text's (SPEC 5.2)."""
    torch.manual_seed(0)
    target, blind, noise = torch.randn(3, 2, 4, 3, 2, 2)
    out = sample_latent(Recorder(target, blind), noise, torch.tensor([1.0, 0.0]), words(2, 1.0),
                        words(2, -1.0), Guidance(3.0, 0.8, (19,), rescale=rescale))
    v_text, v_null, v_blind = noise - target, noise, noise - blind
    v = v_null + 3.0 * (v_text - v_null) + 0.8 * (v_text - v_blind)
    for b in range(2):
        factor = 1.0 if rescale == 1.0 else rescale * v_text[b].std() / v[b].std() + 1 - rescale
        torch.testing.assert_close(out[b], noise[b] - factor * v[b], rtol=0, atol=1e-5)


@torch.no_grad()
def test_blind_blocks():
    """Each mode against the block's parts put together by hand; other blocks see as before."""
    torch.manual_seed(0)
    dit = DiT(DiTConfig(4, 24, 2, 2, 16, STRIDE))
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.3)
    latent, t, text = torch.randn(1, 4, 2, 2, 2), torch.tensor([0.4]), torch.randn(1, 3, 16)
    block = dit.blocks[1]
    for mode in STG_MODES:
        out = dit(latent, t, text, perturb=(mode, (1,)))
        assert (out - dit(latent, t, text)).abs().max() > 1e-3
        assert torch.equal(dit(latent, t, text, perturb=(mode, ())), dit(latent, t, text))
        original = block.attn1.forward
        if mode == "transformer_block":
            kept, dit.blocks = dit.blocks, dit.blocks[:1]
        elif mode == "attention_values":
            block.attn1.forward = lambda x, **_: block.attn1.to_out(block.attn1.to_v(x))
        else:
            block.attn1.forward = lambda x, **_: block.attn1.to_out(x)
        torch.testing.assert_close(out, dit(latent, t, text), rtol=0, atol=1e-5)
        block.attn1.forward = original
        if mode == "transformer_block":
            dit.blocks = kept
    with pytest.raises(ValueError, match="attention_values, attention_skip, transformer_block"):
        Guidance(stg_mode="residual")


class Glass:
    """A VAE that shows its latent as it is; raw = 10 * normalised + 3."""

    def denormalize(self, latent):
        return 10 * latent + 3

    def decode(self, latent, t, generator):
        self.latent, self.t = latent, t
        return latent


def test_decode_mixes_noise_in_the_normalised_space_and_tells_its_own_t():
    latent, noise, vae = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2), Glass()
    video = decode(vae, latent, t=0.05, noise_scale=0.025, noise=noise)
    torch.testing.assert_close(vae.latent, 10 * (0.975 * latent + 0.025 * noise) + 3)
    assert torch.equal(vae.t, torch.full((2,), 0.05))        # announced: not the same as what was added
    assert video.min() >= -1 and video.max() <= 1
    decode(vae, latent, t=0.05, noise_scale=0.025, noise=noise, mix_raw=True)
    torch.testing.assert_close(vae.latent, 0.975 * (10 * latent + 3) + 0.025 * noise)
    decode(vae, latent, t=0.0, noise_scale=0.0)
    torch.testing.assert_close(vae.latent, 10 * latent + 3)
