"""Rotary position embedding in seconds and pixels: turn queries and keys by where and when a token is.

Unusual (SPEC 3.3): positions are real coordinates, so the frame rate is part of them, and the same frames at
12 fps stand twice as far apart in time as at 24; the frequencies ascend *exponentially from pi/2 upwards*;
and the rotation acts on the whole width before the split into heads, so each head sees a narrow band of
frequencies.
"""

import math

import torch


def latent_coordinates(grid, stride, fps, causal, device=None, frame=0):
    """The top left corner of every token -> (3, N): seconds, pixel row, pixel column; N = f*h*w, frame-major.

    grid is (f, h, w); stride is (frames, rows, columns) per token. `causal` moves every latent frame but the
    first stride - 1 pixel frames earlier: the first stands for one pixel frame only (SPEC 3.3). fps is frames
    per second of the pixels; ValueError if it is not positive. frame is where the clip begins.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    axes = [torch.arange(n, dtype=torch.float32, device=device) * s for n, s in zip(grid, stride)]
    if causal:
        axes[0] = (axes[0] + 1 - stride[0]).clamp(min=0)
    axes[0] = (axes[0] + frame) * (1.0 / fps)  # the reciprocal in double precision: dividing gives other bits
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)                   # (3, N)


def rope_tables(coordinates, width, max_position, theta=10000.0, ascending=True):
    """Coordinates (..., 3, N) -> cos and sin, both (..., N, width), float32.

    Positions count as fractions of max_position (seconds, pixels, pixels), which nothing clamps. There are
    width // 6 frequencies per axis; channel 2j and 2j+1 turn together; the width mod 6 channels that are left
    over stand in front and never turn. The order of the float32 operations is that of the released model:
    frequencies reach 15708, where one rounding more is a different angle (SPEC 3.3). To compare: not
    ascending, frequencies fall from pi/2 instead, as language models have them (the "inverse exponential").
    """
    device, n = coordinates.device, width // 6
    exponents = torch.linspace(0, 1, n, device=device)
    frequencies = theta ** (exponents if ascending else -exponents) * math.pi / 2         # (n,)
    limits = torch.tensor(max_position, dtype=torch.float32, device=device)
    fractions = (coordinates / limits[:, None]).transpose(-1, -2)                         # (..., N, 3)
    angles = ((fractions * 2 - 1)[..., None, :] * frequencies[:, None]).flatten(-2)       # (..., N, 3n)
    still = angles.new_zeros(*angles.shape[:-1], width - 6 * n)                      # (..., N, width mod 6)
    cos, sin = (table.repeat_interleave(2, dim=-1) for table in (angles.cos(), angles.sin()))
    return torch.cat([still + 1, cos], dim=-1), torch.cat([still, sin], dim=-1)


def rotate(x, cos, sin):
    """Turn neighbouring channels: (a, b) -> (a cos - b sin, b cos + a sin); x (B, N, D),
    tables ([B,] N, D)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)                                    # (B, N, D/2) each
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def as_pairs(cos, sin):
    """Tables (..., N, D) as `turn_` wants them, cosine beside sine: (..., N, D/2, 2)."""
    return torch.stack([cos[..., ::2], sin[..., ::2]], dim=-1)


def turn_(x, pairs):
    """`rotate` in one pass over memory instead of six: (a + ib) e^(i angle). It may work in place, so x must
    be the caller's own. (A compiler makes one pass of `rotate`, and knows real numbers only.)"""
    if torch.compiler.is_compiling():
        return rotate(x, *(table.repeat_interleave(2, dim=-1) for table in pairs.unbind(-1)))
    z = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))                           # (B, N, D/2)
    return torch.view_as_real(z.mul_(torch.view_as_complex(pairs))).flatten(-2).to(x.dtype)
