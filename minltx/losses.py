"""What the VAE is trained on, and how the terms add up (SPEC 8).

A wavelet loss makes the network answer for edges and motion, which a pixel loss forgives; the KL term keeps
the latents in a range where noise means something; a perceptual loss compares what a frozen network sees.
Unusual is the *reconstruction* GAN: its discriminator is shown the original and the reconstruction together,
in random order, and says patch by patch which is which. That is an easier question than "is this one real?",
and an answer about this very clip. One term is ours, not the paper's: what minimises an error paints the
uncertain too faint, and in a video motion is the uncertain part. Retrained VAEs of this kind are known to
freeze. `motion` asks every clip for as much energy in its frame differences as the original has.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from minltx.patchify import space_to_depth


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; 0 leaves a term out. `foreground` is the extra weight of bright pixels in the
    pixel term; the caller may anneal it. `gan` is what the adversarial term asks, see `Discriminator`."""

    pixel: float = 1.0
    dwt: float = 0.1
    motion: float = 25.0
    kl: float = 1e-4
    perceptual: float = 0.0
    adversarial: float = 0.0
    gan: str = "reconstruction"
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


def feature_distance(features, output, video):
    """Mean squared difference of what a frozen network sees in two videos, its features scaled to length 1.

    features maps a video to a list of (n, C, h, w), one a layer, as LPIPS does without its learned weights.
    """
    return sum((F.normalize(a) - F.normalize(b)).square().sum(1).mean()
               for a, b in zip(features(output), features(video), strict=True))


class Discriminator(nn.Sequential):
    """Videos (B, 3 or 6, F, H, W) -> one logit per patch of 4x4 pixels, (B, 1, F, H/4, W/4).

    gan = "reconstruction": it gets a pair, and a positive logit says "the first is the original". gan =
    "ordinary": it gets one video, and a positive logit says "this is an original".
    """

    def __init__(self, gan, width=32):
        if gan not in ("reconstruction", "ordinary"):
            raise ValueError(f"unknown kind of GAN {gan!r}: use reconstruction or ordinary")
        super().__init__(
            nn.Conv3d(6 if gan == "reconstruction" else 3, width, (3, 4, 4), (1, 2, 2), padding=1),
            nn.LeakyReLU(0.2), nn.Conv3d(width, 2 * width, (3, 4, 4), (1, 2, 2), padding=1),
            nn.LeakyReLU(0.2), nn.Conv3d(2 * width, 1, 3, padding=1))
        self.pairs = gan == "reconstruction"


def margins(judge, pairs, video, output, first):
    """How firmly the judge is right, patch by patch: positive right, 0 undecided, negative wrong.

    judge is a `Discriminator` (or a frozen copy) and `pairs` what it is shown. first (B,) of booleans: where
    the original comes first in its pair.
    """
    if not pairs:
        return torch.cat([judge(video), -judge(output)])
    first = first[:, None, None, None, None]
    logit = judge(torch.cat([torch.where(first, video, output), torch.where(first, output, video)], dim=1))
    return torch.where(first, logit, -logit)


def discriminator_loss(discriminator, video, output, first):
    """What the discriminator pays: -log of the probability that it is right; log 2 at chance. The VAE is not
    asked to change."""
    return F.softplus(-margins(discriminator, discriminator.pairs, video, output.detach(), first)).mean()


def adversarial_loss(discriminator, video, output, first):
    """What the VAE pays: -log of the probability that the discriminator is wrong; log 2 at chance. The
    discriminator's parameters stand still and get no gradient."""
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return F.softplus(margins(lambda x: functional_call(discriminator, frozen, (x,)), discriminator.pairs,
                              video, output, first)).mean()


def vae_loss(video, output, mean, logvar, config, perceptual=None, discriminator=None, first=None):
    """The sum of all terms and each by name (before its weight), as (loss, dict of scalars).

    video and output (B, 3, F, H, W) in [-1, 1]; mean and logvar as `VideoVAE.encode` gives them. With a
    foreground weight of w, a pixel of brightness b in [0, 1] counts 1 + w*b times in the pixel term.
    perceptual(output, video) -> scalar, and a discriminator with `first`, are needed where their terms have a
    weight.
    """
    weight = 1 + config.foreground * (video.amax(dim=1, keepdim=True) + 1) / 2            # (B, 1, F, H, W)
    terms = {"pixel": (weight * (output - video).square()).mean(),
             "dwt": (haar_dwt(output) - haar_dwt(video)).abs().mean(),
             "motion": (motion_amplitude(output) - motion_amplitude(video)).square().mean(),
             "kl": kl_divergence(mean, logvar)}
    if config.perceptual:
        terms["perceptual"] = perceptual(output, video)
    if config.adversarial:
        terms["adversarial"] = adversarial_loss(discriminator, video, output, first)
    return sum(getattr(config, name) * term for name, term in terms.items()), terms
