"""What an ablation will take, measured on this machine before anything is trained."""

import time

import torch

from minltx.ablation.ideas import Idea
from minltx.ablation.paired import FEWEST, FOUND, visible
from minltx.ablation.runner import seconds
from minltx.ablation.switches import settings_for
from minltx.evaluation.digits import train_classifier
from minltx.evaluation.report import NOISE, sampling_steps
from minltx.toy.data import MovingDigits, caption, load_digits

FEW = 8                             # clips to time
IMPORTS = time.process_time()       # seconds until here: every run's own process needs as many


def timed(work):
    """Seconds of work(), the second time."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def seconds_of_the_rest(stage, digits, prompts):
    """A run's seconds besides the training, with the default's networks: encoding the clips that a
    transformer learns from, which is done once for each seed, and judging."""
    settings, generator = settings_for(Idea(), stage), torch.Generator().manual_seed(0)
    data, model = MovingDigits(*digits, settings.model.data), Idea().build(settings.model).eval()
    video, scenes = data.batch(FEW, generator)
    t, words = torch.zeros(FEW), [caption(scene) for scene in scenes]
    latent = model.vae.encode(video)[0]
    encode = timed(lambda: model.vae.encode(video)) / FEW
    decode = timed(lambda: model.vae.decode(latent, t)) / FEW
    steps = sampling_steps(settings.model.data)
    sample = timed(lambda: model.generate(words, range(FEW), steps=steps)) / FEW
    reconstructions = 128 * (1 + len(NOISE)) * (encode + decode)                   # judge_vae
    generations = prompts * (2 * sample + encode + decode)                         # judge_dit
    judging = {"vae": reconstructions + 512 * encode,
               "decoder": reconstructions + prompts * (2 * sample + 50 * decode),    # judge_decoder
               "dit": generations, "both": reconstructions + generations}[stage]
    return settings.latents * encode if stage in ("dit", "both") else 0.0, judging


def classifier_seconds(digits):
    """The training of the digit classifier, from a hundredth of its steps."""
    data = MovingDigits(*digits, settings_for(Idea(), "vae").model.data)
    return 100 * timed(lambda: train_classifier(data, 7))


def estimate(args, runs, budget, classifier, toy):
    """What is still to be done -> {in words: seconds of a single process}. runs: (stage, seed) of each;
    budget: times the usual length by stage; classifier, toy: whether they must be trained first."""
    began, parts = time.perf_counter(), {}
    digits = load_digits(args.digits, 0)[0]
    start = IMPORTS + time.perf_counter() - began
    if classifier:
        parts["a digit classifier, once"] = classifier_seconds(digits)
    if toy:
        parts["a whole short toy, once, for the stages that build on one"] = (
            (args.shared_budget or 1.0) * seconds(Idea(), "both", digits))
    for stage in sorted({stage for stage, _ in runs}):
        seeds = [seed for own, seed in runs if own == stage]
        encoding, judging = seconds_of_the_rest(stage, digits, args.prompts)
        parts[f"training, {len(seeds)} runs of stage {stage}"] = (
            len(seeds) * budget[stage] * seconds(Idea(), stage, digits))
        times = len(set(seeds)) if stage == "dit" else len(seeds)
        parts[f"starting, encoding and judging, stage {stage}"] = (
            len(seeds) * (start + judging) + times * encoding)
    return parts


def announce(parts, jobs, seeds, comparisons):
    """The estimate in words, and what so many seeds can show; comparisons: in the table of verdicts."""
    lines = [f"about {sum(parts.values()) / jobs / 60:.0f} min in all, {jobs} at a time:"]
    lines += [f"{value / 60:7.1f} min  {name}" for name, value in parts.items()]
    if seeds < FEWEST:
        return "\n".join([*lines, f"with fewer than {FEWEST} seeds there will be no verdicts"])
    text = (f"{seeds} seeds find a true difference of {visible(seeds):.1f} standard deviations "
            f"{100 * FOUND:.0f} times in 100")
    if comparisons > 1:
        text += f"; corrected for {comparisons} comparisons, one of {visible(seeds, comparisons):.1f}"
    return "\n".join([*lines, text])
