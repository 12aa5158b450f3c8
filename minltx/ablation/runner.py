"""One run of an ablation: train an idea with the compute of the default, and judge the result."""

import itertools
import math
import statistics
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minltx.ablation.ideas import Idea, identity, identity_in, load
from minltx.ablation.switches import settings_for
from minltx.command import hardware, pick_device
from minltx.evaluation import metrics, report
from minltx.evaluation.digits import DigitClassifier, brightness, centres, judge_clips
from minltx.files import read_torch
from minltx.losses import kl_divergence
from minltx.sampler import decode, sample_latent, seeded_noise
from minltx.toy.data import EVALUATION, MovingDigits, caption, load_digits, rng
from minltx.toy.model import load_checkpoint
from minltx.toy.texture import clips_named, make_world
from minltx.training.latents import (LatentCache, batch_of_latents, clip_variants, encode_variants,
                                     latent_cache, measure_latents, take_vae)
from minltx.training.loops import build_critics, train_dit, train_vae
from minltx.training.parallel import World
from minltx.training.run import Run
from minltx.training.settings import layout_of

JUDGE = "each frame, 10 steps"      # how digits of 32x32 are sampled and read: other ways are not compared


# --- Compute ----------------------------------------------------------------------------------------------

def vae_steps(idea, settings, data):
    """For each phase of stage 1, how many steps it has, and a function that does one without an optimiser and
    returns the loss."""
    model, generator = idea.build(settings.model), torch.Generator().manual_seed(0)
    model.vae.encoder.requires_grad_(not settings.freeze_encoder)
    critics = build_critics(settings, data, 0, "cpu", 1, idea.discriminator)

    def step(frames, batch):
        video = data.batch(batch, generator)[0][:, :, :frames]
        loss, terms = idea.vae_objective(model.vae, video, settings, generator, 0.0, critics)
        (loss + terms.get("discriminator", 0.0)).backward()
        return loss.item()

    return [(count, partial(step, frames, batch)) for frames, batch, count in settings.vae_phases]


def dit_steps(idea, settings, data):
    """The same for each kind of batch in stage 2, see `layout_of`."""
    model, generator = idea.build(settings.model), torch.Generator().manual_seed(0)
    latents = torch.randn(settings.dit_batch, *model.vae.latent_shape(*data.config.clip_shape))
    cache = LatentCache(data, latents, data.choose(settings.dit_batch, generator))

    def step(layout, frames):
        generator.manual_seed((*settings.layouts, "still").index(layout))  # the same conditions for all ideas
        batch = batch_of_latents(model, cache, layout, settings, generator, frames)
        loss = idea.flow_objective(model, batch, settings, generator)[0]
        loss.backward()
        return loss.item()

    kinds = Counter(layout_of(settings, number) for number in range(settings.dit_steps))
    return [(count, partial(step, *kind)) for kind, count in kinds.items()]


def steps_of(idea, stage, digits):
    """All steps of a training of the usual length, as (how many, a function that does one). digits: (images,
    labels) to render."""
    settings = settings_for(idea, stage)
    data = MovingDigits(*digits, settings.model.data)
    return [*(vae_steps(idea, settings, data) if stage != "dit" else []),
            *(dit_steps(idea, settings, data) if stage in ("dit", "both") else [])]


def flops(idea, stage, digits):
    """Floating-point operations of such a training, counted by torch; attention as in `attention_flops`."""
    return sum(count * counted(step) for count, step in steps_of(idea, stage, digits))


def counted(work):
    """The operations of work() on a CPU, forward and backward."""
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
           torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


def attention_flops(q, k, v, dropout=0.0, causal=False, attn_mask=None, **more):
    """The two products of attention, q k' and weights v; torch counts 0 for the fused operator of a CPU.

    q (B, heads, N, D/heads), k and v (B, heads, L, D/heads). Only pairs that a mask allows are counted,
    though this operator computes the others too: attention in space, then in time, costs what it would cost
    if each frame and each place were attended alone. A finite bias, as of a caption's padding, forbids
    nothing.
    """
    pairs = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool)
    if causal:
        pairs = pairs.tril()
    if attn_mask is not None:
        pairs = pairs & (attn_mask if attn_mask.dtype == torch.bool else attn_mask > -math.inf)
    return 2 * pairs.sum().item() * (q.shape[3] + v.shape[3])


def attention_backward_flops(grad, q, k, v, out, logsumexp, *how, **more):
    """The four products of its backward pass: each product gives a gradient to both of its factors."""
    return 2 * attention_flops(q, k, v, *how, **more)


attention_flops._get_raw = attention_backward_flops._get_raw = True     # asks torch for tensors, not shapes


def seconds(idea, stage, digits):
    """Its time on this machine, without the optimiser and the judging."""
    total = 0.0
    for count, step in steps_of(idea, stage, digits):
        step()
        began = time.perf_counter()
        step()
        total += count * (time.perf_counter() - began)
    return total


# --- Training ---------------------------------------------------------------------------------------------

def train(idea, settings, spec, folder):
    """Train one run, or the rest of one that was stopped -> Run, held-out clips.

    spec: stage, seed, digits, world, device; model and latents, the shared model's file and a folder for
    encoded clips, for the stages that need them.
    """
    stage, seed, device = spec["stage"], spec["seed"], pick_device(spec["device"])
    digits, held_out = load_digits(spec["digits"], seed)
    data, held_out = make_world(spec["world"], None, digits, held_out, settings.model.data)
    torch.manual_seed(seed)
    model = idea.build(settings.model).to(device)
    if stage == "dit":
        take_vae(model, spec["model"])
    if stage == "decoder":
        take_all_but_the_decoder(model, spec["model"])
    begun = (folder / "checkpoint.pt").exists()
    source = clips_named(spec["digits"], spec["world"])
    run = Run(folder, model, settings, seed, source, World(device), resume=begun)
    if stage != "dit" and "vae" not in run.stages_done:
        train_vae(run, model, [data], held_out, idea.vae_objective,
                  build_critics(settings, data, seed, device, discriminator_class=idea.discriminator))
    if stage != "decoder":
        caches = encode(run, clip_variants(data, *digits, settings), stage, spec.get("latents"))
        if stage != "vae" and "dit" not in run.stages_done:
            train_dit(run, model, caches, held_out, idea.flow_objective)
    model.eval()
    return run, held_out


def take_all_but_the_decoder(model, path):
    """Give the model the weights in a file, but leave its decoder as it is."""
    weights = load_checkpoint(path)[0].state_dict()
    own = {k: v for k, v in model.state_dict().items() if k.startswith("vae.decoder.")}
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("vae.decoder.")} | own)


def encode(run, variants, stage, folder):
    """The LatentCaches of a run's clips. A run that trained a VAE also measures its latents; the runs of
    stage "dit" have the same VAE, and share the clips that the first of them stored in the folder."""
    vae, settings = run.model.vae, run.settings
    if stage == "dit":
        kind = "_".join("x".join(f"{n:g}" for n in variant) for variant in settings.clip_variants) or "own"
        path = Path(folder) / f"{run.seed}-{kind}.pt"
        return latent_cache(path, vae, variants, settings, run.seed, run.world)
    count = 512 if stage == "vae" else settings.latents                  # a VAE alone only needs statistics
    caches = encode_variants(vae, variants, count, run.seed, run.device)
    measure_latents(vae, [cache.latents for cache in caches])
    return caches


def train_and_judge(spec, folder):
    """One run, from its spec to its report: `train` with the compute of the default, then all figures.
    Raises ValueError if the spec is of another idea than the one that is loaded: its file has changed."""
    idea, stage = load(spec["classes"], spec["changes"]), spec["stage"]
    if identity(idea) != identity_in(spec):
        raise ValueError(f"the file of {spec['level']} has changed since the start: start again")
    digits = load_digits(spec["digits"], spec["seed"])[0]
    default_cost, cost = flops(Idea(), stage, digits), flops(idea, stage, digits)
    print(f"a step costs {cost / default_cost:.3f} times the default's")
    run, held_out = train(idea, settings_for(idea, stage, spec["budget"] * default_cost / cost), spec, folder)
    figures, more = judge(run, held_out, spec, idea)
    return {"stage": stage, "level": spec["level"], **identity_in(spec), "seed": spec["seed"],
            "budget": spec["budget"], "digits": spec["digits"], "world": spec["world"],
            "settings": run.identity["settings"], "step_cost": cost / default_cost,
            "petaflops": spec["budget"] * default_cost / 1e15, "hardware": hardware(run.device),
            "seconds": run.seconds, "judge": JUDGE, "prompts": spec["prompts"], "figures": figures, **more}


# --- Judging ----------------------------------------------------------------------------------------------

def judge(run, held_out, spec, idea):
    """All figures of a run's stage by name, and what else its report contains."""
    model, seed, stage, prompts = run.model, run.seed, spec["stage"], spec["prompts"]
    classifier = DigitClassifier().eval()
    classifier.load_state_dict(read_torch(spec["classifier"]))
    figures, more = {}, {}
    if stage != "dit":
        figures |= judge_vae(model, held_out, classifier, seed)
    if stage in ("dit", "both"):
        judged = report.judge_dit(model, held_out, classifier, seed, prompts)[-1]
        text, image = judged["text_to_video"], judged["image_to_video"]
        figures |= {
            "validation": run.history["dit validation"][-1][1], "digit": 100 * text["digit"],
            "colour": 100 * text["colour"], "direction": 100 * text["direction"],
            "image direction": 100 * image["direction"],
            "first frame": image["first_frame_psnr"] - image["vae_first_frame_psnr"]}
        more["loss_by_t"] = [total / max(1, count) for total, count in run.by_t]
    if run.settings.clip_variants and stage == "dit":
        more["speeds"] = judge_speeds(model, held_out, seed, prompts // 2, idea)
        figures["speed error"] = 100 * statistics.mean(abs(ratio - 1) for ratio in more["speeds"].values())
    if stage == "decoder":
        more["grid"] = judge_decoder(model, held_out, classifier, seed, prompts)
        digit = {(row["announced"], row["noise"]): row["generated digit"] for row in more["grid"]}
        figures["generated digit"] = digit[0.05, 0.025] if run.settings.noise_range else digit[0.0, 0.0]
        figures["t = 0.05 for 0"] = digit[0.05, 0.025] - digit[0.0, 0.0]
    return figures, more


@torch.no_grad()
def judge_vae(model, held_out, classifier, seed):
    """Some figures of `report.judge_vae`, and others of detail and of the latents."""
    output, video, judged = report.judge_vae(model, held_out, classifier, seed)
    mean, logvar = model.vae.encode(video.to(model.vae.latent_mean.device))
    spectrum = torch.linalg.eigvalsh(torch.cov(mean.movedim(1, 0).flatten(1).double())).clamp(min=0)
    per_channel = [kl_divergence(mean[:, i], logvar[:, i]).item() for i in range(mean.shape[1])]
    return {"psnr": judged["psnr"], "motion": judged["motion_ratio"],
            "detail": metrics.detail_ratio(output, video), "digit read": 100 * judged["read"]["digit"],
            "psnr at 0.1": judged["psnr_over_noise"][0.1],
            # Participation ratio of the latents' principal components: how many channels are used.
            "dimension": (spectrum.sum() ** 2 / spectrum.square().sum()).item(),
            "channels in use": sum(kl > 0.1 for kl in per_channel)}


@torch.no_grad()
def judge_decoder(model, held_out, classifier, seed, prompts):
    """Reconstruction and caption accuracy for each t that the decoder is given ("announced") and each degree
    of noise that is added: rows of a table."""
    config, device, generator = model.config.data, model.vae.latent_mean.device, rng(seed, EVALUATION, 3)
    scenes = held_out.choose(prompts, generator, held_out=True)
    clips = held_out.clips(scenes, generator)
    captions = [caption(scene) for scene in scenes]
    start = seeded_noise(model.vae.latent_shape(*config.clip_shape), [1_000_000 + i for i in range(prompts)])
    text, null = model.embed(captions), model.embed(model.negative(captions))
    made = sample_latent(model.dit, start.to(device), text, null, model.sampling())
    encoded = model.vae.normalize(model.vae.encode(clips.to(device))[0])
    noise, rows = torch.randn(made.shape, generator=generator).to(device), []
    for t, degree in itertools.product((0.0, 0.025, 0.05, 0.1, 0.2), repeat=2):
        rebuilt, generated = (decode(model.vae, latent, t, degree, noise).cpu() for latent in (encoded, made))
        accuracy = [100 * judge_clips(video, scenes, held_out, classifier)["digit"]
                    for video in (rebuilt, generated)]
        rows.append({"announced": t, "noise": degree, "psnr": metrics.psnr(rebuilt, clips).mean().item(),
                     "motion": metrics.motion_ratio(rebuilt, clips), "reconstructed digit": accuracy[0],
                     "generated digit": accuracy[1]})
    return rows


def judge_speeds(model, held_out, seed, prompts, idea):
    """fps at which clips are shown -> measured speed over the data's mean speed, for frame rates of the
    training and for others. The idea says by which rate the model counts."""
    c = model.config.data
    scenes = held_out.choose(prompts, rng(seed, EVALUATION, 5), held_out=True)
    captions, seeds = [caption(scene) for scene in scenes], [2_000_000 + i for i in range(prompts)]
    ratios = {}
    for fps in (16.0, 20.0, 24.0, 28.0, 32.0):
        video = model.generate(captions, seeds, fps=idea.seen_fps(fps, c))
        track = centres(brightness(video))[0]                                           # (B, F, 2)
        speed = (track[:, -1] - track[:, 0]).norm(dim=-1).mean().item() * fps / (c.frames - 1)
        ratios[str(fps)] = speed / statistics.mean(c.speed)
    return ratios
