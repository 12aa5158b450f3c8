"""What the VAEs of releases 0.9.0 and 0.9.1 have and the paper does not: older blocks, a plain decoder.

Both encoders, and 0.9.0's decoder, change the grid without a shortcut and the width in blocks of their own
(SPEC 1.5 to 1.8). 0.9.0's decoder is not conditioned on t. Importing this file adds the blocks to
`minltx.vae.BLOCKS`.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from minltx.patchify import depth_to_space, unpatchify
from minltx.vae import (BLOCKS, CausalConv3d, Decoder, ResGroup, VAEConfig, VideoVAE, build_blocks,
                        pixel_norm)


class WidthBlock(nn.Module):
    """("width", C): one residual block that changes the width. Its shortcut is a 1x1x1 convolution after a
    norm, the only one in the VAE with learned weights (SPEC 1.5)."""

    def __init__(self, inputs, outputs, causal, conditioned=False):
        super().__init__()
        self.outputs, same = outputs, inputs == outputs
        self.conv1 = CausalConv3d(inputs, outputs, causal)
        self.conv2 = CausalConv3d(outputs, outputs, causal)
        self.norm3 = nn.Identity() if same else nn.LayerNorm(inputs, eps=1e-6)
        self.conv_shortcut = nn.Identity() if same else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv1(F.silu(pixel_norm(x)))                                          # (B, outputs, f, h, w)
        h = self.conv2(F.silu(pixel_norm(h)))
        return self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1)) + h


def strided_conv(inputs, stride, outputs, causal, conditioned=False):
    """("stride", stride, C): a coarser grid by a strided convolution alone."""
    conv = CausalConv3d(inputs, outputs, causal, stride)
    conv.outputs = outputs
    return conv


class PlainUpsample(nn.Module):
    """("plain_up", stride, C): depth-to-space after a convolution, without a shortcut (SPEC 1.6)."""

    def __init__(self, inputs, stride, outputs, causal, conditioned=False):
        super().__init__()
        self.stride, self.outputs = stride, outputs
        self.conv = CausalConv3d(inputs, math.prod(stride) * outputs, causal)

    def forward(self, x):
        first = 1 if self.stride[0] == 2 else 0                                      # as in `vae.Upsample`
        return depth_to_space(self.conv(x), self.stride)[:, :, first:]                 # (B, outputs, F, H, W)


BLOCKS.update(width=WidthBlock, stride=strided_conv, plain_up=PlainUpsample)


@dataclass(frozen=True)
class PlainVAEConfig(VAEConfig):
    """The config of a VAE whose decoder is not conditioned on t, as in 0.9.0."""


class PlainDecoder(Decoder):
    """Latent (B, latent channels, f, h, w) -> video (B, 3, F, H, W); t is not used."""

    def __init__(self, config):
        nn.Module.__init__(self)                              # without the modules that Decoder has for t
        self.patch = config.patch
        self.conv_in = CausalConv3d(config.latent_channels, config.decoder_width, causal=False)
        self.up_blocks, width = build_blocks(config.decoder_blocks, config.decoder_width, False, False)
        self.conv_out = CausalConv3d(width, 3 * config.patch**2, causal=False)

    def forward(self, latent, t=None, generator=None):
        x = self.conv_in(latent)
        for block in self.up_blocks:
            x = block(x, None, generator) if isinstance(block, ResGroup) else block(x)
        return unpatchify(self.conv_out(F.silu(pixel_norm(x))), self.patch)


def build_vae(config):
    """The autoencoder of a config, with a `PlainDecoder` for a `PlainVAEConfig`."""
    vae = VideoVAE(config)
    if isinstance(config, PlainVAEConfig):
        vae.decoder = PlainDecoder(config)
    return vae
