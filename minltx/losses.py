"""What the VAE is trained on, and how the terms add up (SPEC 8).

A wavelet loss makes the network answer for edges and motion, which a pixel loss forgives; the KL term keeps
the latents in a range where noise means something. One term is ours, not the paper's: what minimises an error
paints the uncertain too faint, and in a video motion is the uncertain part. Retrained VAEs of this kind are
known to freeze. `motion` asks every clip for as much energy in its frame differences as the original has.
Left out are the paper's perceptual loss and its reconstruction GAN: they buy texture, which flat digits lack.
"""

from dataclasses import dataclass

import torch

from minltx.patchify import space_to_depth


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms. `foreground` is the extra weight of bright pixels; the caller may anneal it."""

    pixel: float = 1.0
    dwt: float = 0.1
    motion: float = 25.0
    kl: float = 1e-4
    foreground: float = 0.0


def haar_dwt(x):
    """The 3-D Haar transform, one level: (B, C, F, H, W) -> (B, 8*C, ceil(F/2), H/2, W/2), orthonormal.

    Channel order (c, t, y, x), each low before high. An odd number of frames repeats the first one, as the
    encoder does. Eight sub-bands: low or high in time, rows and columns (SPEC 8; the family is our choice).
    """
    if x.shape[2] % 2:
        x = torch.cat([x[:, :, :1], x], dim=2)
    x = space_to_depth(x, (2, 2, 2)).unflatten(1, (-1, 2, 2, 2))                   # (B, C, t, y, x, F/2, ...)
    for axis in (2, 3, 4):
        a, b = x.unbind(axis)
        x = torch.stack([a + b, a - b], dim=axis) / 2**0.5
    return x.flatten(1, 4)


def motion_amplitude(video):
    """Root mean square of the frame differences of every clip: (B, C, F, H, W) -> (B,).

    The 1e-4 that a still image gets keeps the root's gradient finite."""
    differences = video[:, :, 1:] - video[:, :, :-1]
    return (differences.square().sum(dim=(1, 2, 3, 4)) / max(1, differences[0].numel()) + 1e-8).sqrt()


def kl_divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)) per latent number, averaged over everything."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def vae_loss(video, output, mean, logvar, config):
    """The sum of all terms and each by name (before its weight), as (loss, dict of scalars).

    video and output (B, 3, F, H, W) in [-1, 1]; mean and logvar as `VideoVAE.encode` gives them. With a
    foreground weight of w, a pixel of brightness b in [0, 1] counts 1 + w*b times in the pixel term.
    """
    weight = 1 + config.foreground * (video.amax(dim=1, keepdim=True) + 1) / 2            # (B, 1, F, H, W)
    terms = {"pixel": (weight * (output - video).square()).mean(),
             "dwt": (haar_dwt(output) - haar_dwt(video)).abs().mean(),
             "motion": (motion_amplitude(output) - motion_amplitude(video)).square().mean(),
             "kl": kl_divergence(mean, logvar)}
    return sum(getattr(config, name) * term for name, term in terms.items()), terms
