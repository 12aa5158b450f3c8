"""The VAE's losses: each is what its name says, and each pulls on what it should."""

from dataclasses import replace

import pytest
import torch
from test_vae import tiny

from minltx.losses import LossConfig, haar_dwt, kl_divergence, motion_amplitude, vae_loss


def test_the_wavelet_transform_keeps_all_and_sorts_by_frequency():
    video = torch.randn(2, 3, 4, 6, 8)
    bands = haar_dwt(video)
    assert bands.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(bands.square().sum(), video.square().sum())  # orthonormal: nothing is lost
    for t in range(2):
        for y in range(2):
            for x in range(2):
                slow = sum((-1) ** (t * i + y * j + x * k) * video[:, 1, i::2, j::2, k::2]
                           for i in range(2) for j in range(2) for k in range(2)) / 8**0.5
                torch.testing.assert_close(bands[:, 8 + 4 * t + 2 * y + x], slow)
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    high = haar_dwt(still).unflatten(1, (3, 2, 4))[:, :, 1]
    assert high.abs().max() == 0  # what does not move has no high band in time


def test_kl_is_torchs():
    mean, logvar = torch.randn(2, 100)
    slow = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (logvar / 2).exp()),
                                             torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(mean, logvar), slow)


def test_motion_amplitude_of_known_clips():
    assert motion_amplitude(torch.ones(2, 3, 1, 4, 4)).max() < 2e-4         # a still image does not move
    ramp = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 4, 4) * 0.25
    torch.testing.assert_close(motion_amplitude(ramp), torch.tensor([0.25]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("term", ["pixel", "dwt", "motion", "kl"])
def test_every_weight_changes_the_gradient_of_just_what_it_should(term):
    """A term that was dropped from the sum would change nothing here."""
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1

    def gradients(config):
        vae = tiny()
        mean, logvar = vae.encode(video)
        vae_loss(video, vae.decode(mean, torch.zeros(1)), mean, logvar, config)[0].backward()
        return {name: p.grad for name, p in vae.named_parameters()}

    full = LossConfig(pixel=1.0, dwt=1.0, motion=1.0, kl=1.0)
    one, other = gradients(full), gradients(replace(full, **{term: 0.0}))
    changed = {part: any(one[n] is not None and not torch.equal(one[n], other[n])
                         for n in one if n.startswith(part))
               for part in ("encoder", "decoder")}
    assert changed == {"encoder": True, "decoder": term != "kl"}


def test_foreground_weighs_bright_pixels():
    video, config = -torch.ones(1, 3, 1, 2, 2), LossConfig(pixel=1, dwt=0, motion=0, kl=0, foreground=3.0)
    video[0, 0, 0, 0, 0] = 1.0                                      # one red pixel of four
    output = video + 0.1
    loss, _ = vae_loss(video, output, torch.zeros(1), torch.zeros(1), config)
    torch.testing.assert_close(loss, torch.tensor(0.01 * (3 * 1 + 1 * 4) / 4))
