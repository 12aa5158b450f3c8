"""Train a toy LTX-Video on moving digits: settings, data, stage 1 (VAE), stage 2 (transformer), report.

    python train_tiny.py                          the default toy, about nine minutes on two CPU cores
    python train_tiny.py --digits mnist           handwritten digits, downloaded; or --digits FOLDER
    python train_tiny.py --preset large           64x64, 17 frames, two digits: 45 minutes, or a GPU
    python train_tiny.py --resume                 go on where the last checkpoint in --out stands
    python train_tiny.py --clips FOLDER           your own GIFs, mp4 files and pictures with captions
    torchrun --nproc-per-node 2 train_tiny.py --micro-batches 2 --parallel fsdp

Every step draws its random numbers from (seed, stage, step) alone, so a run that was stopped and resumed
is the run that was not, on a CPU bit for bit.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import shlex
import sys
import time
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from minltx.data import DataConfig, MovingDigits, Thing, caption, draw_digits
from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.flow import flow_loss, interpolate, sample_t, velocity
from minltx.losses import Discriminator, LossConfig, discriminator_loss, vae_loss
from minltx.sampler import Condition, place, token_times
from minltx.text import tokenize
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop import memory, metrics, mnist, parallel, pictures
from minltx.workshop.checkpoint import (GUIDANCE, STEPS, ModelConfig, StoredText, ToyModel, load_checkpoint,
                                         pixels, save_checkpoint)
from minltx.workshop.clips import open_folder, parse_buckets
from minltx.workshop.run import Run, pick_device


# --- Settings ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Settings:
    """How a toy is trained. A phase of the VAE is (frames, clips in a batch, steps)."""

    model: ModelConfig
    vae_phases: tuple = ((1, 32, 200), (9, 12, 400), (17, 8, 250))
    vae_lr: float = 0.02
    vae_adam_lr: float = 3e-3
    freeze_encoder: bool = False                     # train a new decoder on the encoder that is there
    loss: LossConfig = LossConfig(foreground=10.0)   # the foreground weight falls to 0 over the first half
    noise_range: float = 0.2                         # the decoder learns to remove noise up to this t
    perceptual: str = "digits"                       # whose features that term compares: digits or lpips
    discriminator_width: int = 16
    discriminator_lr: float = 1e-3
    bank: int = 6400                                 # clips whose latents the transformer learns from
    dit_steps: int = 1100
    dit_batch: int = 32
    dit_lr: float = 0.02
    dit_adam_lr: float = 2e-3
    times: str = "shifted"                           # how training times are drawn, see flow.sample_t
    conditioned: float = 0.8                         # share of clips that hold to a batch's condition,
    soft: float = 0.25                               # and of these, with a strength below 1
    condition_noise: float = 0.0                     # the others get noise up to this t on what is given
    caption_dropout: float = 0.1
    token_drop: float = 0.0                          # up to this share of a batch's tokens is left out
    views: tuple = ()                                # (frames, size, fps) of the clips; (): the data's own
    seconds: bool = True                             # RoPE is told each clip's fps, or always the data's
    ema: float = 0.99
    layouts: tuple = ("free", "start", "still", "free", "end", "free", "free", "still", "keyframe", "free")
    micro_batches: int = 1                           # a step's gradient is the mean of so many batches'
    precision: str = "float32"                       # or bf16: autocast
    optimizer: str = "muon"                          # or adamw


TOY = Settings(ModelConfig(
    data=DataConfig(),
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=32, decoder_width=64,
                  encoder_blocks=(("down", (2, 2, 2), 64), ("res", 1), ("down", (2, 2, 2), 64), ("res", 1)),
                  decoder_blocks=(("res", 2), ("up", (2, 2, 2), 32), ("res", 2), ("up", (2, 2, 2), 16),
                                  ("res", 1))),
    dit=DiTConfig(latent_channels=4, width=128, depth=6, heads=4, text_width=64, stride=(4, 8, 8))))

LARGE = replace(TOY, model=replace(
    TOY.model, data=DataConfig(size=64, digit_size=26, digits=2, speed=(8.0, 16.0))),
    vae_phases=((1, 16, 300), (9, 6, 900), (17, 4, 400)), dit_batch=12, dit_steps=3000)

SHORT = replace(TOY, model=replace(
    TOY.model, data=DataConfig(frames=9, speed=(10.0, 18.0)),
    dit=replace(TOY.model.dit, width=96, depth=4)),
    vae_phases=((1, 32, 300), (9, 12, 1400)), dit_steps=900)

# The released 2 B model, to be trained on a folder of clips whose captions are embedded: --clips and --text.
FULL = Settings(ModelConfig(DataConfig(121, (512, 768), 0, 0, 24.0), VAEConfig(), DiTConfig(), True),
                vae_phases=((1, 4, 2000), (17, 1, 8000)), vae_adam_lr=5e-5, loss=LossConfig(),
                bank=2000, dit_steps=1000, dit_batch=1, dit_adam_lr=1e-5, ema=0.999,
                layouts=("free", "start", "still", "free"), precision="bf16", optimizer="adamw")

PRESETS = {"toy": TOY, "large": LARGE, "short": SHORT, "2b": FULL}
VAE_STAGE, BANK, DIT_STAGE, EVALUATION = range(4)   # who draws random numbers, see `rng`


def scaled(settings, budget):
    """The same settings with `budget` times the steps of every phase and, above 1, the clips of the bank."""
    if not 0 < budget < 1000:
        raise ValueError(f"--budget {budget} is no amount of training: use a number above 0, such as 0.5")
    return replace(settings, dit_steps=max(1, round(settings.dit_steps * budget)),
                   bank=round(settings.bank * max(1, budget)),
                   vae_phases=tuple((f, b, max(1, round(s * budget))) for f, b, s in settings.vae_phases))


def rng(seed, stage, step):
    """The random numbers of one step of one stage."""
    return torch.Generator().manual_seed((seed * 8 + stage) * 2**26 + step)


def learning_rate(step, total):
    """A factor from 0 up to 1 in 20 steps, then along half a cosine to 0."""
    return min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / total))


# --- Data -------------------------------------------------------------------------------------------------

def load_digits(source, seed):
    """"drawn", "mnist" or a folder -> (train images, labels), (held-out images, labels)."""
    if source == "drawn":
        return draw_digits(6000, seed=2 * seed), draw_digits(1000, seed=2 * seed + 1)
    return mnist.read_folder(mnist.download() if source == "mnist" else source)


def at_once(most, data):
    """How many clips to code in one go: `most` of them, or fewer of large ones."""
    return max(1, min(most, 2**23 // math.prod(pixels(data.config))))


def describe(scene, still=False):
    """A scene's caption: digits have one for stills and one for clips, a folder's clips their own."""
    return scene if isinstance(scene, str) else caption(scene, still)


def pick(views, generator):
    """One of several kinds of clips. Of a single one nothing is drawn."""
    return views[torch.randint(len(views), (1,), generator=generator).item() if len(views) > 1 else 0]


# --- Stage 1: the VAE -------------------------------------------------------------------------------------

def vae_step(vae, video, settings, foreground, generator, perceptual=None, discriminator=None):
    """One forward pass: encode, sample the posterior, add noise of a random degree t, decode, compare.

    With a discriminator, its own loss is among the terms that are returned, not in the sum."""
    mean, logvar = vae.encode(video)
    latent = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)
    # The noise is as large as these latents are. Three clips in ten stay clean: t = 0 must be learned well.
    t, use = torch.rand(2, len(video), generator=generator).to(mean)
    t = settings.noise_range * t * (use > 0.3)
    centre, scale = mean.detach().mean((0, 2, 3, 4)), mean.detach().std((0, 2, 3, 4))
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    noise = noise * scale[:, None, None, None] + centre[:, None, None, None]
    output = vae.decode(interpolate(latent, noise, t), t)
    loss = replace(settings.loss, foreground=foreground)
    if discriminator is None:
        return vae_loss(video, output, mean, logvar, loss, perceptual)
    first = (torch.rand(len(video), generator=generator) < 0.5).to(video.device)
    total, terms = vae_loss(video, output, mean, logvar, loss, perceptual, discriminator, first)
    return total, {**terms, "discriminator": discriminator_loss(discriminator, video, output, first)}


def rivals(settings, data, seed, device, steps=700):
    """The frozen network of the perceptual term and the discriminator, or None where their weight is 0.
    That network, trained for some steps, is not the judge's: it starts from another seed."""
    perceptual = discriminator = None
    if settings.loss.perceptual:
        perceptual = (metrics.lpips_distance(device) if settings.perceptual == "lpips" else
                      metrics.digit_distance(metrics.train_classifier(data, steps, seed + 1).to(device)))
    if settings.loss.adversarial:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            discriminator = Discriminator(settings.loss.gan, settings.discriminator_width).to(device)
    return perceptual, discriminator


def train_vae(run, model, views, held_out):
    """Single frames first, then short clips, then whole ones; the causal encoder does not mind. views: the
    kinds of clips to learn from."""
    settings, device = run.settings, run.device
    phases = [(frames, batch) for frames, batch, steps in settings.vae_phases for _ in range(steps)]
    perceptual, discriminator = rivals(settings, views[0], run.seed, device)
    run.start(["vae.decoder" if settings.freeze_encoder else "vae"],
              lambda model, *args: vae_step(model.vae, *args, perceptual, discriminator), settings.vae_lr,
              settings.vae_adam_lr, rival=discriminator, rival_lr=settings.discriminator_lr)
    check = held_out.batch(at_once(64, held_out), rng(run.seed, EVALUATION, 4))[0].to(device)
    for step in run.steps("vae", len(phases)):
        frames, batch = phases[step]
        foreground = settings.loss.foreground * max(0, 1 - 2 * step / len(phases))
        for number in run.micro_batches(step):
            generator = rng(run.seed, VAE_STAGE, number)
            video = pick(views, generator).batch(batch, generator)[0]
            length = min(frames, video.shape[2])
            start = torch.randint(video.shape[2] - length + 1, (1,), generator=generator).item()
            video = video[:, :, start : start + length].to(device)
            loss, terms = run.loss(video, settings, foreground, generator)
            run.backward(loss, terms, terms.get("discriminator"))
        run.log("vae", step, **run.update(learning_rate(step, len(phases))))
        if step % 50 == 49 or step == len(phases) - 1:
            run.log("vae", step, psnr=metrics.psnr(reconstruct(model.vae, check), check).mean().item())
        run.save(step + 1, len(phases))


@torch.no_grad()
def reconstruct(vae, video, t=0.0, noise=None):
    """Encode and decode; with noise (of the latent's shape, standard normal) mixed in to the degree t."""
    mean = vae.encode(video)[0]
    times = torch.full((len(video),), t, device=video.device)
    if noise is not None:
        mean = vae.denormalize(interpolate(vae.normalize(mean), noise, times))
    return vae.decode(mean, times).clamp(-1, 1)


@torch.no_grad()
def encode_bank(vae, data, count, seed, device, held_out=False):
    """`count` clips as latents (before normalisation) (count, C, f, h, w), and their scenes."""
    latents, scenes, some_at_once = [], [], at_once(64, data)
    for start in tqdm(range(0, count, some_at_once), desc="latents", disable=None):
        video, some = data.batch(min(some_at_once, count - start), rng(seed, BANK, start), held_out)
        latents.append(vae.encode(video.to(device))[0])
        scenes += some
    return torch.cat(latents), scenes


def encode_views(vae, views, count, seed, device):
    """`count` clips in all -> (data, latents, scenes) for every view."""
    return [(data, *encode_bank(vae, data, count // len(views), seed, device)) for data in views]


def take_vae(model, path):
    """The autoencoder of another run's file instead of training one. ValueError if it is another one."""
    vae = load_checkpoint(path)[0].vae
    if vae.config != model.vae.config:
        raise ValueError(f"the autoencoder in {path} has another config than this run's: "
                         "use the preset that it was trained with")
    model.vae.load_state_dict(vae.state_dict())


def take_weights(model, path):
    """The transformer and autoencoder of a released file or folder, to train on. ValueError if they are of
    another size."""
    from minltx.pretrained import load_pretrained
    released = load_pretrained(path, torch.float32)
    for name in ("dit", "vae"):
        own, theirs = getattr(model, name), getattr(released, name)
        if theirs.config != own.config:
            raise ValueError(f"{path} is a model of another shape than this preset's: use --preset 2b for "
                             "the released 0.9.5 and 0.9.6")
        own.load_state_dict(theirs.state_dict())


def measure_latents(vae, latents):
    """Give the VAE the mean and standard deviation of its latents, channel by channel, for `normalize`.
    latents is a list of (B, C, f, h, w), one for each view."""
    channels = torch.cat([x.movedim(1, 0).flatten(1) for x in latents], dim=1)            # (C, all voxels)
    vae.latent_mean.copy_(channels.mean(1))
    vae.latent_std.copy_(channels.std(1))


def views_of(data, images, labels, settings):
    """The kinds of clips that stage 2 learns from: the data's own, or those of `settings.views`."""
    return [MovingDigits(images, labels, replace(data.config, frames=frames, size=size, fps=fps))
            for frames, size, fps in settings.views] or [data]


# --- Stage 2: the transformer -----------------------------------------------------------------------------

def batch_of_latents(model, data, bank, scenes, layout, settings, generator):
    """A training batch from a bank of latents before normalisation -> normalised latents (B, C, f, h, w),
    their scenes, and the condition that goes with the layout.

    "free": nothing is given; "still": images; "start": the first frame, or the first few latent ones, are
    given; "keyframe": some later frame; "end": the last frames. The last two need extra tokens, frames that
    are encoded alone, so their clips are rendered anew.
    """
    device, B = model.vae.latent_mean.device, settings.dit_batch
    if layout in ("free", "still", "start"):
        count = B * (bank.shape[2] if layout == "still" else 1)              # about as many tokens either way
        rows = torch.randint(len(bank), (count,), generator=generator)
        latents = model.vae.normalize(bank[rows.to(bank.device)].to(device))
        scenes = [scenes[i] for i in rows]
        if layout != "start":
            return latents[:, :, :1] if layout == "still" else latents, scenes, None
        few = torch.randint(1, latents.shape[2], (1,), generator=generator).item()
        one = torch.rand(1, generator=generator).item() < 0.5
        return latents, scenes, Condition(latents[:, :, : 1 if one else few])
    video, scenes = data.batch(B, generator)
    frame = torch.randint(1, video.shape[2], (1,), generator=generator).item()
    given = video[:, :, frame : frame + 1]
    if layout == "end":
        stride = model.vae.config.stride[0]
        frame = -(-frame // stride) * stride                                 # up to the next multiple
        given = video[:, :, frame:]
    with torch.no_grad():
        latents, given = (model.vae.normalize(model.vae.encode(x.to(device))[0]) for x in (video, given))
    return latents, scenes, Condition(given, frame)


def dit_step(model, latent, captions, condition, settings, generator, fps=None):
    """One forward pass of rectified flow -> the loss, and per sample the time and the error.

    fps is the clips' (default: the data's).

    Every clip holds to the condition with a strength of its own, often 0 or 1. As in the sampler, a token
    of strength s has the time min(t, 1 - s), and while that is not t it does not move and is not in the loss.
    """
    B, _, f, h, w = latent.shape
    captions = ["" if drop else text for text, drop in
                zip(captions, torch.rand(B, generator=generator) < settings.caption_dropout)]
    t = sample_t(B, f * h * w, generator, settings.times).to(latent)
    use, soft, strength = torch.rand(3, B, 1, 1, generator=generator).to(latent)
    nearly = 1 - settings.condition_noise * strength
    strength = torch.where(soft < settings.soft, strength, nearly) * (use < settings.conditioned)
    dit = model.dit
    clean, mask, coordinates = place([condition] if condition else [], latent, dit.config.stride,
                                     fps or model.config.data.fps, dit.config.causal_time)
    clean = torch.cat([clean[:, : -f * h * w], flatten_latent(latent)], dim=1)             # (B, M+N, C)
    times, moves = t[:, None], torch.ones_like(mask, dtype=torch.bool)                   # (B, 1), (1, N, 1)
    if condition:
        times, moves = token_times(t[:, None, None], mask * strength)               # (B, M+N), (B, M+N, 1)
    if settings.token_drop:
        share = settings.token_drop * torch.rand(1, generator=generator).item()
        keep = torch.randperm(clean.shape[1], generator=generator)[int(share * clean.shape[1]) :].sort()[0]
        clean, coordinates, moves = clean[:, keep], coordinates[:, keep], moves[:, keep]
        times = times if times.shape[1] == 1 else times[:, keep]
    noise = torch.randn(clean.shape, generator=generator).to(latent)
    text, text_mask = model.embed(captions)
    v = dit.forward_tokens(interpolate(clean, noise, times[..., None]), times, coordinates, text, text_mask)
    target, weight = velocity(clean, noise), moves.to(v)
    error = ((v - target).square() * weight).detach().mean((1, 2)) / weight.mean((1, 2))
    return flow_loss(v, target, weight), t, error


def train_dit(run, model, views, held_out):
    """Batches in turn: captions only, still images, and one kind of condition each (settings.layouts).

    views are (data, latents before normalisation, scenes); a batch is of one of them, with about as many
    tokens whichever it is."""
    settings, device = run.settings, run.device
    exact = replace(settings, caption_dropout=0.0, token_drop=0.0, times="shifted")
    check, check_scenes = encode_bank(model.vae, held_out, 8 * settings.dit_batch, run.seed, device, True)
    check, check_captions = model.vae.normalize(check), [describe(s) for s in check_scenes]
    run.start(["dit", "text"], dit_step, settings.dit_lr, settings.dit_adam_lr, settings.ema)
    for step in run.steps("dit", settings.dit_steps):
        layout = settings.layouts[step % len(settings.layouts)]
        shared = rng(run.seed, DIT_STAGE, step * settings.micro_batches)
        data, latents, scenes = pick(views, shared)             # the same for all of a step's batches
        layout = layout if data.config.frames > 1 else "still"
        batch = settings.dit_batch * views[0][1][0].numel() // latents[0].numel()
        for number in run.micro_batches(step):
            generator = shared if number % settings.micro_batches == 0 else rng(run.seed, DIT_STAGE, number)
            latent, some, condition = batch_of_latents(model, data, latents, scenes, layout,
                                                       replace(settings, dit_batch=batch), generator)
            captions = [describe(s, layout == "still") for s in some]
            loss, t, error = run.loss(latent, captions, condition, settings, generator,
                                      data.config.fps if settings.seconds else None)
            run.backward(loss, {"loss": loss})
            if layout == "free" and step >= settings.dit_steps // 2:       # the second half of training
                run.log_by_t(t, error)
        run.log("dit", step, **run.update(learning_rate(step, settings.dit_steps)))
        if step % 100 == 99 or step == settings.dit_steps - 1:
            with run.averaged(), torch.no_grad():                           # always the same noise and times
                loss, _, _ = run.loss(check, check_captions, None, exact, rng(run.seed, EVALUATION, 0))
            run.log("dit", step, validation=loss.item())
        run.save(step + 1, settings.dit_steps)


# --- Report -----------------------------------------------------------------------------------------------

@torch.no_grad()
def judge_vae(model, held_out, classifier, seed, device):
    """Held-out reconstruction: PSNR, motion, PSNR over added noise, and with a classifier what can still be
    read."""
    c = model.config.data
    video, scenes = held_out.batch(at_once(128, held_out), rng(seed, EVALUATION, 1))
    video = video.to(device)
    plain = reconstruct(model.vae, video)
    shape = model.vae.latent_shape(*video.shape[2:])
    noise = torch.randn((len(video), *shape), generator=rng(seed, EVALUATION, 2)).to(device)
    curve = {t: metrics.psnr(reconstruct(model.vae, video, t, noise), video).mean().item()
             for t in (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3)}
    read = {name: metrics.adherence(metrics.read_clips(x.cpu(), c.digits, classifier, c.digit_size), scenes)
            for name, x in (("read", plain), ("read_in_data", video))} if classifier else {}
    return plain, video, {
        "psnr": metrics.psnr(plain, video).mean().item(),
        "psnr_of_black": metrics.psnr(-torch.ones_like(video), video).mean().item(),
        "motion_ratio": metrics.motion_ratio(plain, video), "clips": len(video),
        "psnr_over_noise": curve, **read}


@torch.no_grad()
def judge_dit(model, held_out, classifier, seed, device, prompts):
    """Held-out prompts and unseen seeds: text-to-video, then image-to-video from held-out first frames."""
    c = model.config.data
    generator = rng(seed, EVALUATION, 3)
    if classifier:
        scenes = held_out.choose(prompts, generator, held_out=True)
        clips = held_out.clips(scenes, generator)
    else:
        clips, scenes = held_out.batch(prompts, generator)
    captions, seeds = [describe(s) for s in scenes], [1_000_000 + i for i in range(prompts)]
    size = {"frames": clips.shape[2], "size": tuple(clips.shape[3:])}

    def generate(image=None):
        parts = []
        few = at_once(80, held_out)
        for i in range(0, prompts, few):
            some = () if image is None else [(image[i : i + few], 0, 1.0)]
            parts.append(model.generate(captions[i : i + few], seeds[i : i + few], conditions=some, **size))
        return torch.cat(parts)

    def read(video):
        if not classifier:
            return {}
        return metrics.adherence(metrics.read_clips(video, c.digits, classifier, c.digit_size), scenes)

    text, image = generate(), generate(clips[:, :, :1])
    coded = reconstruct(model.vae, clips[:, :, :1].to(device)).cpu()
    first = {"first_frame_psnr": metrics.psnr(image[:, :, :1], clips[:, :, :1]).mean().item(),
             "vae_first_frame_psnr": metrics.psnr(coded, clips[:, :, :1]).mean().item()}
    return text, image, captions, {
        "prompts": prompts, "steps": STEPS, "guidance": GUIDANCE, "text_to_video": read(text),
        "image_to_video": {**read(image), **first}}


def hardware(device):
    """What the figures were measured on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(report):
    """The report's figures as lines for a terminal."""
    vae, dit = report["vae"], report["dit"]
    rows = [("held-out reconstruction, PSNR per frame",
             f"{vae['psnr']:.2f} dB (all black: {vae['psnr_of_black']:.2f})"),
            ("energy of frame differences / the input's", f"{vae['motion_ratio']:.3f}")]
    if dit:
        text, image, n = dit["text_to_video"], dit["image_to_video"], dit["prompts"]
        rows += [(f"text-to-video, {n} held-out prompts",
                  "  ".join(f"{k} {100 * v:.1f} %" for k, v in text.items()) or "see samples.gif"),
                 (f"image-to-video, {n} held-out pictures",
                  (f"direction {100 * image['direction']:.1f} %  " if "direction" in image else "")
                  + f"first frame {image['first_frame_psnr']:.2f} dB "
                  f"(reconstructed: {image['vae_first_frame_psnr']:.2f})")]
    if "read_in_data" in vae:
        rows.append(("classifier on held-out data", f"digit {100 * vae['read_in_data']['digit']:.1f} %"))
    rows += [("minutes", "  ".join(f"{k} {v / 60:.1f}" for k, v in report["seconds"].items())),
             ("parameters", "  ".join(f"{k} {v:,}" for k, v in report["parameters"].items())),
             ("hardware", report["hardware"])]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


# --- The story --------------------------------------------------------------------------------------------

def settings_of(args):
    """The command line's choice of preset, budget, decoder and way of training as Settings."""
    settings = scaled(PRESETS[args.preset], args.budget)
    for name in ("micro_batches", "precision", "optimizer", "token_drop"):
        if getattr(args, name) is not None:
            settings = replace(settings, **{name: getattr(args, name)})
    if args.plain_decoder:
        vae = replace(settings.model.vae, timestep_conditioning=False)
        settings = replace(settings, model=replace(settings.model, vae=vae))
    return settings


def for_clips(args, settings):
    """Open the folder of clips -> (kinds of clips to learn from, held-out clips, settings that know them)."""
    text = StoredText()
    if args.text:
        text.read(args.text, settings.model.dit.text_width)
        text.check("")                                          # what caption dropout and guidance need
    with torch.device("meta"):
        vae = VideoVAE(settings.model.vae)
    buckets = parse_buckets(args.buckets) if args.buckets else ()
    words = text.check if args.text else lambda caption: tokenize([caption])
    views, held_out, _ = open_folder(args.clips, vae, settings.model.data.fps, buckets, words)
    if not held_out:
        raise ValueError(f"{args.clips} has one usable clip: add another one, to be held out")
    c = views[0].config
    data = replace(settings.model.data, frames=c.frames, size=c.size, digits=0, digit_size=0)
    # The weight of bright pixels is for things on black; a perceptual network that knows digits is no judge.
    loss = replace(settings.loss, foreground=0.0)
    model = replace(settings.model, data=data, stored_text=bool(args.text))
    return views, held_out[0], replace(settings, model=model, loss=loss)


def estimate_memory(settings, world, args):
    """What each stage will hold, as lines for a terminal: also of the network that it does not train."""
    size, dit, stages = pixels(settings.model.data), settings.model.dit, {}
    tokens = math.prod(-(-n // s) for n, s in zip(size, dit.stride))
    how = {"precision": settings.precision, "optimizer": settings.optimizer, "parallel": world.parallel,
           "ranks": world.size, "micro_batches": max(1, settings.micro_batches // world.size),
           "checkpointing": args.checkpoint_activations}
    if not (args.vae or args.weights):
        frames, batch = max(((f, b) for f, b, _ in settings.vae_phases), key=math.prod)
        stages["the autoencoder"] = memory.estimate_vae(
            settings.model.vae, (min(frames, size[0]), *size[1:]), batch, ema=False, **how)
        stages["the autoencoder"]["weights of the transformer"] = memory.weights_of(DiT, dit)
    if args.only != "vae":
        stages["the transformer"] = memory.estimate_dit(
            dit, tokens, 256 if settings.model.stored_text else 16, settings.dit_batch, tokens, **how)
        stages["the transformer"]["weights of the autoencoder"] = memory.weights_of(
            VideoVAE, settings.model.vae)
    limit = memory.device_memory(world.device)
    return "\n".join(f"memory to train {name}, estimated, for each process:\n{memory.table(stage, limit)}"
                     for name, stage in stages.items())


def kept_latents(path, model, views, settings, seed, world):
    """The latents to learn from; from the file `path` if it is there, else encoded and written to it (None:
    no file). A file is mapped, not read: it may be larger than the memory. ValueError if it is of other clips
    or another autoencoder."""
    def encode():
        return [(latents, scenes) for _, latents, scenes in
                encode_views(model.vae, views, settings.bank, seed, world.device)]

    if path is None:
        return [(data, *pair) for data, pair in zip(views, encode())]
    weights = sum(p.double().abs().sum().item() for p in model.vae.encoder.parameters())
    mark = [f"{weights:.6e}", settings.bank, seed, [list(pixels(data.config)) for data in views]]
    if not Path(path).exists() and world.rank == 0:
        stored = [(latents.cpu(), [s if isinstance(s, str) else [astuple(x) for x in s] for s in scenes])
                  for latents, scenes in encode()]
        pictures.put_in_place(path, lambda part: torch.save({"mark": mark, "views": stored}, part))
    world.wait()
    stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if stored["mark"] != mark:
        raise ValueError(f"{path} holds the latents of other clips or of another autoencoder: "
                         "name another file with --latents")
    return [(data, latents, [s if isinstance(s, str) else [Thing(*x) for x in s] for s in scenes])
            for data, (latents, scenes) in zip(views, stored["views"], strict=True)]


def train(args, command):
    if args.prompts < 1 or not 0 <= args.seed < 2**32:
        raise ValueError("--prompts must be at least 1, and --seed from 0 to 4294967295")
    settings = settings_of(args)
    if settings.micro_batches < 1 or not 0 <= settings.token_drop < 1:
        raise ValueError("--micro-batches must be at least 1, and --token-drop from 0 to below 1")
    if settings.model.data.digits == 0 and not args.clips:
        raise ValueError(f"the preset {args.preset} learns from your clips: give --clips FOLDER, and --text "
                         "with the embeddings of their captions")
    world = parallel.join(args.parallel, pick_device(args.device))
    device, out = world.device, Path(args.out)
    if args.clips:
        with contextlib.redirect_stdout(io.StringIO() if world.rank else sys.stdout):
            views, held_out, settings = for_clips(args, settings)
    if world.rank == 0:
        print(estimate_memory(settings, world, args))

    torch.manual_seed(args.seed)
    model = ToyModel(settings.model).to(device)
    if args.text:
        model.text.read(args.text, settings.model.dit.text_width)
    run = Run(out, model, settings, args.seed, args.clips or args.digits, device, args.resume, world=world,
              checkpointing=args.checkpoint_activations, compiled=args.compile)
    if not args.clips:
        (images, labels), (held_images, held_labels) = load_digits(args.digits, args.seed)
        data = MovingDigits(images, labels, settings.model.data)
        views, held_out = [data], MovingDigits(held_images, held_labels, settings.model.data)

    if (args.vae or args.weights) and "vae" not in run.stages_done:
        (take_weights if args.weights else take_vae)(model, args.weights or args.vae)
        run.stages_done.append("vae")
    if "vae" not in run.stages_done:
        train_vae(run, model, views, held_out)
    if "dit" not in run.stages_done:
        if not args.clips:
            views = views_of(data, images, labels, settings)
        banks = kept_latents(args.latents, model, views, settings, args.seed, world)
        if not args.weights:                                    # released weights have their own statistics
            measure_latents(model.vae, [latents for _, latents, _ in banks])
        if args.only != "vae":
            train_dit(run, model, banks, held_out)
    if world.rank:
        return None

    judging = time.perf_counter()
    if args.weights:
        from minltx.pretrained import save_pretrained
        save_pretrained(model, out / "model.safetensors")
    if args.only != "vae":
        save_checkpoint(out / "model.pt", model, half=True, command=command)
        model.load_state_dict(load_checkpoint(out / "model.pt")[0].state_dict())  # judge what is in the file
    model.eval()
    classifier = None if args.clips else metrics.train_classifier(data, seed=args.seed)
    plain, video, vae = judge_vae(model, held_out, classifier, args.seed, device)
    both = torch.stack([video[:6], plain[:6]], dim=1).flatten(0, 1).cpu()
    titles = ["held-out clip", "reconstruction"] * (len(both) // 2)
    pictures.save_video(out / "reconstruction.png", both, titles)
    dit = None
    if args.only != "vae":
        prompts = min(args.prompts, 12) if args.clips else args.prompts
        text, image, captions, dit = judge_dit(model, held_out, classifier, args.seed, device, prompts)
        fps = settings.model.data.fps
        pictures.save_video(out / "samples.gif", text[:12], captions[:12], fps)
        pictures.save_video(out / "samples.png", text[:12], captions[:12], fps)
        pictures.save_video(out / "image_to_video.gif", image[:12], captions[:12], fps)
    report = {
        "command": command, "hardware": hardware(device), "seed": args.seed,
        "digits": str(args.clips or args.digits), "settings": run.identity["settings"],
        "compression": f"1:{3 * math.prod(settings.model.vae.stride) / settings.model.vae.channels:g}",
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in
                       (("encoder", model.vae.encoder), ("decoder", model.vae.decoder), ("dit", model.dit),
                        ("text", model.text))},
        "seconds": {**run.seconds, "report": time.perf_counter() - judging}, "vae": vae, "dit": dit,
        "loss_by_t": [total / count if count else None for total, count in run.by_t], "history": run.history}
    pictures.put_in_place(out / "report.json", lambda p: p.write_text(json.dumps(report, indent=1)))
    save_curves(out / "curves.png", report)
    print(f"\n{table(report)}\n\n  videos, sheets, curves and report.json are in {out}{os.sep}")
    return report


def save_curves(path, report):
    """Losses, validation, loss by t and PSNR over noise in one picture."""
    curves = {name: tuple(zip(*rows)) for name, rows in report["history"].items()}
    noise = report["vae"]["psnr_over_noise"]
    panels = [("Noise added, decoder told its t", "t", "PSNR in dB",
               {"held-out clips": (list(noise), list(noise.values()))}, "linear")]
    if "vae psnr" in curves:                                    # it was trained, not taken from a file
        panels = [("VAE, terms before their weights", "step", "loss",
                   {n.split()[1]: xy for n, xy in curves.items() if n.startswith("vae") and n != "vae psnr"},
                   "log"),
                  ("VAE, held-out clips", "step", "PSNR in dB", {"t = 0": curves["vae psnr"]}, "linear"),
                  *panels]
    if report["dit"]:
        by_t = [(i / 10 + 0.05, loss) for i, loss in enumerate(report["loss_by_t"]) if loss is not None]
        panels += [("Transformer", "step", "flow loss",
                    {n.split()[1]: xy for n, xy in curves.items() if n.startswith("dit")}, "linear"),
                   ("Transformer, by time", "t", "flow loss",
                    {"second half of training": tuple(zip(*by_t))} if by_t else {}, "linear")]
    pictures.save_curves(path, panels)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", default="runs/toy", help="folder for checkpoint, videos and report (default: %(default)s)")
    add("--digits", default="drawn", help="drawn, mnist (download) or a folder of IDX files")
    add("--preset", choices=PRESETS, default="toy")
    add("--budget", type=float, default=1.0, help="train this many times as many steps (default: 1)")
    add("--seed", type=int, default=0)
    add("--prompts", type=int, default=200, help="held-out prompts to judge by (default: %(default)s)")
    add("--device", help="cpu, cuda or mps (default: cuda if there is one)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--only", choices=["vae"], help="stop after this stage")
    add("--vae", metavar="FILE", help="take this checkpoint's autoencoder and train the transformer only")
    add("--clips", metavar="FOLDER", help="learn from your own clips with captions instead of digits")
    add("--buckets", metavar="FxHxW,...", help="frames, height and width that clips are cut to (default: "
        "each clip as it stands)")
    add("--text", metavar="FILE", help="the captions' embeddings, by python -m minltx.pretrained.t5 --clips")
    add("--weights", metavar="FILE", help="begin with released weights and train the transformer")
    add("--latents", metavar="FILE", help="keep the clips' latents in this file, or take them from it")
    add("--micro-batches", type=int, help="a step is the mean gradient of so many batches (default: 1)")
    add("--precision", choices=["float32", "bf16"], help="bf16: autocast (default: the preset's)")
    add("--optimizer", choices=["muon", "adamw"], help="(default: the preset's)")
    add("--token-drop", type=float, help="leave out up to this share of a batch's tokens (paper: 0.2)")
    add("--parallel", choices=["ddp", "fsdp"], help="under torchrun: how processes share (default: ddp)")
    add("--checkpoint-activations", action="store_true", help="compute blocks twice to save memory")
    add("--compile", action="store_true", help="compile the blocks")
    add("--plain-decoder", action="store_true", help="a decoder that is not told t, to compare")
    args = parser.parse_args(argv)
    try:
        words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
        return train(args, shlex.join(["python", "train_tiny.py", *words]))
    except (ValueError, OSError) as error:
        parser.exit(2, f"train_tiny.py: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ntrain_tiny.py: stopped; the same command with --resume goes on from the last "
                         "checkpoint\n")
    finally:
        parallel.leave()


if __name__ == "__main__":
    main()
