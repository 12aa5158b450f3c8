"""The benchmark: how long each part takes, what it computes, how near that is to what the machine can do.

    python -m minltx.workshop.bench                                   the toy, all parts
    python -m minltx.workshop.bench --config quarter --parts dit,encode,decode --against diffusers
    python -m minltx.workshop.bench --config 2b --device cuda --compile --out bench.json
    python -m minltx.workshop.bench --config 2b --device cuda --headline runs/gpu       all of a GPU's figures

Weights are random: they do not matter for the time. Seconds are medians with quartiles, after a warm-up,
inference without gradients. "of peak" is operations by formula (flops.py), per second, over those of a large
matrix product on the same device in the same dtype, measured in the same run; "floor" is the least time that
this peak and the bandwidth of a large copy allow. In the JSON times are seconds and memory is bytes.
"""

import argparse
import gc
import json
import platform
import shlex
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import matplotlib
import torch

import train_tiny
from minltx.workshop import against, pictures, stopwatch
from minltx.workshop.bench_parts import PARTS, PRESETS, Setup, latent_grid
from minltx.workshop.run import pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --- Measuring --------------------------------------------------------------------------------------------

def figures(part, setup, limits, repeats):
    """A `Part` -> its row of the report; limits are {"peak_flops", "bandwidth"} of the machine."""
    with torch.inference_mode(not part.training):
        times = stopwatch.repeated(part.work, stopwatch.timer(setup.device), repeats)
        memory, kind = stopwatch.peak_memory(part.work, setup.device)
        attention = stopwatch.attention_used(part.work) if part.tokens else {}
    seconds, quartiles = stopwatch.spread(times)
    return {"seconds": seconds, "quartiles": quartiles,
            "floor": stopwatch.floor(part.operations, part.traffic, limits["peak_flops"],
                                     limits["bandwidth"]),
            "mfu": mfu(part.operations, seconds, limits["peak_flops"]) if part.operations else None,
            "operations": part.operations, "traffic": part.traffic,
            "peak_memory": memory, "peak_memory_is": kind,
            "tokens_per_second": part.tokens and part.tokens / seconds,
            "frames_per_second": part.frames and part.frames / seconds,
            "attention": attention, "note": part.note}


def mfu(operations, seconds, peak):
    """Model FLOPs utilisation: operations that the formula asks for, per second, as a share of the peak."""
    return operations / seconds / peak


def free(device):
    """Give back what the last part held, or the next one's memory would not be its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(setup, names, attention, repeats, rival=None):
    """The machine's limits and the chosen parts, one after the other; beside diffusers if it is the rival.
    A part for which a package or memory is missing is left out, with a note."""
    limits = {"peak_flops": stopwatch.matmul_peak(setup.device, setup.dtype),
              "bandwidth": stopwatch.copy_bandwidth(setup.device)}
    report = {**limits, "parts": {}, "against": {}, "left_out": {}}
    with stopwatch.attention_by(attention):
        for name in names:
            free(setup.device)
            print(f"{name} ...", file=sys.stderr, flush=True)
            if rival:
                title, pair = against.PAIRS[name]
                report["against"][title] = against.compare(pair(setup), setup, repeats)
                continue
            try:
                part = PARTS[name](setup)
                report["parts"][part.name] = figures(part, setup, limits, repeats)
            except (ValueError, torch.OutOfMemoryError) as error:
                report["left_out"][name] = str(error).splitlines()[0]
            part = None         # or it would be held while the next one is built
    return report


# --- Showing ----------------------------------------------------------------------------------------------

def table(report):
    """The report as lines for a terminal."""
    lines = [f"{report['hardware']}, {report['dtype']}",
             f"large matrix product {report['peak_flops'] / 1e12:.3g} TFLOP/s, large copy "
             f"{report['bandwidth'] / 1e9:.3g} GB/s"]
    if report["parts"]:
        lines.append(f"{'':<14}{'ms':>11}{'quartiles':>22}{'floor':>11}{'GFLOP':>11}{'of peak':>9}"
                     f"{'GiB':>8}{'tokens/s':>11}{'frames/s':>10}")
    for name, row in report["parts"].items():
        low, high = (f"{1000 * x:.2f}" for x in row["quartiles"])
        share = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        memory = "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}"
        tokens, frames = ("-" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.2f}"
                          for x in (row["tokens_per_second"], row["frames_per_second"]))
        lines.append(f"{name:<14}{1000 * row['seconds']:>11.2f}{f'{low} to {high}':>22}"
                     f"{1000 * row['floor']:>11.3f}{row['operations'] / 1e9:>11.3f}{share:>9}{memory:>8}"
                     f"{tokens:>11}{frames:>10}")
    for name, row in report["against"].items():
        low, high = row["ratio_quartiles"]
        lines.append(f"{name:<14}minltx {1000 * row['minltx']:.2f} ms, diffusers "
                     f"{1000 * row['diffusers']:.2f} ms, ratio {row['ratio']:.3f} ({low:.3f} to {high:.3f}); "
                     f"outputs differ by {row['largest_difference']:.1e} at most, "
                     f"{row['relative_difference']:.1e} of their spread")
    lines += [f"{name}: {row['note']}" for name, row in report["parts"].items() if row["note"]]
    lines += [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    memory = {row["peak_memory_is"] for row in report["parts"].values()}
    return "\n".join(lines + [f"GiB: {kind}" for kind in sorted(memory)])


def save_bars(path, report):
    """Measured seconds and floor, part by part."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = {name: {"measured": row["seconds"], "floor": row["floor"]}
            for name, row in report["parts"].items()}
    bars |= {name: {"minltx": row["minltx"], "diffusers": row["diffusers"]}
             for name, row in report["against"].items()}
    figure, ax = plt.subplots(figsize=(1.3 * len(bars) + 2, 3.8))
    for i, label in enumerate(next(iter(bars.values()))):
        ax.bar([x + 0.4 * i - 0.2 for x in range(len(bars))], [row[label] for row in bars.values()], 0.38,
               label=label)
    ax.set_xticks(range(len(bars)), [name.replace(" ", "\n") for name in bars])
    # Parts and their floors lie powers of ten apart; two implementations of one part do not.
    ax.set(ylabel="seconds", yscale="log" if report["parts"] else "linear",
           title=f"{report['config']}, {report['dtype']}, {report['device']}")
    ax.grid(alpha=0.3, axis="y")
    ax.legend(fontsize=8)
    figure.tight_layout()
    pictures.put_in_place(path, lambda part: figure.savefig(part, dpi=110))
    plt.close(figure)


# --- The command ------------------------------------------------------------------------------------------

def versions():
    """What was installed, of all that a figure may depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.backends.cudnn.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
    for package in ("diffusers", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def size_from(text):
    """"41x512x512" -> (41, 512, 512)."""
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"the size {text!r} is not understood: write frames, height and width, "
                         "as 41x512x512")
    return tuple(map(int, sides))


def chosen(text, known, option):
    """"a,b" -> ["a", "b"]. ValueError for a name that is not known."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"{option} {name!r} is not known: use some of {','.join(known)}")
    return names


def options():
    parser = argparse.ArgumentParser(prog="minltx.workshop.bench", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", choices=PRESETS, default="toy", help="(default: %(default)s)")
    add("--size", metavar="FxHxW", help="pixels (default: the config's, one for each network)")
    add("--parts", default=",".join(PARTS), help="(default: %(default)s)")
    add("--against", choices=["diffusers"], help="instead: dit, encode, decode beside the same in diffusers")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--dtype", choices=DTYPES, help="(default: the config's)")
    add("--steps", type=int, default=8, help="of the sampler (default: %(default)s)")
    add("--guidance", type=float, default=1.0, help="1: off (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile, block by block")
    add("--attention", choices=["auto", *stopwatch.ATTENTIONS], default="auto",
        help="the kernel to prefer (default: torch chooses)")
    add("--checkpoint-activations", action="store_true", help="in the training step")
    add("--repeats", type=int, default=7, help="(default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--out", metavar="FILE.json", help="write the report here, and bars beside it")
    add("--headline", metavar="FOLDER", help="instead: all figures of a device, see workshop/headline.py")
    add("--items", help="of the headline (default: all)")
    add("--toy-budget", type=float, default=1.0, help="of the headline's training (default: %(default)s)")
    return parser


def setup_from(args):
    """The command line -> Setup. ValueError for sizes, counts and parts that cannot be."""
    if args.repeats < 1 or args.steps < 1:
        raise ValueError("--repeats and --steps must be at least 1")
    device, preset = pick_device(args.device), PRESETS[args.config]
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the benchmark cannot time the device {device.type}: use cpu or cuda")
    if device.index is not None:
        torch.cuda.set_device(device)       # whose events are to be recorded
    if args.size:
        preset = replace(preset, dit_size=size_from(args.size), vae_size=size_from(args.size))
    setup = Setup(preset, device, DTYPES[args.dtype or preset.dtype], args.seed, args.steps, args.guidance,
                  args.compile, args.checkpoint_activations)
    for size in (preset.dit_size, preset.vae_size):
        latent_grid(setup, size)
    return setup


def bench(args, command):
    """One benchmark -> its report, which it also prints and, with --out, writes."""
    setup, names = setup_from(args), chosen(args.parts, PARTS, "--parts")
    if args.against:
        against.import_diffusers()
        names = [name for name in names if name in against.PAIRS]
        if not names:
            raise ValueError(f"diffusers is compared in {', '.join(against.PAIRS)}: name some in --parts")
    if args.out and Path(args.out).suffix != ".json":
        raise ValueError(f"--out {args.out} is a report: use a name that ends in .json")
    grid = latent_grid(setup, setup.preset.dit_size)
    report = {"command": command, "hardware": train_tiny.hardware(setup.device), "config": args.config,
              "size": {"dit": setup.preset.dit_size, "vae": setup.preset.vae_size, "latent": grid},
              "seed": args.seed, "device": setup.device.type,
              "dtype": str(setup.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
              "compile": args.compile, "attention": args.attention, "repeats": args.repeats,
              "versions": versions(), **measure(setup, names, args.attention, args.repeats, args.against)}
    print(table(report))
    if args.out:
        text = json.dumps(report, indent=1) + "\n"
        pictures.put_in_place(args.out, lambda part: part.write_text(text))
        if report["parts"] or report["against"]:
            save_bars(Path(args.out).with_suffix(".png"), report)
    return report


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        if args.headline:
            from minltx.workshop import headline

            return headline.run(args)
        return bench(args, shlex.join(["python", "-m", "minltx.workshop.bench", *words]))
    except (ValueError, OSError) as error:
        parser.exit(2, f"minltx.workshop.bench: {error}\n")


if __name__ == "__main__":
    main()
