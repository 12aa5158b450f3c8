"""Write a video of what a caption says, with the small model that comes with the repository.

    python sample.py "a red 7 moving left"
    python sample.py "a green 3 moving up" "a blue 8 moving right" --out two.png --seed 5
    python sample.py "a red 7 moving left" --image seven.png --out moved.gif

The words are the toy's: a digit 0-9, a colour (red, green, blue, yellow, cyan, magenta) and a direction (left,
right, up, down).
"""

import argparse
import sys

import torch
from tqdm import tqdm

from minltx.workshop import pictures
from minltx.workshop.checkpoint import SHIPPED, load_checkpoint
from minltx.workshop.run import pick_device

BATCH = 64  # prompts sampled at a time


def size_of(text):
    """"32" or "32x48" (height x width) -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 32 or, height first, 32x48")
    return int(sides[0]), int(sides[-1])


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--out", default="sample.gif", help=".gif, .png (sheet), .npz (frames and prompts) or .mp4 "
                        "(default: %(default)s)")
    parser.add_argument("--image", help="a picture to start from: image-to-video")
    parser.add_argument("--steps", type=int, default=20, help="steps of the sampler (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="1 is none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="prompt number i takes seed + i (default: %(default)s)")
    parser.add_argument("--frames", type=int, help="as many as the VAE can code; 1 is a picture (default: as trained)")
    parser.add_argument("--size", type=size_of, help="pixels, 32 or height x width (default: as trained)")
    parser.add_argument("--fps", type=float, help="frames per second (default: as trained)")
    parser.add_argument("--decode-t", type=float, default=0.05, help="the t that the decoder is told (default: %(default)s)")
    parser.add_argument("--decode-noise", type=float, default=0.025, help="noise mixed in before decoding (default: %(default)s)")
    parser.add_argument("--checkpoint", default=str(SHIPPED), help="model.pt of a training run (default: the shipped one)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    return parser


def sample(args):
    pictures.check_ending(args.out)
    for name, low, high in (("decode_t", 0, 1), ("decode_noise", 0, 1), ("guidance", 0, 100), ("fps", 1e-3, 1000)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: use {low:g} to {high:g}")
    model, _ = load_checkpoint(args.checkpoint)
    data = model.config.data
    frames, size = args.frames or data.frames, args.size or (data.size, data.size)
    if args.frames is not None:
        model.vae.latent_shape(args.frames, *size)
    image = pictures.load_picture(args.image, *size) if args.image else None
    model.to(pick_device(args.device))
    seeds = [args.seed + i for i in range(len(args.prompts))]
    model.embed(args.prompts)   # unknown words are told before the work begins
    videos = []
    for i in range(0, len(seeds), BATCH):
        videos.append(model.generate(args.prompts[i : i + BATCH], seeds[i : i + BATCH], frames, size, args.steps,
                                     args.guidance, image, args.fps, args.decode_t, args.decode_noise,
                                     lambda steps: tqdm(steps, desc="sampling", disable=None)))
    pictures.save_video(args.out, torch.cat(videos), args.prompts, args.fps or data.fps)
    print(f"{args.out}: {len(seeds)} of {frames} frames, {size[0]}x{size[1]}")


def main(argv=None):
    args = options().parse_args(argv)
    try:
        sample(args)
    except (ValueError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
