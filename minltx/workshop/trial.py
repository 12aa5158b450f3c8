"""One run of an ablation: from a switch's changes and a seed to figures, at the reference's compute."""

import itertools
import math
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import train_tiny
from minltx.data import MovingDigits, caption
from minltx.flow import shifted_schedule
from minltx.losses import kl_divergence
from minltx.sampler import Guidance, decode, sample_latent, seeded_noise
from minltx.workshop import metrics
from minltx.workshop.checkpoint import GUIDANCE, STEPS, ToyModel, load_checkpoint, pixels
from minltx.workshop.parallel import World
from minltx.workshop.run import Run, pick_device
from minltx.workshop.switches import settings_for


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
        _, *grid = model.vae.latent_shape(*pixels(data.config))
        bank = torch.randn(settings.dit_batch, settings.model.vae.channels, *grid)
        scenes = data.choose(settings.dit_batch, generator)

        def dit(layout):
            generator.manual_seed(settings.layouts.index(layout))        # the same conditions for everybody
            latents, some, condition = train_tiny.batch_of_latents(model, data, bank, scenes, layout,
                                                                   settings, generator)
            train_tiny.dit_step(model, latents, [caption(s) for s in some], condition, settings,
                                generator)[0].backward()

        for layout in settings.layouts:
            yield settings.dit_steps / len(settings.layouts), lambda: dit(layout)


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


def train_and_judge(spec, folder):
    """One run, from its spec to its figures. Goes on from the folder's checkpoint if there is one."""
    device, seed, stage = pick_device(spec["device"]), spec["seed"], spec["stage"]
    base, asked = settings_for({}, stage), settings_for(spec["changes"], stage)
    digits, held = train_tiny.load_digits(spec["digits"], seed)
    data, held_out = MovingDigits(*digits, base.model.data), MovingDigits(*held, base.model.data)
    cost = [flops(s, stage, data) for s in (base, asked)]
    settings = settings_for(spec["changes"], stage, spec["budget"] * cost[0] / cost[1])
    print(f"a step costs {cost[1] / cost[0]:.3f} times the reference's")

    torch.manual_seed(seed)
    model = ToyModel(settings.model).to(device)
    if stage == "dit":
        train_tiny.take_vae(model, spec["model"])
    if stage == "decoder":                                         # everything is shared but the decoder
        shared = load_checkpoint(spec["model"])[0].state_dict()
        own = {k: v for k, v in model.state_dict().items() if k.startswith("vae.decoder.")}
        model.load_state_dict({k: v for k, v in shared.items() if not k.startswith("vae.decoder.")} | own)
    run = Run(folder, model, settings, seed, spec["digits"], device, (folder / "checkpoint.pt").exists(),
              spec.get("save_every", 100))
    if stage == "dit" and not run.stages_done:
        run.stages_done.append("vae")
    if "vae" not in run.stages_done:
        train_tiny.train_vae(run, model, [data], held_out)
    if stage in ("vae", "both", "dit"):
        views = train_tiny.views_of(data, *digits, settings)
        if stage == "dit":
            # Runs of one seed, clips and autoencoder share what the first of them encoded.
            kind = "_".join("x".join(f"{n:g}" for n in v) for v in settings.views) or "own"
            views = train_tiny.kept_latents(Path(spec["banks"]) / f"{seed}-{kind}.pt", model, views, settings,
                                            seed, World(device))
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


@torch.no_grad()
def judge_vae(model, held_out, reader, seed, device):
    """The figures of `train_tiny.judge_vae`, and those of detail and of the latents."""
    plain, video, judged = train_tiny.judge_vae(model, held_out, reader, seed, device)
    mean, logvar = model.vae.encode(video)
    spectrum = torch.linalg.eigvalsh(torch.cov(mean.movedim(1, 0).flatten(1).double())).clamp(min=0)
    per_channel = [kl_divergence(mean[:, i], logvar[:, i]).item() for i in range(mean.shape[1])]
    return {"psnr": judged["psnr"], "motion": judged["motion_ratio"],
            "detail": metrics.detail_ratio(plain, video), "digit read": 100 * judged["read"]["digit"],
            "psnr at 0.1": judged["psnr_over_noise"][0.1],
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
    shape = model.vae.latent_shape(*pixels(c))
    latent = sample_latent(model.dit, seeded_noise(shape, [1_000_000 + i for i in range(prompts)]),
                           shifted_schedule(STEPS, math.prod(shape[1:])), model.embed(captions),
                           model.embed([""] * prompts), Guidance(GUIDANCE), c.fps)
    coded = model.vae.normalize(model.vae.encode(clips)[0])
    noise = torch.randn(latent.shape, generator=generator)

    def read(video):
        found = metrics.read_clips(video, c.digits, reader, c.digit_size)
        return 100 * metrics.adherence(found, scenes)["digit"]

    for announced, added in itertools.product((0.0, 0.025, 0.05, 0.1, 0.2), repeat=2):
        rebuilt, made = (decode(model.vae, z, announced, added, noise) for z in (coded, latent))
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
