"""The diffusion transformer: every latent voxel sees every other, in space and in time.

A block is self-attention over all tokens of all frames at once, cross-attention to the caption, and a
feed-forward layer. Unusual (SPEC 3): queries and keys are RMS-normalised, the time t reaches all
blocks through *one* shared linear layer plus a small table per block (adaLN-single), and t may differ from
token to token: a token with t = 0 is a given picture, which is all that image-to-video needs.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minltx.layers import NORMS, Attention, FeedForward, TimestepEmbedder, modulate, rms_norm
from minltx.rope import as_pairs, latent_coordinates, rope_tables, turn_


@dataclass(frozen=True)
class DiTConfig:
    """The defaults are the released 2 B LTX-Video 0.9.5 (SPEC 3.1). `stride` is the VAE's; `max_position` in
    seconds, pixels, pixels; `causal_time`: whether RoPE knows that latent frame 0 is one pixel frame.

    The last three are for comparisons. rope: "exponential", "inverse" (see `rope_tables`), "absolute" (the
    tables are added to the tokens, nothing turns) or "none". qk_norm: "rms", "layer" or "none". attention:
    "full", or "space-time": even blocks see their own frame, odd ones their own place in all frames.
    """

    latent_channels: int = 128
    width: int = 2048
    depth: int = 28
    heads: int = 32
    text_width: int = 4096
    stride: tuple = (8, 32, 32)
    max_position: tuple = (20.0, 2048.0, 2048.0)
    theta: float = 10000.0
    causal_time: bool = True
    rope: str = "exponential"
    qk_norm: str = "rms"
    attention: str = "full"

    def __post_init__(self):
        for name, known in (("rope", ("exponential", "inverse", "absolute", "none")),
                            ("qk_norm", NORMS), ("attention", ("full", "space-time"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: use one of {', '.join(known)}")


def flatten_latent(latent):
    """(B, C, f, h, w) -> tokens (B, N, C), frame-major: index = (frame*h + row)*w + column."""
    return latent.flatten(2).transpose(1, 2)


def unflatten_tokens(tokens, grid):
    """The inverse of `flatten_latent`: tokens (B, N, C), grid (f, h, w) -> (B, C, f, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def who_sees_whom(coordinates):
    """Coordinates ([B,] 3, N) -> 1 where tokens share their frame, and 1 where they share their place, both
    (1 or B, N, N): attention in space, then in time."""
    same = (coordinates[..., :, None] == coordinates[..., None, :]).float()              # ([B,] 3, N, N)
    same = same if same.ndim == 4 else same[None]
    return same[:, 0], same[:, 1] * same[:, 2]


class Block(nn.Module):
    """One transformer block. Cross-attention has no norm in front of it, no gate and no RoPE."""

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.attn1 = Attention(width, heads, qk_norm)
        self.attn2 = Attention(width, heads, qk_norm)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, h, text, text_mask, modulation, rope, mask=None, perturb=None):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = \
            (self.scale_shift_table + modulation).unbind(2)                              # each (B, 1 or N, D)
        x = self.attn1(modulate(rms_norm(h), shift_msa, scale_msa), mask=mask, rotate=rope, perturb=perturb)
        h = torch.addcmul(h, gate_msa, x)                                                 # h + gate * x
        h = h + self.attn2(h, text, text_mask)
        x = self.ff(modulate(rms_norm(h), shift_mlp, scale_mlp))
        return torch.addcmul(h, gate_mlp, x)                                              # (B, N, D)


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
        self.blocks = nn.ModuleList(Block(D, config.heads, config.qk_norm) for _ in range(config.depth))
        self.scale_shift_table = nn.Parameter(torch.randn(2, D) / D**0.5)
        self.proj_out = nn.Linear(D, config.latent_channels)
        self.initialize()

    def initialize(self):
        """Xavier everywhere; a quiet start for what steers (time, caption); a last layer of zeros.

        With it the untrained network predicts velocity 0 and the loss starts at its known value, the variance
        of noise - x0, instead of first unlearning noise of its own. The released recipe also zeroes the
        cross-attention's output (SPEC 3.5), which costs the caption a step or two; we do not.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.time_embedder.linear_1, self.time_embedder.linear_2, self.time_modulation,
                      self.caption_projection[0]):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, latent, t, text, text_mask=None, fps=24.0, perturb=None):
        """Velocity (B, C, f, h, w) at the noisy, normalised latent (B, C, f, h, w).

        t in [0, 1]: (B,), or (B, f, h, w) for a time per token. text (B, L, text width), text_mask (B, L)
        with 1 = keep (None: keep all). fps is frames per second of the pixels, not of the latents. perturb is
        None or (mode, blocks): what to leave out in which blocks, see `forward_tokens`.
        """
        grid = tuple(latent.shape[2:])
        coordinates = latent_coordinates(grid, self.config.stride, fps, self.config.causal_time,
                                         latent.device)
        v = self.forward_tokens(flatten_latent(latent), t.flatten(1) if t.ndim > 1 else t[:, None],
                                coordinates, text, text_mask, perturb)
        return unflatten_tokens(v, grid)

    def forward_tokens(self, tokens, t, coordinates, text, text_mask=None, perturb=None):
        """The same for any tokens (B, N, C), with times (B, 1 or N) and coordinates ([B,] 3, N) -> (B, N, C).
        """
        return self.step(tokens, t, self.prepare(coordinates, text, text_mask), perturb)

    def prepare(self, coordinates, text, text_mask=None):
        """All that stays the same from step to step of a sampling, for `step`: the positions' tables, who
        sees whom, the caption at the transformer's width and its mask."""
        c = self.config
        cos, sin = rope_tables(coordinates, c.width, c.max_position, c.theta,
                               ascending=c.rope != "inverse")                             # ([B,] N, D) each
        absolute = torch.cat([cos[..., ::2], sin[..., ::2]], dim=-1) if c.rope == "absolute" else None
        rope = partial(turn_, pairs=as_pairs(cos, sin)) if c.rope in ("exponential", "inverse") else None
        masks = who_sees_whom(coordinates) if c.attention == "space-time" else (None, None)
        return absolute, rope, masks, self.caption_projection(text), text_mask            # text (B, L, D)

    def step(self, tokens, t, prepared, perturb=None):
        """Velocity (B, N, C) of tokens (B, N, C) at times (B, 1 or N), with what `prepare` returned.

        perturb = (mode, blocks) makes these blocks blind: "attention_values" and "attention_skip" take the
        attention out (see `Attention`), "transformer_block" the whole block (SPEC 5.2).
        """
        absolute, rope, masks, text, text_mask = prepared
        h = self.patchify_proj(tokens)                                                    # (B, N, D)
        h = h if absolute is None else h + absolute.to(h.dtype)
        time = self.time_embedder(1000 * t)                                               # (B, 1 or N, D)
        modulation = self.time_modulation(F.silu(time)).unflatten(-1, (6, -1))            # (B, 1 or N, 6, D)
        mode, blind = perturb or (None, ())
        for i, block in enumerate(self.blocks):
            if i in blind and mode == "transformer_block":
                continue
            h = block(h, text, text_mask, modulation, rope, masks[i % 2], mode if i in blind else None)
        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(2)              # (B, 1 or N, D)
        return self.proj_out(modulate(F.layer_norm(h, h.shape[-1:], eps=1e-6), shift, scale))   # (B, N, C)
