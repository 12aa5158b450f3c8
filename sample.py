"""Write a video of a caption, with the small model that comes with the repository or the released one.

    python sample.py "a red 7 moving left"
    python sample.py "a green 3 moving up" "a blue 8 moving right" --out two.png --seed 5
    python sample.py "a red 7 moving left" --image seven.png --out moved.gif
    python sample.py --words --checkpoint runs/clips/model.pt
    python sample.py "a lighthouse in a storm" --weights ltx.safetensors --text words.safetensors

The toy's words are: a digit 0-9, a colour (red, green, blue, yellow, cyan, magenta) and a direction
(left, right, up, down). A model of your own clips has their captions' words. Released weights take any
prompt: embed it first with python -m minltx.pretrained.t5.
"""

import math
import sys

import minltx.threads                                              # before torch: how threads wait
import torch
from tqdm import tqdm

from minltx.command import (Parser, check_together, device_name, new_file, number, one_line, option_type,
                            parse_sizes, pick_device, sizes, whole)
from minltx.fast_cpu import accelerate
from minltx.pretrained import options as released
from minltx.toy import load_toy
from minltx.video.files import ENDINGS, check_ending, load_clip, load_given, save_video
from minltx.video.tiles import HALO, check_tiles, use_tiles

BATCH = 64      # prompts sampled at a time
CHANGE = 0.7


def options():
    parser = Parser(prog="sample.py", description=__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("prompts", nargs="*", default=[], type=str, metavar="PROMPT",
         help='a caption; "" is the null caption, which leaves everything open')
    what("--words", action="store_true", help="print the words that the model knows, instead of sampling")
    add("--out", type=new_file(*ENDINGS), default="sample.gif",
        help="a name that ends in .gif, .png (sheet), .npz or .mp4 (default: %(default)s)")
    add("--plain", action="store_true",
        help="write the frames alone, without caption and in their own size, so that they can be read back")
    add("--image", metavar="FILE", help="a picture to start from: image-to-video")
    add("--given", nargs="+", action="append", default=[], metavar=("FILE", "FRAME [STRENGTH]"),
        help="(after the prompts) a picture or clip (.png, .npz, .mp4 ...) that is given at this frame: a "
             "keyframe, or a clip to extend; strength 1 keeps it, below 1 it may change; may be repeated")
    add("--start", metavar="FILE", help="a clip to change: video-to-video")
    add("--change", type=number(0, 1), help=f"how much, 0 to 1, of --start (default: {CHANGE})")
    add("--steps", type=whole(1, 1000), help="steps of the sampler (default: the model's)")
    add("--guidance", type=number(0, 100),
        help="scale of classifier-free guidance; 1 turns it off (default: the model's)")
    add("--seed", type=whole(0, 2**31), default=0,
        help="prompt number i takes seed + i (default: %(default)s)")
    add("--frames", type=whole(1, 10**6),
        help="4k+1 for the shipped model, 8k+1 for the released; 1 is a picture (default: the model's)")
    add("--size", type=sides, help="pixels, 32 or height x width, such as 32x48 (default: the model's)")
    add("--fps", type=number(0.001, 1000), help="frames per second (default: the model's)")
    add("--decode-t", type=number(0, 1),
        help="the t that conditions the decoder (default: the model's, 0.05)")
    add("--decode-noise", type=number(0, 1), help="noise before decoding (default: the model's, 0.025)")
    add("--tiles", metavar="FxHxW", type=sizes(("latent frames", "rows", "columns"), "8x16x16"),
        help="decode in tiles of this many latent frames x rows x columns, such as 8x16x16: slower, with "
             "less memory (default: all at once)")
    add("--halo", type=whole(0, 1000),
        help="with --tiles: how many latents around a tile are decoded with it; more is closer to the whole "
             f"decode (default: {HALO})")
    add("--checkpoint", help="model.pt of a training run (default: the shipped one)")
    released.add_options(add)
    add("--device", type=device_name, help="cpu, cuda or mps (default: cuda if there is one)")
    return parser


@option_type
def sides(text):
    """"32" -> (32,), "32x48" -> (32, 48)."""
    names = ("height", "width") if "x" in text.lower() else ("side",)
    return parse_sizes(text, names, "32 or 32x48", 12)        # what does not fit is said in GiB


def check_options(args):
    """Raises ValueError for options that need or exclude another one."""
    if args.plain and len(args.prompts) > 1:
        raise ValueError("--plain writes a single video: give one prompt")
    check_ending(args.out)
    check_together(args, [*((name, ["weights"], "for released weights") for name in released.NAMES),
                          ("change", ["start"], "for a clip to change"), ("halo", ["tiles"], "for tiles")],
                   [("weights", "checkpoint", "are two models"),
                    ("words", "weights", "do not fit: released weights take any words"),
                    ("text", "t5", "are two sources of embeddings"), ("upsampler", "one_pass", "contradict")])


def load_model(args, device):
    """The toy or the released model, ready for these prompts; both generate(prompts, seeds, ...)."""
    if args.weights:
        from minltx.bench.forecast import announce_time

        model = released.load(args, device, HALO if args.halo is None else args.halo, announce_time)
    else:
        model = load_toy(args.checkpoint).to(device)
        model.check(args.prompts)
    return accelerate(model) if device.type == "cpu" else model


def progress_bar(steps):
    return tqdm(steps, desc="sampling", disable=None)


def check_size(model, args, size, how):
    """Raises ValueError if a large video does not fit in memory; prints how long it takes, if long."""
    own = getattr(model, "model", model)                   # of released weights, the model without prompts
    if math.prod(size) > 4 * math.prod(model.sampling_defaults()["size"]):
        from minltx.bench.forecast import announce_time, check_memory      # it takes seconds to estimate

        weight, clips = own.dit.proj_out.weight, 1 if args.weights else min(BATCH, len(args.prompts))
        check_memory(own.dit.config, own.vae.config, size, clips, weight.device, args.tiles)
        sampling = own.sampling(size, **how)
        evaluations = (len(sampling.schedule) - 1) * (1 + (sampling.guidance.cfg > 1))
        announce_time(own.dit.config, size, clips, evaluations, weight.device, weight.dtype)


def sample(args):
    check_options(args)
    if args.words:
        return print(*load_toy(args.checkpoint).words[2:], sep="\n")
    model = load_model(args, pick_device(args.device))
    defaults, vae = model.sampling_defaults(), model.vae
    frames, *sides = defaults["size"]
    sides = args.size or sides
    size = (frames if args.frames is None else args.frames, sides[0], sides[-1])
    names = ("steps", "guidance", "stg", "fps", "decode_t", "decode_noise")
    how = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    vae.latent_shape(*size)                                   # raises ValueError before files are read
    if not args.weights:
        check_size(model, args, size, how)                    # of released weights, before they were loaded
    given, start = ([[args.image, "0"]] if args.image else []) + args.given, None
    conditions = load_given(given, *size[1:], released.preparation(args))
    if args.start:
        start = load_clip(args.start, *size[1:], released.preparation(args, resize=True))
        how["change"] = CHANGE if args.change is None else args.change
        frames = start.shape[2]
        if args.frames not in (None, frames):
            raise ValueError(f"{args.start} has {frames} frames, not {args.frames}: leave out --frames")
        size = (frames, *size[1:])
        check_size(model, args, size, how)
    grid = vae.latent_shape(*size)[1:]
    if args.tiles:
        halo = HALO if args.halo is None else args.halo
        check_tiles(vae.config, grid, args.tiles, halo)
        use_tiles(vae, args.tiles, halo)
    for line in [] if args.weights else model.warnings(args.prompts, size, args.fps):
        print(f"sample.py: warning: {line}", file=sys.stderr)
    seeds, videos, each = [args.seed + i for i in range(len(args.prompts))], [], 1 if args.weights else BATCH
    for i in range(0, len(seeds), each):
        videos.append(model.generate(args.prompts[i : i + each], seeds[i : i + each], size=size,
                                     conditions=conditions, start=start, progress=progress_bar, **how))
    save_video(args.out, torch.cat(videos), None if args.plain else args.prompts, args.fps or defaults["fps"])
    print(f"{args.out}: {len(seeds)} of {size[0]} frames, {size[1]}x{size[2]}")


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser):
        sample(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
