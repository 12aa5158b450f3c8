"""The latent upsampler of 0.9.7 and 0.9.8: latents of twice the size in space, between two passes (SPEC 9.5).

It works on un-normalised latents and is a plain convolutional network. Its result has the right structure and
the wrong contrast: `adain` gives every channel the mean and spread that it had before.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minltx import require
from minltx.command import pick_device
from minltx.patchify import depth_to_space
from minltx.pretrained import store
from minltx.pretrained.fields import Fields


@dataclass(frozen=True)
class UpsamplerConfig:
    """The defaults are the released upsampler in space. stride is (frames, rows, columns): how many times
    finer the grid becomes on each axis, 1 or 2. Raises ValueError for other values."""

    latent_channels: int = 128
    width: int = 512
    blocks: int = 4
    stride: tuple = (1, 2, 2)

    def __post_init__(self):
        for name in ("latent_channels", "width", "blocks"):
            require.whole(name, getattr(self, name), 1, 2**20)
        require.require(self.width % 32 == 0, "width", self.width, "a multiple of 32, the number of groups")
        require.row("stride", self.stride, 3, require.whole, 1, 2)


class UpsamplerBlock(nn.Module):
    """Two convolutions with group norms, added to the input; the last SiLU comes after the sum."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(32, width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, width)

    def forward(self, x):
        h = F.silu(self.norm1(self.conv1(x)))                                            # (B, width, f, h, w)
        return F.silu(self.norm2(self.conv2(h)) + x)


class LatentUpsampler(nn.Module):
    """Un-normalised latent (B, C, f, h, w) -> (B, C, f, 2h, 2w); one that upsamples time: 2f-1 frames.

    Padding is zeros, in time too. Names of modules are those of the released weights. Raises ValueError for
    other shapes.
    """

    def __init__(self, config):
        super().__init__()
        self.config, width, box = config, config.width, torch.Size(config.stride).numel()
        self.initial_conv = nn.Conv3d(config.latent_channels, width, 3, padding=1)
        self.initial_norm = nn.GroupNorm(32, width)
        self.res_blocks = nn.ModuleList(UpsamplerBlock(width) for _ in range(config.blocks))
        conv = nn.Conv2d if config.stride[0] == 1 else nn.Conv3d            # in space only: frame by frame
        self.upsampler = nn.Sequential(conv(width, box * width, 3, padding=1))
        self.post_upsample_res_blocks = nn.ModuleList(UpsamplerBlock(width) for _ in range(config.blocks))
        self.final_conv = nn.Conv3d(width, config.latent_channels, 3, padding=1)

    def forward(self, latent):
        require.shape("latent", latent, "B", self.config.latent_channels, "f", "h", "w")
        x = F.silu(self.initial_norm(self.initial_conv(latent)))  # (B, width, f, h, w)
        for block in self.res_blocks:
            x = block(x)
        x = self.upsampler(x) if self.config.stride[0] == 2 else \
            self.upsampler(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)
        x = depth_to_space(x, self.config.stride)  # (B, width, F, H, W)
        x = x[:, :, self.config.stride[0] - 1:]                 # latent frame 0 stands for one pixel frame
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)                                                         # (B, C, F, H, W)


def adain(latent, reference):
    """Every channel of latent (B, C, f, h, w) with the mean and the standard deviation that this channel has
    in reference (B, C, f', h', w'), for each sample. Raises ValueError for other shapes."""
    require.shape("latent", latent, "B", "C", "f", "h", "w")
    require.shape("reference", reference, *latent.shape[:2], "f", "h", "w")
    axes = (2, 3, 4)
    std, mean = torch.std_mean(latent, axes, keepdim=True)                                # (B, C, 1, 1, 1)
    new_std, new_mean = torch.std_mean(reference, axes, keepdim=True)
    return (latent - mean) / std * new_std + new_mean


def tone_map(latent, compression):
    """Pull large values of a normalised latent towards 0, from compression 0, not at all, to 1 (SPEC 2.3).
    Raises ValueError for another compression."""
    require.number("compression", compression, 0, 1)
    k = 0.75 * compression
    return latent * (1 - 0.8 * k * torch.sigmoid(4 * k * (latent.abs() - 1)))


def upsampler_at(path):
    """Where the upsampler is: a file, a folder, or the folder `latent_upsampler` in it. Raises ValueError if
    the path does not exist."""
    if not Path(path).exists():
        raise ValueError(f"there is no {path}: give a latent upsampler, a .safetensors file or a folder")
    inner = Path(path) / "latent_upsampler"
    return inner if inner.is_dir() else Path(path)


def read_upsampler(path):
    """The config of an official file or a diffusers folder -> UpsamplerConfig. Raises ValueError for a broken
    or foreign file, and for values that minltx does not have."""
    path = upsampler_at(path)
    if path.is_dir():
        values = store.read_json(path / "config.json")
    else:
        header = store.metadata(path)
        if "config" not in header:
            raise ValueError(f"{path} does not say what it is: its header has no config")
        values = store.parse_json(header["config"], f"the config in the header of {path}")
    fields = Fields(values, f"the config of {path}")
    if "vae" in fields.values or "transformer" in fields.values:
        raise ValueError(f"{path} is a whole model, not a latent upsampler: give it to --weights")
    fields.must_be(_class_name=("LatentUpsampler", "LTXLatentUpsamplerModel"))
    if fields.checked("dims", lambda x: x in (2, 3), "number of dimensions", (2,)) != 3:
        raise ValueError(f"{path}: dims is 2, and minltx only knows upsamplers with 3-D convolutions")
    width = fields.count("mid_channels")
    if width % 32:
        raise ValueError(f"{path}: mid_channels is {width}, which 32 groups do not divide")
    space, time = fields.flag("spatial_upsample", True), fields.flag("temporal_upsample")
    if not space and not time:
        raise ValueError(f"{path} upsamples neither space nor time")
    return UpsamplerConfig(fields.count("in_channels"), width, fields.count("num_blocks_per_stage", 4),
                           (1 + time, 1 + space, 1 + space))


def load_upsampler(path, dtype=None, device="cpu"):
    """An official single file (ltxv-spatial-upscaler-....safetensors), a diffusers folder `latent_upsampler`,
    or the folder that holds it -> LatentUpsampler. dtype: as in `load_pretrained`. Raises ValueError as
    `read_upsampler` does, and for tensors that do not fit."""
    path, device = upsampler_at(path), pick_device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    with torch.device("meta"):
        upsampler = LatentUpsampler(read_upsampler(path))
    part = upsampler, {name: name for name in upsampler.state_dict()}, store.locate(path), path
    store.check(*part)
    store.fill(*part, dtype, device)
    return upsampler.eval()
