"""From noise to video with stand-in networks whose answer is known."""

from types import SimpleNamespace

import pytest
import torch
from test_vae import tiny

from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.rope import latent_coordinates
from minltx.sampler import (Condition, Guidance, Sampling, check_condition, decode, generate, layout_tokens,
                            sample_latent, token_times)

STRIDE, FPS = (8, 16, 16), 20.0


def words(batch, value):
    return torch.full((batch, 2, 3), value), torch.ones(batch, 2)


class Recorder:
    """A transformer whose velocity leads to `target` where the caption is 1, and to 0 where it is the null
    caption, -1. The last tokens are the video's."""

    config = SimpleNamespace(stride=STRIDE, causal_time=True)

    def __init__(self, target):
        self.target, self.captions, self.times, self.coordinates = target, [], [], []

    def forward_tokens(self, z, t, coordinates, text, mask):
        self.coordinates.append(coordinates)
        self.times.append(t)
        self.captions.append(text[:, 0, 0].tolist())
        end = torch.zeros_like(z)
        target = flatten_latent(self.target)
        end[:, -target.shape[1]:] = target.repeat(len(z) // len(target), 1, 1)
        end[text[:, 0, 0] < 0] = 0
        return (z - end) / t.unsqueeze(-1).clamp_min(1e-3)


class Still(Recorder):
    """A transformer of velocity 0 that keeps what it was given."""

    def __init__(self, target):
        super().__init__(target)
        self.seen = []

    def forward_tokens(self, z, t, coordinates, text, mask):
        self.seen.append(z)
        self.times.append(t)
        return torch.zeros_like(z)


def sample(dit, noise, how=None, text=None, null=None, **more):
    """`sample_latent` with SCHEDULE, guidance 1 and the caption 1, if nothing else is said."""
    text = words(len(noise), 1.0) if text is None else text
    return sample_latent(dit, noise, text, null, how or Sampling(SCHEDULE), **more)


SCHEDULE = torch.tensor([1.0, 0.6, 0.3, 0.0])


def test_a_given_first_frame_comes_out_exactly_and_the_rest_lands():
    torch.manual_seed(0)
    (target, noise), first = torch.randn(2, 2, 4, 3, 2, 2), torch.randn(2, 4, 1, 2, 2)
    dit = Recorder(target)
    out = sample(dit, noise, conditions=[Condition(first)])
    assert torch.equal(out[:, :, :1], first)
    torch.testing.assert_close(out[:, :, 1:], target[:, :, 1:], rtol=0, atol=1e-5)
    assert all((t[:, :4] == 0).all() and (t[:, 4:] == s).all() for t, s in zip(dit.times, SCHEDULE))


def test_a_keyframe_is_extra_tokens_where_its_frame_is():
    (target, noise), key = torch.randn(2, 1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    dit = Recorder(target)
    out = sample(dit, noise, Sampling(SCHEDULE, fps=FPS), conditions=[Condition(key, frame=5)],
                 generators=[torch.Generator()])
    torch.testing.assert_close(out, target, rtol=0, atol=1e-5)          # the grid is generated whole
    where, grid = dit.coordinates[0], latent_coordinates((3, 2, 2), STRIDE, FPS, True)
    assert where.shape == (3, 4 + 12) and torch.equal(where[:, 4:], grid)
    assert torch.equal(where[0, :4], torch.full((4,), 5 / FPS)) and torch.equal(where[1:, :4], grid[1:, :4])
    assert all((t[:, :4] == 0).all() and (t[:, 4:] == s).all() for t, s in zip(dit.times, SCHEDULE))


def test_a_clip_at_the_end_is_two_latent_frames_of_extra_tokens_and_the_rest_in_place():
    """Four latent frames from pixel frame 8 on: they show frames 8, 9-16, 17-24 and 25-32."""
    clip, noise = torch.randn(1, 4, 4, 1, 2), torch.randn(1, 4, 5, 1, 2)
    clean, strength, where = layout_tokens([Condition(clip, frame=8, strength=0.7)], noise, STRIDE, FPS,
                                           True)
    assert torch.equal(clean[:, :4], flatten_latent(clip[:, :, :2]))
    assert torch.equal(clean[:, 4 + 6:], flatten_latent(clip[:, :, 2:])) and not clean[:, 4 : 4 + 6].any()
    assert strength[0, :, 0].tolist() == pytest.approx([0.7] * 4 + [0.0] * 6 + [0.7] * 4)
    assert (where[0, :4] * FPS).tolist() == pytest.approx([8, 8, 9, 9])
    assert (where[0, 4:] * FPS).tolist() == pytest.approx([0, 0, 1, 1, 9, 9, 17, 17, 25, 25])


def test_conditions_of_every_kind_hold_to_their_strength():
    torch.manual_seed(0)
    given, noise = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 3, 2, 2)
    for strength in (0.0, 0.3, 1.0):
        out = sample(Still(noise), noise, conditions=[Condition(given, 0, strength)])
        torch.testing.assert_close(out[:, :, :2], (1 - strength) * noise[:, :, :2] + strength * given)
        assert torch.equal(out[:, :, 2:], noise[:, :, 2:])


def test_times_of_soft_tokens_and_when_they_move():
    strength = torch.tensor([0.0, 0.4, 1.0]).view(1, 3, 1)
    times, moves = token_times(0.8, strength)
    assert (times.tolist() == [pytest.approx([0.8, 0.6, 0.0])]
            and moves.flatten().tolist() == [True, False, False])
    times, moves = token_times(torch.tensor([0.9, 0.6]).view(2, 1, 1), strength)
    assert times.tolist() == [pytest.approx([0.9, 0.6, 0.0]), pytest.approx([0.6, 0.6, 0.0])]
    assert moves[:, :, 0].tolist() == [[True, False, False], [True, True, False]]


def test_noise_on_conditions_shrinks_with_t_squared_and_spares_soft_ones():
    torch.manual_seed(0)
    first, noise = torch.randn(1, 4, 1, 2, 2), torch.randn(1, 4, 3, 2, 2)
    for strength, wanted in ((1.0, [0.15, 0.15 * 0.36, 0.15 * 0.09]), (0.9, [0.0, 0.0, 0.0])):
        dit = Still(noise)
        sample(dit, noise, Sampling(SCHEDULE, condition_noise=0.15),
               conditions=[Condition(first, 0, strength)], generators=[torch.Generator().manual_seed(1)])
        generator = torch.Generator().manual_seed(1)
        start = torch.lerp(flatten_latent(noise)[:, :4], flatten_latent(first), strength)
        for z, scale in zip(dit.seen, wanted, strict=True):
            fresh = torch.randn(12, 4, generator=generator)[None, :4]
            torch.testing.assert_close(z[:, :4], start + scale * fresh)


@pytest.mark.parametrize("condition, says", [
    (dict(frame=17), "place it at 0 to 16"), (dict(frame=-1), "place it at 0 to 16"),
    (dict(frame=5, frames=2), "use a multiple of 8, for instance 0 or 8"),
    (dict(frames=4), "longer than the video"),
    (dict(size=(3, 2)), "resize the picture"), (dict(strength=1.5), "use 0 to 1")])
def test_impossible_conditions_name_the_fix(condition, says):
    latent = torch.zeros(1, 4, condition.pop("frames", 1), *condition.pop("size", (2, 2)))
    with pytest.raises(ValueError, match=says):
        check_condition(Condition(latent, **condition), (3, 2, 2), STRIDE)


def test_video_to_video_starts_at_the_schedules_first_time():
    start, noise = torch.randn(2, 1, 4, 3, 2, 2)
    dit = Still(start)
    out = sample(dit, noise, Sampling(torch.tensor([0.6, 0.3, 0.0])), start=start)
    torch.testing.assert_close(out, 0.4 * start + 0.6 * noise)
    assert [t.item() for t in dit.times] == pytest.approx([0.6, 0.3])


def test_without_guidance_the_null_caption_is_not_computed():
    target, noise = torch.randn(2, 1, 4, 1, 2, 2)
    for cfg, captions in ((1.0, [1.0]), (0.0, [1.0]), (2.0, [-1.0, 1.0])):
        dit = Recorder(target)
        out = sample(dit, noise, Sampling(SCHEDULE, Guidance(cfg)), null=words(1, -1.0))
        assert dit.captions == [captions] * 3
        if cfg <= 1:
            torch.testing.assert_close(out, target, rtol=0, atol=1e-5)


def test_one_step_of_guidance_is_the_formula():
    """v = v_null + g (v_text - v_null), see SPEC 5.2."""
    torch.manual_seed(0)
    target, noise = torch.randn(2, 2, 4, 3, 2, 2)
    out = sample(Recorder(target), noise, Sampling(torch.tensor([1.0, 0.0]), Guidance(3.0)),
                 null=words(2, -1.0))
    v_text, v_null = noise - target, noise
    torch.testing.assert_close(out, noise - (v_null + 3.0 * (v_text - v_null)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_both_captions_in_one_batch_are_two_forward_passes():
    """The captions are of different lengths, so the shorter one is padded and masked."""
    torch.manual_seed(0)
    dit = DiT(DiTConfig(4, 24, 2, 2, 16, STRIDE))
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.3)
    noise, text, null = torch.randn(2, 4, 2, 2, 2), torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    mask, null_mask = torch.tensor([[1.0] * 5, [1.0, 1, 1, 0, 0]]), torch.tensor([[1.0, 0, 0]] * 2)
    out = sample(dit, noise, Sampling(torch.tensor([1.0, 0.0]), Guidance(2.5), FPS), (text, mask),
                 (null, null_mask))
    t = torch.ones(2)
    v_text, v_null = dit(noise, t, text, mask, FPS), dit(noise, t, null, null_mask, FPS)
    torch.testing.assert_close(out, noise - (v_null + 2.5 * (v_text - v_null)), rtol=0, atol=2e-5)


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    """Also with stochastic steps, a given picture with noise on it, and a keyframe's extra tokens."""
    torch.manual_seed(0)
    dit, vae = DiT(DiTConfig(4, 24, 1, 2, 16, (8, 8, 8))).eval(), tiny()
    torch.nn.init.normal_(dit.proj_out.weight, std=0.3)
    model, text = SimpleNamespace(dit=dit, vae=vae), (torch.randn(1, 3, 16), torch.ones(1, 3))
    picture = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    how = Sampling(SCHEDULE, condition_noise=0.1, stochastic=True)

    def make(seeds):
        pair = tuple(x.expand(len(seeds), *x.shape[1:]) for x in text)
        return generate(model, pair, None, seeds, (9, 16, 16), how, [(picture, 0, 1.0), (picture, 8, 1.0)])

    both = make([3, 4])
    for i in range(2):
        torch.testing.assert_close(make([3 + i])[0], both[i], rtol=0, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-2


class Transparent:
    """A VAE whose video is its latent; raw = 10 * normalised + 3."""

    def denormalize(self, latent):
        return 10 * latent + 3

    def decode(self, latent, t, generator):
        self.latent, self.t = latent, t
        return latent


def test_decode_mixes_noise_in_the_normalised_space_and_passes_its_own_t():
    latent, noise, vae = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2), Transparent()
    video = decode(vae, latent, t=0.05, noise_scale=0.025, noise=noise)
    torch.testing.assert_close(vae.latent, 10 * (0.975 * latent + 0.025 * noise) + 3)
    assert torch.equal(vae.t, torch.full((2,), 0.05))        # not the degree of noise
    assert video.min() >= -1 and video.max() <= 1
    decode(vae, latent, t=0.0, noise_scale=0.0)
    torch.testing.assert_close(vae.latent, 10 * latent + 3)
