"""The releases that minltx can run, 2 B and 13 B: the networks' configs, and how each release samples."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from minltx.dit import DiTConfig
from minltx.flow import SHIFT, linear_quadratic_schedule, shift_times
from minltx.pretrained.early import PlainVAEConfig
from minltx.pretrained.fields import between, whole
from minltx.pretrained.stg import GuidanceOverTime, SpatioTemporalGuidance
from minltx.vae import VAEConfig

NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class SamplingConfig:
    """How a release samples (SPEC 4, 5.3, 5.5). `schedule` is "uniform" or "linear_quadratic". With `shifted`
    it is shifted by the number of tokens along `shift_line`; a `terminal` stretches it to that last time.
    `times` is a distilled model's fixed list, in place of all that. Of the steps, the first `skip_first` and
    the last `skip_last` are left out; the last step that is taken goes to 0. size is (frames, height, width)
    in pixels. `second`, if there is one, is the second pass, on the upsampled latent; its size, fps and text
    are those of the first. tone_map compresses the result before it is decoded. Raises ValueError if a field
    is out of range."""

    schedule: str = "linear_quadratic"
    shifted: bool = False
    shift_line: tuple = SHIFT
    terminal: float | None = None
    times: tuple = ()
    steps: int = 40
    guidance: SpatioTemporalGuidance | GuidanceOverTime = SpatioTemporalGuidance(3.0, 1.0, (19,), rescale=0.7)
    stochastic: bool = False
    condition_noise: float = 0.15
    decode_t: float = 0.05
    decode_noise: float = 0.025
    text_tokens: int = 256
    lowercase: bool = False
    size: tuple = (121, 704, 1216)
    fps: float = 30.0
    skip_first: int = 0
    skip_last: int = 0
    tone_map: float = 0.0
    second: "SamplingConfig | None" = None

    def __post_init__(self):
        last = self.steps - 1 if whole(self.steps) else 0
        for name, right in (
                ("schedule", self.schedule in ("uniform", "linear_quadratic")),
                ("shift_line", all(between(x, -1e6, 1e6) for point in self.shift_line for x in point) and
                 len(self.shift_line) == 2 and self.shift_line[0][0] < self.shift_line[1][0]),
                ("terminal", self.terminal is None or between(self.terminal, 0, 1)),
                ("times", all(between(t, 1e-6, 1) for t in self.times) and
                 list(self.times) == sorted(set(self.times), reverse=True)),
                ("guidance", all(map(is_guidance, getattr(self.guidance, "parts", (self.guidance,))))),
                ("steps", whole(self.steps)), ("text_tokens", whole(self.text_tokens)),
                ("size", len(self.size) == 3 and all(map(whole, self.size))),
                ("fps", between(self.fps, 1e-6, 1e6)), ("decode_t", between(self.decode_t, 0, 1)),
                ("decode_noise", between(self.decode_noise, 0, 1)),
                ("condition_noise", between(self.condition_noise, 0, 1)),
                ("tone_map", between(self.tone_map, 0, 1)),
                ("skip_first", between(self.skip_first, 0, last)),
                ("skip_last", between(self.skip_first, 0, last) and
                 between(self.skip_last, 0, last - self.skip_first)),
                *((name, isinstance(getattr(self, name), bool))
                  for name in ("shifted", "stochastic", "lowercase"))):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}, which is out of range")

    def schedule_of(self, steps=None, tokens=0):
        """The times (steps + 1,), from the first one down to 0, of a video of so many tokens.

        A distilled list is cut after so many steps; of other schedules, the share that is left out stays the
        release's. Raises ValueError if steps < 1, and for more steps than a distilled list has.
        """
        if self.times:
            if steps is not None and not 1 <= steps <= len(self.times):
                raise ValueError(f"this distilled model takes 1 to {len(self.times)} steps, not {steps}")
            return torch.tensor([*self.times[:steps], 0.0])
        steps = self.steps if steps is None else steps
        schedule = linear_quadratic_schedule(steps)                          # raises ValueError if steps < 1
        if self.schedule == "uniform":
            schedule = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if self.shifted:
            shifted = shift_times(schedule[:-1].double(), tokens, self.terminal, self.shift_line)
            schedule = torch.cat([shifted, schedule[-1:]])
        first, last = (skip * steps // self.steps for skip in (self.skip_first, self.skip_last))
        return torch.cat([schedule[first : steps - last], schedule[-1:]]).float()

    def one_pass(self):
        """The release in one pass at full size: no step of the first pass is left out, and a distilled list
        goes on with the second pass's lower times."""
        if self.second is None:
            return self
        times = self.times + tuple(t for t in self.second.times if t < min(self.times))
        return replace(self, second=None, skip_last=0, times=times, steps=len(times) or self.steps,
                       tone_map=self.second.tone_map)

    def stored(self):
        """Plain values for a JSON file. What earlier versions do not know is left out where it is not used,
        so they read the file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("skip_first", "skip_last", "tone_map", "second"):
            if not values[name]:
                del values[name]
        values["guidance"] = stored_guidance(self.guidance)
        return values | ({"second": self.second.stored()} if self.second else {})

    @classmethod
    def restored(cls, values, where):
        """The inverse of `stored`; absent fields have defaults. Raises ValueError, which names `where`."""
        try:
            known = {**{k: tuples(v) for k, v in values.items()},
                     "guidance": restored_guidance(values["guidance"])}
            if values.get("second"):
                known["second"] = cls.restored(values["second"], where)
            return cls(**known)
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{where}: its sampling is not understood ({str(error)[:80]})") from None


def is_guidance(guidance):
    """Are a guidance's scales and blocks numbers as they have to be?"""
    scales = guidance.cfg, guidance.stg, guidance.rescale
    return all(between(x, 0, 1000) for x in scales) and all(between(x, 0, 1000) for x in guidance.stg_blocks)


def stored_guidance(guidance):
    """A guidance as plain values."""
    if isinstance(guidance, GuidanceOverTime):
        return {"times": guidance.times, "parts": [stored_guidance(part) for part in guidance.parts]}
    values = asdict(replace(guidance, dit=None))
    return {k: v for k, v in values.items() if k != "dit" and (k != "cfg_star" or v)}


def restored_guidance(values):
    """The inverse of `stored_guidance`."""
    if "parts" in values:
        return GuidanceOverTime(times=tuples(values["times"]),
                                parts=tuple(restored_guidance(part) for part in values["parts"]))
    return SpatioTemporalGuidance(**{k: tuples(v) for k, v in values.items()})


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
# The two passes of 0.9.7 and 0.9.8: at 2/3 of the size, then at twice that (SPEC 5.5).
DISTILLED_TWICE = SamplingConfig(
    times=(1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725), steps=7, guidance=SpatioTemporalGuidance(),
    second=SamplingConfig(times=(0.9094, 0.725, 0.4219), steps=3, guidance=SpatioTemporalGuidance()))
TONE_MAPPED = replace(DISTILLED_TWICE, second=replace(DISTILLED_TWICE.second, tone_map=0.6))
DEV_13B = SamplingConfig(
    steps=30, skip_last=3,
    guidance=GuidanceOverTime(times=(1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618), parts=tuple(
        SpatioTemporalGuidance(cfg, stg, blocks, rescale=rescale, cfg_star=True)
        for cfg, stg, blocks, rescale in (
            (1.0, 0.0, (), 1.0), (1.0, 0.0, (11, 25, 35, 39), 1.0), (6.0, 4.0, (22, 35, 39), 0.5),
            (8.0, 4.0, (28,), 0.5), (6.0, 4.0, (28,), 1.0), (1.0, 2.0, (28,), 1.0), (1.0, 1.0, (28,), 1.0)))),
    second=SamplingConfig(steps=30, skip_first=17,
                          guidance=SpatioTemporalGuidance(1.0, 1.0, (27,), cfg_star=True)))
DIT_13B = DiTConfig(width=4096, depth=48, heads=32)
RELEASES = {
    "0.9.0": ReleaseConfig(DiTConfig(causal_time=False), VAE_090,
                           replace(EARLY, condition_noise=0.0, decode_noise=0.0)),
    "0.9.1": ReleaseConfig(DiTConfig(causal_time=False), VAE_091, EARLY),
    "0.9.5": ReleaseConfig(DiTConfig(), VAEConfig(), SamplingConfig()),
    "0.9.6-dev": ReleaseConfig(DiTConfig(), VAEConfig(), SamplingConfig()),
    "0.9.6-distilled": ReleaseConfig(DiTConfig(), VAEConfig(), DISTILLED),
    "0.9.7-13b-dev": ReleaseConfig(DIT_13B, VAEConfig(), DEV_13B),
    "0.9.7-13b-distilled": ReleaseConfig(DIT_13B, VAEConfig(), DISTILLED_TWICE),
    "0.9.8-13b-dev": ReleaseConfig(DIT_13B, VAEConfig(), DEV_13B),
    "0.9.8-13b-distilled": ReleaseConfig(DIT_13B, VAEConfig(), TONE_MAPPED),
    "0.9.8-2b-distilled": ReleaseConfig(DiTConfig(), VAEConfig(), DISTILLED_TWICE),
}
# How the published files and folders begin: no header says which release it is (SPEC 9.1).
NAMES = {
    "ltx-video-2b-v0.9": "0.9.0", "ltx-video-2b-v0.9.1": "0.9.1", "ltx-video-2b-v0.9.5": "0.9.5",
    "ltxv-2b-0.9.6-dev": "0.9.6-dev", "ltxv-2b-0.9.6-distilled": "0.9.6-distilled",
    "ltxv-2b-0.9.8-distilled": "0.9.8-2b-distilled", "ltxv-13b-0.9.7-dev": "0.9.7-13b-dev",
    "ltxv-13b-0.9.7-distilled": "0.9.7-13b-distilled", "ltxv-13b-0.9.8-dev": "0.9.8-13b-dev",
    "ltxv-13b-0.9.8-distilled": "0.9.8-13b-distilled", "LTX-Video-0.9.7-dev": "0.9.7-13b-dev",
    "LTX-Video-0.9.7-distilled": "0.9.7-13b-distilled",
    "LTX-Video-0.9.8-13B-distilled": "0.9.8-13b-distilled"}


def same_kind(release, dit, vae):
    """Are these networks like those of a release, whatever their widths?"""
    known = RELEASES[release]
    return (known.dit.depth == dit.depth and known.dit.causal_time == dit.causal_time
            and type(known.vae) is type(vae))


def release_of(path, dit, vae, distilled=False):
    """Which release's recipe is a file's: by the name under which it was published, otherwise by its
    networks. None: of no known release, and `sampling_for` decides."""
    names = [name for name in NAMES if Path(path).stem.startswith(name) or Path(path).name.startswith(name)]
    if names and same_kind(NAMES[max(names, key=len)], dit, vae):
        return NAMES[max(names, key=len)]
    large = "0.9.8-13b-distilled" if distilled else "0.9.8-13b-dev"
    return large if same_kind(large, dit, vae) else None


def recipe(release, dit, vae, **known):
    """How a release samples, with what its file knows about the schedule. Raises ValueError for networks of
    another release."""
    if not same_kind(release, dit, vae):
        raise ValueError(f"the networks are not those of release {release}: its transformer has "
                         f"{RELEASES[release].dit.depth} blocks, and this one {dit.depth}, or time or the "
                         "decoder differ: leave out release")
    sampling = RELEASES[release].sampling
    known = {name: known[name] for name in ("schedule", "shifted", "terminal") if name in known}
    second = sampling.second and replace(sampling.second, **known)
    return replace(sampling, second=second, **known)


def sampling_for(dit, vae, **known):
    """How a release samples, as far as its files say, and otherwise as this kind does (SPEC 5.3)."""
    sampling = DISTILLED if known.get("times") else SamplingConfig() if dit.causal_time else EARLY
    if dit.depth <= 19:                                   # the block that STG skips does not exist
        known["guidance"] = SpatioTemporalGuidance(sampling.guidance.cfg)
    if isinstance(vae, PlainVAEConfig):
        known |= {"condition_noise": 0.0, "decode_noise": 0.0}
    return replace(sampling, **known)
