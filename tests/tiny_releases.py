"""Tiny models in the shape of the releases, with every number random."""

import math
from dataclasses import replace

import torch

from minltx.dit import DiTConfig
from minltx.pretrained import LTXVideo
from minltx.pretrained.releases import EARLY, VAE_090, VAE_091, ReleaseConfig, SamplingConfig
from minltx.pretrained.stg import SpatioTemporalGuidance
from minltx.vae import VAEConfig

VAE_LATE = VAEConfig(8, 4, 8, (("res", 2), ("down", (1, 2, 2), 16), ("res", 1), ("down", (2, 1, 1), 32),
                               ("res", 1), ("down", (2, 2, 2), 64), ("res", 1), ("down", (2, 2, 2), 128),
                               ("res", 1)),
                     64, (("res", 2), ("up", (2, 2, 2), 32), ("res", 1), ("up", (2, 2, 2), 16), ("res", 2),
                          ("up", (2, 2, 2), 8), ("res", 1)))


def narrow(blocks, by, layers=lambda n: (n + 1) // 2):
    """A released block list, with all widths divided and fewer layers."""
    return tuple((name, layers(args[0])) if name in ("res", "noisy") else (name, *args[:-1], args[-1] // by)
                 for name, *args in blocks)


def narrowed(config, by=16, latents=8):
    return replace(config, latent_channels=latents,
                   encoder_width=config.encoder_width // by, encoder_blocks=narrow(config.encoder_blocks, by),
                   decoder_width=config.decoder_width // by, decoder_blocks=narrow(config.decoder_blocks, by))


VAES = {"0.9.0": narrowed(VAE_090), "0.9.1": narrowed(VAE_091), "0.9.5": VAE_LATE}


def randomise(module, seed=0):
    """Every parameter and statistic random: weights by fan-in, the rest around its usual value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("timestep_scale_multiplier"):
                p.fill_(900.0)                                     # a stored value, not the usual 1000
            elif name == "latent_std":
                p.copy_(0.5 + noise.abs())
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim > 1 and "table" not in name and "per_channel" not in name:
                p.copy_(noise / math.sqrt(p[0].numel()))
            else:
                p.copy_(0.3 * noise)
    return module.eval()


def release(version="0.9.5", heads=4, head_dim=16, depth=3, text_width=32, causal=None):
    """A tiny model: width 64, and 64 mod 6 = 4 channels that never rotate."""
    vae = VAES[version]
    late = version == "0.9.5"
    dit = DiTConfig(vae.latent_channels, heads * head_dim, depth, heads, text_width, vae.stride,
                    causal_time=late if causal is None else causal)
    sampling = SamplingConfig(guidance=SpatioTemporalGuidance(3.0)) if late else EARLY
    return randomise(LTXVideo(ReleaseConfig(dit, vae, sampling)))
