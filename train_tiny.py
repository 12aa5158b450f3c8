"""Train a toy LTX-Video on moving digits: data, VAE, latents, transformer, report.

    python train_tiny.py                          the default toy, about eleven minutes on two CPU cores
    python train_tiny.py --digits mnist           handwritten digits, downloaded; or --digits FOLDER
    python train_tiny.py --world texture          digits over a moving photograph; or --photos FOLDER
    python train_tiny.py --preset large           64x64, 17 frames, two digits, an hour
    python train_tiny.py --resume                 go on from the last checkpoint in --out
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import minltx.threads                                              # before torch: how threads wait
import torch

from minltx.command import BUDGET, COUNT, SEED, Parser, device_name, new_folder, pick_device
from minltx.evaluation.report import judge, table, write_report
from minltx.toy.data import load_digits
from minltx.toy.model import ToyModel, load_checkpoint, save_checkpoint, start_from
from minltx.toy.texture import clips_named, make_world
from minltx.training.endings import one_line
from minltx.training.latents import clip_variants, encode_variants, measure_latents
from minltx.training.loops import build_critics, train_dit, train_vae
from minltx.training.page import Page
from minltx.training.parallel import World
from minltx.training.run import Run
from minltx.training.settings import PRESETS, scaled


def settings_of(args):
    """The preset, with the command line's changes."""
    settings = scaled(PRESETS[args.preset], args.budget)
    return replace(settings, start=args.start or settings.start)


def train(args, command):
    """The story. The two loops are in minltx/training/loops.py, and what a step of each computes is in
    minltx/objectives.py."""
    settings = settings_of(args)
    out, seed, device = Path(args.out), args.seed, pick_device(args.device)

    # Data: clips of moving digits with captions, rendered when they are needed. Other digits are held out.
    digits, other_digits = load_digits(args.digits, seed)
    data, held_out = make_world(args.world, args.photos, digits, other_digits, settings.model.data)

    # The model: VAE, transformer and caption encoder, with random weights or with those of another model.
    # The run writes its checkpoints, and resumes from them.
    torch.manual_seed(seed)
    model = ToyModel(settings.model).to(device)
    if settings.start:
        start_from(model, settings.start)
    source = clips_named(args.digits, args.world, args.photos)
    run = Run(out, model, settings, seed, source, World(device), args.resume)
    if report := run.finished(["vae", "dit"]):
        print(f"{out} is finished, with its report: for another run name another folder with --out")
        return report
    run.page = Page(run, held_out)                  # runs/toy/index.html: open it in a browser

    # Stage 1: the VAE learns to encode clips, and to decode latents that are still slightly noisy.
    if "vae" not in run.stages_done:
        critics = build_critics(settings, data, seed, device)
        train_vae(run, model, [data], held_out, critics=critics)

    # Stage 2: the transformer learns the velocity from data to noise, on latents that are encoded once.
    if "dit" not in run.stages_done:
        variants = clip_variants(data, *digits, settings)
        caches = encode_variants(model.vae, variants, settings.latents, seed, device)
        if not settings.start:             # what was learned before belongs to the statistics of that model
            measure_latents(model.vae, [cache.latents for cache in caches])
        train_dit(run, model, caches, held_out)

    # Report: what the saved file (in float16) makes of held-out clips, captions and seeds.
    save_checkpoint(out / "model.pt", model, half=True, command=command)
    model.load_state_dict(load_checkpoint(out / "model.pt")[0].state_dict())
    run.page.say("judging the model on held-out captions")
    figures, videos = judge(model.eval(), data, held_out, seed, args.prompts)
    report = write_report(run, command, figures, videos)
    run.page.finish(report)
    print(f"\n{table(report)}\n\n  videos, curves and report.json are in {out}{os.sep}")
    return report


def arguments():
    """The command line."""
    parser = Parser(prog="train_tiny.py", description=__doc__, epilog="Your own clips, several GPUs, other "
                    "optimisers and precisions, a single stage: python -m minltx.training --help")
    add = parser.add_argument
    add("--out", type=new_folder, default="runs/toy",
        help="folder for checkpoint, videos and report (default: %(default)s)")
    add("--digits", default="drawn", help="drawn, mnist (download) or a folder of IDX files")
    add("--world", choices=("black", "texture"), default="black", help="what the digits move over")
    add("--photos", metavar="FOLDER", help="with --world texture: your photographs instead of matplotlib's")
    add("--preset", choices=("toy", "large", "short"), default="toy")
    add("--start", metavar="FILE",
        help="start from this model's weights (default: random; with --preset large: the shipped model's)")
    add("--budget", type=BUDGET, default=1.0, help="train for this many times the steps (default: 1)")
    add("--seed", type=SEED, default=0)
    add("--prompts", type=COUNT, default=200, help="held-out prompts to judge by (default: %(default)s)")
    add("--device", type=device_name, help="cpu, cuda or mps (default: cuda if there is one)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    return parser


def main(argv=None):
    parser = arguments()
    args = parser.parse_args(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
    with one_line(parser):
        return train(args, shlex.join(["python", "train_tiny.py", *words]))


if __name__ == "__main__":
    main()
