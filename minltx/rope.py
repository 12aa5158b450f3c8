"""Rotary position embedding in seconds and pixels: rotate queries and keys by the token's place and time.

Unusual (SPEC 3.3): positions are real coordinates, so the frame rate matters: two frames at 12 fps are twice
as far apart in time as two frames at 24 fps. The frequencies *ascend* exponentially from pi/2. And the
rotation acts on the whole width before the split into heads, so each head gets a narrow band of frequencies.
"""

import math

import torch


def latent_coordinates(grid, stride, fps, causal, device=None, frame=0):
    """The top left corner of every token -> (3, N): seconds, pixel row, pixel column; N = f*h*w, frame-major.

    grid is (f, h, w); stride is (frames, rows, columns) of pixels per token; fps is frames per second of the
    pixels; `frame` is the pixel frame where the clip begins. With `causal` the first latent frame stands for
    one pixel frame only, so every later one starts stride - 1 frames earlier (SPEC 3.3). Raises ValueError if
    fps is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    axes = [torch.arange(n, dtype=torch.float32, device=device) * s for n, s in zip(grid, stride)]
    if causal:
        axes[0] = (axes[0] + 1 - stride[0]).clamp(min=0)
    axes[0] = (axes[0] + frame) * (1.0 / fps)   # multiplied by the reciprocal: dividing rounds differently
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)                   # (3, N)


def rope_tables(coordinates, width, max_position, theta=10000.0):
    """Coordinates (..., 3, N) -> cos and sin, both (..., N, width), float32.

    Coordinates are divided by max_position (seconds, pixels, pixels) and mapped to [-1, 1], not clamped. Each
    axis has width // 6 frequencies; channels go through the frequencies slowly and through the axes fast.
    Channels 2j and 2j+1 rotate together; the first width mod 6 channels are left over and never rotate. At
    the highest frequency, 15708, a rounding error of the position changes the angle visibly, so the order of
    operations is that of the released model (SPEC 3.3).
    """
    device, n = coordinates.device, width // 6
    frequencies = theta ** torch.linspace(0, 1, n, device=device) * math.pi / 2           # (n,)
    limits = torch.tensor(max_position, dtype=torch.float32, device=device)
    fractions = (coordinates / limits[:, None]).transpose(-1, -2)                         # (..., N, 3)
    angles = ((fractions * 2 - 1)[..., None, :] * frequencies[:, None]).flatten(-2)       # (..., N, 3n)
    rest = angles.new_zeros(*angles.shape[:-1], width - 6 * n)                         # (..., N, width mod 6)
    cos, sin = (table.repeat_interleave(2, dim=-1) for table in (angles.cos(), angles.sin()))
    return torch.cat([rest + 1, cos], dim=-1), torch.cat([rest, sin], dim=-1)             # (..., N, width)


def rotate(x, cos, sin):
    """Rotate neighbouring channels: (a, b) -> (a cos - b sin, b cos + a sin).

    x (B, N, D); tables ([B,] N, D) -> (B, N, D) in x's dtype, computed in float32.
    """
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)                                    # (B, N, D/2) each
    turned = torch.stack([-b, a], dim=-1).flatten(-2)                                     # (B, N, D)
    return (x.float() * cos + turned * sin).to(x.dtype)
