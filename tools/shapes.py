"""RoPE against an absolute embedding on sizes, lengths and frame rates that training showed, and on others.

    python -m tools.shapes --seeds 3 --steps 1000 --prompts 48 --out runs/shapes
    python -m tools.shapes --only 2                         this seed alone, for several processes at a time

Both learn from the latents of the shipped VAE, in turn from three kinds of clips. The embedding consists of
the same cosines and sines that rotate queries and keys in RoPE, but is added to the tokens once.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import minltx.threads                                              # before torch: how threads wait
import torch

from minltx.ablation.ideas import Idea
from minltx.ablation.paired import FEWEST, holm, interval, p_value
from minltx.ablation.variants import AbsolutePositions
from minltx.command import Parser, hardware, new_folder, one_line, whole
from minltx.evaluation.digits import classifier_for, judge_clips
from minltx.files import put_in_place
from minltx.objectives import Batch, flow_objective
from minltx.toy import load_toy
from minltx.toy.data import EVALUATION, MovingDigits, describe, load_digits, rng
from minltx.training.latents import clip_variants, encode_clips, encode_variants
from minltx.training.loops import train_dit
from minltx.training.parallel import World
from minltx.training.run import Run
from minltx.training.settings import TOY, WITH_NULL, stored
from minltx.video.plots import new_figure, save_figure
from tools.markdown import table

KINDS = {"rope": Idea(), "absolute": AbsolutePositions()}
SEEN = ((17, 32, 16.0), (9, 40, 16.0), (9, 32, 32.0))         # frames, pixels of a side, frames per second
UNSEEN = {"longer": (33, 40, 16.0), "larger": (17, 48, 16.0), "another rate": (13, 32, 24.0),
          "all three": (33, 48, 24.0)}
SHAPES = {**{"x".join(f"{n:g}" for n in shape): shape for shape in SEEN}, **UNSEEN}
FIGURES = {"loss": ("flow loss", 1), "direction": ("direction, %", 100), "speed": ("speed / the data's", 1)}
NAMES = {"rope": "RoPE", "absolute": "absolute embedding"}


def settings(steps):
    """The toy with a smaller transformer, which learns from several shapes."""
    dit = replace(TOY.model.dit, width=96, depth=4)
    return replace(WITH_NULL, model=replace(WITH_NULL.model, dit=dit), clip_variants=SEEN, dit_steps=steps)


def clips_of(digits, shape):
    """A data set of clips of one shape."""
    return MovingDigits(*digits, replace(TOY.model.data, **dict(zip(("frames", "size", "fps"), shape))))


@torch.no_grad()
def judge(model, digits, shape, classifier, seed, prompts):
    """The figures of a model on held-out clips of one shape: the flow loss, with the same noise and times for
    every model, and what the judge reads in sampled clips."""
    data, fps = clips_of(digits, shape), shape[2]
    latents, scenes = encode_clips(model.vae, data, 128, seed, "cpu", held_out=True)
    batch = Batch(model.vae.normalize(latents), [describe(scene) for scene in scenes], fps)
    recipe = replace(WITH_NULL, caption_dropout=0.0)
    loss = flow_objective(model, batch, recipe, rng(seed, EVALUATION, 0))[0].item()
    few = scenes[:prompts]
    captions = [describe(scene) for scene in few]
    video = model.generate(captions, list(range(prompts)), data.config.clip_shape, fps=fps)
    read = judge_clips(video, few, data, classifier)
    return {"loss": loss, **{name: read[name] for name in ("every_frame", "colour", "direction", "speed")}}


def judge_real(digits, prompts):
    """What the judge reads in real clips of every shape. Digits that move less than 3 pixels have no
    direction for it, so clips of a quarter or half of a second get few."""
    found = {}
    for name, shape in SHAPES.items():
        data = clips_of(digits, shape)
        video, scenes = data.batch(prompts, rng(0, EVALUATION, 1), held_out=True)
        read = judge_clips(video, scenes, data, classifier_for(data))
        found[name] = {figure: read[figure] for figure in ("every_frame", "colour", "direction", "speed")}
    return found


def train_and_judge(kind, seed, steps, prompts, folder):
    """One training -> its row of the report; a finished one is read from the folder, not repeated."""
    file = folder / "row.json"
    if file.exists():
        return json.loads(file.read_text())
    s, toy = settings(steps), load_toy()
    digits, other = load_digits("drawn", seed)
    data, held_out = (MovingDigits(*some, s.model.data) for some in (digits, other))
    torch.manual_seed(seed)
    model = KINDS[kind].build(s.model)
    model.vae.load_state_dict(toy.vae.state_dict())
    begun = (folder / "checkpoint.pt").exists()
    run = Run(folder, model, s, seed, "drawn", World(torch.device("cpu")), begun)
    if "dit" not in run.stages_done:
        train_dit(run, model, encode_variants(model.vae, clip_variants(data, *digits, s), 4800, seed, "cpu"),
                  held_out)
    model.eval()
    classifier = classifier_for(held_out, seed)
    row = {"kind": kind, "seed": seed, "seconds": run.seconds,
           "shapes": {name: judge(model, other, shape, classifier, seed, prompts)
                      for name, shape in SHAPES.items()}}
    put_in_place(file, lambda part: part.write_text(json.dumps(row, indent=1)))
    return row


def comparisons(rows):
    """Per shape: the mean loss of both, and the paired difference, absolute minus RoPE, in % of RoPE's loss,
    with its interval and its p after Holm's correction over the shapes. None for fewer seeds than FEWEST."""
    loss = {(row["kind"], row["seed"], name): figures["loss"] for row in rows
            for name, figures in row["shapes"].items()}
    seeds = sorted({row["seed"] for row in rows})
    found = {}
    for name in SHAPES:
        pairs = [(loss["rope", seed, name], loss["absolute", seed, name]) for seed in seeds]
        found[name] = [100 * (b / a - 1) for a, b in pairs]
    enough = len(seeds) >= FEWEST
    ps = holm([p_value(x) for x in found.values()]) if enough else [None] * len(found)
    return {name: {"difference": statistics.mean(x), "interval": interval(x) if enough else None, "p": p}
            for (name, x), p in zip(found.items(), ps)}


def draw(path, report):
    """Loss, direction and speed over the shapes, a dot for every training and a bar for real clips; unseen
    shapes are on grey."""
    rows = report["rows"]
    figure, axes = new_figure(1, len(FIGURES), 4.6, 3.8)
    for ax, (key, (label, scale)) in zip(axes[0], FIGURES.items()):
        for kind, colour, shift in (("rope", "C0", -0.12), ("absolute", "C1", 0.12)):
            of_kind = [row["shapes"] for row in rows if row["kind"] == kind]
            dots = [(x + shift, scale * shapes[name][key]) for shapes in of_kind
                    for x, name in enumerate(SHAPES)]
            ax.plot(*zip(*dots), "o", color=colour, alpha=0.7, markeredgewidth=0, label=NAMES[kind])
        for x, real in enumerate(report["real"].values() if key != "loss" else ()):
            ax.plot([x - 0.3, x + 0.3], [scale * real[key]] * 2, color="0.3", linewidth=1.5,
                    label=None if x else "real clips")
        ax.axvspan(len(SEEN) - 0.5, len(SHAPES) - 0.5, color="0.92", zorder=0)
        ticks = [name if name in UNSEEN else words(name) for name in SHAPES]
        ax.set_xticks(range(len(SHAPES)), ticks, rotation=35, ha="right", fontsize=8)
        ax.set(title=label, xlim=(-0.5, len(SHAPES) - 0.5))
        ax.grid(alpha=0.3, axis="y")
    axes[0, 0].legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, loc="upper left")
    save_figure(path, figure)


def words(name):
    """A shape as a reader sees it."""
    frames, size, fps = SHAPES[name]
    return f"{frames} frames, {size}x{size}, {fps:g} fps"


def text(report):
    """The report as a table in Markdown, and where it comes from."""
    def mean(kind, name, key, scale=1.0):
        return scale * statistics.mean(row["shapes"][name][key] for row in report["rows"]
                                       if row["kind"] == kind)

    rows = [("clips", "loss, RoPE", "absolute", "difference, %", "p", "direction, %", "absolute",
             "real clips", "speed", "absolute")]
    for name, found in report["comparisons"].items():
        ends = "{:+.1f} to {:+.1f}".format(*found["interval"]) if found["interval"] else ""
        losses, speeds = ([mean(kind, name, key) for kind in KINDS] for key in ("loss", "speed"))
        rows.append((f"**{name}**: {words(name)}" if name in UNSEEN else words(name),
                     *(f"{loss:.3f}" for loss in losses), f"{found['difference']:+.1f} ({ends})",
                     "" if found["p"] is None else f"{found['p']:.3f}",
                     *(f"{mean(kind, name, 'direction', 100):.0f}" for kind in KINDS),
                     f"{100 * report['real'][name]['direction']:.0f}", *(f"{speed:.2f}" for speed in speeds)))
    return (f"{table(*rows)}\n\n`{report['command']}`: {len(report['rows'])} trainings. "
            f"Hardware: {report['hardware']}.")


def main(argv=None):
    parser = Parser(prog="python -m tools.shapes", description=__doc__)
    parser.add_argument("--out", type=new_folder, default="runs/shapes")
    parser.add_argument("--seeds", type=whole(1, 100), default=3)
    parser.add_argument("--steps", type=whole(1, 10**6), default=1000)
    parser.add_argument("--prompts", type=whole(1, 128), default=48)
    parser.add_argument("--only", type=whole(0, 99), help="train this seed alone, without a report")
    args = parser.parse_args(argv)
    out = Path(args.out)
    with one_line(parser):
        seeds = range(args.seeds) if args.only is None else [args.only]
        rows = [train_and_judge(kind, seed, args.steps, args.prompts, out / f"{kind}-{seed}")
                for seed in seeds for kind in KINDS]
        if args.only is not None:
            return
        report = {"command": f"python -m tools.shapes --seeds {args.seeds} --steps {args.steps} "
                             f"--prompts {args.prompts}", "hardware": hardware(torch.device("cpu")),
                  "settings": stored(settings(args.steps)), "comparisons": comparisons(rows),
                  "real": judge_real(load_digits("drawn", 0)[1], args.prompts), "rows": rows}
        put_in_place(out / "shapes.json", lambda part: part.write_text(json.dumps(report, indent=1)))
        draw(out / "shapes.png", report)
        print(text(report))


if __name__ == "__main__":
    main()
