"""Write a video of what a caption says, with the small model that comes with the repository.

    python sample.py "a red 7 moving left"
    python sample.py "a green 3 moving up" "a blue 8 moving right" --out two.png --seed 5
    python sample.py "a red 7 moving left" --image seven.png --out moved.gif

The words are the toy's: a digit 0-9, a colour (red, green, blue, yellow, cyan, magenta) and a direction
(left, right, up, down).
"""

import argparse
import sys

import torch
from tqdm import tqdm

from minltx.workshop import pictures
from minltx.workshop.checkpoint import GUIDANCE, SHIPPED, STEPS, load_checkpoint
from minltx.workshop.run import pick_device

BATCH = 64  # prompts sampled at a time


def size_of(text):
    """"32" or "32x48" (height x width) -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 32 or, height first, 32x48")
    return int(sides[0]), int(sides[-1])


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake instead of the whole usage."""

    def error(self, message):
        self.exit(2, f"sample.py: {message} (see --help)\n")


def options():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT")
    add("--out", default="sample.gif",
        help="a name that ends in .gif, .png (sheet), .npz or .mp4 (default: %(default)s)")
    add("--image", help="a picture to start from: image-to-video")
    add("--steps", type=int, default=STEPS, help="steps of the sampler (default: %(default)s)")
    add("--guidance", type=float, default=GUIDANCE, help="1 is none (default: %(default)s)")
    add("--seed", type=int, default=0, help="prompt number i takes seed + i (default: %(default)s)")
    add("--frames", type=int, help="8k+1 for the shipped model; 1 is a picture (default: as trained)")
    add("--size", type=size_of, help="pixels, 32 or height x width (default: as trained)")
    add("--fps", type=float, help="frames per second (default: as trained)")
    add("--decode-t", type=float, default=0.05, help="the t that the decoder is told (default: %(default)s)")
    add("--decode-noise", type=float, default=0.025, help="noise before decoding (default: %(default)s)")
    add("--checkpoint", default=str(SHIPPED), help="model.pt of a training run (default: the shipped one)")
    add("--device", help="cpu, cuda or mps (default: cuda if there is one)")
    return parser


def sample(args):
    pictures.check_ending(args.out)
    for name, low, high in (("steps", 1, 1000), ("seed", 0, 2**31), ("decode_t", 0, 1),
                            ("decode_noise", 0, 1), ("guidance", 0, 100), ("fps", 0.001, 1000)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: use {low} to {high}")
    device = pick_device(args.device)
    model = load_checkpoint(args.checkpoint)[0].to(device)
    data = model.config.data
    frames = data.frames if args.frames is None else args.frames
    size = args.size or (data.size, data.size)
    model.vae.latent_shape(frames, *size)
    model.check(args.prompts)
    image = pictures.load_picture(args.image, *size) if args.image else None
    seeds = [args.seed + i for i in range(len(args.prompts))]
    videos = []
    for i in range(0, len(seeds), BATCH):
        videos.append(model.generate(
            args.prompts[i : i + BATCH], seeds[i : i + BATCH], frames, size, args.steps, args.guidance, image,
            args.fps, args.decode_t, args.decode_noise,
            lambda steps: tqdm(steps, desc="sampling", disable=None)))
    pictures.save_video(args.out, torch.cat(videos), args.prompts, args.fps or data.fps)
    print(f"{args.out}: {len(seeds)} of {frames} frames, {size[0]}x{size[1]}")


def main(argv=None):
    args = options().parse_args(argv)
    try:
        sample(args)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:   # RuntimeError: torch's out of memory
        print(f"sample.py: {str(error).splitlines()[0] if str(error) else 'out of memory'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
