"""The paper's claims as switches of the short toy. This is the one place where a new switch is added."""

import json
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from minltx.ablation.ideas import Idea, idea_of, load_class
from minltx.ablation.variants import (AbsolutePositions, FoldedLatents, FramesNotSeconds, InverseDiT,
                                      LayerQKNorm, LogitNormalTimes, LogvarPerChannel, NoQKNorm, OrdinaryGAN,
                                      SpaceTime, Unconditioned, UniformTimes, UnrotatedDiT)
from minltx.toy.stored import tuples
from minltx.training.settings import SHORT, scaled


@dataclass(frozen=True)
class Switch:
    """Levels by name, each an `Idea`; the others are compared with the first. stage: what is trained and
    judged, see STAGES. The paper's claim, the figure that decides it, and the level that the claim expects to
    be the best. A single level is compared with 0: its figure is a difference already. allowed: for a claim
    that `better` costs nothing, how much worse still counts as nothing, in the unit of UNITS."""

    stage: str
    levels: dict
    claim: str = ""
    figure: str = ""
    better: str = ""
    allowed: float = 0.0


def noisy(blocks):
    """A decoder's blocks with noise injection in the residual groups after the first upsampling."""
    return tuple(("noisy", *b[1:]) if b[0] == "res" and i else b for i, b in enumerate(blocks))


DEFAULT = Idea()
NEAR = {"model.dit.max_position": (1.0, 32.0, 32.0)}    # in seconds and pixels: about the size of a clip
MIXED = {"clip_variants": ((9, 32, 16.0), (9, 32, 24.0), (9, 32, 32.0))}
SIZES = {"clip_variants": ((9, 32, 16.0), (5, 40, 16.0), (1, 56, 16.0))}
WIDE = {"model.vae.latent_channels": 16, "loss.kl": 0.02}
SWITCHES = {
    "patchify": Switch("vae", {"vae": DEFAULT, "transformer": FoldedLatents()},
                       "patches before the VAE reconstruct better than patches before the transformer",
                       "psnr", "vae"),
    "decoder": Switch("decoder", {
        "conditioned": DEFAULT, "unconditioned": Unconditioned(),
        "conditioned without noise": Idea({"noise_range": 0.0}),
        "plain": Unconditioned({"noise_range": 0.0})},
        "a denoising decoder beats a plain one on generated latents", "generated digit", "conditioned"),
    "decode-t": Switch("decoder", {"conditioned": DEFAULT},
                       "decoding at t = 0.05 with noise 0.025 beats t = 0 without noise", "t = 0.05 for 0",
                       "conditioned"),
    "gan": Switch("vae", {"none": DEFAULT, "reconstruction": Idea({"loss.adversarial": 0.02}),
                          "ordinary": OrdinaryGAN({"loss.adversarial": 0.02})},
                  "a reconstruction GAN beats an ordinary GAN, and none", "detail", "reconstruction"),
    "dwt": Switch("vae", {"0.1": DEFAULT, "0": Idea({"loss.dwt": 0.0}), "0.5": Idea({"loss.dwt": 0.5})},
                  "the wavelet loss helps edges and motion", "psnr", "0.1"),
    "perceptual": Switch("vae", {"0": DEFAULT, "0.02": Idea({"loss.perceptual": 0.02})},
                         "a perceptual loss keeps digits recognisable", "digit read", "0.02"),
    "motion": Switch("vae", {"25": DEFAULT, "0": Idea({"loss.motion": 0.0})},
                     "(ours) without the motion term, reconstructions move too little", "motion", "25"),
    "logvar": Switch("vae", {"shared": Idea(WIDE), "per channel": LogvarPerChannel(WIDE)},
                     "a shared log-variance keeps more channels in use", "dimension", "shared"),
    "noise-injection": Switch("vae", {
        "off": DEFAULT, "on": Idea({"model.vae.decoder_blocks": noisy(SHORT.model.vae.decoder_blocks)})},
        "noise injection in the decoder gives more detail", "detail", "on"),
    "rope": Switch("dit", {
        "exponential": DEFAULT, "inverse": idea_of(InverseDiT), "absolute": AbsolutePositions(),
        "none": idea_of(UnrotatedDiT), "inverse near": idea_of(InverseDiT, NEAR),
        "exponential near": Idea({"model.dit.theta": 100.0, **NEAR})},
        "ascending exponential frequencies beat inverse ones", "validation", "exponential"),
    "coordinates": Switch("dit", {"seconds": Idea(MIXED), "frames": FramesNotSeconds(MIXED)},
                          "coordinates in seconds give the right speed at every frame rate", "speed error",
                          "seconds"),
    "qk-norm": Switch("dit", {"rms": DEFAULT, "layer": LayerQKNorm(), "none": NoQKNorm()},
                      "RMS-normalised queries and keys train best", "validation", "rms"),
    "times": Switch("dit", {
        "shifted": DEFAULT, "logit-normal": LogitNormalTimes(), "uniform": UniformTimes()},
        "shifted logit-normal times beat uniform ones", "digit", "shifted"),
    "attention": Switch("dit", {"full": DEFAULT, "space-time": SpaceTime()},
                        "full 3-D attention beats attention in space, then time", "validation", "full"),
    "image-to-video": Switch("dit", {"joint": DEFAULT, "text only": Idea({"conditioned": 0.0})},
                             "joint training costs text-to-video nothing", "digit", "joint", 5.0),
    "condition-noise": Switch("dit", {"0": DEFAULT, "0.2": Idea({"condition_noise": 0.2})},
                              "a little noise on given frames helps", "image direction", "0.2"),
    "token-drop": Switch("dit", {"0": DEFAULT, "0.2": Idea({"token_drop": 0.2})},
                         "dropping up to 20 % of the tokens costs nothing", "validation", "0.2", 2.0),
    "sizes": Switch("dit", {"one": DEFAULT, "several": Idea(SIZES)},
                    "several sizes and lengths can be trained together", "digit", "several", 5.0),
    "caption-dropout": Switch("dit", {"0.1": DEFAULT, "0": Idea({"caption_dropout": 0.0})},
                              "guidance needs caption dropout in training", "digit", "0.1"),
    "ema": Switch("dit", {"0.99": DEFAULT, "0": Idea({"ema": 0.0})},
                  "averaged weights are better than the last", "validation", "0.99"),
}

# What is judged in each stage: figure -> whether more is better.
VAE_FIGURES = {"psnr": True, "motion": True, "detail": True, "digit read": True, "psnr at 0.1": True,
               "dimension": True}
DIT_FIGURES = {"validation": False, "digit": True, "direction": True, "image direction": True,
               "first frame": True}
DECODER_FIGURES = {"psnr": True, "psnr at 0.1": True, "motion": True, "generated digit": True,
                   "t = 0.05 for 0": True}
STAGES = {"vae": VAE_FIGURES, "decoder": DECODER_FIGURES, "dit": {**DIT_FIGURES, "speed error": False},
          "both": {"psnr": True, "motion": True, "digit read": True, **DIT_FIGURES}}
# Units of differences, and how many of them a figure's 1 is. None: per cent of what it is compared with.
UNITS = {"psnr": ("dB", 1), "psnr at 0.1": ("dB", 1), "first frame": ("dB", 1), "dimension": ("channels", 1),
         "motion": ("% of the clips' motion", 100), "detail": ("% of the clips' detail", 100),
         "validation": ("% of the loss", None), "digit read": ("points", 1), "digit": ("points", 1),
         "direction": ("points", 1), "image direction": ("points", 1), "generated digit": ("points", 1),
         "t = 0.05 for 0": ("points", 1), "speed error": ("points", 1)}
SHARES = {figure for figure, (unit, _) in UNITS.items() if unit == "points"} - {"speed error"}   # of clips
# How long a run is: times the short toy's own steps, itself times --budget.
LENGTH = {"vae": 0.3, "decoder": 0.4, "dit": 0.6, "both": 0.4}


# --- Settings ---------------------------------------------------------------------------------------------

def changed(config, changes, inside=""):
    """A nested dataclass with some fields replaced, such as {"loss.dwt": 0.0}. Raises ValueError for an
    unknown field, or a value of another type. inside: the path of the dataclass in what the user names."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        known = [f.name for f in fields(config)] if is_dataclass(config) else []
        if name not in known:
            raise ValueError(f"{name!r} is not a setting: {type(config).__name__} has "
                             f"{', '.join(known) or 'none'}")
        old = getattr(config, name)
        if not rest and isinstance(old, str) != isinstance(value, str):
            raise ValueError(f"{inside}{path} is {value!r}: use a value like the default, {old!r}")
        new = changed(old, {rest: value}, f"{inside}{name}.") if rest else value
        config = replace(config, **{name: new})
    return config


def settings_for(idea, stage, budget=1.0):
    """The short toy's settings with an idea's changes. The transformer follows the VAE's shape; the stage
    "decoder" freezes the encoder."""
    settings = changed(replace(SHORT, freeze_encoder=stage == "decoder"),
                       {path: tuples(value) for path, value in idea.changes.items()})
    vae = settings.model.vae
    dit = replace(settings.model.dit, latent_channels=vae.latent_channels, stride=vae.stride)
    return scaled(replace(settings, model=replace(settings.model, dit=dit)), budget)


# --- Switches on the command line -------------------------------------------------------------------------

def parse_switch(text):
    """An argument of the command line -> its name and the `Switch`. Raises ValueError if it is unknown.

    "rope" has all levels, "rope=exponential,none" these two; "loss.dwt=0.1,0.5" gives a field of Settings
    these values; "mine.py:NoGates" compares the default with a class in a file of one's own.
    """
    name, _, levels = text.partition("=")
    wanted = [part for part in levels.split(",") if part]
    for level in wanted:
        if wanted.count(level) > 1:
            raise ValueError(f"{name} has the level {level} twice: name different levels")
    if own := re.fullmatch(r"(.+\.py):([\w,]*)", text):
        return Path(own[1]).stem, switch_of_file(own[1], own[2].split(","))
    if name in SWITCHES:
        return name, with_levels(name, wanted)
    if len(wanted) < 2 and name.partition(".")[0] not in vars(SHORT):
        raise ValueError(f"{text!r} is not a switch: use {', '.join(SWITCHES)}; or a field of Settings with "
                         "values, such as loss.dwt=0.1,0.5; or a class of your own, such as mine.py:NoGates")
    switch = switch_of_field(name, wanted)
    if len(wanted) < 2:
        raise ValueError(f"{text} has nothing to compare: give {name} two values or more, such as 0.1,0.5")
    return name, switch


def with_levels(name, wanted):
    """A switch of the table with some of its levels, or all. Raises ValueError for an unknown
    level, and for one that is compared with nothing."""
    switch = SWITCHES[name]
    for level in wanted:
        if level not in switch.levels:
            raise ValueError(f"{name} has no level {level!r}: use {', '.join(switch.levels)}")
    if len(wanted) == 1 and len(switch.levels) > 1:
        raise ValueError(f"{name}={wanted[0]} has nothing to compare: give {name} two levels or more of "
                         f"{', '.join(switch.levels)}")
    return replace(switch, levels={level: switch.levels[level] for level in wanted or switch.levels})


def switch_of_field(name, wanted):
    """A switch of one field of Settings; its stage follows from the name."""
    levels = {}
    for level in wanted:
        try:
            value = json.loads(level.lower())
        except json.JSONDecodeError:
            value = level
        same = changed(SHORT, {name: tuples(value)}) == SHORT
        levels[level] = DEFAULT if same else Idea({name: value})
    of_vae = name.startswith(("loss.", "vae_", "model.vae.", "discriminator_"))
    of_vae |= name in ("noise_range", "clean", "perceptual")
    return Switch("both" if name.startswith("model.data") else "vae" if of_vae else "dit", levels)


def switch_of_file(path, names):
    """The default, and ideas of one's own from a Python file. Raises ValueError if they have several stages,
    or one that is not in STAGES, or cannot be loaded."""
    ideas = {name: idea_of(load_class(f"{path}:{name}")) for name in names}
    stages = {idea.stage for idea in ideas.values()}
    if len(stages) > 1 or not stages <= set(STAGES):
        raise ValueError(f"{path}: the ideas must have one stage, {' or '.join(STAGES)}, not "
                         f"{' and '.join(sorted(stages))}")
    return Switch(stages.pop(), {"default": DEFAULT, **ideas})
