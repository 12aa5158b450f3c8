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
from minltx.bench.forecast import check_memory
from minltx.bench.parts import PARTS, PRESETS, Setup, latent_grid
from minltx.bench.report import measure, table
from minltx.bench.timing import ATTENTIONS
from minltx.command import (BUDGET, SEED, Parser, check_together, device_name, hardware, new_file, new_folder,
                            number, one_line, pick_device, sizes, whole)
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
    parser = Parser(prog="python -m minltx.bench", description=__doc__)
    add = parser.add_argument
    add("--config", choices=PRESETS, default="toy", help="(default: %(default)s)")
    add("--size", metavar="FxHxW", type=sizes(example="41x512x512"),
        help="pixels (default: the config's, one for each network)")
    add("--parts", help=f"some of {','.join(PARTS)} (default: all that can be compared)")
    add("--against", choices=["diffusers", "plain"], help="what to compare with, see above")
    add("--device", type=device_name, help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=DTYPES, help="(default: the config's)")
    add("--steps", type=whole(1, 1000), help="of the sampler (default: 8)")
    add("--guidance", type=number(0, 100), help="1: off (default: 1)")
    add("--compile", action="store_true", help="torch.compile, block by block")
    add("--attention", choices=["auto", *ATTENTIONS],
        help="the kernel to prefer (default: torch chooses)")
    add("--checkpoint-activations", action="store_true", help="in the training step")
    add("--repeats", type=whole(1, 1000), default=7, help="(default: %(default)s)")
    add("--seed", type=SEED, default=0)
    add("--out", metavar="FILE.json", type=new_file(".json"), help="write the report here")
    add("--headline", metavar="FOLDER", type=new_folder,
        help="instead: all figures of a device, see minltx/bench/headline.py")
    add("--items", help="of the headline (default: all)")
    add("--toy-budget", type=BUDGET, help="of the headline's training (default: 1)")
    return parser


def setup_from(args):
    """The command line -> Setup. Raises ValueError for sizes and devices that are not possible."""
    device, preset = pick_device(args.device), PRESETS[args.config]
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the benchmark cannot time the device {device.type}: use cpu or cuda")
    if device.index is not None:
        torch.cuda.set_device(device)       # whose events are to be recorded
    if args.size:
        preset = replace(preset, dit_size=args.size, vae_size=args.size)
    setup = Setup(preset, device, DTYPES[args.dtype or preset.dtype], args.seed, args.steps or 8,
                  1.0 if args.guidance is None else args.guidance,
                  args.compile, args.checkpoint_activations)
    for size in (preset.dit_size, preset.vae_size):
        latent_grid(setup, size)
    if args.size and device.type == "cpu":      # a GPU says so itself, and in bfloat16 needs less
        check_memory(preset.dit, preset.vae, args.size, 1, device)
    return setup


def bench(args, command):
    """One benchmark -> its report, which it also prints and, with --out, writes."""
    setup, possible = setup_from(args), COMPARED if args.against == "diffusers" else PARTS
    names = chosen(args.parts or ",".join(possible), possible, "--parts")
    if args.against == "diffusers":
        import_diffusers()
    preset = setup.preset
    report = {"command": command, "hardware": hardware(setup.device), "config": args.config,
              "size": {"dit": preset.dit_size, "vae": preset.vae_size,
                       "latent": latent_grid(setup, preset.dit_size)},
              "seed": args.seed, "device": setup.device.type,
              "dtype": str(setup.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
              "compile": args.compile, "attention": args.attention or "auto", "repeats": args.repeats,
              "against": args.against, "versions": versions(),
              **measure(setup, names, args.attention or "auto", args.repeats, args.against)}
    print(table(report))
    if args.out:
        put_in_place(args.out, lambda part: part.write_text(json.dumps(report, indent=1) + "\n"))
    return report


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    with one_line(parser):
        check_together(args, [(name, ["headline"], "for all figures of a device") for name in
                              ("items", "toy_budget")],
                       [("headline", name, "do not fit: a headline's items have their own") for name in
                        ("parts", "against", "steps", "guidance", "compile", "attention",
                         "checkpoint_activations", "out")])
        if args.headline:
            names = chosen(args.items, headline.ALL, "--items") if args.items else headline.ALL
            return headline.run(args, names)
        return bench(args, shlex.join(["python", "-m", "minltx.bench", *words]))


if __name__ == "__main__":
    main()
