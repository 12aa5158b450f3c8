"""The Video-VAE: compress hard, and let the decoder do the last denoising step.

Three things are unusual (SPEC 1 and 2). The encoder starts from patches, so one latent voxel stands for a
whole box of pixels (32x32x8 of them at full size, 1:192) and the transformer needs no patches of its own. One
log-variance is shared by all channels of a voxel, so that the KL term cannot be met by switching some
channels off. And the decoder is told a time t: its input may still carry noise, and going from latents to
pixels is also the last step of denoising.

The encoder is causal: latent frame k sees pixel frames 0..stride*k and nothing later, so the latent of a
clip's first frame is the latent of that frame alone, and an image is a clip of one frame.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minltx.flow import like
from minltx.layers import TimestepEmbedder
from minltx.patchify import depth_to_space, patchify, space_to_depth, unpatchify


@dataclass(frozen=True)
class VAEConfig:
    """The defaults are the released LTX-Video 0.9.5 (SPEC 1.8). A block is one of

    ("res", n), ("noisy", n): n residual blocks, without or with noise injection;
    ("width", C): one residual block that changes the width to C;
    ("down", stride, C), ("up", stride, C): to another grid and width, around a shortcut;
    ("stride", stride, C), ("plain_up", stride, C): the same without one, as in 0.9.0 and 0.9.1's encoder.

    A stride is (frames, rows, columns), each 1 or 2.
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
    timestep_conditioning: bool = True  # is the decoder told t?
    shared_logvar: bool = True          # one log-variance for all channels of a voxel? (False: to compare)
    fold: int = 1   # above 1, boxes of fold x fold latent voxels leave as one of fold^2 times the channels:
                    # patches at the transformer's input, to compare with patches at the VAE's

    @property
    def stride(self):
        """Pixels per latent voxel, as the transformer sees it: (frames, rows, columns)."""
        st, sy, sx = self.product_of_strides(self.encoder_blocks)
        return st, sy * self.fold, sx * self.fold

    @property
    def channels(self):
        """Numbers per latent voxel, as the transformer sees it."""
        return self.latent_channels * self.fold**2

    def product_of_strides(self, blocks):
        """The patch times the strides of all blocks that change the grid."""
        stride = [1, self.patch, self.patch]
        for _, *args in blocks:
            if len(args) == 2:
                stride = [a * b for a, b in zip(stride, args[0])]
        return tuple(stride)


# A small clip alone on a CPU: torch itself would take a path that is up to ten times slower.
FAST_ON_CPU = torch.backends.mkldnn.is_available()


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution that repeats edge frames in time and pads zeros in space.

    Causal: both copies in front (a frame never sees the next). Not causal: one in front, one behind.
    Zeros in time would tell the network where the clip begins by making it fade to black (SPEC 1.3).
    """

    def __init__(self, inputs, outputs, causal=True, stride=1):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=(0, 1, 1))
        self.front, self.back = (2, 0) if causal else (1, 1)

    def forward(self, x):
        x = torch.cat([x[:, :, :1]] * self.front + [x] + [x[:, :, -1:]] * self.back, dim=2)
        small = len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        if small and FAST_ON_CPU and not torch.compiler.is_compiling():
            c = self.conv
            return torch.mkldnn_convolution(x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups)
        return self.conv(x)


def pixel_norm(x, shift=None, scale=None):
    """Scale every voxel's channel vector to unit mean square; no parameters of its own (SPEC 1.4).

    x (B, C, f, h, w). With shift and scale (B, C) it is adaptive: two numbers per channel, made from t.
    """
    x = x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-8).to(x.dtype)
    return x if scale is None else torch.addcmul(like(shift, x), x, 1 + like(scale, x))


def silu_(x):
    """SiLU, in place where no gradient needs what was before; x is what a norm has just made."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def inject_noise(x, scale, generator):
    """Add one fresh map of noise (h, w), the same for all frames, in every channel at its own learned level
    (StyleGAN's trick; SPEC 2.2). x (B, C, f, h, w), scale (C, 1, 1) or None."""
    if scale is None:
        return x
    device = generator.device if generator else x.device
    noise = torch.randn(x.shape[-2:], generator=generator, device=device, dtype=x.dtype).to(x.device)
    return x + (noise * scale)[:, None]                                                   # (C, 1, h, w)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut; in a decoder that is told t, t moves both norms."""

    def __init__(self, inputs, outputs, causal, conditioned=False, noisy=False):
        super().__init__()
        self.conv1 = CausalConv3d(inputs, outputs, causal)
        self.conv2 = CausalConv3d(outputs, outputs, causal)
        self.norm3 = nn.LayerNorm(inputs, eps=1e-6) if inputs != outputs else None
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None
        self.scale_shift_table = nn.Parameter(torch.randn(4, inputs) / inputs**0.5) if conditioned else None
        self.per_channel_scale1 = nn.Parameter(torch.zeros(outputs, 1, 1)) if noisy else None
        self.per_channel_scale2 = nn.Parameter(torch.zeros(outputs, 1, 1)) if noisy else None

    def forward(self, x, time=None, generator=None):
        shift1 = scale1 = shift2 = scale2 = None
        if self.scale_shift_table is not None:
            shift1, scale1, shift2, scale2 = (self.scale_shift_table + time).unbind(1)            # (B, C)
        h = self.conv1(silu_(pixel_norm(x, shift1, scale1)))
        h = inject_noise(h, self.per_channel_scale1, generator)
        h = self.conv2(silu_(pixel_norm(h, shift2, scale2)))
        h = inject_noise(h, self.per_channel_scale2, generator)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return x + h


class ResGroup(nn.Module):
    """n residual blocks of one width, which share one time embedder (SPEC 2.1)."""

    def __init__(self, width, n, causal, conditioned, noisy):
        super().__init__()
        self.time_embedder = TimestepEmbedder(4 * width, 4 * width) if conditioned else None
        self.res_blocks = nn.ModuleList(ResBlock(width, width, causal, conditioned, noisy) for _ in range(n))

    def forward(self, x, t=None, generator=None):
        time = None
        if self.time_embedder is not None:
            time = self.time_embedder(t).unflatten(-1, (4, -1))                           # (B, 4, C)
        for block in self.res_blocks:
            x = block(x, time, generator)
        return x


class Downsample(nn.Module):
    """Space-to-depth twice: once after a convolution, once as a shortcut averaging channels (SPEC 1.7)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, self.outputs = stride, outputs
        self.conv = CausalConv3d(inputs, outputs // math.prod(stride))

    def forward(self, x):
        if self.stride[0] == 2:
            x = torch.cat([x[:, :, :1], x], dim=2)  # 2k+1 frames become 2(k+1): frame 0 gets a box of its own
        shortcut = space_to_depth(x, self.stride)                                         # (B, C*P, f, h, w)
        shortcut = shortcut.unflatten(1, (self.outputs, -1)).mean(dim=2)               # (B, outputs, f, h, w)
        return space_to_depth(self.conv(x), self.stride) + shortcut


class Upsample(nn.Module):
    """Depth-to-space twice: once after a convolution, once as a shortcut that repeats channels (SPEC 1.6)."""

    def __init__(self, inputs, outputs, stride, shortcut):
        super().__init__()
        self.stride, box = stride, math.prod(stride)
        self.conv = CausalConv3d(inputs, box * outputs, causal=False)
        self.repeats = box * outputs // inputs if shortcut else 0

    def forward(self, x):
        # `first` undoes the frame that Downsample put in front.
        first = 1 if self.stride[0] == 2 else 0
        up = depth_to_space(self.conv(x), self.stride)[:, :, first:]                   # (B, outputs, F, H, W)
        if self.repeats:
            shortcut = depth_to_space(x, self.stride)[:, None, :, first:]      # (B, 1, outputs/repeats, ...)
            up = (up.unflatten(1, (self.repeats, -1)) + shortcut).flatten(1, 2)
        return up


def build_blocks(blocks, width, causal, conditioned):
    """A config's block list as modules, and the width at its end. ValueError for what cannot be built."""
    modules = nn.ModuleList()
    for name, *args in blocks:
        outputs = width if name in ("res", "noisy") else args[-1]
        box = math.prod(args[0]) if len(args) == 2 else 1
        if name in ("res", "noisy"):
            modules.append(ResGroup(width, args[0], causal, conditioned, name == "noisy"))
        elif name == "width":
            modules.append(ResBlock(width, outputs, causal))
        elif name == "down" and width * box % outputs == 0 and outputs % box == 0:
            modules.append(Downsample(width, outputs, args[0]))
        elif name == "stride":
            modules.append(CausalConv3d(width, outputs, causal, args[0]))
        elif name == "plain_up" or name == "up" and width % box == 0 and box * outputs % width == 0:
            modules.append(Upsample(width, outputs, args[0], shortcut=name == "up"))
        else:
            raise ValueError(f"the VAE cannot be built with {(name, *args)} at width {width}: use a block of "
                             "VAEConfig's list and widths that its stride divides")
        width = outputs
    return modules, width


class Encoder(nn.Module):
    """Video (B, 3, F, H, W) -> (B, latent channels + 1, f, h, w): means and one log-variance per voxel (or
    as many log-variances as means)."""

    def __init__(self, config):
        super().__init__()
        self.patch = config.patch
        self.conv_in = CausalConv3d(3 * config.patch**2, config.encoder_width)
        self.down_blocks, width = build_blocks(config.encoder_blocks, config.encoder_width,
                                               causal=True, conditioned=False)
        self.conv_out = CausalConv3d(width, config.latent_channels
                                     + (1 if config.shared_logvar else config.latent_channels))

    def forward(self, video):
        x = self.conv_in(patchify(video, self.patch))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(silu_(pixel_norm(x)))


class Decoder(nn.Module):
    """Latent (B, latent channels, f, h, w) and t (B,) -> video (B, 3, F, H, W)."""

    def __init__(self, config):
        super().__init__()
        self.patch, conditioned = config.patch, config.timestep_conditioning
        self.conv_in = CausalConv3d(config.latent_channels, config.decoder_width, causal=False)
        self.up_blocks, width = build_blocks(config.decoder_blocks, config.decoder_width,
                                             causal=False, conditioned=conditioned)
        self.conv_out = CausalConv3d(width, 3 * config.patch**2, causal=False)
        self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0)) if conditioned else None
        self.last_time_embedder = TimestepEmbedder(2 * width, 2 * width) if conditioned else None
        self.last_scale_shift_table = (nn.Parameter(torch.randn(2, width) / width**0.5)
                                       if conditioned else None)

    def forward(self, latent, t, generator=None):
        x, shift, scale = self.conv_in(latent), None, None
        if self.last_time_embedder is not None:
            t = t * self.timestep_scale_multiplier
            time = self.last_time_embedder(t).unflatten(-1, (2, -1))                      # (B, 2, C)
            shift, scale = (self.last_scale_shift_table + time).unbind(1)
        for block in self.up_blocks:
            x = block(x, t, generator) if isinstance(block, ResGroup) else block(x)
        return unpatchify(self.conv_out(silu_(pixel_norm(x, shift, scale))), self.patch)


class VideoVAE(nn.Module):
    """The whole autoencoder. The transformer sees normalised latents only: `normalize(encode(video)[0])`."""

    def __init__(self, config):
        super().__init__()
        if config.product_of_strides(config.decoder_blocks) != config.product_of_strides(
                config.encoder_blocks):
            raise ValueError("the decoder's blocks must undo the strides of the encoder's")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))

    def latent_shape(self, frames, height, width):
        """Pixels -> (latent channels, f, h, w). ValueError names the nearest legal numbers on both sides."""
        st, sy, sx = self.config.stride
        if frames < 1 or (frames - 1) % st:
            low = max(frames - 1, 0) // st * st + 1
            raise ValueError(f"{frames} frames cannot be coded: use {st}k+1, "
                             f"for instance {low} or {low + st}")
        for name, value, s in (("height", height, sy), ("width", width, sx)):
            if value < s or value % s:
                low = max(value // s * s, s)
                raise ValueError(f"a {name} of {value} is not a multiple of {s}: use {low} or {low + s}")
        return self.config.channels, (frames - 1) // st + 1, height // sy, width // sx

    def encode(self, video):
        """video (B, 3, F, H, W) in [-1, 1] -> posterior (mean, logvar), both (B, latent channels, f, h, w).

        Before normalisation; one log-variance per voxel, repeated over the channels (SPEC 1.9).
        """
        self.latent_shape(*video.shape[2:])
        C = self.config.latent_channels
        mean, logvar = self.encoder(video).tensor_split([C], dim=1)
        logvar = logvar.clamp(-30, 20).expand_as(mean)
        return patchify(mean, self.config.fold), patchify(logvar, self.config.fold)

    def decode(self, latent, t, generator=None):
        """latent (B, latent channels, f, h, w), un-normalised, noisy to the degree t (B,) -> (B, 3, F, H, W).

        t tells the decoder how much noise to expect; it is not a step of the sampler (SPEC 2.3). generator
        (default: torch's own) draws what "noisy" blocks inject.
        """
        return self.decoder(unpatchify(latent, self.config.fold), t, generator)

    def normalize(self, latent):
        """Raw latent -> mean 0, standard deviation 1 per channel, over the training set (SPEC 1.10)."""
        return (latent - self.latent_mean[:, None, None, None]) / self.latent_std[:, None, None, None]

    def denormalize(self, latent):
        """The inverse of `normalize`."""
        return latent * self.latent_std[:, None, None, None] + self.latent_mean[:, None, None, None]
