"""The table of docs/speed.md on tiled decoding: error, work and memory for growing halos (Linux only).

    python -m tools.tiles
"""

import ctypes
import math
from pathlib import Path

import torch

from minltx.command import Parser
from minltx.toy import load_toy
from minltx.toy.data import COLOURS, DIRECTIONS, DataConfig, MovingDigit, MovingDigits, draw_digits
from minltx.vae import VAEConfig, VideoVAE
from minltx.video.tiles import decode_in_tiles, receptive_field, spans

# As deep as the released 0.9.5 and an eighth as wide, with random weights.
DEEP = VAEConfig(16, 4, 8, (("res", 1), ("down", (1, 2, 2), 16), ("down", (2, 1, 1), 32),
                            ("down", (2, 2, 2), 64), ("down", (2, 2, 2), 128)),
                 128, (("res", 5), ("up", (2, 2, 2), 64), ("res", 5), ("up", (2, 2, 2), 32), ("res", 5),
                       ("up", (2, 2, 2), 16), ("res", 5)))


def peak_megabytes(function):
    """function() -> its result, and the peak growth of the process's memory."""
    def status(name):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")                   # resets the peak
    before = status("VmRSS")
    return function(), status("VmHWM") - before


def mosaic(frames=25, side=4):
    """side x side clips of moving digits next to each other, (1, 3, frames, 32*side, 32*side)."""
    data = MovingDigits(*draw_digits(300, 1), DataConfig(frames=frames, speed=(3.0, 5.0)))
    colours, directions = list(COLOURS), list(DIRECTIONS)
    scenes = [[MovingDigit(i % 10, colours[i % len(colours)], directions[i % len(directions)])]
              for i in range(side * side)]
    clips = data.clips(scenes, torch.Generator().manual_seed(0)).unflatten(0, (side, side))
    return clips.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)[None]


@torch.no_grad()
def measure(vae, latent, tiles, halos=(1, 2, 4, 6, 8)):
    """Print a table with a row per halo: the difference from the whole decode, latents decoded per latent of
    the video, and the memory needed besides the video."""
    t, whole = torch.full((len(latent),), 0.05), None
    vae.decode(latent[:, :, :2], t)                                 # warm up
    print("| halo  | largest error | root mean square | work | MB besides the video |\n|---|---|---|---|---|")
    for halo in (None, *halos):
        work = 1.0
        if halo is None:
            video, megabytes = peak_megabytes(lambda: vae.decode(latent, t))
            whole = video
        else:
            video, megabytes = peak_megabytes(
                lambda: decode_in_tiles(vae.decode, vae.config, latent, t, None, tiles, halo))
            work = math.prod(sum(last - first for *_, first, last in spans(size, tile, halo)) / size
                             for size, tile in zip(latent.shape[2:], tiles))
        error = video - whole
        print(f"| {'whole' if halo is None else halo:5} | {error.abs().max():.4f} | "
              f"{error.square().mean().sqrt():.6f} | {work:.2f} | {megabytes - video.nbytes / 2**20:.0f} |")


def main():
    Parser(prog="python -m tools.tiles", description=__doc__).parse_args()
    ctypes.CDLL(None).mallopt(-3, 1 << 22)    # glibc: return large freed blocks, so that peaks are peaks
    torch.manual_seed(0)
    toy, deep = load_toy().vae, VideoVAE(DEEP)
    with torch.no_grad():
        cases = (("the shipped toy, digits", toy, toy.encode(mosaic())[0], (4, 8, 8)),
                 ("random weights, as deep as 0.9.5", deep, torch.randn(1, 16, 4, 28, 28), (4, 14, 14)))
    for name, vae, latent, tiles in cases:
        grid, cut = ("x".join(map(str, sizes)) for sizes in (latent.shape[2:], tiles))
        print(f"\n{name}: {grid} latents in tiles of {cut}; receptive field "
              f"{max(receptive_field(vae.decoder))} latents\n")
        measure(vae, latent, tiles)


if __name__ == "__main__":
    main()
