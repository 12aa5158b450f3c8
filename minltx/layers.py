"""The few layers that more than one network uses: the clock, attention and the feed-forward."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(t, width=256):
    """Sinusoids of t: (...,) -> (..., width), cosines first, then sines, computed in float32 (SPEC 2.1, 3.2).

    t is already scaled (1000 times flow time), so that one unit is a thousandth of the way to pure noise.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10000) * index / half)
    angles = t.float()[..., None] * frequencies                       # (..., width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)            # (..., width)


class TimestepEmbedder(nn.Module):
    """Scaled time (...,) -> vector (..., width): sinusoids through two linear layers."""

    def __init__(self, hidden, width):
        super().__init__()
        self.linear_1 = nn.Linear(256, hidden)
        self.linear_2 = nn.Linear(hidden, width)

    def forward(self, t):
        x = timestep_embedding(t).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


def rms_norm(x, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) over the last axis; the statistics are float32 or finer, whatever x is."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)               # (..., 1)
    return (x * torch.rsqrt(length.square() / x.shape[-1] + eps)).to(x.dtype)


def modulate(x, shift, scale):
    """x * (1 + scale) + shift, in one pass over memory."""
    return torch.addcmul(shift, x, 1 + scale)


class RMSNorm(nn.Module):
    """RMS normalisation over the last axis with a learned weight; (..., D) -> (..., D)."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        x = rms_norm(x, self.eps)
        return x * self.weight if torch.is_grad_enabled() else x.mul_(self.weight)


FUSED = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear, with GELU (tanh form) behind it if asked for; (..., inputs) -> (..., outputs).

    On a CPU and without gradients oneDNN adds the bias and applies GELU while a result is still in the cache,
    which pays for itself where x is large.
    """

    def forward(self, x, gelu=False):
        large = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.numel() > 2**17
        if FUSED and large and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            after = ("gelu", [], "tanh") if gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *after)
        x = super().forward(x)
        if gelu and torch.is_grad_enabled():
            return F.gelu(x, approximate="tanh")
        return torch.ops.aten.gelu_(x, approximate="tanh") if gelu else x     # in place: the largest tensor


NORMS = {"rms": RMSNorm, "layer": nn.LayerNorm, "none": nn.Identity}


class Attention(nn.Module):
    """Multi-head attention through torch's SDPA (flash attention where the device has it).

    x (B, N, D) asks, context (B, M, D) answers (default: x itself) -> (B, N, D). Queries and keys
    are RMS-normalised over all of D *before* the split into heads, and rotated there too if `rotate` (a
    function (B, N, D) -> (B, N, D)) is given. mask (B, M), or (B or 1, N, M) to say it for each who asks: 1 =
    keep; a masked key gets a bias of -10000 (SPEC 3.2, step 8). norm, "rms", "layer" or "none", is for
    queries and keys. perturb, for the sampler's spatio-temporal guidance, puts something simpler in the
    place of the attended values: a token's own value ("attention_values") or its input ("attention_skip").
    """

    def __init__(self, width, heads, norm="rms"):
        super().__init__()
        self.heads, norm = heads, NORMS[norm]
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.q_norm = norm(width)
        self.k_norm = norm(width)
        self.to_out = Linear(width, width)

    def forward(self, x, context=None, mask=None, rotate=None, perturb=None):
        if perturb == "attention_values":
            return self.to_out(self.to_v(x))
        if perturb == "attention_skip":
            return self.to_out(x)
        context = x if context is None else context
        q, k, v = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(context)), self.to_v(context)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for a in (q, k, v))                                                # (B, heads, N, D/heads)
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 2 else mask
            mask = ((1 - mask.to(q.dtype)) * -10000.0)[:, None]                         # (B, 1, 1 or N, M)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)                 # (B, heads, N, D/heads)
        return self.to_out(out.transpose(1, 2).flatten(2))                                # (B, N, D)


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear, with a hidden layer of four times the width; (..., D) -> (..., D)."""

    def __init__(self, width):
        super().__init__()
        self.linear_1 = Linear(width, 4 * width)
        self.linear_2 = Linear(4 * width, width)

    def forward(self, x):
        return self.linear_2(self.linear_1(x, gelu=True))
