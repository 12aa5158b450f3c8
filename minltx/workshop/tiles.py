"""Decode a long or large video in little memory: tile by tile, each with a margin of its neighbours.

The decoder has nothing that looks further than a 3x3x3 convolution does, so a voxel of the latent reaches
only so many voxels away: `receptive_field`. A tile that is decoded with a halo as wide as that, and then
cropped, is the same numbers as the whole decode. With less it is nearly the same, because what is far away
has little weight; docs/speed.md says how nearly, and why tiles are cropped and not blended.

    python -m minltx.workshop.tiles            # error, work and memory for growing halos
"""

import ctypes
import itertools
import math
from pathlib import Path

import torch

from minltx.data import COLOURS, DIRECTIONS, DataConfig, MovingDigits, Thing, draw_digits
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop.checkpoint import SHIPPED, load_checkpoint

HALO = 6   # latent voxels; docs/speed.md has the numbers behind it


def receptive_field(config):
    """How many latent voxels (frames, rows, columns) a pixel looks beyond its own, on either side.

    Counted from the pixels back: a convolution looks one voxel further, and halving the grid halves what has
    been counted, rounded up. The frame that an upsampling in time drops changes nothing: the halo that it
    would take away holds at least conv_in's voxel more than it needs.
    """
    reach = [1, 1, 1]                                                                     # conv_out
    for name, *args in reversed(config.decoder_blocks):
        stride = args[0] if len(args) == 2 else (1, 1, 1)
        convolutions = 2 * args[0] if name in ("res", "noisy") else 2 if name == "width" else 1
        reach = [math.ceil(r / s) + convolutions for r, s in zip(reach, stride)]
    return tuple(math.ceil((r + 1) / fold) for r, fold in zip(reach, (1, config.fold, config.fold)))


def spans(size, tile, halo):
    """Cut 0..size into as few, equal parts as parts of `tile` would be -> [(from, to, first, last)]: the part
    itself, and with its halo, which ends where the grid does."""
    n = math.ceil(size / tile)
    ends = [i * size // n for i in range(n + 1)]
    return [(a, b, max(a - halo, 0), min(b + halo, size)) for a, b in zip(ends, ends[1:])]


def check_tiles(config, grid, tiles, halo):
    """ValueError if a grid (f, h, w) of latents cannot be decoded in such tiles."""
    if len(tiles) != 3 or min(tiles) < 1:
        raise ValueError(f"tiles of {'x'.join(map(str, tiles))} latents cannot be cut: "
                         "give three numbers from 1 on, frames x rows x columns, such as 8x16x16")
    if halo < 0:
        raise ValueError(f"a halo of {halo} latents is none: use 0 or more, {HALO} for instance")
    if tiles[0] < grid[0] and halo < 1:
        raise ValueError("tiles in time need a halo of 1 at least, because the first latent frame of a tile "
                         f"gives one frame only: use 1 or more, or {grid[0]} frames in a tile")
    noisy = any(name == "noisy" for name, *_ in config.decoder_blocks)
    if noisy and (tiles[1] < grid[1] or tiles[2] < grid[2]):
        raise ValueError("this decoder injects one map of noise the size of the picture, which cannot be "
                         f"cut: tile it in time only, {tiles[0]}x{grid[1]}x{grid[2]}")


def decode_in_tiles(decode, config, latent, t, generator=None, tiles=(8, 16, 16), halo=HALO):
    """What decode(latent, t, generator) gives, one tile after the other: (B, C, f, h, w) -> (B, 3, F, H, W).

    decode is the `VideoVAE.decode` of this config. tiles is latent frames, rows and columns of a tile, to
    which `halo` latents are added on every side that has neighbours. Equal to the whole decode from
    halo = max(receptive_field(config)) on. ValueError for tiles that cannot be, see `check_tiles`.
    """
    grid, (st, sy, sx) = latent.shape[2:], config.stride
    check_tiles(config, grid, tiles, halo)
    generator = generator or torch.default_generator
    state, video = generator.get_state(), None
    for span in itertools.product(*map(spans, grid, tiles, (halo,) * 3)):
        generator.set_state(state)        # a "noisy" block's map is the same in every tile, as it is for all
        (f0, f1, first, last), (y0, y1, top, bottom), (x0, x1, left, right) = span        # frames (SPEC 2.2)
        part = decode(latent[:, :, first:last, top:bottom, left:right], t, generator)
        if video is None:
            video = part.new_empty(len(part), 3, (grid[0] - 1) * st + 1, grid[1] * sy, grid[2] * sx)
        # Latent frame k > 0 gives the frames st*(k-1)+1 to st*k; a part's first latent only the last of them.
        begin, end = max(st * (f0 - 1) + 1, 0), st * (f1 - 1) + 1
        rows, columns = slice(y0 * sy, y1 * sy), slice(x0 * sx, x1 * sx)
        video[:, :, begin:end, rows, columns] = part[:, :, begin - first * st : end - first * st,
                                                     (y0 - top) * sy : (y1 - top) * sy,
                                                     (x0 - left) * sx : (x1 - left) * sx]
        del part                                                    # else two are held while one is decoded
    return video


def use_tiles(vae, tiles, halo=HALO):
    """From now on this VideoVAE decodes in tiles, whoever asks it."""
    whole = vae.decode

    def decode(latent, t, generator=None):
        return decode_in_tiles(whole, vae.config, latent, t, generator, tiles, halo)

    vae.decode = decode


# --- What a halo costs and what it is good for ------------------------------------------------------------

# As deep as the released 0.9.5 and an eighth as wide; random numbers in place of its weights.
DEEP = VAEConfig(16, 4, 8, (("res", 1), ("down", (1, 2, 2), 16), ("down", (2, 1, 1), 32),
                            ("down", (2, 2, 2), 64), ("down", (2, 2, 2), 128)),
                 128, (("res", 5), ("up", (2, 2, 2), 64), ("res", 5), ("up", (2, 2, 2), 32), ("res", 5),
                       ("up", (2, 2, 2), 16), ("res", 5)))


def peak_megabytes(function):
    """function() and by how much it raised the process's memory at the most. Linux only."""
    def status(name):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")                   # forget the peak until now
    before = status("VmRSS")
    return function(), status("VmHWM") - before


def mosaic(frames=25, side=4):
    """side x side clips of moving digits beside one another, (1, 3, frames, 32*side, 32*side)."""
    data = MovingDigits(*draw_digits(300, 1), DataConfig(frames=frames, speed=(3.0, 5.0)))
    colours, directions = list(COLOURS), list(DIRECTIONS)
    scenes = [[Thing(i % 10, colours[i % len(colours)], directions[i % len(directions)])]
              for i in range(side * side)]
    clips = data.clips(scenes, torch.Generator().manual_seed(0)).unflatten(0, (side, side))
    return clips.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)[None]


@torch.no_grad()
def measure(vae, latent, tiles, halos):
    """Print a table: what tiles with each halo differ from the whole decode, how many latents are decoded for
    each of the video's, and the memory that is needed beside the video's own."""
    t, whole, grid = torch.full((len(latent),), 0.05), None, latent.shape[2:]

    def row(name, function, work=1.0):
        video, megabytes = peak_megabytes(function)
        megabytes -= video.nbytes / 2**20
        off = video - (video if whole is None else whole)
        print(f"| {name:5} | {off.abs().max():.4f} | {off.square().mean().sqrt():.6f} | {work:.2f} | "
              f"{megabytes:.0f} |", flush=True)
        return video

    vae.decode(latent[:, :, :2], t)                                             # warm up
    print("| halo  | largest error | root mean square | work | MB beside the video |")
    print("|---|---|---|---|---|")
    whole = row("whole", lambda: vae.decode(latent, t))
    for halo in halos:
        lengths = [sum(last - first for *_, first, last in spans(size, tile, halo))
                   for size, tile in zip(grid, tiles)]
        row(str(halo), lambda: decode_in_tiles(vae.decode, vae.config, latent, t, None, tiles, halo),
            math.prod(lengths) / math.prod(grid))


def main():
    ctypes.CDLL(None).mallopt(-3, 1 << 22)    # glibc: large tensors that are freed leave, so peaks are peaks
    torch.manual_seed(0)
    toy, deep = load_checkpoint(SHIPPED)[0].vae, VideoVAE(DEEP)
    with torch.no_grad():
        cases = (("the shipped toy, digits", toy, toy.encode(mosaic())[0], (4, 8, 8)),
                 ("random numbers, as deep as 0.9.5", deep, torch.randn(1, 16, 4, 28, 28), (4, 14, 14)))
    for name, vae, latent, tiles in cases:
        grid, cut = ("x".join(map(str, sizes)) for sizes in (latent.shape[2:], tiles))
        print(f"\n{name}: {grid} latents in tiles of {cut}; it looks "
              f"{max(receptive_field(vae.config))} latents far\n")
        measure(vae, latent, tiles, (1, 2, 4, 6, 8))


if __name__ == "__main__":
    main()
