"""Write a video of what a caption says, with the small model that comes with the repository
or the released one.

    python sample.py "a red 7 moving left"
    python sample.py "a green 3 moving up" "a blue 8 moving right" --out two.png --seed 5
    python sample.py "a red 7 moving left" --image seven.png --out moved.gif
    python sample.py "a lighthouse in a storm" --weights ltx.safetensors --text words.safetensors

The toy's words are: a digit 0-9, a colour (red, green, blue, yellow, cyan, magenta) and a direction
(left, right, up, down). Released weights take any prompt: embed it first with python -m minltx.pretrained.t5.
"""

import argparse
import sys
from dataclasses import replace

import torch
from tqdm import tqdm

from minltx.workshop import pictures
from minltx.workshop.checkpoint import GUIDANCE, SHIPPED, STEPS, load_checkpoint, pixels
from minltx.workshop.run import pick_device
from minltx.workshop.tiles import HALO, check_tiles, use_tiles

BATCH = 64  # prompts sampled at a time


def size_of(text):
    """"32" or "32x48" (height x width) -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 32 or, height first, 32x48")
    return int(sides[0]), int(sides[-1])


def tiles_of(text):
    """"8x16x16" -> (8, 16, 16)."""
    numbers = text.lower().split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no tile: write latent frames x rows x columns, "
                                         "such as 8x16x16")
    return tuple(map(int, numbers))


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
    add("--image", metavar="FILE", help="a picture to start from: image-to-video")
    add("--given", nargs="+", action="append", default=[], metavar=("FILE", "FRAME [STRENGTH]"),
        help="(after the prompts) a picture or clip (.png, .npz, .mp4 ...) that stands at this frame: a "
             "keyframe, or what to extend; strength 1 keeps it, below 1 it may change; may be repeated")
    add("--start", metavar="FILE", help="a clip to change: video-to-video")
    add("--change", type=float, default=0.7, help="how much, 0 to 1, of --start (default: %(default)s)")
    add("--steps", type=int, help="steps of the sampler (default: the model's)")
    add("--guidance", type=float, help="1 is none (default: the model's)")
    add("--seed", type=int, default=0, help="prompt number i takes seed + i (default: %(default)s)")
    add("--frames", type=int, help="4k+1 for the shipped model, 8k+1 for the released; 1 is a picture "
                                   "(default: the model's)")
    add("--size", type=size_of, help="pixels, 32 or height x width (default: the model's)")
    add("--fps", type=float, help="frames per second (default: the model's)")
    add("--decode-t", type=float, help="the t that the decoder is told (default: the model's, 0.05)")
    add("--decode-noise", type=float, help="noise before decoding (default: the model's, 0.025)")
    add("--tiles", type=tiles_of, metavar="FxHxW",
        help="decode in tiles of so many latent frames x rows x columns, such as 8x16x16: slower, in less "
             "memory (default: all at once)")
    add("--halo", type=int, default=HALO,
        help="with --tiles: how many latents around a tile are decoded with it; more is nearer to the whole "
             "(default: %(default)s)")
    add("--checkpoint", help="model.pt of a training run (default: the shipped one)")
    add("--weights", metavar="FILE_OR_FOLDER",
        help="released weights: an official .safetensors file, or a diffusers folder")
    add("--text", metavar="FILE", help="with --weights: the prompts' embeddings, from minltx.pretrained.t5")
    add("--t5", metavar="FOLDER", help="with --weights, instead of --text: T5 itself")
    add("--negative", help="with --weights: what to steer away from (default: the released words)")
    add("--stg", type=float,
        help="with --weights: spatio-temporal guidance, 0 is none (default: the release's)")
    add("--release", help="with --weights that do not say what they are: 0.9.0, 0.9.1, 0.9.5, 0.9.6-dev ...")
    add("--dtype", choices=("float32", "bfloat16"), help="with --weights (default: bfloat16 on a GPU)")
    add("--device", help="cpu, cuda or mps (default: cuda if there is one)")
    return parser


def given_clips(args, height, width):
    """--image and --given as (video (1, 3, F, H, W), frame, strength)."""
    listed = [[args.image, "0"]] if args.image else []
    clips = []
    for path, *where in listed + args.given:
        try:
            frame, strength = [*map(float, where), *[1.0] * (2 - len(where))]
            frame = int(where[0])
        except (IndexError, ValueError):
            raise ValueError(f"--given {path} {' '.join(where)} is not understood: write FILE FRAME or "
                             "FILE FRAME STRENGTH, such as last.png 16 1") from None
        clips.append((pictures.load_clip(path, height, width), frame, strength))
    return clips


def bar(steps):
    return tqdm(steps, desc="sampling", disable=None)


def toy(args, device):
    """-> the VAE, (frames, height, width), fps and generate(prompts, seeds, ...) of a toy."""
    model = load_checkpoint(args.checkpoint or SHIPPED)[0].to(device)
    model.check(args.prompts)
    data = model.config.data

    def generate(prompts, seeds, size, steps, guidance, **more):
        steps, guidance = STEPS if steps is None else steps, GUIDANCE if guidance is None else guidance
        return model.generate(prompts, seeds, size[0], size[1:], steps, guidance, **more)

    return model.vae, pixels(data), data.fps, generate


def released(args, device):
    """The same for released weights."""
    from minltx.pretrained import load_pretrained
    from minltx.pretrained.releases import NEGATIVE
    from minltx.pretrained.t5 import encode_prompts, load_embeddings, load_t5

    if bool(args.text) == bool(args.t5):
        raise ValueError("released weights need the prompts' embeddings: --text FILE, written by "
                         "python -m minltx.pretrained.t5, or --t5 FOLDER")
    prompts = [*args.prompts, NEGATIVE if args.negative is None else args.negative]
    if args.text:
        load_embeddings(args.text, prompts)                     # a wrong prompt is told before the long load
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = load_pretrained(args.weights, dtype, device, release=args.release)
    sampling = model.config.sampling
    if args.text:
        text, mask, _ = load_embeddings(args.text, prompts, sampling.text_tokens, sampling.lowercase)
    else:
        text, mask = encode_prompts(prompts, *load_t5(args.t5), sampling.text_tokens, sampling.lowercase)
    if text.shape[2] != model.config.dit.text_width:
        raise ValueError(f"the embeddings are {text.shape[2]} wide and the model reads "
                         f"{model.config.dit.text_width}: embed the prompts with the T5 that belongs to it")

    def generate(prompts, seeds, size, steps, guidance, **more):
        rows = [args.prompts.index(prompt) for prompt in prompts]
        chosen = sampling.guidance if guidance is None else replace(sampling.guidance, cfg=guidance)
        chosen = chosen if args.stg is None else replace(chosen, stg=args.stg)
        return model.generate((text[rows], mask[rows]), (text[-1:].expand(len(rows), -1, -1),
                              mask[-1:].expand(len(rows), -1)), seeds, size, steps, chosen, **more)

    return model.vae, sampling.size, sampling.fps, generate


def sample(args):
    pictures.check_ending(args.out)
    for name, low, high in (("steps", 1, 1000), ("seed", 0, 2**31), ("decode_t", 0, 1),
                            ("decode_noise", 0, 1), ("guidance", 0, 100), ("fps", 0.001, 1000),
                            ("change", 0, 1), ("stg", 0, 100)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: use {low} to {high}")
    alone = [name for name in ("text", "t5", "negative", "stg", "release", "dtype")
             if getattr(args, name) is not None]
    if alone and not args.weights:
        raise ValueError(f"--{alone[0]} goes with --weights, released ones: add that, or leave it out")
    if args.weights and args.checkpoint:
        raise ValueError("--weights and --checkpoint are two models: give one")
    vae, size, fps, generate = (released if args.weights else toy)(args, pick_device(args.device))
    size = (size[0] if args.frames is None else args.frames, *(args.size or size[1:]))
    vae.latent_shape(*size)
    more = {"conditions": given_clips(args, *size[1:]), "fps": args.fps, "progress": bar}
    more |= {name: value for name in ("decode_t", "decode_noise")
             if (value := getattr(args, name)) is not None}
    if args.start:
        start = pictures.load_clip(args.start, *size[1:])
        if args.frames is None:
            size = (start.shape[2], *size[1:])
        more |= {"start": start, "change": args.change}
        vae.latent_shape(*size)
        if start.shape[2] != size[0]:
            raise ValueError(f"{args.start} has {start.shape[2]} frames, not {size[0]}: leave out --frames")
    if args.tiles:
        check_tiles(vae.config, vae.latent_shape(*size)[1:], args.tiles, args.halo)   # before the sampling
        use_tiles(vae, args.tiles, args.halo)
    seeds, videos, each = [args.seed + i for i in range(len(args.prompts))], [], 1 if args.weights else BATCH
    for i in range(0, len(seeds), each):
        videos.append(generate(args.prompts[i : i + each], seeds[i : i + each], size, args.steps,
                               args.guidance, **more))
    pictures.save_video(args.out, torch.cat(videos), args.prompts, args.fps or fps)
    print(f"{args.out}: {len(seeds)} of {size[0]} frames, {size[1]}x{size[2]}")


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
