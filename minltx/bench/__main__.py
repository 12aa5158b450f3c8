"""The benchmark: how long each part takes, what it computes, and how near that is to the machine's limits.

    python -m minltx.bench                                    the toy, all parts
    python -m minltx.bench --config quarter --against diffusers
    python -m minltx.bench --config quarter --against plain --parts dit,encode,decode
    python -m minltx.bench --config 2b-small --parts dit,encode,decode     full width, small enough for a CPU
    python -m minltx.bench --config 2b --device cuda --compile --out bench.json
    python -m minltx.bench --config 2b --device cuda --headline runs/gpu   all figures of a GPU

Weights are random: they do not matter for the time. Seconds are medians with quartiles after a warm-up,
without gradients. On a CPU each part is timed as the chapters are written (plain) and with the faster modules
of `minltx.fast_cpu` (accelerated), in turn. --against diffusers adds the same weights and inputs there;
--against plain adds each accelerated class alone. Ratios are medians over the rounds.

"of peak" is the operations of flops.py per second, as a share of a large matrix product's on the same device
in the same dtype, measured in the same run; "floor" is the least time that this peak and the bandwidth of a
large copy allow. GiB is the peak of a GPU's tensors, or on a CPU of the whole process. In the JSON times are
seconds and memory is bytes.
"""

import json
import platform
import shlex
import sys
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from minltx.bench import headline
from minltx.bench.diffusers import COMPARED, import_diffusers
from minltx.bench.parts import PARTS, PRESETS, Setup, latent_grid
from minltx.bench.report import measure, table
from minltx.bench.timing import ATTENTIONS
from minltx.command import Parser, hardware, parse_sizes, pick_device
from minltx.files import put_in_place

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --- The command ------------------------------------------------------------------------------------------

def versions():
    """The versions of everything that a figure may depend on."""
    packages = {name: metadata.version(name) for name in ("diffusers", "transformers") if find_spec(name)}
    return {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), **packages}


def chosen(text, known, option):
    """"a,b" -> ["a", "b"]. Raises ValueError for an unknown name."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"{option} {name!r} is not known: use some of {','.join(known)}")
    return names


def options():
    parser = Parser(prog="minltx.bench", description=__doc__)
    add = parser.add_argument
    add("--config", choices=PRESETS, default="toy", help="(default: %(default)s)")
    add("--size", metavar="FxHxW", help="pixels (default: the config's, one for each network)")
    add("--parts", help=f"some of {','.join(PARTS)} (default: all that can be compared)")
    add("--against", choices=["diffusers", "plain"], help="what to compare with, see above")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=DTYPES, help="(default: the config's)")
    add("--steps", type=int, default=8, help="of the sampler (default: %(default)s)")
    add("--guidance", type=float, default=1.0, help="1: off (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile, block by block")
    add("--attention", choices=["auto", *ATTENTIONS], default="auto",
        help="the kernel to prefer (default: torch chooses)")
    add("--checkpoint-activations", action="store_true", help="in the training step")
    add("--repeats", type=int, default=7, help="(default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE.json", help="write the report here")
    add("--headline", metavar="FOLDER", help="instead: all figures of a device, see minltx/bench/headline.py")
    add("--items", help="of the headline (default: all)")
    add("--toy-budget", type=float, default=1.0, help="of the headline's training (default: %(default)s)")
    return parser


def setup_from(args):
    """The command line -> Setup. Raises ValueError for sizes, counts and parts that are not possible."""
    if args.repeats < 1 or args.steps < 1:
        raise ValueError("--repeats and --steps must be at least 1")
    device, preset = pick_device(args.device), PRESETS[args.config]
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the benchmark cannot time the device {device.type}: use cpu or cuda")
    if device.index is not None:
        torch.cuda.set_device(device)       # whose events are to be recorded
    if args.size:
        size = parse_sizes(args.size, example="41x512x512")
        preset = replace(preset, dit_size=size, vae_size=size)
    setup = Setup(preset, device, DTYPES[args.dtype or preset.dtype], args.seed, args.steps, args.guidance,
                  args.compile, args.checkpoint_activations)
    for size in (preset.dit_size, preset.vae_size):
        latent_grid(setup, size)
    return setup


def bench(args, command):
    """One benchmark -> its report, which it also prints and, with --out, writes."""
    setup, possible = setup_from(args), COMPARED if args.against == "diffusers" else PARTS
    names = chosen(args.parts or ",".join(possible), possible, "--parts")
    if args.against == "diffusers":
        import_diffusers()
    if args.out and Path(args.out).suffix != ".json":
        raise ValueError(f"--out {args.out} is a report: use a name that ends in .json")
    preset = setup.preset
    report = {"command": command, "hardware": hardware(setup.device), "config": args.config,
              "size": {"dit": preset.dit_size, "vae": preset.vae_size,
                       "latent": latent_grid(setup, preset.dit_size)},
              "seed": args.seed, "device": setup.device.type,
              "dtype": str(setup.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
              "compile": args.compile, "attention": args.attention, "repeats": args.repeats,
              "against": args.against, "versions": versions(),
              **measure(setup, names, args.attention, args.repeats, args.against)}
    print(table(report))
    if args.out:
        put_in_place(args.out, lambda part: part.write_text(json.dumps(report, indent=1) + "\n"))
    return report


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        if args.headline:
            names = chosen(args.items, headline.ALL, "--items") if args.items else headline.ALL
            return headline.run(args, names)
        return bench(args, shlex.join(["python", "-m", "minltx.bench", *words]))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
