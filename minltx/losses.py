"""What the VAE is trained on, and how the terms add up (paper, section 2.1; SPEC 8).

The wavelet loss penalises errors in edges and motion that a pixel loss barely sees. The KL term keeps the
latents in a range where adding noise means something. A perceptual loss compares the features of a frozen
network. Unusual is the *reconstruction* GAN: its discriminator sees the original and the reconstruction
together, in random order, and says patch by patch which one is the original. That is easier than deciding
whether one video is real, and the answer is about this very clip. One term is ours, not the paper's. Where
motion is uncertain, squared error prefers the average, which moves too little, and retrained VAEs of this
kind have ended with still videos. `motion` compares how large the frame differences of a clip are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from minltx.patchify import space_to_depth


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; 0 leaves a term out. The defaults are the toy's. `foreground` is the extra weight
    of bright pixels in the pixel term; the training loop lowers it to 0 over the first half."""

    pixel: float = 1.0
    dwt: float = 0.1
    motion: float = 25.0
    kl: float = 1e-4
    perceptual: float = 0.0
    adversarial: float = 0.0
    foreground: float = 0.0


@dataclass(frozen=True)
class Critics:
    """The networks that two of the terms need: `perceptual`, a function (output, video) -> scalar, and a
    `discriminator` (SPEC 8). None where the term's weight is 0."""

    perceptual: object = None
    discriminator: nn.Module | None = None


def haar_dwt(x):
    """The 3-D Haar transform, one level: (B, C, F, H, W) -> (B, 8*C, ceil(F/2), H/2, W/2), orthonormal.

    Eight sub-bands, low or high in time, rows and columns, in channel order (c, t, y, x). An odd number of
    frames repeats the first one, as the encoder does. (SPEC 8; the wavelet family is our choice.)
    """
    if x.shape[2] % 2:
        x = torch.cat([x[:, :, :1], x], dim=2)
    x = space_to_depth(x, (2, 2, 2)).unflatten(1, (-1, 2, 2, 2))                   # (B, C, t, y, x, F/2, ...)
    for axis in (2, 3, 4):
        a, b = x.unbind(axis)
        x = torch.stack([a + b, a - b], dim=axis) / 2**0.5
    return x.flatten(1, 4)                                                            # (B, 8C, F/2, H/2, W/2)


def motion_amplitude(video):
    """Root mean square of the frame differences of every clip: (B, C, F, H, W) -> (B,).

    The added 1e-8 keeps the gradient of the root finite for a still image."""
    differences = video[:, :, 1:] - video[:, :, :-1]
    return (differences.square().sum(dim=(1, 2, 3, 4)) / max(1, differences[0].numel()) + 1e-8).sqrt()


def kl_divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)) per latent number, averaged over everything."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def feature_distance(features, output, video):
    """Mean squared difference of a frozen network's features, each scaled to length 1 over its channels.

    features maps a video to a list of (n, C, h, w), one per layer: LPIPS without its learned weights.
    """
    return sum((F.normalize(a) - F.normalize(b)).square().sum(1).mean()
               for a, b in zip(features(output), features(video), strict=True))


class Discriminator(nn.Module):
    """The reconstruction GAN's: it sees both videos as one pair of 6 channels, and scores every 4x4 pixels.

    Inputs: video and output (B, 3, F, H, W); first, (B,) booleans, True where the original is the first of
    its pair. Returns the score of the *correct* answer (B, 1, F, H/4, W/4): above 0, it is right.
    """

    def __init__(self, width=32, channels=6):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, width, (3, 4, 4), (1, 2, 2), padding=1), nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, (3, 4, 4), (1, 2, 2), padding=1), nn.LeakyReLU(0.2),
            nn.Conv3d(2 * width, 1, 3, padding=1))

    def forward(self, video, output, first):
        first = first[:, None, None, None, None]
        pair = torch.cat([torch.where(first, video, output), torch.where(first, output, video)], dim=1)
        says_first = self.layers(pair)                                                   # (B, 1, F, H/4, W/4)
        return torch.where(first, says_first, -says_first)


def discriminator_loss(discriminator, video, output, first):
    """The discriminator's loss: -log of the probability that it is right; log 2 at chance. No gradient
    reaches the VAE."""
    return F.softplus(-discriminator(video, output.detach(), first)).mean()


def adversarial_loss(discriminator, video, output, first):
    """The VAE's loss: -log of the probability that the discriminator is wrong; log 2 at chance. No gradient
    reaches the discriminator's parameters."""
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return F.softplus(functional_call(discriminator, frozen, (video, output, first))).mean()


def vae_loss(video, output, posterior, config, critics=Critics(), first=None):
    """The weighted sum of all terms, and each term by name before its weight: (loss, dict of scalars).

    video and output (B, 3, F, H, W) in [-1, 1]; posterior is (mean, logvar) as `VideoVAE.encode` returns it.
    With a foreground weight of w, a pixel of brightness b in [0, 1] counts 1 + w*b times in the pixel term.
    critics, and `first` (see `Discriminator`), are needed where their terms have a weight.
    """
    weight = 1 + config.foreground * (video.amax(dim=1, keepdim=True) + 1) / 2            # (B, 1, F, H, W)
    terms = {"pixel": (weight * (output - video).square()).mean(),
             "dwt": (haar_dwt(output) - haar_dwt(video)).abs().mean(),
             "motion": (motion_amplitude(output) - motion_amplitude(video)).square().mean(),
             "kl": kl_divergence(*posterior)}
    if config.perceptual:
        terms["perceptual"] = critics.perceptual(output, video)
    if config.adversarial:
        terms["adversarial"] = adversarial_loss(critics.discriminator, video, output, first)
    return sum(getattr(config, name) * term for name, term in terms.items()), terms
