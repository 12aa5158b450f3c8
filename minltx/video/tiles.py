"""Decode a long or large video in little memory: tile by tile, each with a margin of its neighbours.

The decoder consists of 3x3x3 convolutions, so a pixel depends on latent voxels up to a certain distance only,
see `receptive_field`. A tile that is decoded with a halo of that width, and then cropped, equals that part of
the whole decode. With a narrower halo it is nearly equal, because distant voxels have little weight.
docs/speed.md has the errors and says why tiles are cropped and not blended.
"""

import itertools
import math

import torch

from minltx.vae import CausalConv3d

HALO = 6   # latent voxels; docs/speed.md has the measurements


def receptive_field(decoder):
    """How many latent voxels (frames, rows, columns) away, on either side, still change a pixel.

    Counted backwards from the pixels: a convolution reaches one voxel further, and halving the grid halves
    the count, rounded up. The frame that an upsampling in time drops changes nothing: it would shorten a halo
    that is at least one voxel (conv_in's) wider than needed.
    """
    reach = [1, 1, 1]                                                                     # conv_out
    for block in reversed(decoder.up_blocks):
        convolutions = sum(isinstance(module, CausalConv3d) for module in block.modules())
        stride = getattr(block, "stride", (1, 1, 1))
        reach = [math.ceil(r / s) + convolutions for r, s in zip(reach, stride)]
    return tuple(r + 1 for r in reach)                                                    # conv_in


def spans(size, tile, halo):
    """Cut 0..size into as few and as equal parts as `tile` allows -> [(from, to, first, last)]: the part, and
    the part with its halo, which ends at the edge of the grid."""
    n = math.ceil(size / tile)
    ends = [i * size // n for i in range(n + 1)]
    return [(a, b, max(a - halo, 0), min(b + halo, size)) for a, b in zip(ends, ends[1:])]


def check_tiles(config, grid, tiles, halo):
    """Raises ValueError if a grid (f, h, w) of latents cannot be decoded in such tiles."""
    if len(tiles) != 3 or min(tiles) < 1:
        raise ValueError(f"tiles of {'x'.join(map(str, tiles))} latents cannot be cut: "
                         "give three numbers from 1 on, frames x rows x columns, such as 8x16x16")
    if halo < 0:
        raise ValueError(f"a halo of {halo} latents is out of range: use 0 or more, for instance {HALO}")
    if tiles[0] < grid[0] and halo < 1:
        raise ValueError("tiles in time need a halo of at least 1, because the first latent frame of a tile "
                         f"decodes to one frame only: use 1 or more, or {grid[0]} frames in a tile")
    noisy = any(name == "noisy" for name, *_ in config.decoder_blocks)
    if noisy and (tiles[1] < grid[1] or tiles[2] < grid[2]):
        raise ValueError("this decoder injects a noise map of the size of a frame, which cannot be cut: "
                         f"tile it in time only, {tiles[0]}x{grid[1]}x{grid[2]}")


def decode_in_tiles(decode, config, latent, t, generator=None, tiles=(8, 16, 16), halo=HALO):
    """decode(latent, t, generator), one tile after the other: (B, C, f, h, w) -> (B, 3, F, H, W).

    decode is the `VideoVAE.decode` of this config. tiles are latent frames, rows and columns of a tile, to
    which `halo` latents are added on every side that has neighbours. With a halo of at least
    max(receptive_field(decoder)) the result equals the whole decode. Raises ValueError as `check_tiles` does.
    """
    grid, (st, sy, sx) = latent.shape[2:], config.stride
    check_tiles(config, grid, tiles, halo)
    generator = generator or torch.default_generator
    state, video = generator.get_state(), None
    for span in itertools.product(*map(spans, grid, tiles, (halo,) * 3)):
        generator.set_state(state)        # "noisy" blocks draw the same map for every tile, as for all frames
        (f0, f1, first, last), (y0, y1, top, bottom), (x0, x1, left, right) = span
        part = decode(latent[:, :, first:last, top:bottom, left:right], t, generator)
        if video is None:
            video = part.new_empty(len(part), 3, (grid[0] - 1) * st + 1, grid[1] * sy, grid[2] * sx)
        # Latent frame k > 0 gives the frames st*(k-1)+1 to st*k; a part's first latent only the last of them.
        begin, end = max(st * (f0 - 1) + 1, 0), st * (f1 - 1) + 1
        rows, columns = slice(y0 * sy, y1 * sy), slice(x0 * sx, x1 * sx)
        video[:, :, begin:end, rows, columns] = part[:, :, begin - first * st : end - first * st,
                                                     (y0 - top) * sy : (y1 - top) * sy,
                                                     (x0 - left) * sx : (x1 - left) * sx]
        del part                                          # before the next tile is decoded, to save memory
    return video


def use_tiles(vae, tiles, halo=HALO):
    """Make this VideoVAE decode in tiles from now on. Raises ValueError as `check_tiles` does, as far as no
    grid is needed for it."""
    check_tiles(vae.config, tiles, tiles, halo)
    whole = vae.decode

    def decode(latent, t, generator=None):
        return decode_in_tiles(whole, vae.config, latent, t, generator, tiles, halo)

    vae.decode = decode
