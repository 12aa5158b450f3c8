"""Faster drop-ins for the chapters' modules on a CPU: the same parameters, the same numbers up to rounding.

    model = accelerate(load_toy())

The chapters are plain code. On a CPU part of their time goes into extra passes over memory, and for a single
clip most of the VAE's time goes into a slow convolution of torch. Each class below is a subclass of a
chapter's module with another `forward`. For float32 tensors on a CPU, without gradients, it computes the same
in fewer passes; in every other case it is the plain module. tests/test_fast_cpu.py compares each class with
its plain original, and `python -m minltx.bench` measures the gain.
"""

from functools import partial

import torch
from torch import nn

from minltx.dit import Block, DiT
from minltx.layers import FeedForward, RMSNorm, swap_class
from minltx.rope import rope_tables, rotate
from minltx.vae import CausalConv3d

ONEDNN = torch.backends.mkldnn.is_available()
FUSED_LINEAR = ONEDNN and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 2**17    # elements of x from which the fused linear layer wins: each call repacks the weights


def accelerate(model):
    """Swap the modules of a model (a ToyModel, LTXVideo, DiT or VideoVAE) in place, and return the model.

    Parameters, buffers and state-dict keys stay. Subclasses of the chapters' modules are not swapped, so
    variants of the ablations compute what they say.
    """
    for plain, fast in ((Block, FastBlock), (DiT, FastDiT), (FeedForward, FastFeedForward),
                        (RMSNorm, FastRMSNorm), (nn.Linear, FastLinear), (CausalConv3d, FastCausalConv3d)):
        swap_class(model, plain, fast)
    return model


def can_be_fast(x):
    """True for a float32 tensor on a CPU, without gradients, and outside torch.compile."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling())


def fast_rms_norm(x, eps=1e-6):
    """`layers.rms_norm` without the squares of x in memory."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)                            # (..., 1)
    return x * torch.rsqrt(length.square() / x.shape[-1] + eps)


class FastRMSNorm(RMSNorm):
    """`fast_rms_norm`, and the weight in place: the memory of a new tensor is mapped page by page."""

    def forward(self, x):
        return fast_rms_norm(x, self.eps).mul_(self.weight) if can_be_fast(x) else super().forward(x)


class FastLinear(nn.Linear):
    """oneDNN adds the bias while the result is in the cache."""

    def forward(self, x):
        if not (FUSED_LINEAR and x.numel() > LARGE and can_be_fast(x)):
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class FastBlock(Block):
    """Modulation and gates as one pass each (addcmul: a + b * c), sums in place."""

    def forward(self, h, modulation, rotate, text, text_mask=None):
        if not can_be_fast(h):
            return super().forward(h, modulation, rotate, text, text_mask)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = \
            (self.scale_shift_table + modulation).unbind(2)                              # (B, 1 or N, D) each
        x = torch.addcmul(shift_msa, fast_rms_norm(h), 1 + scale_msa)
        h = torch.addcmul(h, gate_msa, self.attn1(x, rotate=rotate))
        h = h.add_(self.attn2(h, text, text_mask))
        x = torch.addcmul(shift_mlp, fast_rms_norm(h), 1 + scale_mlp)
        return h.addcmul_(gate_mlp, self.ff(x))                                           # (B, N, D)


def fast_rotate(x, turns, cos, sin):
    """`rope.rotate` as one complex product, (a + ib) e^(i angle): x (B, N, D), turns ([B,] N, D/2)."""
    if not can_be_fast(x):
        return rotate(x, cos, sin)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))                               # (B, N, D/2)
    return torch.view_as_real(pairs * turns).flatten(-2)                                  # (B, N, D)


class FastDiT(DiT):
    """RoPE by `fast_rotate`."""

    def rotation(self, coordinates):
        c = self.config
        cos, sin = rope_tables(coordinates, c.width, c.max_position, c.theta)             # ([B,] N, D) each
        return partial(fast_rotate, turns=torch.complex(cos[..., ::2], sin[..., ::2]), cos=cos, sin=sin)


class FastFeedForward(FeedForward):
    """oneDNN adds the bias and applies GELU while the widest tensor of the network is in the cache."""

    def forward(self, x):
        if not (FUSED_LINEAR and x.numel() > LARGE and can_be_fast(x)):
            return super().forward(x)
        first = self.linear_1
        x = torch.ops.mkldnn._linear_pointwise(x, first.weight, first.bias, "gelu", [], "tanh")   # (..., 4D)
        return self.linear_2(x)                                                           # (..., D)


class FastCausalConv3d(CausalConv3d):
    """oneDNN's convolution for a single clip too; torch itself takes a path up to ten times slower for it."""

    def forward(self, x):
        if not (ONEDNN and len(x) == 1 and can_be_fast(x)):
            return super().forward(x)
        x, c = torch.cat([x[:, :, :1]] * self.front + [x] + [x[:, :, -1:]] * self.back, dim=2), self.conv
        return torch.mkldnn_convolution(x, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups)
