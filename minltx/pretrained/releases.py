"""The releases of the 2 B model that minltx can run: the networks' configs, and how each release samples."""

from dataclasses import asdict, dataclass, replace

from minltx.dit import DiTConfig
from minltx.flow import SHIFT, linear_quadratic_schedule
from minltx.pretrained.early import PlainVAEConfig
from minltx.pretrained.fields import between, whole
from minltx.pretrained.stg import SpatioTemporalGuidance
from minltx.vae import VAEConfig

NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class SamplingConfig:
    """How a release samples (SPEC 4, 5.3). `schedule` is "uniform" or "linear_quadratic". With `shifted` it
    is shifted by the number of tokens along `shift_line`; a `terminal` stretches it to that last time.
    `times` is a distilled model's fixed list, in place of all that. size is (frames, height, width) in
    pixels. Raises ValueError if a field is out of range."""

    schedule: str = "linear_quadratic"
    shifted: bool = False
    shift_line: tuple = SHIFT
    terminal: float | None = None
    times: tuple = ()
    steps: int = 40
    guidance: SpatioTemporalGuidance = SpatioTemporalGuidance(3.0, 1.0, (19,), rescale=0.7)
    stochastic: bool = False
    condition_noise: float = 0.15
    decode_t: float = 0.05
    decode_noise: float = 0.025
    text_tokens: int = 256
    lowercase: bool = False
    size: tuple = (121, 704, 1216)
    fps: float = 30.0

    def __post_init__(self):
        for name, right in (
                ("schedule", self.schedule in ("uniform", "linear_quadratic")),
                ("shift_line", all(between(x, -1e6, 1e6) for point in self.shift_line for x in point) and
                 len(self.shift_line) == 2 and self.shift_line[0][0] < self.shift_line[1][0]),
                ("terminal", self.terminal is None or between(self.terminal, 0, 1)),
                ("times", all(between(t, 1e-6, 1) for t in self.times) and
                 list(self.times) == sorted(set(self.times), reverse=True)),
                ("steps", whole(self.steps)), ("text_tokens", whole(self.text_tokens)),
                ("size", len(self.size) == 3 and all(map(whole, self.size))),
                ("fps", between(self.fps, 1e-6, 1e6)), ("decode_t", between(self.decode_t, 0, 1)),
                ("decode_noise", between(self.decode_noise, 0, 1)),
                ("condition_noise", between(self.condition_noise, 0, 1))):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}, which is out of range")

    def stored(self):
        """Plain values for a JSON file."""
        values = asdict(self)
        del values["guidance"]["dit"]
        return values

    @classmethod
    def restored(cls, values, where):
        """The inverse of `stored`; absent fields have defaults. Raises ValueError, which names `where`."""
        try:
            guidance = SpatioTemporalGuidance(**{k: tuples(v) for k, v in values["guidance"].items()})
            return cls(**{**{k: tuples(v) for k, v in values.items()}, "guidance": guidance})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: its sampling is not understood ({str(error)[:80]})") from None


def tuples(x):
    """Lists as tuples, at every level."""
    return tuple(map(tuples, x)) if isinstance(x, (list, tuple)) else x


@dataclass(frozen=True)
class ReleaseConfig:
    """A whole release: both networks, and how to sample from them."""

    dit: DiTConfig
    vae: VAEConfig
    sampling: SamplingConfig


VAE_090 = PlainVAEConfig(
    encoder_blocks=(("res", 4), ("stride", (2, 2, 2), 128), ("width", 256), ("res", 3),
                    ("stride", (2, 2, 2), 256), ("width", 512), ("res", 3), ("stride", (2, 2, 2), 512),
                    ("res", 3), ("res", 4)),
    decoder_width=512,
    decoder_blocks=(("res", 4), ("res", 3), ("plain_up", (2, 2, 2), 512), ("res", 3), ("width", 256),
                    ("plain_up", (2, 2, 2), 256), ("res", 3), ("width", 128), ("plain_up", (2, 2, 2), 128),
                    ("res", 4)))
VAE_091 = VAEConfig(
    encoder_blocks=VAE_090.encoder_blocks,
    decoder_blocks=(("res", 8), ("up", (2, 2, 2), 512), ("noisy", 7), ("up", (2, 2, 2), 256), ("noisy", 6),
                    ("up", (2, 2, 2), 128), ("noisy", 5)))

# Steps and guidance as in the official repository's present configs; text, size and fps as at the release.
EARLY = SamplingConfig(schedule="uniform", shifted=True, terminal=0.1, text_tokens=128, lowercase=True,
                       size=(121, 480, 704), fps=25.0)
# 0.9.6-distilled: its file allows these times rounded to 4 digits, and the sampler takes them unrounded.
DISTILLED = SamplingConfig(times=tuple(linear_quadratic_schedule(8).tolist()[:-1]), steps=8,
                           guidance=SpatioTemporalGuidance(), stochastic=True)
RELEASES = {
    "0.9.0": ReleaseConfig(DiTConfig(causal_time=False), VAE_090,
                           replace(EARLY, condition_noise=0.0, decode_noise=0.0)),
    "0.9.1": ReleaseConfig(DiTConfig(causal_time=False), VAE_091, EARLY),
    "0.9.5": ReleaseConfig(DiTConfig(), VAEConfig(), SamplingConfig()),
    "0.9.6-dev": ReleaseConfig(DiTConfig(), VAEConfig(), SamplingConfig()),
    "0.9.6-distilled": ReleaseConfig(DiTConfig(), VAEConfig(), DISTILLED),
}


def sampling_for(dit, vae, **known):
    """How a release samples, as far as its files say, and otherwise as this kind does (SPEC 5.3)."""
    sampling = DISTILLED if known.get("times") else SamplingConfig() if dit.causal_time else EARLY
    if dit.depth <= 19:                                   # the block that STG skips does not exist
        known["guidance"] = SpatioTemporalGuidance(sampling.guidance.cfg)
    if isinstance(vae, PlainVAEConfig):
        known |= {"condition_noise": 0.0, "decode_noise": 0.0}
    return replace(sampling, **known)
