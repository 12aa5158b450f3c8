"""The two training loops: gradient descent on the two objectives of `minltx.objectives`.

All random numbers of a batch come from (seed, stage, number of the batch). So a run that was stopped and
resumed is the run that was not stopped, on a CPU bit for bit, and several processes compute what one does.
"""

from dataclasses import replace

import torch

from minltx.evaluation import metrics
from minltx.evaluation.digits import train_classifier
from minltx.evaluation.report import clips_at_once, reconstruct
from minltx.losses import Critics, Discriminator
from minltx.objectives import Batch, flow_objective, vae_objective
from minltx.toy.data import DIT_STAGE, EVALUATION, VAE_STAGE, describe, rng
from minltx.training.latents import batch_of_latents, encode_clips
from minltx.training.muon import optimizers
from minltx.training.parallel import gather_params, parallelize, to_full_tensor
from minltx.training.run import Stage
from minltx.training.settings import layout_of, learning_rate


def train_vae(run, model, variants, held_out, objective=vae_objective, critics=Critics()):
    """Stage 1, the VAE: single frames first, then short clips, then whole ones; a causal encoder allows that.

    variants: the data sets to learn from; held_out: the one to measure PSNR on; critics: see `build_critics`.
    """
    s, world, total = run.settings, run.world, sum(steps for _, _, steps in run.settings.vae_phases)
    share = world.size / s.micro_batches       # of one batch in the step: processes average their gradients
    check = held_out.batch(clips_at_once(64, held_out), rng(run.seed, EVALUATION, 4))[0].to(run.device)
    stage = prepare(run, model, ["vae.decoder" if s.freeze_encoder else "vae"],
                    lambda model, *args: objective(model.vae, *args), s.vae_lr, s.vae_adam_lr)
    stage.add_discriminator(critics.discriminator, s.discriminator_lr)
    for step in run.steps("vae", total, stage):
        frames, batch = phase_of(step, s.vae_phases)
        foreground, rows = s.loss.foreground * max(0, 1 - 2 * step / total), []
        for number in world.batches(step, s.micro_batches, stage):
            generator = rng(run.seed, VAE_STAGE, number)
            video = short_clips(pick(variants, generator), batch, frames, generator).to(run.device)
            with autocast(run):
                loss, terms = stage.compute(video, s, generator, foreground, critics)
            (share * (loss + terms.get("discriminator", 0.0))).backward()    # each trains its own network
            rows.append({name: term.item() for name, term in terms.items()})

        terms = world.mean(rows)
        descend(run, stage, step, total, terms)
        if critics.discriminator is not None:
            world.average_gradients(critics.discriminator)
            stage.discriminator_optimizer.step()
            stage.discriminator_optimizer.zero_grad()

        run.log(step, **terms)
        if step % 50 == 49 or step == total - 1:
            run.log(step, psnr=metrics.psnr(reconstruct(model.vae, check), check).mean().item())
        run.save(step + 1)
    gather_params(model, stage.model, run.device)
    run.finish()


def train_dit(run, model, caches, held_out, objective=flow_objective):
    """Stage 2, the transformer: captions only, still images and each kind of condition in turn; before that,
    stills and short clips, if the settings have a curriculum.

    caches: LatentCaches; a step uses one of them. Batches of larger clips have fewer clips."""
    s, world, total = run.settings, run.world, run.settings.dit_steps
    share = world.size / s.micro_batches
    check = validation_batch(run, model, held_out)
    stage = prepare(run, model, ["dit", "text"], objective, s.dit_lr, s.dit_adam_lr)
    stage.average = [p.detach().clone() for p in stage.parameters]
    for step in run.steps("dit", total, stage):
        shared, rows = rng(run.seed, DIT_STAGE, step * s.micro_batches), []
        cache = pick(caches, shared)                            # the same one in all batches of a step
        layout, frames = layout_of(s, step) if cache.data.config.frames > 1 else ("still", None)
        sized = replace(s, dit_batch=s.dit_batch * caches[0].latents[0].numel() // cache.latents[0].numel())
        for number in world.batches(step, s.micro_batches, stage):
            generator = shared if number % s.micro_batches == 0 else rng(run.seed, DIT_STAGE, number)
            batch = batch_of_latents(model, cache, layout, sized, generator, frames)
            with autocast(run):
                loss, t, error = stage.compute(batch, s, generator)
            (share * loss).backward()
            rows.append({"loss": loss.item()})
            if layout == "free" and step >= total // 2:
                run.log_by_t(t, error)

        terms = world.mean(rows)
        descend(run, stage, step, total, terms)
        decay = min(s.ema, (1 + step) / (10 + step))            # a short average while weights change quickly
        for mean, p in zip(stage.average, stage.parameters):
            mean.lerp_(p.detach(), 1 - decay)

        run.log(step, **terms)
        if step % 100 == 99 or step == total - 1:
            found = {"validation": validate(run, stage, check)}
            run.check_finite(step, found)
            run.log(step, **found)
        run.save(step + 1)
    stage.swap_average()                                        # the averaged weights are the result
    gather_params(model, stage.model, run.device)
    run.finish()


# --- What the loops need ----------------------------------------------------------------------------------

def prepare(run, model, parts, objective, lr, adam_lr):
    """A Stage that trains the named parts of a model and leaves the rest as it is."""
    trained, compute = parallelize(run.world, model, parts, objective)
    modules = [trained.get_submodule(part) for part in parts]
    return Stage(trained, compute, optimizers(modules, lr, adam_lr, run.settings.optimizer))


def descend(run, stage, step, total, terms):
    """Clip the gradients and let the optimisers do their step. Raises Diverged before that, if a term (by
    name) or the gradients' norm is not finite."""
    norm = torch.nn.utils.clip_grad_norm_(stage.parameters, 1.0)
    run.check_finite(step, {**terms, "gradient norm": to_full_tensor(norm).item()})
    for optimizer in stage.optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * learning_rate(step, total)
        optimizer.step()
        optimizer.zero_grad()


def autocast(run):
    """A context for forward passes in the precision of the settings."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.settings.precision == "bf16")


def pick(variants, generator):
    """One of several data sets or caches; with a single one no random number is drawn."""
    if len(variants) == 1:
        return variants[0]
    return variants[torch.randint(len(variants), (1,), generator=generator).item()]


def phase_of(step, phases):
    """(frames, clips in a batch) of a step; phases are (frames, batch, steps)."""
    return [(frames, batch) for frames, batch, steps in phases for _ in range(steps)][step]


def short_clips(data, count, frames, generator):
    """`count` clips of a data set, cut to at most `frames` frames from a random start -> (B, 3, F, H, W)."""
    video = data.batch(count, generator)[0]
    length = min(frames, video.shape[2])
    start = torch.randint(video.shape[2] - length + 1, (1,), generator=generator).item()
    return video[:, :, start : start + length]


def validation_batch(run, model, held_out):
    """Held-out clips with held-out captions."""
    count = 8 * run.settings.dit_batch
    latents, scenes = encode_clips(model.vae, held_out, count, run.seed, run.device, held_out=True)
    return Batch(model.vae.normalize(latents), [describe(scene) for scene in scenes], model.config.data.fps)


@torch.no_grad()
def validate(run, stage, check):
    """The flow loss of the averaged weights, always on the same clips with the same noise and times."""
    recipe = replace(run.settings, caption_dropout=0.0, token_drop=0.0, time_offset=0.0)
    stage.swap_average()
    with autocast(run):
        loss, _, _ = flow_objective(stage.model, check, recipe, rng(run.seed, EVALUATION, 0))
    stage.swap_average()
    return loss.item()


def build_critics(settings, data, seed, device, steps=700, discriminator_class=Discriminator):
    """The networks of the perceptual and adversarial terms; None where the term's weight is 0.

    The digit classifier of the perceptual term is trained for `steps` steps. It is not the one that judges
    the run: it starts from another seed.
    """
    perceptual = discriminator = None
    if settings.loss.perceptual:
        if settings.perceptual == "lpips":
            perceptual = metrics.lpips_distance(device)
        else:
            classifier = train_classifier(data.on_black, steps, seed + 1)
            perceptual = metrics.digit_distance(classifier.to(device))
    if settings.loss.adversarial:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            discriminator = discriminator_class(settings.discriminator_width).to(device)
    return Critics(perceptual, discriminator)
