"""Spatio-temporal guidance (STG): steer away from a prediction in which some blocks were skipped.

Classifier-free guidance compares with the same network on another caption. STG compares with the same network
on the same caption, but with the self-attention of a few blocks, or these whole blocks, skipped: structure
and motion suffer. STG is not in the paper; all releases but the distilled ones use it (SPEC 5.2). The 13 B
models change their guidance while they sample: `GuidanceOverTime`.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from minltx.dit import Block, DiT
from minltx.layers import Attention
from minltx.sampler import Guidance, classifier_free_guidance


class OwnValue(Attention):
    """Attention is skipped: every token keeps its own value."""

    def forward(self, x, context=None, mask=None, rotate=None):
        return self.to_out(self.to_v(x))                                                  # (B, N, D)


class OwnInput(Attention):
    """Attention is skipped: every token keeps its input."""

    def forward(self, x, context=None, mask=None, rotate=None):
        return self.to_out(x)                                                             # (B, N, D)


class SkippedBlock(Block):
    """The whole block is skipped."""

    def forward(self, h, modulation, rotate, text, text_mask=None):
        return h                                                                          # (B, N, D)


MODES = {"attention_values": OwnValue, "attention_skip": OwnInput, "transformer_block": SkippedBlock}


@contextmanager
def skip(dit, blocks, mode):
    """Within this context the blocks of these numbers skip what `mode` says; afterwards, and after an error,
    they are as before. Modules change their class and keep their parameters."""
    modules = [dit.blocks[i] if MODES[mode] is SkippedBlock else dit.blocks[i].attn1 for i in blocks]
    classes = [type(module) for module in modules]
    try:
        for module in modules:
            module.__class__ = MODES[mode]
        yield
    finally:
        for module, own_class in zip(modules, classes):
            module.__class__ = own_class


def project(v_text, v_null):
    """CFG*: v_null (B, N, C), scaled to be as near to v_text as possible, for each sample: the projection of
    v_text on it (SPEC 5.2)."""
    length = v_null.square().sum((1, 2), keepdim=True) + 1e-8                             # (B, 1, 1)
    return (v_text * v_null).sum((1, 2), keepdim=True) / length * v_null                  # (B, N, C)


@dataclass(frozen=True)
class SpatioTemporalGuidance(Guidance):
    """`stg` is the scale, 0 turns it off; `stg_blocks` and `stg_mode` say what is skipped. STG widens the
    spread of v; `rescale` says how far it is pulled back to that of the caption's velocity: 0 not at all, 0.7
    in the releases, and exactly 1 disables it, as in the released code. cfg_star scales the velocity of the
    negative caption first, see `project`. `dit` is the network that `predict` runs, see `of`. Raises
    ValueError for an unknown mode."""

    stg: float = 0.0
    stg_blocks: tuple = ()
    stg_mode: str = "attention_values"
    rescale: float = 1.0
    cfg_star: bool = False
    dit: DiT | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.stg_mode not in MODES:
            raise ValueError(f"unknown STG mode {self.stg_mode!r}: use one of {', '.join(MODES)}")

    def of(self, dit):
        """The same guidance for this network. Raises ValueError if STG cannot skip its blocks."""
        known, blocks = range(dit.config.depth), self.stg_blocks
        if self.stg > 0 and not (blocks and all(block in known for block in blocks)):
            raise ValueError(f"STG cannot skip blocks {blocks}: this transformer has 0 to {known[-1]}; give "
                             "other stg_blocks, (19,) for the 2 B model, or set stg to 0")
        return replace(self, dit=dit)

    def scaled(self, cfg=None, stg=None):
        """The same guidance with other scales; None: as it is."""
        return replace(self, cfg=self.cfg if cfg is None else cfg, stg=self.stg if stg is None else stg)

    def velocity(self, predict, text, null_text):
        """As `Guidance.velocity`, with one more prediction if stg is above 0."""
        if self.stg <= 0 and not (self.cfg_star and self.cfg > 1):
            return super().velocity(predict, text, null_text)
        v = v_text = predict(*text)                                                       # (B, N, C)
        if self.cfg > 1:
            v_null = predict(*null_text)
            v_null = project(v_text, v_null) if self.cfg_star else v_null
            v = classifier_free_guidance(v_null, v_text, self.cfg)
        if self.stg <= 0:
            return v
        with skip(self.dit, self.stg_blocks, self.stg_mode):
            v = v + self.stg * (v_text - predict(*text))
        if self.rescale == 1:
            return v
        ratio = v_text.std((1, 2), keepdim=True) / v.std((1, 2), keepdim=True)            # (B, 1, 1)
        return v * (self.rescale * ratio + 1 - self.rescale)


@dataclass(frozen=True)
class GuidanceOverTime(Guidance):
    """Another guidance for every stretch of time: parts[i], a `SpatioTemporalGuidance`, holds from times[i]
    down to times[i+1], and the last one to 0. Raises ValueError if they are not as many, or times rise."""

    times: tuple = ()
    parts: tuple = ()

    def __post_init__(self):
        falls = list(self.times) == sorted(set(self.times), reverse=True)
        if not self.parts or len(self.parts) != len(self.times) or not falls:
            raise ValueError(f"guidance over time needs as many falling times as parts, not {self.times} for "
                             f"{len(self.parts)} parts")
        object.__setattr__(self, "cfg", max(part.cfg for part in self.parts))

    def at(self, t):
        """The guidance at the time t: officially the first whose time is not above t (SPEC 5.2)."""
        return next((part for time, part in zip(self.times, self.parts) if time <= t + 1e-6), self.parts[-1])

    def scaled(self, cfg=None, stg=None):
        """The same with other scales at all times; None: as they are."""
        return replace(self, parts=tuple(part.scaled(cfg, stg) for part in self.parts))

    def of(self, dit):
        """The same for this network, see `SpatioTemporalGuidance.of`."""
        return replace(self, parts=tuple(part.of(dit) for part in self.parts))


class FollowingGuidance:
    """A `GuidanceOverTime` in one sampling. The sampler does not say what time it is, but it takes its steps
    from `Sampling.progress`: `follow` is to be given there, around the caller's own progress."""

    def __init__(self, guidance, progress=None):
        self.guidance, self.progress, self.now = guidance, progress or iter, guidance.parts[0]
        self.cfg = guidance.cfg                          # the largest

    def follow(self, steps):
        """Yield the sampler's steps (t, next t); from each on, its guidance holds."""
        for t, t_next in self.progress(steps):
            self.now = self.guidance.at(t)
            yield t, t_next

    def velocity(self, predict, text, null_text):
        """As `Guidance.velocity`, at the present step."""
        return self.now.velocity(predict, text, null_text)
