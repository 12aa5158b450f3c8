"""The report of a training: both networks judged on held-out clips, with figures, curves and videos.

    figures, videos = judge(model, data, held_out, seed=0, prompts=200)
    report = write_report(run, command, figures, videos)
    print(table(report))
"""

import json
import math
import time
from functools import partial

import torch
from tqdm import tqdm

from minltx.command import hardware
from minltx.evaluation.digits import classifier_for, judge_clips
from minltx.evaluation.metrics import motion_ratio, psnr
from minltx.fast_cpu import accelerate
from minltx.files import put_in_place
from minltx.flow import interpolate
from minltx.toy.data import EVALUATION, MovingDigits, describe, rng
from minltx.toy.model import STEPS as DEFAULT_STEPS
from minltx.video.files import save_video
from minltx.video.plots import save_curves

STEPS = 10          # of the sampler, on 32x32: as good as the model's default of 20 (docs/experiments.md)
ZERO_LOSS = 2.0     # of the velocity 0: the variance of noise - x0, of two independent normals
NOISE = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3)    # degrees of noise at which the decoder is judged


def sampling_steps(config):
    """Steps of the sampler for a report on clips like a DataConfig's: on larger ones ten are too few."""
    return STEPS if max(config.clip_shape[1:]) <= 32 else DEFAULT_STEPS


def clips_at_once(most, data):
    """How many clips of a data set to process in one batch: `most`, or fewer if they are large."""
    return max(1, min(most, 2**23 // math.prod(data.config.clip_shape)))


# --- Judging ----------------------------------------------------------------------------------------------

@torch.no_grad()
def reconstruct(vae, video, t=0.0, noise=None):
    """Encode and decode (B, 3, F, H, W). noise (standard normal, like the latent) is mixed in up to t."""
    mean = vae.encode(video)[0]
    times = torch.full((len(video),), t, device=video.device)
    if noise is not None:
        mean = vae.denormalize(interpolate(vae.normalize(mean), noise, times))
    return vae.decode(mean, times).clamp(-1, 1)


@torch.no_grad()
def judge_vae(model, held_out, classifier, seed):
    """Reconstruct held-out clips -> reconstructions and clips (B, 3, F, H, W), figures by name.

    The figures: PSNR, motion, PSNR over added noise, and which digits the classifier still recognises (None:
    not measured).
    """
    device = model.vae.latent_mean.device
    video, scenes = held_out.batch(clips_at_once(128, held_out), rng(seed, EVALUATION, 1))
    video = video.to(device)
    output = reconstruct(model.vae, video)
    shape = model.vae.latent_shape(*video.shape[2:])
    noise = torch.randn((len(video), *shape), generator=rng(seed, EVALUATION, 2)).to(device)
    figures = {"psnr": psnr(output, video).mean().item(),
               "psnr_of_black": psnr(-torch.ones_like(video), video).mean().item(),
               "motion_ratio": motion_ratio(output, video), "clips": len(video),
               "psnr_over_noise": {t: psnr(reconstruct(model.vae, video, t, noise), video).mean().item()
                                   for t in NOISE}}
    if classifier:
        figures["read"] = judge_clips(output, scenes, held_out, classifier)
        figures["read_in_data"] = judge_clips(video, scenes, held_out, classifier)
    return output.cpu(), video.cpu(), figures


@torch.no_grad()
def judge_dit(model, held_out, classifier, seed, prompts):
    """Sample held-out captions with new seeds -> text-to-video and image-to-video (B, 3, F, H, W), captions,
    figures by name. Image-to-video starts from held-out first frames. Real clips of the same captions, and
    their reconstructions, are judged by the same measure. Without a classifier (None), what the captions say
    is not compared."""
    generator = rng(seed, EVALUATION, 3)
    if classifier:
        scenes = held_out.choose(prompts, generator, held_out=True)
        clips = held_out.clips(scenes, generator)
    else:
        clips, scenes = held_out.batch(prompts, generator)
    captions, seeds = [describe(scene) for scene in scenes], [1_000_000 + i for i in range(prompts)]
    first, few, steps = clips[:, :, :1], clips_at_once(80, held_out), sampling_steps(held_out.config)

    def generate(given):
        parts = []
        name = f"judging {'image' if given else 'text'}-to-video"
        for i in tqdm(range(0, prompts, few), desc=name, disable=None):
            part = slice(i, i + few)
            conditions = [(first[part], 0, 1.0)] if given else ()
            parts.append(model.generate(captions[part], seeds[part], tuple(clips.shape[2:]), conditions,
                                        steps=steps))
        return torch.cat(parts)

    def accuracy(video):
        return judge_clips(video, scenes, held_out, classifier) if classifier else {}

    text, image = generate(given=False), generate(given=True)
    best, rebuilt = (torch.cat([reconstruct(model.vae, x.to(model.vae.latent_mean.device)).cpu()
                                for x in shown.split(few)]) for shown in (first, clips))
    figures = {"prompts": prompts, "steps": steps, "guidance": model.config.guidance,
               "stochastic": model.config.stochastic, "text_to_video": accuracy(text),
               "image_to_video": {**accuracy(image),
                                  "first_frame_psnr": psnr(image[:, :, :1], first).mean().item(),
                                  "vae_first_frame_psnr": psnr(best, first).mean().item()},
               "real": accuracy(clips), "reconstructed": accuracy(rebuilt)}
    return text, image, captions, figures


def judge(model, data, held_out, seed, prompts):
    """Judge a trained model -> figures by name, {file name: (video, captions)}.

    If `data` is MovingDigits, digits are read frame by frame; of a folder of clips at most 12 prompts are
    sampled. With prompts = 0 only the VAE is judged. On a CPU, `accelerate` swaps the model's modules.
    """
    if model.vae.latent_mean.device.type == "cpu":
        accelerate(model)
    began, classifier = time.perf_counter(), None
    if isinstance(data, MovingDigits):
        classifier = classifier_for(data.on_black, seed)
    output, clips, vae = judge_vae(model, held_out, classifier, seed)
    pairs = torch.stack([clips[:6], output[:6]], dim=1).flatten(0, 1)
    videos = {"reconstruction.png": (pairs, ["held-out clip", "reconstruction"] * (len(pairs) // 2))}
    dit = None
    if prompts:
        prompts = prompts if classifier else min(prompts, 12)
        text, image, captions, dit = judge_dit(model, held_out, classifier, seed, prompts)
        samples = text[:12], captions[:12]
        videos |= {"samples.gif": samples, "samples.png": samples,
                   "image_to_video.gif": (image[:12], captions[:12])}
    return {"vae": vae, "dit": dit, "seconds": time.perf_counter() - began}, videos


# --- The run's folder -------------------------------------------------------------------------------------

def build_report(run, command, figures):
    """Everything about a run, its settings, times, figures and curves, as a dictionary for JSON."""
    model = run.model
    parts = {"encoder": model.vae.encoder, "decoder": model.vae.decoder, "dit": model.dit, "text": model.text}
    report = {
        "command": command, "hardware": hardware(run.device), "seed": run.seed,
        "digits": run.identity["digits"], "settings": run.identity["settings"],
        "compression": f"1:{3 * math.prod(model.vae.config.stride) / model.vae.config.latent_channels:g}",
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "seconds": {**run.seconds, "report": figures["seconds"]},
        "vae": figures["vae"], "dit": figures["dit"],
        "loss_by_t": [total / count if count else None for total, count in run.by_t], "history": run.history}
    found = warnings(report)
    return {**report, "warnings": found} if found else report


def write_report(run, command, figures, videos):
    """Write report.json, curves.png and the videos of `judge` into the run's folder -> the report.

    Raises OSError after the rest is written if files could not be, as on a full disk; it names them.
    """
    report, missing, fps = build_report(run, command, figures), [], run.model.config.data.fps
    text = json.dumps(report, indent=1)
    writers = {"report.json": lambda path: put_in_place(path, lambda part: part.write_text(text)),
               "curves.png": lambda path: save_report_curves(path, report),
               **{name: partial(save_video, video=video, captions=captions, fps=fps)
                  for name, (video, captions) in videos.items()}}
    for name, write in writers.items():
        try:
            write(run.out / name)
        except OSError as error:
            missing.append(f"{name} ({error.strerror or error})")
    if missing:
        print(table(report))
        raise OSError(f"in {run.out} everything is written but {', '.join(missing)}")
    return report


def warnings(report):
    """Warnings to a reader of the report: a stage that learned nothing."""
    vae, validation, found = report["vae"], report["history"].get("dit validation"), []
    if not vae["psnr"] > vae["psnr_of_black"]:
        found.append(f"the autoencoder is worse than all black: PSNR {vae['psnr']:.2f} dB against "
                     f"{vae['psnr_of_black']:.2f}")
    if validation and not validation[-1][1] < ZERO_LOSS:
        found.append(f"the transformer is not better than the answer zero: a held-out loss of "
                     f"{validation[-1][1]:.3g} against {ZERO_LOSS:g}")
    return found


def save_report_curves(path, report):
    """Losses, validation, loss over t and PSNR over noise in one picture."""
    curves = {name: tuple(zip(*rows)) for name, rows in report["history"].items()}
    noise = report["vae"]["psnr_over_noise"]
    panels = [("VAE: noise added to the latents", "t, on which the decoder is conditioned", "PSNR in dB",
               {"held-out clips": (list(noise), list(noise.values()))}, "linear")]
    if "vae psnr" in curves:                                    # it was trained, not taken from a file
        terms = {name.removeprefix("vae "): xy for name, xy in curves.items()
                 if name.startswith("vae ") and name != "vae psnr"}
        panels = [("VAE: loss terms before weighting", "step", "loss", terms, "log"),
                  ("VAE: held-out clips", "step", "PSNR in dB", {"t = 0": curves["vae psnr"]}, "linear"),
                  *panels]
    if report["dit"]:
        steps = {name.removeprefix("dit "): xy for name, xy in curves.items() if name.startswith("dit ")}
        by_t = [(i / 10 + 0.05, loss) for i, loss in enumerate(report["loss_by_t"]) if loss is not None]
        panels += [("Transformer: training", "step", "flow loss", steps, "linear"),
                   ("Transformer: loss over t", "t", "flow loss",
                    {"second half of training": tuple(zip(*by_t))} if by_t else {}, "linear")]
    save_curves(path, panels)


def shares(figures):
    """Some figures of `digits.judge_clips` for a terminal; "" if digits were not read."""
    if "every_frame" not in figures:
        return ""
    names = {"every frame": "every_frame", "colour": "colour", "direction": "direction", "faulty": "faulty"}
    text = "  ".join(f"{label} {100 * figures[key]:.1f} %" for label, key in names.items())
    return f"{text}  speed x{figures['speed']:.2f}"


def table(report):
    """The report's figures as lines for a terminal."""
    vae, dit = report["vae"], report["dit"]
    rows = [("WARNING", text) for text in report.get("warnings", ())]
    rows += [("held-out reconstruction, PSNR per frame",
             f"{vae['psnr']:.2f} dB (all black: {vae['psnr_of_black']:.2f})"),
            ("energy of frame differences / the input's", f"{vae['motion_ratio']:.3f}")]
    if dit:
        text, image, n = dit["text_to_video"], dit["image_to_video"], dit["prompts"]
        rows += [(f"text-to-video, {n} held-out prompts", shares(text) or "see samples.gif"),
                 *((f"  {name}", shares(dit[name])) for name in ("reconstructed", "real") if dit[name]),
                 (f"image-to-video, {n} held-out pictures", f"{shares(image)}  ".lstrip()
                  + f"first frame {image['first_frame_psnr']:.2f} dB "
                  f"(reconstructed: {image['vae_first_frame_psnr']:.2f})")]
    elif "read" in vae:
        rows += [("reconstructed", shares(vae["read"])), ("real", shares(vae["read_in_data"]))]
    rows += [("minutes", "  ".join(f"{k} {v / 60:.1f}" for k, v in report["seconds"].items())),
             ("parameters", "  ".join(f"{k} {v:,}" for k, v in report["parameters"].items())),
             ("hardware", report["hardware"])]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
