r"""Train on your own clips or on digits: on several GPUs, from released weights, or a single stage.

    python -m minltx.training --clips FOLDER          videos, GIFs and pictures with captions of any words
    python -m minltx.training --only vae              digits, the autoencoder only; --vae FILE: without it
    torchrun --nproc-per-node 2 -m minltx.training --micro-batches 2 --parallel fsdp
    torchrun --nproc-per-node 8 -m minltx.training --preset 2b --clips FOLDER --text words.safetensors \
        --weights ltx-video-2b-v0.9.5.safetensors --buckets 121x512x768,1x512x768 --micro-batches 8 \
        --parallel fsdp --checkpoint-activations

Unusable clips are listed with reasons, and the estimated memory is printed, before the training starts.
"""

import contextlib
import io
import math
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import minltx.threads                                              # before torch: how threads wait
import torch

from minltx.command import (BUDGET, COUNT, SEED, Parser, check_together, device_name, new_file, new_folder,
                            number, pick_device)
from minltx.dit import DiT
from minltx.evaluation.report import judge, table, write_report
from minltx.toy.captions import StoredText, learn_words, most_words, split_words
from minltx.toy.data import MovingDigits, load_digits
from minltx.toy.model import ModelConfig, ToyModel, load_checkpoint, save_checkpoint, start_from
from minltx.training import memory, parallel
from minltx.training.endings import end, one_line
from minltx.training.latents import (check_latents, clip_variants, latent_cache, measure_latents, read_vae,
                                     take_vae)
from minltx.training.loops import build_critics, train_dit, train_vae
from minltx.training.page import Page
from minltx.training.run import Run
from minltx.training.settings import PRESETS, scaled
from minltx.vae import VideoVAE
from minltx.video.clips import open_folder, parse_buckets


# --- Settings and data ------------------------------------------------------------------------------------

def settings_of(args):
    """The preset, with the command line's changes. Raises ValueError for options that do not fit together."""
    check_together(args, [(name, ["clips"], "for a folder of clips") for name in ("buckets", "text")],
                   [("vae", "weights", "are two sources of the autoencoder"),
                    ("start", "vae", "are two sources of the autoencoder"),
                    ("start", "weights", "are two sources of the weights"),
                    ("only", "vae", "leave nothing to train"), ("only", "weights", "leave nothing to train"),
                    ("only", "token_drop", "do not fit: that is for the transformer"),
                    ("clips", "digits", "are two sources of data")])
    settings = scaled(PRESETS[args.preset], args.budget)
    for name in ("start", "micro_batches", "precision", "optimizer", "token_drop"):
        if getattr(args, name) is not None:
            settings = replace(settings, **{name: getattr(args, name)})
    if settings.model.data.digits == 0 and not args.clips:
        raise ValueError(f"the preset {args.preset} is trained on your clips: give --clips FOLDER"
                         + ", and --text FILE with the embeddings of their captions" * (args.preset == "2b"))
    if args.clips and settings.clip_variants:
        raise ValueError(f"the preset {args.preset} is for digits: use --preset clips for larger clips")
    return settings


@dataclass
class Data:
    """What to learn from: lists of data sets for stage 1 and stage 2; held-out clips; the captions'
    embeddings, or None."""

    vae: list
    dit: list
    held_out: object
    text: StoredText | None = None


def digits_data(args, settings):
    """Moving digits."""
    digits, other_digits = load_digits(args.digits or "drawn", args.seed)
    data = MovingDigits(*digits, settings.model.data)
    held_out = MovingDigits(*other_digits, settings.model.data)
    return Data([data], clip_variants(data, *digits, settings), held_out)


def clips_data(args, settings):
    """A folder of clips, checked -> Data, and the settings adapted to its clips. Raises ValueError if it has
    fewer than two usable clips, or if buckets or captions' embeddings do not fit."""
    text = read_text(args.text, settings.model.dit.text_width) if args.text else None
    with torch.device("meta"):
        vae = VideoVAE(settings.model.vae)
    buckets = parse_buckets(args.buckets) if args.buckets else ()
    training, held_out, _ = open_folder(args.clips, vae, settings.model.data.fps, buckets,
                                        text.check if text else None, settings.model.data.clip_shape)
    if not held_out:
        raise ValueError(f"{args.clips} has one usable clip: add another one, to be held out")
    c = training[0].config
    data = replace(settings.model.data, frames=c.frames, size=c.size, digits=0, digit_size=0)
    # The weight of bright pixels is meant for objects on black, and captions of any words do not say which of
    # them are about the motion.
    shapes = tuple(folder.config.clip_shape for folder in training)
    model = ModelConfig(data, settings.model.vae, settings.model.dit, bool(text),
                        () if text else words_of(training), shapes)
    settings = replace(settings, model=model, motion_captions=0.0, loss=replace(settings.loss, foreground=0))
    return Data(training, training, held_out[0], text), settings


def words_of(training):
    """The vocabulary of the captions of ClipFolders, as a tuple; says how many words it has."""
    captions = [clip.caption for folder in training for clip in folder.clips]
    words = learn_words(captions)
    longest = max(len(split_words(text)) for text in captions)
    print(f"{len(words) - 3} words are learned from {len(captions)} captions"
          + f", of which only the first {most_words(words)} words are read" * (longest > most_words(words)))
    return tuple(words)


def read_text(path, width):
    """Captions' embeddings by python -m minltx.pretrained.t5. Raises ValueError if they do not fit."""
    from minltx.pretrained.t5 import load_embeddings

    embeddings, mask, captions = load_embeddings(path)
    if embeddings.shape[2] != width:
        raise ValueError(f"{path} has embeddings of width {embeddings.shape[2]}, and this transformer reads "
                         f"{width}: embed the captions with its own text encoder")
    text = StoredText()
    text.fill(embeddings, mask, captions)
    text.check("")                                              # caption dropout and guidance need it
    return text


def check_files(args, data, settings):
    """Raises ValueError for files that would be refused when their turn comes, in seconds or in hours."""
    check_latents(args.latents, data.dit, settings, args.seed)
    if args.vae:
        read_vae(args.vae, settings.model.vae)
    if args.weights:
        from minltx.pretrained.weights import read_config

        theirs = read_config(args.weights)[0]
        if (theirs.dit, theirs.vae) != (settings.model.dit, settings.model.vae):
            raise ValueError(f"{args.weights} is a model of another shape than this preset's: use --preset "
                             "2b for the released 0.9.5 and 0.9.6")


def take_weights(model, path):
    """Give the model the transformer and VAE of a released file or folder, see `check_files`."""
    from minltx.pretrained import load_pretrained

    released = load_pretrained(path, torch.float32)
    for name in ("dit", "vae"):
        getattr(model, name).load_state_dict(getattr(released, name).state_dict())


def estimate_memory(settings, world, args):
    """What each stage will hold, with the network that it does not train, as lines for a terminal.

    Raises ValueError, with the figure, if that does not fit in the device's memory."""
    size, dit, stages = settings.model.data.clip_shape, settings.model.dit, {}
    tokens = math.prod(-(-n // s) for n, s in zip(size, dit.stride))
    plan = {"precision": settings.precision, "optimizer": settings.optimizer, "parallel": world.parallel,
            "ranks": world.size, "micro_batches": max(1, settings.micro_batches // world.size),
            "checkpointing": world.checkpointing}
    if not (args.vae or args.weights):
        frames, batch = max(((f, b) for f, b, _ in settings.vae_phases), key=math.prod)
        clip = min(frames, size[0]), *size[1:]
        stages["the autoencoder"] = {**memory.estimate_vae(settings.model.vae, clip, batch=batch, **plan),
                                     "weights of the transformer": memory.weights_of(DiT, dit)}
    if args.only != "vae":
        words = 256 if settings.model.stored_text else most_words(settings.model.words)
        stages["the transformer"] = {
            **memory.estimate_dit(dit, tokens, words, times=tokens, batch=settings.dit_batch, **plan),
            "weights of the autoencoder": memory.weights_of(VideoVAE, settings.model.vae)}
    limit = memory.device_memory(world.device)
    for name, stage in stages.items():
        memory.refuse(f"training {name}", sum(stage.values()), limit)
    return "\n".join(f"memory to train {name}, estimated, for each process:\n{memory.table(stage, limit)}"
                     for name, stage in stages.items())


# --- Training ---------------------------------------------------------------------------------------------

def train(args, command):
    """The story of train_tiny.py, with the parts that the command line asks for."""
    settings = settings_of(args)
    world = parallel.join(args.parallel, pick_device(args.device), checkpointing=args.checkpoint_activations,
                          compiled=args.compile)
    with contextlib.redirect_stdout(io.StringIO() if world.rank else sys.stdout):
        if args.clips:
            data, settings = clips_data(args, settings)
        else:
            data = digits_data(args, settings)
        check_files(args, data, settings)
        print(estimate_memory(settings, world, args))

    torch.manual_seed(args.seed)
    model = ToyModel(settings.model).to(world.device)
    if settings.start:
        start_from(model, settings.start)
    if data.text:
        model.text = data.text
    run = Run(args.out, model, settings, args.seed, args.clips or args.digits or "drawn", world, args.resume)
    if report := run.finished(["vae"] if args.only else ["vae", "dit"]):
        print(f"{args.out} is finished, with its report: for another run name another folder with --out")
        return report
    if world.rank == 0:
        run.page = Page(run, data.held_out)

    if (args.vae or args.weights) and "vae" not in run.stages_done:
        if args.weights:
            take_weights(model, args.weights)
        else:
            take_vae(model, args.vae)
        run.stages_done.append("vae")
    if "vae" not in run.stages_done:
        critics = build_critics(settings, data.vae[0], args.seed, world.device)
        train_vae(run, model, data.vae, data.held_out, critics=critics)
    if "dit" not in run.stages_done:
        caches = latent_cache(args.latents, model.vae, data.dit, settings, args.seed, world)
        if not (args.weights or settings.start):                # those weights have their own statistics
            measure_latents(model.vae, [cache.latents for cache in caches])
        if args.only != "vae":
            train_dit(run, model, caches, data.held_out)
    if world.rank == 0:
        return report_on(run, data, args, command)


def report_on(run, data, args, command):
    """Write the trained model and the report of a run."""
    model, out = run.model, run.out
    if args.weights:
        from minltx.pretrained import save_pretrained

        save_pretrained(model, out / "model.safetensors")
    if args.only != "vae":
        save_checkpoint(out / "model.pt", model, half=True, command=command)
        model.load_state_dict(load_checkpoint(out / "model.pt")[0].state_dict())    # judge what was saved
    prompts = (args.prompts or 200) if args.only != "vae" else 0
    run.page.say("judging the model on held-out clips")
    figures, videos = judge(model.eval(), data.vae[0], data.held_out, args.seed, prompts)
    report = write_report(run, command, figures, videos)
    run.page.finish(report)
    print(f"\n{table(report)}\n\n  videos, curves and report.json are in {out}{os.sep}")
    return report


# --- The command line -------------------------------------------------------------------------------------

def arguments():
    """The command line."""
    parser = Parser(prog="python -m minltx.training", description=__doc__)
    add = parser.add_argument
    add("--out", type=new_folder, default="runs/training",
        help="folder for checkpoint and report (default: %(default)s)")
    add("--preset", choices=PRESETS, default="toy")
    add("--budget", type=BUDGET, default=1.0, help="train for this many times the steps (default: 1)")
    add("--seed", type=SEED, default=0)
    add("--prompts", type=COUNT, help="held-out prompts to judge by, at most 12 for clips (default: 200)")
    add("--device", type=device_name, help="cpu, cuda or mps (default: cuda if there is one)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")

    add = parser.add_argument_group("what to learn from").add_argument
    add("--digits", help="drawn, mnist (download) or a folder of IDX files (default: drawn)")
    add("--clips", metavar="FOLDER", help="your own clips with captions instead of digits")
    add("--buckets", metavar="FxHxW,...", help="frames, height and width that clips are cut to (default: "
        "chosen from the clips, at most as large as the preset's)")
    add("--text", metavar="FILE", help="the captions' embeddings, by python -m minltx.pretrained.t5 --clips")
    add("--latents", metavar="FILE", type=new_file(),
        help="store the clips' latents in this file, or read them from it")

    add = parser.add_argument_group("what to train").add_argument
    add("--only", choices=["vae"], help="stop after this stage")
    add("--vae", metavar="FILE", help="take this checkpoint's autoencoder and train the transformer only")
    add("--weights", metavar="FILE", help="start from released weights and train the transformer")
    add("--start", metavar="FILE", help="start from this model.pt and train both (default: random weights; "
        "with --preset large: the shipped model's)")

    add = parser.add_argument_group("how to train").add_argument
    add("--micro-batches", type=COUNT, help="a step is the mean gradient of this many batches (default: 1)")
    add("--precision", choices=["float32", "bf16"], help="bf16: autocast (default: the preset's)")
    add("--optimizer", choices=["muon", "adamw"], help="(default: the preset's)")
    add("--token-drop", type=number(0, 0.99),
        help="leave out up to this share of a batch's tokens (paper: 0.2)")
    add("--parallel", choices=["ddp", "fsdp"], help="under torchrun: what processes share (default: ddp)")
    add("--checkpoint-activations", action="store_true", help="compute blocks twice to save memory")
    add("--compile", action="store_true", help="compile the blocks")
    return parser


def main(argv=None):
    parser = arguments()
    args = parser.parse_args(argv)
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
    try:
        with one_line(parser):
            return train(args, shlex.join(["python", "-m", "minltx.training", *words]))
    finally:
        parallel.leave()


if __name__ == "__main__":
    main()
    if "RANK" in os.environ:
        end(0)
