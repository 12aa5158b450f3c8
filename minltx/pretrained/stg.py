"""Spatio-temporal guidance (STG): steer away from a prediction in which some blocks were skipped.

Classifier-free guidance compares with the same network on another caption. STG compares with the same network
on the same caption, but with the self-attention of a few blocks, or these whole blocks, skipped: structure
and motion suffer. STG is not in the paper; all releases but the distilled ones use it (SPEC 5.2).
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


@dataclass(frozen=True)
class SpatioTemporalGuidance(Guidance):
    """`stg` is the scale, 0 turns it off; `stg_blocks` and `stg_mode` say what is skipped. STG widens the
    spread of v; `rescale` says how far it is pulled back to that of the caption's velocity: 0 not at all, 0.7
    in the releases, and exactly 1 disables it, as in the released code. `dit` is the network that `predict`
    runs, see `of`. Raises ValueError for an unknown mode."""

    stg: float = 0.0
    stg_blocks: tuple = ()
    stg_mode: str = "attention_values"
    rescale: float = 1.0
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

    def velocity(self, predict, text, null_text):
        """As `Guidance.velocity`, with one more prediction."""
        if self.stg <= 0:
            return super().velocity(predict, text, null_text)
        v = v_text = predict(*text)                                                       # (B, N, C)
        if self.cfg > 1:
            v = classifier_free_guidance(predict(*null_text), v_text, self.cfg)
        with skip(self.dit, self.stg_blocks, self.stg_mode):
            v = v + self.stg * (v_text - predict(*text))
        if self.rescale == 1:
            return v
        ratio = v_text.std((1, 2), keepdim=True) / v.std((1, 2), keepdim=True)            # (B, 1, 1)
        return v * (self.rescale * ratio + 1 - self.rescale)
