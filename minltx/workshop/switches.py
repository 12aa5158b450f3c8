"""The paper's claims as switches of the short toy. This is the one place where a new switch is added.

A switch changes fields of `train_tiny.Settings`; its first level is what the others are compared with.
"""

import json
from dataclasses import dataclass, fields, is_dataclass, replace

import train_tiny
from minltx.workshop.checkpoint import tuples


@dataclass(frozen=True)
class Switch:
    """Levels by name, each the fields of Settings that it changes. stage: what is trained and judged, see
    STAGES. The paper's claim, and the figure that decides it; at `better` the claim expects the best one.
    With a single level the figure is a difference itself, and is compared with 0."""

    stage: str
    levels: dict
    claim: str = ""
    figure: str = ""
    better: str = ""
    no_worse: bool = False      # it should cost nothing, rather than win


def noisy(blocks):
    """A decoder's blocks with noise injection in the residual groups behind the first upsampling."""
    return tuple(("noisy", *b[1:]) if b[0] == "res" and i else b for i, b in enumerate(blocks))


MIXED = ((9, 32, 16.0), (9, 32, 24.0), (9, 32, 32.0))
SIZES = ((9, 32, 16.0), (5, 40, 16.0), (1, 56, 16.0))
TOY_VAE = train_tiny.SHORT.model.vae
SWITCHES = {
    "patchify": Switch("both", {
        "vae": {},
        "transformer": {"model.vae.patch": 1, "model.vae.latent_channels": 1, "model.vae.fold": 2}},
        "patches at the VAE's input beat patches at the transformer's", "digit", "vae"),
    "decoder": Switch("decoder", {
        "told t": {}, "not told": {"model.vae.timestep_conditioning": False},
        "told without noise": {"noise_range": 0.0},
        "plain": {"model.vae.timestep_conditioning": False, "noise_range": 0.0}},
        "a denoising decoder beats a plain one on what was generated", "generated digit", "told t"),
    "decode-t": Switch("decoder", {"told t": {}},
                       "decoding at t = 0.05 with noise 0.025 beats t = 0 without", "t = 0.05 for 0",
                       "told t"),
    "gan": Switch("vae", {
        "none": {}, "reconstruction": {"loss.adversarial": 0.02},
        "ordinary": {"loss.adversarial": 0.02, "loss.gan": "ordinary"}},
        "a reconstruction GAN beats an ordinary one and none", "detail", "reconstruction"),
    "dwt": Switch("vae", {"0.1": {}, "0": {"loss.dwt": 0.0}, "0.5": {"loss.dwt": 0.5}},
                  "the wavelet loss helps edges and motion", "psnr", "0.1"),
    "perceptual": Switch("vae", {"0": {}, "0.02": {"loss.perceptual": 0.02}},
                         "a perceptual loss keeps what is read", "digit read", "0.02"),
    "motion": Switch("vae", {"25": {}, "0": {"loss.motion": 0.0}},
                     "(ours) without its term the autoencoder freezes", "motion", "25"),
    "logvar": Switch("vae", {
        "shared": {"model.vae.latent_channels": 16, "loss.kl": 0.02},
        "per channel": {"model.vae.latent_channels": 16, "loss.kl": 0.02, "model.vae.shared_logvar": False}},
        "with one shared log-variance the KL term switches off no channels", "dimension", "shared"),
    "noise-injection": Switch("vae", {
        "off": {}, "on": {"model.vae.decoder_blocks": noisy(TOY_VAE.decoder_blocks)}},
        "noise injected in the decoder gives more detail", "detail", "on"),
    "rope": Switch("dit", {
        "exponential": {}, "inverse": {"model.dit.rope": "inverse"},
        "absolute": {"model.dit.rope": "absolute"}, "none": {"model.dit.rope": "none"},
        "inverse near": {"model.dit.rope": "inverse", "model.dit.max_position": (1.0, 32.0, 32.0)},
        "exponential near": {"model.dit.theta": 100.0, "model.dit.max_position": (1.0, 32.0, 32.0)}},
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
                             "joint training costs text-to-video nothing", "digit", "joint", True),
    "condition-noise": Switch("dit", {"0": {}, "0.2": {"condition_noise": 0.2}},
                              "small noise on what is given helps", "image direction", "0.2"),
    "token-drop": Switch("dit", {"0": {}, "0.2": {"token_drop": 0.2}},
                         "dropping up to 20 % of the tokens costs nothing", "validation", "0.2", True),
    "sizes": Switch("dit", {"one": {}, "several": {"views": SIZES}},
                    "several sizes and lengths can be trained together", "digit", "several", True),
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
LENGTH = {"vae": 0.3, "decoder": 0.4, "dit": 0.6, "both": 0.4}
STAGES = {"vae": VAE_FIGURES, "decoder": DECODER_FIGURES, "dit": {**DIT_FIGURES, "speed error": False},
          "both": {"psnr": True, "motion": True, "digit read": True, **DIT_FIGURES}}


def changed(config, changes):
    """A nested dataclass with some fields replaced: {"model.dit.rope": "none"}. ValueError for no such field,
    or for a value of another type."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        known = [f.name for f in fields(config)] if is_dataclass(config) else []
        if name not in known:
            raise ValueError(f"{name!r} is no setting: {type(config).__name__} has "
                             f"{', '.join(known) or 'none'}")
        old = getattr(config, name)
        if not rest and isinstance(old, str) != isinstance(value, str):
            raise ValueError(f"{path} is {old!r} by default: {value!r} is of another kind")
        config = replace(config, **{name: changed(old, {rest: value}) if rest else value})
    return config


def settings_for(changes, stage, budget=1.0):
    """The short toy's settings with these changes; the transformer follows the VAE's shape, and the stage
    "decoder" leaves the encoder as it is."""
    settings = changed(replace(train_tiny.SHORT, freeze_encoder=stage == "decoder"),
                       {path: tuples(value) for path, value in changes.items()})
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
        same = changed(train_tiny.SHORT, {name: tuples(value)}) == train_tiny.SHORT
        levels[level] = {} if same else {name: value}
    vae = name.startswith(("loss.", "vae_", "model.vae.")) or name in ("noise_range", "perceptual")
    return name, Switch("both" if name.startswith("model.data") else "vae" if vae else "dit", levels)
