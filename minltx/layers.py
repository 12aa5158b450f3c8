"""The few layers that more than one network uses: timestep embedding, RMS norm, attention, feed-forward."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(t, width=256):
    """Sinusoids of t: (...,) -> (..., width), cosines first, then sines, in float32 (SPEC 2.1, 3.2).

    t is already multiplied by 1000, so one unit is a thousandth of the way to pure noise.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000) * index / half)
    angles = t.float()[..., None] * frequencies                                           # (..., width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)                                # (..., width)


class TimestepEmbedder(nn.Module):
    """Scaled time (...,) -> vector (..., width): sinusoids, then two linear layers."""

    def __init__(self, hidden, width):
        super().__init__()
        self.linear_1 = nn.Linear(256, hidden)
        self.linear_2 = nn.Linear(hidden, width)

    def forward(self, t):
        x = timestep_embedding(t).to(self.linear_1.weight.dtype)                          # (..., 256)
        return self.linear_2(F.silu(self.linear_1(x)))                                    # (..., width)


def rms_norm(x, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) over the last axis; statistics in float32 (float64 if x is)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean_square = x.to(dtype).square().mean(dim=-1, keepdim=True)                         # (..., 1)
    return (x * torch.rsqrt(mean_square + eps)).to(x.dtype)


def modulate(x, shift, scale):
    """Adaptive norm: scale and shift normalised x; zeros leave it as it is. The networks make both from t."""
    return x * (1 + scale) + shift


class RMSNorm(nn.Module):
    """RMS normalisation over the last axis with a learned weight; (..., D) -> (..., D)."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.eps) * self.weight


class Attention(nn.Module):
    """Multi-head attention; torch's scaled_dot_product_attention uses flash attention where it can.

    Queries come from x (B, N, D), keys and values from context (B, L, D) (default: x itself) -> (B, N, D).
    Unusual: queries and keys are RMS-normalised over all of D *before* the split into heads. `rotate`, if
    given, is a function on (B, N, D) that also comes before the split (RoPE). mask (B, L), 1 = keep: a masked
    key gets a bias of -10000 (SPEC 3.2, step 8).
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.q_norm = RMSNorm(width)
        self.k_norm = RMSNorm(width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, context=None, mask=None, rotate=None):
        context = x if context is None else context
        q, k, v = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(context)), self.to_v(context)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, .)
        bias = None if mask is None else (1 - mask.to(q.dtype))[:, None, None] * -10000.0     # (B, 1, 1, L)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)                 # (B, heads, N, D/heads)
        return self.to_out(out.transpose(1, 2).flatten(2))                                # (B, N, D)


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear; the hidden layer is four times as wide; (..., D) -> (..., D)."""

    def __init__(self, width):
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, width)

    def forward(self, x):
        x = F.gelu(self.linear_1(x), approximate="tanh")                                  # (..., 4D)
        return self.linear_2(x)                                                           # (..., D)


def swap_class(model, old, new):
    """Turn every `old` module in a model into a `new` one, in place, and return the model.

    `new` is a subclass of `old` that computes `forward` in another way: parameters, buffers and names stay.
    No chapter needs this. The folders around them do, to make a network faster or different from outside.
    """
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
    return model
