"""The Video-VAE: compress 1:192, with a decoder that also removes a little noise.

Three things are unusual (paper, section 2.1; SPEC 1 and 2). The encoder starts from patches, so one latent
voxel stands for a whole box of pixels, and the transformer needs no patches of its own. At full size a box
is 8 frames of 32x32 pixels: 8*32*32*3 numbers become 128, 1:192. All channels of a voxel share one
log-variance: with a variance per channel the VAE could set a channel to mean 0 and variance 1, where it costs
no KL and carries nothing. And the decoder is conditioned on a time t: in training its input is noisy to the
degree t, so it learns to remove a little noise. The sampler adds a little to its finished latent, and the
decoder removes it together with the small errors of sampling.

The encoder is causal: latent frame k depends on pixel frames 0..stride*k and nothing later. So the first
latent frame of a clip is the latent of its first frame alone, and an image is a clip of one frame. The
decoder is not causal: a decoded frame may depend on later latents.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minltx import require
from minltx.flow import expand_like
from minltx.layers import TimestepEmbedder
from minltx.patchify import depth_to_space, patchify, space_to_depth, unpatchify


@dataclass(frozen=True)
class VAEConfig:
    """The defaults are the released LTX-Video 0.9.5 (SPEC 1.8). A block is one of

    ("res", n), ("noisy", n): n residual blocks, without or with noise injection;
    ("down", stride, C), ("up", stride, C): to another resolution and to C channels, with a residual path.

    A stride is (frames, rows, columns), each 1 or 2. `BLOCKS` below maps the names to modules. The toy's
    configuration is in training/settings.py. Raises ValueError for sizes below 1 and for other strides.
    """

    latent_channels: int = 128
    patch: int = 4
    encoder_width: int = 128
    encoder_blocks: tuple = (("res", 4), ("down", (1, 2, 2), 256), ("res", 6), ("down", (2, 1, 1), 512),
                             ("res", 6), ("down", (2, 2, 2), 1024), ("res", 2), ("down", (2, 2, 2), 2048),
                             ("res", 2))
    decoder_width: int = 1024
    decoder_blocks: tuple = (("res", 5), ("up", (2, 2, 2), 512), ("res", 5), ("up", (2, 2, 2), 256),
                             ("res", 5), ("up", (2, 2, 2), 128), ("res", 5))

    def __post_init__(self):
        require.vae_config(self)

    @property
    def stride(self):
        """Pixels per latent voxel: (frames, rows, columns)."""
        return self.product_of_strides(self.encoder_blocks)

    def product_of_strides(self, blocks):
        """The patch times the strides of all blocks that have one: they have two arguments."""
        strides = [(1, self.patch, self.patch)] + [args[0] for _, *args in blocks if len(args) == 2]
        return tuple(math.prod(axis) for axis in zip(*strides))


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution that repeats edge frames in time and pads zeros in space.

    The name is the released one; `causal` decides. A kernel of 3 frames needs 2 more frames. Causal: two
    copies of the first frame in front, so no output depends on a later frame. Not causal: one copy at each
    end. Zeros in time would look like a fade-in from grey (SPEC 1.3).
    """

    def __init__(self, inputs, outputs, causal=True, stride=1):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=(0, 1, 1))
        self.front, self.back = (2, 0) if causal else (1, 1)

    def forward(self, x):
        x = torch.cat([x[:, :, :1]] * self.front + [x] + [x[:, :, -1:]] * self.back, dim=2)   # F + 2 frames
        return self.conv(x)


def pixel_norm(x, shift=None, scale=None):
    """Scale the channel vector of every voxel to unit mean square; no learned weight (SPEC 1.4).

    x (B, C, f, h, w). shift and scale (B, C), made from t, then modulate it (`layers.modulate`).
    """
    x = x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-8).to(x.dtype)
    return x if scale is None else x * (1 + expand_like(scale, x)) + expand_like(shift, x)


def inject_noise(x, scale, generator):
    """Add one fresh noise map (h, w), shared by all frames, to every channel at its own learned level.

    StyleGAN's trick (SPEC 2.2). x (B, C, f, h, w), scale (C, 1, 1), or None: nothing is added.
    """
    if scale is None:
        return x
    device = generator.device if generator else x.device
    noise = torch.randn(x.shape[-2:], generator=generator, device=device, dtype=x.dtype).to(x.device)
    return x + (noise * scale)[:, None]                                                   # + (C, 1, h, w)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input; in the decoder t modulates both norms."""

    def __init__(self, width, causal, conditioned=False, noisy=False):
        super().__init__()
        self.conv1 = CausalConv3d(width, width, causal)
        self.conv2 = CausalConv3d(width, width, causal)
        self.scale_shift_table = nn.Parameter(torch.randn(4, width) / width**0.5) if conditioned else None
        self.per_channel_scale1 = nn.Parameter(torch.zeros(width, 1, 1)) if noisy else None
        self.per_channel_scale2 = nn.Parameter(torch.zeros(width, 1, 1)) if noisy else None

    def forward(self, x, time=None, generator=None):
        shift1 = scale1 = shift2 = scale2 = None
        if self.scale_shift_table is not None:
            shift1, scale1, shift2, scale2 = (self.scale_shift_table + time).unbind(1)    # (B, C) each
        h = self.conv1(F.silu(pixel_norm(x, shift1, scale1)))
        h = inject_noise(h, self.per_channel_scale1, generator)
        h = self.conv2(F.silu(pixel_norm(h, shift2, scale2)))
        h = inject_noise(h, self.per_channel_scale2, generator)
        return x + h


class ResGroup(nn.Module):
    """n residual blocks of one width, which share one timestep embedder (SPEC 2.1)."""

    def __init__(self, width, n, causal, conditioned=False, noisy=False):
        super().__init__()
        self.outputs = width
        self.time_embedder = TimestepEmbedder(4 * width, 4 * width) if conditioned else None
        self.res_blocks = nn.ModuleList(ResBlock(width, causal, conditioned, noisy) for _ in range(n))

    def forward(self, x, t=None, generator=None):
        time = None
        if self.time_embedder is not None:
            time = self.time_embedder(t).unflatten(-1, (4, -1))                           # (B, 4, C)
        for block in self.res_blocks:
            x = block(x, time, generator)
        return x


class Downsample(nn.Module):
    """Space-to-depth twice: after a convolution, and as a shortcut that averages channels (SPEC 1.7).
    Raises ValueError for channels that the stride does not divide."""

    def __init__(self, inputs, stride, outputs, causal=True, conditioned=False):
        super().__init__()
        self.stride, self.outputs, box = stride, outputs, math.prod(stride)
        if inputs * box % outputs or outputs % box:
            raise ValueError(f"{inputs} channels cannot be downsampled by {stride} to {outputs}: "
                             f"use a multiple of {box} that divides {inputs * box}")
        self.conv = CausalConv3d(inputs, outputs // box, causal)

    def forward(self, x):
        if self.stride[0] == 2:
            x = torch.cat([x[:, :, :1], x], dim=2)    # 2k+1 frames become 2(k+1): frame 0 fills a box alone
        shortcut = space_to_depth(x, self.stride)                                        # (B, C*box, f, h, w)
        shortcut = shortcut.unflatten(1, (self.outputs, -1)).mean(dim=2)               # (B, outputs, f, h, w)
        return space_to_depth(self.conv(x), self.stride) + shortcut                    # (B, outputs, f, h, w)


class Upsample(nn.Module):
    """Depth-to-space twice: after a convolution, and as a shortcut that repeats channels (SPEC 1.6).
    Raises ValueError for channels that the stride does not divide."""

    def __init__(self, inputs, stride, outputs, causal=False, conditioned=False):
        super().__init__()
        self.stride, self.outputs, box = stride, outputs, math.prod(stride)
        if inputs % box or box * outputs % inputs:
            raise ValueError(f"{inputs} channels cannot be upsampled by {stride} to {outputs}: {box} must "
                             f"divide {inputs}, and {inputs} must divide {box * outputs}")
        self.conv = CausalConv3d(inputs, box * outputs, causal)
        self.repeats = box * outputs // inputs

    def forward(self, x):
        up = depth_to_space(self.conv(x), self.stride)                                 # (B, outputs, F, H, W)
        shortcut = depth_to_space(x, self.stride).repeat(1, self.repeats, 1, 1, 1)     # (B, outputs, F, H, W)
        extra = 1 if self.stride[0] == 2 else 0   # 2f frames become 2f-1: latent 0 stands for one frame only
        return (up + shortcut)[:, :, extra:]


# The module of each kind of block, called as (inputs, *arguments, causal=, conditioned=). Other kinds can be
# added: minltx/pretrained registers those of release 0.9.0.
BLOCKS = {"res": ResGroup, "noisy": partial(ResGroup, noisy=True), "down": Downsample, "up": Upsample}


def build_blocks(blocks, width, causal, conditioned):
    """A config's block list -> its modules, and the width after them.

    Raises ValueError for an unknown kind, and for widths that a stride does not divide.
    """
    modules = nn.ModuleList()
    for kind, *arguments in blocks:
        if kind not in BLOCKS:
            raise ValueError(f"{kind!r} is not a block of the VAE: use {', '.join(BLOCKS)}")
        modules.append(BLOCKS[kind](width, *arguments, causal=causal, conditioned=conditioned))
        width = modules[-1].outputs
    return modules, width


class Encoder(nn.Module):
    """Video (B, 3, F, H, W) -> (B, latent channels + 1, f, h, w): means, and one log-variance per voxel."""

    def __init__(self, config):
        super().__init__()
        self.patch = config.patch
        self.conv_in = CausalConv3d(3 * config.patch**2, config.encoder_width)
        self.down_blocks, width = build_blocks(config.encoder_blocks, config.encoder_width, True, False)
        self.conv_out = CausalConv3d(width, config.latent_channels + 1)

    def forward(self, video):
        x = self.conv_in(patchify(video, self.patch))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(pixel_norm(x)))


class Decoder(nn.Module):
    """Latent (B, latent channels, f, h, w), noisy to the degree t (B,) -> video (B, 3, F, H, W)."""

    def __init__(self, config):
        super().__init__()
        self.patch = config.patch
        self.conv_in = CausalConv3d(config.latent_channels, config.decoder_width, causal=False)
        self.up_blocks, width = build_blocks(config.decoder_blocks, config.decoder_width, False, True)
        self.conv_out = CausalConv3d(width, 3 * config.patch**2, causal=False)
        self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))             # learned, as released
        self.last_time_embedder = TimestepEmbedder(2 * width, 2 * width)
        self.last_scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, latent, t, generator=None):
        t = t * self.timestep_scale_multiplier
        x = self.conv_in(latent)
        for block in self.up_blocks:
            x = block(x, t, generator) if isinstance(block, ResGroup) else block(x)
        time = self.last_time_embedder(t).unflatten(-1, (2, -1))                          # (B, 2, C)
        shift, scale = (self.last_scale_shift_table + time).unbind(1)                     # (B, C) each
        return unpatchify(self.conv_out(F.silu(pixel_norm(x, shift, scale))), self.patch)


class VideoVAE(nn.Module):
    """The whole autoencoder. The transformer only sees normalised latents: `normalize(encode(video)[0])`.
    Raises ValueError if the decoder's strides are not the encoder's, and as `build_blocks` does."""

    def __init__(self, config):
        super().__init__()
        if config.product_of_strides(config.decoder_blocks) != config.stride:
            raise ValueError("the strides of the decoder's blocks must multiply to those of the encoder's")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def latent_shape(self, frames, height, width):
        """Pixels -> (latent channels, f, h, w). Raises ValueError, naming the nearest legal sizes."""
        st, sy, sx = self.config.stride
        require.encodable((frames, height, width), self.config.stride)
        return self.config.latent_channels, (frames - 1) // st + 1, height // sy, width // sx

    def encode(self, video):
        """video (B, 3, F, H, W) in [-1, 1] -> posterior (mean, logvar), both (B, latent channels, f, h, w).

        Before normalisation; the one log-variance per voxel is repeated over the channels (SPEC 1.9). Raises
        ValueError for other shapes, and for sizes that `latent_shape` refuses.
        """
        require.shape("video", video, "B", 3, "F", "H", "W")
        self.latent_shape(*video.shape[2:])
        mean, logvar = self.encoder(video).tensor_split([self.config.latent_channels], dim=1)
        return mean, logvar.clamp(-30, 20).expand_as(mean)

    def decode(self, latent, t, generator=None):
        """latent (B, latent channels, f, h, w), un-normalised, noisy to the degree t (B,) -> (B, 3, F, H, W).

        t says how much noise to expect. In training that is exactly how much there is; the released
        pipeline adds half of what it says (SPEC 2.3).
        generator (default: torch's own) draws the noise of "noisy" blocks. Raises ValueError for other
        shapes, and for t outside [0, 1].
        """
        require.decodable(self.config, latent, t)
        return self.decoder(latent, t, generator)

    def normalize(self, latent):
        """Raw latent -> mean 0, standard deviation 1 per channel over the training set (SPEC 1.10)."""
        return (latent - self.latent_mean[:, None, None, None]) / self.latent_std[:, None, None, None]

    def denormalize(self, latent):
        """The inverse of `normalize`."""
        return latent * self.latent_std[:, None, None, None] + self.latent_mean[:, None, None, None]
