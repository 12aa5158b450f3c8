"""How a model is trained: every number of both stages in one dataclass, the presets, the learning rate."""

import json
from dataclasses import asdict, dataclass, fields, replace

from minltx import require
from minltx.dit import DiTConfig
from minltx.losses import LossConfig
from minltx.objectives import FlowRecipe, VAERecipe
from minltx.toy.data import DataConfig
from minltx.toy.model import ModelConfig
from minltx.vae import VAEConfig


@dataclass(frozen=True, kw_only=True)
class Settings(VAERecipe, FlowRecipe):
    """The model, the recipes of both objectives, and how long and how fast to train.

    A phase of the VAE is (frames, clips in a batch, steps). A clip variant is (frames, size, fps), or these
    and the number of digits; a step of stage 2 uses one of them. Stage 2 learns shapes before motion: its
    curriculum, (frames, share of all steps), starts with clips that are cut.
    """

    model: ModelConfig
    start: str = ""                                  # weights to start from: "" for random, a file, shipped
    loss: LossConfig = LossConfig(foreground=10.0)   # the foreground weight falls to 0 over the first half
    vae_phases: tuple = ((1, 32, 200), (9, 12, 400), (17, 8, 250))
    vae_lr: float = 0.02                             # of Muon, for matrices
    vae_adam_lr: float = 3e-3                        # of AdamW, for everything else
    freeze_encoder: bool = False                     # train a new decoder for the encoder that is there
    perceptual: str = "digits"                       # whose features that term compares: digits or lpips
    discriminator_width: int = 16
    discriminator_lr: float = 1e-3
    latents: int = 6400                              # clips in the cache that the transformer learns from
    dit_steps: int = 1100
    dit_batch: int = 32
    dit_lr: float = 0.02
    dit_adam_lr: float = 2e-3
    curriculum: tuple = ()                           # of stage 2, before whole clips; (): none
    motion_captions: float = 0.0                     # share of clips whose caption names the motion alone
    clip_variants: tuple = ()                        # how stage 2 renders the clips; (): as the data's config
    ema: float = 0.99                                # decay of the averaged weights
    layouts: tuple = ("free", "start", "still", "free", "end", "free", "free", "still", "keyframe", "free")
    micro_batches: int = 1                           # a step's gradient is the mean over so many batches
    precision: str = "float32"                       # or bf16: autocast
    optimizer: str = "muon"                          # or adamw

    def __post_init__(self):
        """Raises ValueError, which names the field, for values that cannot be trained."""
        for name, kind in (("model", ModelConfig), ("loss", LossConfig)):
            require.require(isinstance(getattr(self, name), kind), name, getattr(self, name), kind.__name__)
        require.require(isinstance(self.start, str), "start", self.start, "a file, shipped, or nothing")
        for name, known in CHOICES.items():
            require.choice(name, getattr(self, name), known)
        for name, (check, low, high) in RANGES.items():
            check(name, getattr(self, name), low, high)
        for field in fields(self.loss):
            require.number(f"loss.{field.name}", getattr(self.loss, field.name), 0, 1e6)
        for name in ("vae_phases", "layouts"):
            value = getattr(self, name)
            require.require(isinstance(value, (tuple, list)) and value, name, value, "a tuple")
        for phase in self.vae_phases:
            require.row("vae_phases", phase, 3, require.whole, 1, 10**9)
        require.require(isinstance(self.curriculum, (tuple, list)), "curriculum", self.curriculum, "a tuple")
        for part in self.curriculum:
            require.row("curriculum", part, 2, require.number, 0, 10**9)
            require.whole("the frames of curriculum", part[0], 1, 10**9)
        require.number("the sum of curriculum's shares", sum(share for _, share in self.curriculum), 0, 1)
        require.require(all(layout in LAYOUTS for layout in self.layouts), "layouts", self.layouts,
                        f"some of {', '.join(LAYOUTS)}")


LAYOUTS = ("free", "start", "still", "end", "keyframe")
CHOICES = {"precision": ("float32", "bf16"), "optimizer": ("muon", "adamw"),
           "perceptual": ("digits", "lpips"), "freeze_encoder": (False, True)}
RANGES = {**{name: (require.whole, 1, 10**9) for name in ("discriminator_width", "latents", "dit_steps",
                                                          "dit_batch", "micro_batches")},
          **{name: (require.number, 0, 100) for name in ("vae_lr", "vae_adam_lr", "discriminator_lr",
                                                         "dit_lr", "dit_adam_lr")},
          **{name: (require.number, 0, 1) for name in ("noise_range", "clean", "caption_dropout",
                                                       "conditioned", "soft", "condition_noise",
                                                       "motion_captions")},
          "time_offset": (require.number, -10, 10),
          "ema": (require.number, 0, 0.999999), "token_drop": (require.number, 0, 0.99)}

TOY = Settings(model=ModelConfig(
    data=DataConfig(), negative="motion", guidance=2.0, stochastic=True,
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=32, decoder_width=64,
                  encoder_blocks=(("down", (2, 2, 2), 64), ("res", 1), ("down", (2, 2, 2), 64), ("res", 1)),
                  decoder_blocks=(("res", 2), ("up", (2, 2, 2), 32), ("res", 2), ("up", (2, 2, 2), 16),
                                  ("res", 1))),
    dit=DiTConfig(latent_channels=4, width=128, depth=6, heads=8, text_width=64, stride=(4, 8, 8),
                  max_position=(2.0, 64.0, 64.0), theta=10.0)),     # RoPE for clips of 2 s and 64 pixels
    dit_steps=1200, time_offset=-0.3, motion_captions=0.1, curriculum=((1, 0.25), (9, 0.2)))

# The same with guidance away from the null caption alone, and Euler's method, as in the paper: what the other
# presets do. (The large one samples with less guidance and fresh noise.)
WITH_NULL = replace(TOY, model=ModelConfig(TOY.model.data, TOY.model.vae, TOY.model.dit),
                    motion_captions=0.0, time_offset=0.0)

# 64x64 and two digits, from the shipped model's weights: its encoder stays, its decoder gets used to larger
# frames, and the transformer learns from several sizes and numbers of digits in turn. Two thirds of its steps
# have clips of the target: 64x64 with two digits.
LARGE = replace(WITH_NULL, start="shipped", freeze_encoder=True, loss=LossConfig(), latents=12000,
                model=replace(WITH_NULL.model, data=DataConfig(size=64, digits=2), guidance=2.0,
                              stochastic=True, shapes=((17, 64, 64), (17, 72, 72), (17, 32, 32))),
                vae_phases=((9, 6, 100), (17, 4, 300)), dit_steps=2500, dit_batch=24, dit_lr=0.015,
                dit_adam_lr=1.5e-3,
                clip_variants=4 * ((17, 64, 16.0, 2),) + ((17, 72, 16.0, 2), (17, 32, 16.0, 1)))

# 64x64 for a folder of clips, from random weights.
CLIPS = replace(WITH_NULL, model=replace(WITH_NULL.model, data=DataConfig(size=64, digits=0)),
                vae_phases=((1, 16, 300), (9, 6, 900), (17, 4, 400)), dit_batch=12, dit_steps=3000)

# For ablations: the released RoPE, and one kind of batch from the first step to the last.
SHORT = replace(WITH_NULL, model=replace(
    WITH_NULL.model, data=DataConfig(frames=9, speed=(10.0, 18.0)),
    dit=DiTConfig(latent_channels=4, width=96, depth=4, heads=4, text_width=64, stride=(4, 8, 8))),
    vae_phases=((1, 32, 300), (9, 12, 1400)), dit_steps=900, curriculum=())

# The released 2 B model, for a folder of clips whose captions are embedded: python -m minltx.training.
FULL = Settings(model=ModelConfig(DataConfig(121, (512, 768), 0, 0, 24.0), VAEConfig(), DiTConfig(), True),
                vae_phases=((1, 4, 2000), (17, 1, 8000)), vae_adam_lr=5e-5, loss=LossConfig(),
                latents=2000, dit_steps=1000, dit_batch=1, dit_adam_lr=1e-5, ema=0.999,
                layouts=("free", "start", "still", "free"), precision="bf16", optimizer="adamw")

PRESETS = {"toy": TOY, "large": LARGE, "short": SHORT, "clips": CLIPS, "2b": FULL}


def scaled(settings, budget):
    """The same settings with `budget` times the steps of every phase and, above 1, more cached latents.

    Raises ValueError if budget is not between 0 and 1000.
    """
    if not 0 < budget < 1000:
        raise ValueError(f"--budget {budget} is out of range: use a number above 0, such as 0.5")
    return replace(settings, dit_steps=max(1, round(settings.dit_steps * budget)),
                   latents=round(settings.latents * max(1, budget)),
                   vae_phases=tuple((f, b, max(1, round(s * budget))) for f, b, s in settings.vae_phases))


def layout_of(settings, step):
    """What a step of stage 2 trains on: (layout, frames that clips are cut to, or None for whole clips).

    Conditions come with whole clips only."""
    layout, end = settings.layouts[step % len(settings.layouts)], 0
    for frames, share in settings.curriculum:
        end += share * settings.dit_steps
        if step < end:
            return "still" if frames == 1 or layout == "still" else "free", frames
    return layout, None


def learning_rate(step, total):
    """A factor from 0 up to 1 in 20 steps, 1 up to the middle, then down to 0 along a straight line."""
    return min(1, (step + 1) / 20, 2 * (total - step) / total)


# --- Settings as they are stored ----------------------------------------------------------------------------

RENAMED = {"bank": "latents", "views": "clip_variants"}
# Fields that older files have, with the one value that means what the code does today.
RETIRED = {"times": "shifted", "seconds": True, "loss.gan": "reconstruction",
           "model.vae.timestep_conditioning": True, "model.vae.shared_logvar": True, "model.vae.fold": 1,
           "model.dit.rope": "exponential", "model.dit.qk_norm": "rms", "model.dit.attention": "full"}


def stored(settings):
    """Settings as a checkpoint or a report keeps them: plain dictionaries, lists and values."""
    return json.loads(json.dumps(asdict(settings)))


def from_stored(old):
    """Stored settings of any age -> the same with today's fields, and the variants that have no field today.

    Fields that came later get their defaults, which changed nothing. The second dictionary holds retired
    fields by their path, such as "model.dit.rope", if their value is not what the code does today.
    """
    variants = {}

    def convert(part, default, path=""):
        if not isinstance(part, dict):
            return part
        fields = {}
        for name, value in part.items():
            name = RENAMED.get(name, name)
            if path + name not in RETIRED:
                fields[name] = convert(value, default.get(name), f"{path}{name}.")
            elif value != RETIRED[path + name]:
                variants[path + name] = value
        return {**default, **fields}

    defaults = Settings(model=ModelConfig(DataConfig(), VAEConfig(), DiTConfig()))
    return convert(old, stored(defaults)), variants
