"""Test a claim with one command: the short toy with a switch flipped, over seeds, at equal compute.

    python -m minltx.workshop.ablate rope=exponential,inverse,none --seeds 3 --minutes 3
    python -m minltx.workshop.ablate loss.dwt=0.1,0,0.5      # any field of train_tiny.Settings is a switch
    python -m minltx.workshop.ablate rope qk-norm --grid     # all combinations, not one factor at a time
    python -m minltx.workshop.ablate --list

The first level of a switch is what the others are compared with, seed by seed. Equal compute means equal
floating-point operations, counted by torch: a variant whose step costs twice as much does half the steps. Every
run has a folder of its own and goes on where it was stopped, so the same command after a stop finishes the
same table. `SWITCHES` is the one place where a new switch is added.
"""

import argparse
import csv
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import train_tiny
from minltx.data import MovingDigits, Thing, caption
from minltx.flow import shifted_schedule
from minltx.losses import kl_divergence
from minltx.sampler import Guidance, sample_latent, seeded_noise
from minltx.workshop import metrics, pictures
from minltx.workshop.checkpoint import GUIDANCE, STEPS, ToyModel, load_checkpoint, tuples
from minltx.workshop.run import Run, pick_device


# --- The switches -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Switch:
    """Levels by name, each the fields of Settings that it changes. stage: what is trained and judged, see
    STAGES. The paper's claim, and the figure that decides it; at `better` the claim expects the best one."""

    stage: str
    levels: dict
    claim: str = ""
    figure: str = ""
    better: str = ""


def noisy(blocks):
    """A decoder's blocks with noise injection in the residual groups behind the first upsampling."""
    return tuple(("noisy", *b[1:]) if b[0] == "res" and i else b for i, b in enumerate(blocks))


MIXED = ((9, 32, 16.0), (9, 32, 24.0), (9, 32, 32.0))
SIZES = ((9, 32, 16.0), (5, 40, 16.0), (1, 56, 16.0))
TOY_VAE = train_tiny.SHORT.model.vae
SWITCHES = {
    "patchify": Switch("both", {
        "vae": {}, "transformer": {"model.vae.patch": 1, "model.vae.latent_channels": 1, "model.vae.fold": 2}},
        "patches at the VAE's input beat patches at the transformer's", "digit", "vae"),
    "decoder": Switch("decoder", {
        "told t": {}, "not told": {"model.vae.timestep_conditioning": False},
        "told, no noise": {"noise_range": 0.0},
        "plain": {"model.vae.timestep_conditioning": False, "noise_range": 0.0}},
        "a denoising decoder beats a plain one on what was generated", "generated digit", "told t"),
    "gan": Switch("vae", {
        "none": {}, "reconstruction": {"loss.adversarial": 0.002},
        "ordinary": {"loss.adversarial": 0.002, "loss.gan": "ordinary"}},
        "a reconstruction GAN beats an ordinary one and none", "detail", "reconstruction"),
    "dwt": Switch("vae", {"0.1": {}, "0": {"loss.dwt": 0.0}, "0.5": {"loss.dwt": 0.5}},
                  "the wavelet loss helps edges and motion", "psnr", "0.1"),
    "perceptual": Switch("vae", {"0": {}, "0.02": {"loss.perceptual": 0.02}},
                         "a perceptual loss keeps what is read", "digit read", "0.02"),
    "motion": Switch("vae", {"25": {}, "0": {"loss.motion": 0.0}},
                     "(ours) without its term the autoencoder freezes", "motion", "25"),
    "logvar": Switch("vae", {
        "shared": {"model.vae.latent_channels": 16, "loss.kl": 0.003},
        "per channel": {"model.vae.latent_channels": 16, "loss.kl": 0.003, "model.vae.shared_logvar": False}},
        "with one shared log-variance the KL term switches off no channels", "dimension", "shared"),
    "noise-injection": Switch("vae", {
        "off": {}, "on": {"model.vae.decoder_blocks": noisy(TOY_VAE.decoder_blocks)}},
        "noise injected in the decoder gives more detail", "detail", "on"),
    "rope": Switch("dit", {
        "exponential": {}, "inverse": {"model.dit.rope": "inverse"}, "absolute": {"model.dit.rope": "absolute"},
        "none": {"model.dit.rope": "none"},
        "inverse, near": {"model.dit.rope": "inverse", "model.dit.max_position": (1.0, 32.0, 32.0)},
        "exponential, near": {"model.dit.theta": 100.0, "model.dit.max_position": (1.0, 32.0, 32.0)}},
        "ascending exponential frequencies beat inverse ones", "validation", "exponential"),
    "coordinates": Switch("dit", {
        "seconds": {"views": MIXED}, "frames": {"views": MIXED, "seconds": False}},
        "coordinates in seconds give the right speed at every frame rate", "speed error", "seconds"),
    "qk-norm": Switch("dit", {
        "rms": {}, "layer": {"model.dit.qk_norm": "layer"}, "none": {"model.dit.qk_norm": "none"}},
        "RMS-normalised queries and keys train best", "validation", "rms"),
    "times": Switch("dit", {
        "shifted": {}, "logit-normal": {"times": "logit-normal"}, "uniform": {"times": "uniform"}},
        "shifted logit-normal times beat uniform ones", "digit", "shifted"),
    "attention": Switch("dit", {"full": {}, "space-time": {"model.dit.attention": "space-time"}},
                        "full 3-D attention beats space, then time", "validation", "full"),
    "image-to-video": Switch("dit", {"joint": {}, "text only": {"conditioned": 0.0}},
                             "joint training costs text-to-video nothing", "digit", "joint"),
    "condition-noise": Switch("dit", {"0": {}, "0.2": {"condition_noise": 0.2}},
                              "small noise on what is given helps", "image direction", "0.2"),
    "token-drop": Switch("dit", {"0": {}, "0.2": {"token_drop": 0.2}},
                         "dropping up to 20 % of the tokens costs nothing", "validation", "0.2"),
    "sizes": Switch("dit", {"one": {}, "several": {"views": SIZES}},
                    "several sizes and lengths can be trained together", "digit", "several"),
    "caption-dropout": Switch("dit", {"0.1": {}, "0": {"caption_dropout": 0.0}},
                              "guidance needs captions to be dropped in training", "digit", "0.1"),
    "ema": Switch("dit", {"0.99": {}, "0": {"ema": 0.0}},
                  "averaged weights are better than the last", "validation", "0.99"),
}

# What is judged in each stage: figure -> is more better?
VAE_FIGURES = {"psnr": True, "motion": True, "detail": True, "digit read": True, "psnr at 0.1": True,
               "dimension": True}
DIT_FIGURES = {"validation": False, "digit": True, "direction": True, "image direction": True,
               "first frame": True}
DECODER_FIGURES = {"psnr": True, "psnr at 0.1": True, "motion": True, "generated digit": True,
                   "t = 0.05 for 0": True}
# How long a run is: times the short toy's own steps, itself times --budget.
LENGTH = {"vae": 0.3, "decoder": 0.4, "dit": 0.8, "both": 0.5}
STAGES = {"vae": VAE_FIGURES, "decoder": DECODER_FIGURES, "dit": {**DIT_FIGURES, "speed error": False},
          "both": {"psnr": True, "motion": True, "digit read": True, **DIT_FIGURES}}


def changed(config, changes):
    """A nested dataclass with some fields replaced: {"model.dit.rope": "none"}. ValueError for no such field,
    or for a value of another type."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        known = [f.name for f in fields(config)] if is_dataclass(config) else []
        if name not in known:
            raise ValueError(f"{path!r} is no setting: {type(config).__name__} has {', '.join(known) or 'none'}")
        old = getattr(config, name)
        if not rest and isinstance(old, str) != isinstance(value, str):
            raise ValueError(f"{path} is {old!r} by default: {value!r} is of another kind")
        config = replace(config, **{name: changed(old, {rest: value}) if rest else value})
    return config


def settings_for(changes, budget=1.0):
    """The short toy's settings with these changes; the transformer follows the VAE's shape."""
    settings = changed(train_tiny.SHORT, {path: tuples(value) for path, value in changes.items()})
    vae = settings.model.vae
    dit = replace(settings.model.dit, latent_channels=vae.channels, stride=vae.stride)
    return train_tiny.scaled(replace(settings, model=replace(settings.model, dit=dit)), budget)


def parse_switch(text):
    """"rope=exponential,none" -> its name and the `Switch` with those levels, all of them if none are named.
    A name with dots, or of a field of Settings, makes a switch of that field. ValueError if unknown."""
    name, _, chosen = text.partition("=")
    wanted = [part for part in chosen.split(",") if part]
    if name in SWITCHES:
        switch = SWITCHES[name]
        for level in wanted:
            if level not in switch.levels:
                raise ValueError(f"{name} has no level {level!r}: use {', '.join(switch.levels)}")
        levels = {level: switch.levels[level] for level in wanted or switch.levels}
        return name, replace(switch, levels=levels)
    if len(wanted) < 2:
        raise ValueError(f"{text!r} is no switch: use {', '.join(SWITCHES)}, or a field of Settings with its "
                         "values, such as loss.dwt=0.1,0.5")
    levels = {}
    for level in wanted:
        try:
            value = json.loads(level.lower())
        except json.JSONDecodeError:
            value = level
        changed(train_tiny.SHORT, {name: value})
        same = name in train_tiny.Settings.__dataclass_fields__ and getattr(train_tiny.SHORT, name) == value
        levels[level] = {} if same else {name: value}
    vae = name.startswith(("loss.", "vae_", "model.vae.")) or name in ("noise_range", "perceptual")
    return name, Switch("both" if name.startswith("model.data") else "vae" if vae else "dit", levels)


# --- One run ----------------------------------------------------------------------------------------------

def every_kind_of_step(settings, stage, data):
    """One step of each kind that the stage's training has, forwards and backwards, without an optimiser ->
    (how many of them a whole training does, a function that does one)."""
    model, generator = ToyModel(settings.model), torch.Generator().manual_seed(0)
    if stage != "dit":
        perceptual, discriminator = train_tiny.rivals(settings, data, 0, "cpu", steps=1)
        model.vae.encoder.requires_grad_(not settings.freeze_encoder)

        def vae(frames, batch):
            video = data.batch(batch, generator)[0][:, :, :frames]
            loss, terms = train_tiny.vae_step(model.vae, video, settings, 0.0, generator, perceptual,
                                              discriminator)
            (loss + terms.get("discriminator", 0.0)).backward()

        for frames, batch, count in settings.vae_phases:
            yield count, lambda: vae(frames, batch)
    if stage in ("dit", "both"):
        _, *grid = model.vae.latent_shape(data.config.frames, data.config.size, data.config.size)
        bank = torch.randn(settings.dit_batch, settings.model.vae.channels, *grid)
        scenes = data.choose(settings.dit_batch, generator)

        def dit(layout):
            generator.manual_seed(train_tiny.LAYOUTS.index(layout))        # the same conditions for everybody
            latents, some, condition = train_tiny.batch_of_latents(model, data, bank, scenes, layout, settings,
                                                                   generator)
            train_tiny.dit_step(model, latents, [caption(s) for s in some], condition, settings,
                                generator)[0].backward()

        for layout in train_tiny.LAYOUTS:
            yield settings.dit_steps / len(train_tiny.LAYOUTS), lambda: dit(layout)


def flops(settings, stage, data):
    """Floating-point operations of a whole training, counted by torch step by step."""
    total = 0
    for count, step in every_kind_of_step(settings, stage, data):
        with FlopCounterMode(display=False) as counter:
            step()
        total += count * counter.get_total_flops()
    return total


def seconds(settings, stage, data):
    """What a whole training takes here, by the clock, but for the optimiser and the judging."""
    total = 0.0
    for count, step in every_kind_of_step(settings, stage, data):
        step()
        began = time.perf_counter()
        step()
        total += count * (time.perf_counter() - began)
    return total


def train_and_judge(spec, folder, say=print):
    """One run, from its spec to its figures. Goes on from the folder's checkpoint if there is one."""
    device, seed, stage = pick_device(spec["device"]), spec["seed"], spec["stage"]
    frozen = {"freeze_encoder": True} if stage == "decoder" else {}
    torch.manual_seed(seed)
    base, asked = settings_for(frozen), settings_for({**frozen, **spec["changes"]})
    digits, held = train_tiny.load_digits(spec["digits"], seed)
    data, held_out = MovingDigits(*digits, base.model.data), MovingDigits(*held, base.model.data)
    cost = [flops(s, stage, data) for s in (base, asked)]
    settings = settings_for({**frozen, **spec["changes"]}, spec["budget"] * cost[0] / cost[1])
    say(f"a step costs {cost[1] / cost[0]:.3f} times the reference's")

    torch.manual_seed(seed)
    model = ToyModel(settings.model).to(device)
    shared = load_checkpoint(spec["model"])[0] if stage in ("dit", "decoder") else None
    if stage == "dit":
        train_tiny.take_vae(model, spec["model"])
    if stage == "decoder":
        model.vae.encoder.load_state_dict(shared.vae.encoder.state_dict())
        model.vae.latent_mean.copy_(shared.vae.latent_mean)
        model.vae.latent_std.copy_(shared.vae.latent_std)
        model.dit.load_state_dict(shared.dit.state_dict())
        model.text.load_state_dict(shared.text.state_dict())
    run = Run(folder, model, settings, seed, spec["digits"], device, (folder / "checkpoint.pt").exists(),
              spec.get("save_every", 100))
    if stage == "dit" and not run.stages_done:
        run.stages_done.append("vae")
    if "vae" not in run.stages_done:
        train_tiny.train_vae(run, model, data, held_out)
    if stage in ("vae", "both", "dit"):
        views = train_tiny.views_of(*digits, settings)
        if stage == "dit":
            views = kept_latents(Path(spec["banks"]), model.vae, views, settings, seed, device)
        else:
            count = 512 if stage == "vae" else settings.bank            # a VAE alone only needs statistics
            views = train_tiny.encode_views(model.vae, views, count, seed, device)
            train_tiny.measure_latents(model.vae, [latents for _, latents, _ in views])
        if stage != "vae" and "dit" not in run.stages_done:
            train_tiny.train_dit(run, model, views, held_out)
    model.eval()
    reader = metrics.DigitClassifier().eval()
    reader.load_state_dict(torch.load(spec["reader"], weights_only=True))
    figures, more = {}, {}
    if stage != "dit":
        figures.update(judge_vae(model, held_out, reader, seed, device))
    if stage in ("dit", "both"):
        _, _, _, judged = train_tiny.judge_dit(model, held_out, reader, seed, device, spec["prompts"])
        text, image = judged["text_to_video"], judged["image_to_video"]
        figures.update({
            "validation": run.history["dit validation"][-1][1], "digit": 100 * text["digit"],
            "colour": 100 * text["colour"], "direction": 100 * text["direction"],
            "image direction": 100 * image["direction"],
            "first frame": image["first_frame_psnr"] - image["vae_first_frame_psnr"]})
        more["loss_by_t"] = [total / max(1, count) for total, count in run.by_t]
    if settings.views and stage == "dit":
        more["speeds"] = judge_speeds(model, held_out, seed, spec["prompts"] // 2)
        figures["speed error"] = 100 * statistics.mean(abs(ratio - 1) for ratio in more["speeds"].values())
    if stage == "decoder":
        more["grid"] = judge_decoder(model, held_out, reader, seed, spec["prompts"])
        cells = {(c["announced"], c["noise"]): c for c in more["grid"]}
        figures["generated digit"] = cells[0.05, 0.025]["generated digit"]
        figures["t = 0.05 for 0"] = (cells[0.05, 0.025]["generated digit"]
                                     - cells[0.0, 0.0]["generated digit"])
    return {"stage": stage, "level": spec["level"], "changes": spec["changes"], "seed": seed,
            "budget": spec["budget"], "settings": run.identity["settings"], "step_cost": cost[1] / cost[0],
            "petaflops": spec["budget"] * cost[0] / 1e15,
            "hardware": train_tiny.hardware(device), "seconds": run.seconds, "figures": figures, **more}


def kept_latents(folder, vae, views, settings, seed, device):
    """`encode_views`, but runs of one seed, clips and autoencoder share what the first of them encoded."""
    path = folder / f"{seed}-{'_'.join('x'.join(f'{n:g}' for n in v) for v in settings.views) or 'own'}.pt"
    if not path.exists():
        encoded = train_tiny.encode_views(vae, views, settings.bank, seed, device)
        stored = [(latents.cpu(), [[asdict(x) for x in scene] for scene in scenes])
                  for _, latents, scenes in encoded]
        pictures.put_in_place(path, lambda p: torch.save(stored, p))
    stored = torch.load(path, weights_only=True)
    return [(data, latents.to(device), [[Thing(**x) for x in scene] for scene in scenes])
            for data, (latents, scenes) in zip(views, stored, strict=True)]


@torch.no_grad()
def judge_vae(model, held_out, reader, seed, device):
    """Figures of held-out reconstructions and of the latents."""
    c = model.config.data
    video, scenes = held_out.batch(128, train_tiny.rng(seed, train_tiny.EVALUATION, 1))
    video = video.to(device)
    mean, logvar = model.vae.encode(video)
    noise = torch.randn(mean.shape, generator=train_tiny.rng(seed, train_tiny.EVALUATION, 2)).to(device)
    plain = train_tiny.reconstruct(model.vae, video)
    read = metrics.adherence(metrics.read_clips(plain.cpu(), c.digits, reader, c.digit_size), scenes)
    spectrum = torch.linalg.eigvalsh(torch.cov(mean.movedim(1, 0).flatten(1).double())).clamp(min=0)
    per_channel = [kl_divergence(mean[:, i], logvar[:, i]).item() for i in range(mean.shape[1])]
    return {"psnr": metrics.psnr(plain, video).mean().item(), "motion": metrics.motion_ratio(plain, video),
            "detail": metrics.detail_ratio(plain, video), "digit read": 100 * read["digit"],
            "psnr at 0.1": metrics.psnr(train_tiny.reconstruct(model.vae, video, 0.1, noise),
                                        video).mean().item(),
            # participation ratio of the latents' principal components: how many channels are at work
            "dimension": (spectrum.sum() ** 2 / spectrum.square().sum()).item(),
            "channels in use": sum(kl > 0.1 for kl in per_channel)}


@torch.no_grad()
def judge_decoder(model, held_out, reader, seed, prompts):
    """Reconstruction and adherence for every (announced t, added noise): rows of a table."""
    c = model.config.data
    generator = train_tiny.rng(seed, train_tiny.EVALUATION, 3)
    scenes = held_out.choose(prompts, generator, held_out=True)
    clips = held_out.clips(scenes, generator)
    captions, rows = [caption(s) for s in scenes], []
    shape = model.vae.latent_shape(c.frames, c.size, c.size)
    latent = sample_latent(model.dit, seeded_noise(shape, [1_000_000 + i for i in range(prompts)]),
                           shifted_schedule(STEPS, math.prod(shape[1:])), model.embed(captions),
                           model.embed([""] * prompts), Guidance(GUIDANCE), c.fps)
    coded = model.vae.normalize(model.vae.encode(clips)[0])
    noise = torch.randn(latent.shape, generator=generator)

    def show(z, announced, added):
        times = torch.full((prompts,), announced)
        return model.vae.decode(model.vae.denormalize((1 - added) * z + added * noise), times).clamp(-1, 1)

    def read(video):
        found = metrics.read_clips(video, c.digits, reader, c.digit_size)
        return 100 * metrics.adherence(found, scenes)["digit"]

    for announced, added in itertools.product((0.0, 0.025, 0.05, 0.1, 0.2), repeat=2):
        rebuilt, made = show(coded, announced, added), show(latent, announced, added)
        rows.append({"announced": announced, "noise": added,
                     "psnr": metrics.psnr(rebuilt, clips).mean().item(),
                     "motion": metrics.motion_ratio(rebuilt, clips), "reconstructed digit": read(rebuilt),
                     "generated digit": read(made)})
    return rows


def judge_speeds(model, held_out, seed, prompts):
    """fps -> measured speed over the data's mean speed, for frame rates seen in training and for others."""
    c = model.config.data
    scenes = held_out.choose(prompts, train_tiny.rng(seed, train_tiny.EVALUATION, 5), held_out=True)
    ratios = {}
    for fps in (16.0, 20.0, 24.0, 28.0, 32.0):
        video = model.generate([caption(s) for s in scenes], [2_000_000 + i for i in range(prompts)], fps=fps)
        track = metrics.centres(metrics.brightness(video))[0]                             # (B, F, 2)
        speed = (track[:, -1] - track[:, 0]).norm(dim=-1).mean().item() * fps / (c.frames - 1)
        ratios[str(fps)] = speed / statistics.mean(c.speed)
    return ratios


# --- Many runs --------------------------------------------------------------------------------------------

def plan(switches, seeds, grid):
    """{name: Switch} -> the table's rows (switch, level, stage, changes) and the runs, each only once."""
    rows = []
    if grid:
        stages = {switch.stage for switch in switches.values()}
        stage = stages.pop() if len(stages) == 1 else "both"
        for combination in itertools.product(*(switch.levels.items() for switch in switches.values())):
            changes = {k: v for _, level in combination for k, v in level.items()}
            rows.append((" x ".join(switches), " x ".join(name for name, _ in combination), stage, changes))
    else:
        rows = [(name, level, switch.stage, changes) for name, switch in switches.items()
                for level, changes in switch.levels.items()]
    runs = {}
    for name, level, stage, changes in rows:
        for seed in range(seeds):
            runs.setdefault(folder_of(name, level, stage, changes, seed), (name, level, stage, changes, seed))
    return rows, runs


def folder_of(name, level, stage, changes, seed):
    """The run's folder inside --out; the reference of a stage is shared by all its switches."""
    label = f"{name}={level}".replace(" ", "_").replace("/", "_") if changes else "reference"
    return Path(stage) / label / f"seed{seed}"


def worker(folder):
    """The body of a run's own process; ends when the runner does."""
    def follow():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    report = train_and_judge(json.loads((folder / "spec.json").read_text()), folder)
    pictures.put_in_place(folder / "report.json", lambda p: p.write_text(json.dumps(report, indent=1)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def prepare(args, out, stages):
    """The reader of digits, and the model whose autoencoder (and transformer) the other stages build on."""
    reader = out / "reader.pt"
    out.mkdir(parents=True, exist_ok=True)
    if not reader.exists():
        print("a reader of digits is trained, once", flush=True)
        images, labels = train_tiny.load_digits(args.digits, 0)[0]
        classifier = metrics.train_classifier(MovingDigits(images, labels, train_tiny.SHORT.model.data))
        pictures.put_in_place(reader, lambda p: torch.save(classifier.state_dict(), p))
    model = Path(args.model or out / "shared" / "model.pt")
    if stages & {"dit", "decoder"} and not (out / "shared" / "report.json").exists() and not args.model:
        print("a whole short toy is trained, once: the others share its autoencoder", flush=True)
        resume = ["--resume"] if (out / "shared" / "checkpoint.pt").exists() else []
        budget = ["--budget", str(args.shared_budget)] if args.shared_budget != 1 else []
        train_tiny.main(["--preset", "short", "--digits", args.digits, "--out", str(out / "shared"), *budget,
                         "--device", args.device or str(pick_device(None)), *resume])
    return str(reader.resolve()), str(model.resolve())


def calibrate(args, out, stages):
    """How many times the short toy's own steps a run of each stage may do: --budget times LENGTH. Asked in
    minutes, the reference's steps are timed here, once; the answer is kept, so that a second start trains
    the same."""
    kept = out / "budget.json"
    stored = json.loads(kept.read_text()) if kept.exists() else {}
    if args.minutes is None:
        return {stage: args.budget * LENGTH[stage] for stage in stages}
    images, labels = train_tiny.load_digits(args.digits, 0)[0]
    data = MovingDigits(images, labels, train_tiny.SHORT.model.data)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // args.jobs))
    for stage in sorted(stages - set(stored)):
        settings = settings_for({"freeze_encoder": True} if stage == "decoder" else {})
        stored[stage] = round(60 * args.minutes / seconds(settings, stage, data), 4)
    torch.set_num_threads(threads)
    pictures.put_in_place(kept, lambda p: p.write_text(json.dumps(stored)))
    return stored


def run_all(args, out, runs):
    """Run what is not done yet, `args.jobs` at a time, and say how long the rest will take."""
    stages = {stage for _, _, stage, _, _ in runs.values()}
    reader, model = prepare(args, out, stages)
    budget = calibrate(args, out, stages)
    waiting, active, took, failed = [], {}, [], []
    banks = (out / "latents").resolve()
    banks.mkdir(exist_ok=True)
    for where, (_, level, stage, changes, seed) in runs.items():
        folder = out / where
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"stage": stage, "level": level, "changes": changes, "seed": seed, "budget": budget[stage],
                "prompts": args.prompts, "digits": args.digits, "device": args.device, "reader": reader,
                "model": model, "banks": str(banks)}
        if (folder / "report.json").exists():
            old = json.loads((folder / "report.json").read_text())
            if [old[k] for k in ("changes", "budget")] != [json.loads(json.dumps(changes)), budget[stage]]:
                raise ValueError(f"{folder} holds a run with other settings or another budget: "
                                 "name another folder with --out")
        else:
            (folder / "spec.json").write_text(json.dumps(spec))
            waiting.append(folder)
    total = len(waiting)
    print(f"{len(runs)} runs, {len(runs) - total} of them done", flush=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    try:
        while waiting or active:
            while waiting and len(active) < args.jobs:
                folder = waiting.pop(0)
                log = open(folder / "log.txt", "a")
                child = subprocess.Popen(
                    [sys.executable, "-m", "minltx.workshop.ablate", "--worker", str(folder)], stdout=log,
                    stderr=log, stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": threads})
                active[folder] = (child, time.perf_counter(), log)
            time.sleep(0.2)
            for folder, (child, began, log) in list(active.items()):
                if child.poll() is None:
                    continue
                del active[folder]
                log.close()
                took.append(time.perf_counter() - began)
                if child.returncode:
                    failed.append(folder)
                left = (len(waiting) + len(active) / 2) * sum(took) / len(took) / args.jobs / 60
                print(f"{len(took)}/{total}  {folder.relative_to(out)}  "
                      f"{'FAILED' if child.returncode else f'{took[-1]:.0f} s'}, about {left:.0f} min left",
                      flush=True)
    finally:
        for child, _, _ in active.values():
            child.kill()
    if failed:
        raise ValueError(f"{len(failed)} runs failed; the reason is in {failed[0] / 'log.txt'}")


# --- Tables -----------------------------------------------------------------------------------------------

def compare(values, reference):
    """Values and the reference's, seed by seed -> mean, spread, paired difference and its spread, and whether
    the difference is clear: larger than its spread, and the same sign for every seed."""
    spread = statistics.stdev if len(values) > 1 else lambda x: 0.0
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean, noise = statistics.mean(differences), spread(differences)
    clear = len(values) > 1 and abs(mean) > noise and all(d * mean > 0 for d in differences)
    return {"mean": statistics.mean(values), "spread": spread(values), "difference": mean,
            "difference_spread": noise, "clear": clear}


def collect(out, rows, seeds):
    """The reports as a list of lines: one for every row of the table and figure."""
    lines, first = [], {}
    for name, level, stage, changes in rows:
        reports = [json.loads((out / folder_of(name, level, stage, changes, seed) / "report.json").read_text())
                   for seed in range(seeds)]
        for figure in STAGES[stage]:
            if all(figure in report["figures"] for report in reports):
                values = [report["figures"][figure] for report in reports]
                against, reference = first.setdefault((name, figure), (level, values))
                lines.append({"switch": name, "level": level, "stage": stage, "figure": figure,
                              "against": against, **compare(values, reference), "values": values})
    return lines


def verdict(switch, name, lines):
    """Does the paper's claim hold here? "holds", "does not" or "cannot be told", and the deciding numbers."""
    more = STAGES[switch.stage][switch.figure]
    of = {line["level"]: line["values"] for line in lines
          if line["switch"] == name and line["figure"] == switch.figure}
    if switch.better not in of or len(of) < 2:
        return None
    answers, words = [], []
    for level, values in of.items():
        if level != switch.better:
            against = compare(of[switch.better], values)
            good = (against["difference"] > 0) == more
            answers.append(("holds" if good else "does not") if against["clear"] else "cannot be told")
            words.append(f"{against['difference']:+.3g} ± {against['difference_spread']:.2g} against {level}")
    together = answers[0] if len(set(answers)) == 1 else "; ".join(answers)
    return together, f"{switch.figure} of {switch.better}: " + "; ".join(words)


def markdown(lines, switches):
    """The verdicts, and a table for every stage: mean ± spread over seeds, the paired difference in brackets,
    a star where it is clear."""
    text, known = [], {k: v for k, v in switches.items() if v.claim}
    if known:
        text += ["| claim | switch | verdict | by |", "|---|---|---|---|"]
        for name, switch in known.items():
            answer = verdict(switch, name, lines)
            if answer:
                text.append(f"| {switch.claim} | {name} | **{answer[0]}** | {answer[1]} |")
        text.append("")
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        figures = [f for f in STAGES[stage] if any(line["figure"] == f for line in own)]
        text += ["| switch | level | " + " | ".join(figures) + " |", "|---" * (len(figures) + 2) + "|"]
        for key in dict.fromkeys((line["switch"], line["level"]) for line in own):
            cells = {line["figure"]: line for line in own if (line["switch"], line["level"]) == key}
            text.append("| " + " | ".join([*key, *(cell(cells.get(f)) for f in figures)]) + " |")
        text.append("")
    return "\n".join(text)


def cell(line):
    """One figure of one level as text."""
    if line is None:
        return ""
    digits = 1 if abs(line["mean"]) >= 20 else 2 if abs(line["mean"]) >= 2 else 3
    text = f"{line['mean']:.{digits}f} ± {line['spread']:.{digits}f}"
    if line["level"] != line["against"]:
        text += f" ({line['difference']:+.{digits}f}{'*' if line['clear'] else ''})"
    return text


def write_tables(out, rows, seeds, switches):
    """table.md, table.csv and plot.png in the folder, from the reports alone."""
    lines = collect(out, rows, seeds)
    pictures.put_in_place(out / "table.md", lambda p: p.write_text(markdown(lines, switches)))

    def write_csv(path):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, [k for k in lines[0]])
            writer.writeheader()
            writer.writerows({**line, "values": " ".join(map(repr, line["values"]))} for line in lines)

    pictures.put_in_place(out / "table.csv", write_csv)
    panels = []
    for name in dict.fromkeys(line["switch"] for line in lines):
        own = [line for line in lines if line["switch"] == name]
        figure = switches[name].figure if name in switches and switches[name].figure else own[0]["figure"]
        panels.append((name, figure, {line["level"]: line["values"] for line in own
                                      if line["figure"] == figure}))
    pictures.save_dots(out / "plot.png", panels)
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("switches", nargs="*", help="NAME, NAME=level,level or FIELD=value,value (see --list)")
    add("--list", action="store_true", help="show the switches and their levels")
    add("--all", action="store_true", help="all switches of the list")
    add("--grid", action="store_true", help="all combinations instead of one factor at a time")
    add("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: %(default)s)")
    add("--minutes", type=float, help="training time of a reference run; timed once, then kept")
    add("--budget", type=float, default=1.0, help="or: times the usual length of a run (default: 1)")
    add("--shared-budget", type=float, default=1.0, help="the same for the shared model (default: 1)")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    add("--prompts", type=int, default=100, help="held-out prompts to judge by (default: %(default)s)")
    add("--digits", default="drawn", help="drawn, mnist or a folder of IDX files")
    add("--model", metavar="FILE", help="a short toy's model.pt to share, instead of training one")
    add("--device", help="cpu, cuda or mps")
    add("--out", default="runs/ablation", help="folder for everything (default: %(default)s)")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(Path(args.worker))
    if args.list:
        for name, switch in SWITCHES.items():
            print(f"{name:16} {switch.stage:8} {', '.join(switch.levels)}\n{'':25} {switch.claim}")
        return None
    out = Path(args.out)
    try:
        asked = list(SWITCHES) if args.all else args.switches
        if not asked:
            raise ValueError(f"name a switch: {', '.join(SWITCHES)}; or --all, or --list")
        if args.seeds < 1 or args.jobs < 1 or args.prompts < 2 or (args.minutes or 1) <= 0:
            raise ValueError("--seeds, --jobs and --minutes must be positive, --prompts at least 2")
        switches = dict(parse_switch(text) for text in asked)
        rows, runs = plan(switches, args.seeds, args.grid)
        for _, _, stage, changes, _ in runs.values():
            ToyModel(settings_for(changes).model)                  # what cannot be built is said before hours
        run_all(args, out, runs)
        write_tables(out, rows, args.seeds, switches)
    except (ValueError, OSError) as error:
        parser.exit(2, f"ablate: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\nablate: stopped; the same command goes on\n")
    words = shlex.join(["python", "-m", "minltx.workshop.ablate", *(sys.argv[1:] if argv is None else argv)])
    print(f"\n{(out / 'table.md').read_text()}\n{words}\ntable.md, table.csv and plot.png are in {out}{os.sep}")


if __name__ == "__main__":
    main()
