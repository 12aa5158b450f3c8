"""From noise to video with stand-in networks whose answer is known."""

import torch

from minltx.sampler import decode, sample_latent


def words(batch, value):
    return torch.full((batch, 2, 3), value), torch.ones(batch, 2)


class Recorder:
    """A transformer that heads for `target` where the caption is 1, for 0 where it is the null one, -1."""

    def __init__(self, target):
        self.target, self.asked, self.times = target, [], []

    def __call__(self, z, t, text, mask, fps):
        self.asked.append(text[0, 0, 0].item())
        self.times.append(t)
        end = self.target if text[0, 0, 0] > 0 else torch.zeros_like(self.target)
        t = t.view(-1, 1, 1, 1, 1) if t.ndim == 1 else t[:, None]
        return (z - end) / t.clamp_min(1e-3)


def test_a_given_first_frame_comes_out_exactly_and_the_rest_lands():
    torch.manual_seed(0)
    (target, noise), first = torch.randn(2, 2, 4, 3, 2, 2), torch.randn(2, 4, 1, 2, 2)
    dit = Recorder(target)
    schedule = torch.tensor([1.0, 0.6, 0.3, 0.0])
    out = sample_latent(dit, noise, schedule, *words(2, 1.0), *words(2, -1.0), first_frame=first)
    assert torch.equal(out[:, :, :1], first)
    torch.testing.assert_close(out[:, :, 1:], target[:, :, 1:], rtol=0, atol=1e-5)
    assert all((t[:, 0] == 0).all() and (t[:, 1:] == s).all() for t, s in zip(dit.times, schedule))


def test_guidance_of_one_or_less_never_asks_about_nothing():
    target, noise = torch.randn(2, 1, 4, 1, 2, 2)
    for guidance, asked in ((1.0, {1.0}), (0.0, {1.0}), (2.0, {1.0, -1.0})):
        dit = Recorder(target)
        schedule = torch.tensor([1.0, 0.5, 0.0])
        out = sample_latent(dit, noise, schedule, *words(1, 1.0), *words(1, -1.0), guidance=guidance)
        assert set(dit.asked) == asked
        if guidance <= 1:
            torch.testing.assert_close(out, target, rtol=0, atol=1e-5)


class Glass:
    """A VAE that shows its latent as it is; raw = 10 * normalised + 3."""

    def denormalize(self, latent):
        return 10 * latent + 3

    def decode(self, latent, t):
        self.latent, self.t = latent, t
        return latent


def test_decode_mixes_noise_in_the_normalised_space_and_tells_its_own_t():
    latent, noise, vae = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2), Glass()
    video = decode(vae, latent, t=0.05, noise_scale=0.025, noise=noise)
    torch.testing.assert_close(vae.latent, 10 * (0.975 * latent + 0.025 * noise) + 3)
    assert torch.equal(vae.t, torch.full((2,), 0.05))        # announced: not the same as what was added
    assert video.min() >= -1 and video.max() <= 1
    decode(vae, latent, t=0.0, noise_scale=0.0)
    torch.testing.assert_close(vae.latent, 10 * latent + 3)
