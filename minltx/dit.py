"""The diffusion transformer: every latent voxel attends to every other, across space and time.

A block is self-attention over all tokens of all frames, cross-attention to the caption, and a feed-forward
layer. Unusual (paper, section 2.2; SPEC 3): the time t reaches all blocks through *one* shared linear layer
plus a small table per block (adaLN-single), queries and keys are RMS-normalised, and t may differ from token
to token. The tokens of a given first frame are clean and get t = 0; for image-to-video the network needs no
other change.

Names of modules (`attn1`, `scale_shift_table`, `patchify_proj`, ...) are those of the released weights.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minltx import require
from minltx.layers import Attention, FeedForward, TimestepEmbedder, modulate, rms_norm
from minltx.rope import latent_coordinates, rope_tables, rotate


@dataclass(frozen=True)
class DiTConfig:
    """The defaults are the released 2 B LTX-Video 0.9.5 (SPEC 3.1). `stride` is the VAE's; `max_position` is
    in seconds, pixels, pixels; `causal_time`: RoPE knows that latent frame 0 is a single pixel frame. Raises
    ValueError for sizes below 1, heads that do not divide the width, and values that are not finite."""

    latent_channels: int = 128
    width: int = 2048
    depth: int = 28
    heads: int = 32
    text_width: int = 4096
    stride: tuple = (8, 32, 32)
    max_position: tuple = (20.0, 2048.0, 2048.0)
    theta: float = 10000.0
    causal_time: bool = True

    def __post_init__(self):
        require.dit_config(self)    # raises ValueError, here and below, which names what is wrong


def flatten_latent(latent):
    """(B, C, f, h, w) -> tokens (B, N, C), frame-major: index = (frame*h + row)*w + column."""
    return latent.flatten(2).transpose(1, 2)


def unflatten_tokens(tokens, grid):
    """The inverse of `flatten_latent`: tokens (B, N, C), grid (f, h, w) -> (B, C, f, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class Block(nn.Module):
    """One transformer block. Cross-attention has no norm before it, no gate and no RoPE."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, h, modulation, rotate, text, text_mask=None):
        """Tokens h (B, N, D) -> (B, N, D); modulation (B, 1 or N, 6, D); rotate: a function on (B, N, D), see
        rope.py; text (B, L, D). shift and scale modulate a norm, gate weighs what is added; msa is
        multi-head self-attention, mlp the feed-forward layer."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = \
            (self.scale_shift_table + modulation).unbind(2)                              # (B, 1 or N, D) each
        h = h + gate_msa * self.attn1(modulate(rms_norm(h), shift_msa, scale_msa), rotate=rotate)
        h = h + self.attn2(h, text, text_mask)
        h = h + gate_mlp * self.ff(modulate(rms_norm(h), shift_mlp, scale_mlp))
        return h                                                                          # (B, N, D)


class DiT(nn.Module):
    """Noisy latent, time and caption -> velocity."""

    def __init__(self, config):
        super().__init__()
        self.config, D = config, config.width
        self.patchify_proj = nn.Linear(config.latent_channels, D)
        self.time_embedder = TimestepEmbedder(D, D)
        self.time_modulation = nn.Linear(D, 6 * D)
        self.caption_projection = nn.Sequential(nn.Linear(config.text_width, D), nn.GELU("tanh"),
                                                nn.Linear(D, D))
        self.blocks = nn.ModuleList(Block(D, config.heads) for _ in range(config.depth))
        self.scale_shift_table = nn.Parameter(torch.randn(2, D) / D**0.5)
        self.proj_out = nn.Linear(D, config.latent_channels)
        self.initialize()

    def initialize(self):
        """Xavier everywhere; small weights for time and caption; zeros in the last layer.

        With zeros the untrained network predicts velocity 0, and the loss starts at a known value, the
        variance of noise - x0. The released recipe also zeroes the output of cross-attention (SPEC 3.5). We
        do not: with those zeros the caption has no effect in the first training steps.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.time_embedder.linear_1, self.time_embedder.linear_2, self.time_modulation,
                      self.caption_projection[0]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, latent, t, text, text_mask=None, fps=24.0):
        """Velocity (B, C, f, h, w) at the noisy, normalised latent (B, C, f, h, w).

        t in [0, 1]: (B,), or (B, f, h, w) for one time per token. text (B, L, text width), text_mask (B, L)
        with 1 = keep (None: keep all). fps is frames per second of the pixels, not of the latents. Raises
        ValueError for other shapes, times outside [0, 1], a mask that keeps no word, and fps <= 0.
        """
        require.dit_inputs(self.config, latent, t, text, text_mask)
        c, grid = self.config, tuple(latent.shape[2:])
        coordinates = latent_coordinates(grid, c.stride, fps, c.causal_time, latent.device)   # (3, N)
        t = t.flatten(1) if t.ndim > 1 else t[:, None]                                    # (B, 1 or N)
        v = self.forward_tokens(flatten_latent(latent), t, coordinates, text, text_mask)  # (B, N, C)
        return unflatten_tokens(v, grid)

    def forward_tokens(self, tokens, t, coordinates, text, text_mask=None):
        """The same for tokens (B, N, C), with times (B, 1 or N) and coordinates ([B,] 3, N) -> (B, N, C).

        Training and sampling call this: a keyframe's tokens (sampler.py) are not part of a grid.
        """
        rotate = self.rotation(coordinates)
        text = self.caption_projection(text)                                              # (B, L, D)
        time = self.time_embedder(1000 * t)                                               # (B, 1 or N, D)
        modulation = self.time_modulation(F.silu(time)).unflatten(-1, (6, -1))            # (B, 1 or N, 6, D)
        h = self.patchify_proj(tokens)                                                    # (B, N, D)
        for block in self.blocks:
            h = block(h, modulation, rotate, text, text_mask)
        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(2)             # (B, 1 or N, D) each
        h = modulate(F.layer_norm(h, h.shape[-1:], eps=1e-6), shift, scale)
        return self.proj_out(h)                                                           # (B, N, C)

    def rotation(self, coordinates):
        """Coordinates ([B,] 3, N) -> RoPE as a function (B, N, D) -> (B, N, D) of queries or keys."""
        c = self.config
        cos, sin = rope_tables(coordinates, c.width, c.max_position, c.theta)             # ([B,] N, D) each
        return partial(rotate, cos=cos, sin=sin)
