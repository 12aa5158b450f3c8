"""The questions of the assignments: the right function, inputs to try it on, and typical mistakes.

A hint is what its mistake would need to hear. The mistakes stand here as code, so that a test can hold every
hint to the mistake it is meant for.
"""

import math
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F

from minltx import flow, layers, losses, patchify, rope, sampler, vae
from minltx.workshop import comparison


@dataclass(frozen=True)
class Check:
    """One question of an assignment: what is asked for by name, the package's function, inputs(generator) ->
    list of argument tuples, and mistakes: {hint: function}."""

    name: str
    points: int
    reference: Callable
    inputs: Callable
    mistakes: dict
    tolerance: float = 1e-5


# --- A1: flow ---------------------------------------------------------------------------------------------

def normal(g, *shape):
    return torch.randn(*shape, generator=g)


def uniform(g, *shape):
    return torch.rand(*shape, generator=g)


def clips_and_times(g):
    """Two latents (B, C, f, h, w) and times (B,)."""
    return [(normal(g, 3, 4, 2, 2, 3), normal(g, 3, 4, 2, 2, 3), uniform(g, 3)),
            (normal(g, 5, 2), normal(g, 5, 2), uniform(g, 5))]


def aligned(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


def field(z, t):
    """A velocity that depends on place and time, so that every slip of Euler's method shows."""
    return torch.sin(3 * z) + t[:, None]


def euler_with(step):
    """Euler's method with another step: step(velocity, z, t, t_next)."""
    def run(velocity, z, schedule):
        for t, t_next in zip(schedule[:-1], schedule[1:]):
            z = step(velocity, z, t.expand(len(z)), t_next.expand(len(z)))
        return z
    return run


A1 = {
    "A1.1": Check("interpolate", 2, flow.interpolate, clips_and_times, {
        "t = 1 is noise here, t = 0 is data: your path runs the other way":
            lambda x0, noise, t: aligned(t, x0) * x0 + (1 - aligned(t, x0)) * noise,
        "that is the curved path of DDPM (squares add up to 1); rectified flow goes straight":
            lambda x0, noise, t: (1 - aligned(t, x0) ** 2).sqrt() * x0 + aligned(t, x0) * noise,
        "the data must fade out while the noise comes in: multiply x0 by 1 - t":
            lambda x0, noise, t: x0 + aligned(t, x0) * noise,
        "t has one number per sample: give it as many axes of length 1 as x0 has after the first":
            lambda x0, noise, t: (1 - t) * x0 + t * noise,
        "one axis of length 1 is enough for points, not for latents: as many as x0 has after the first":
            lambda x0, noise, t: (1 - t[:, None]) * x0 + t[:, None] * noise}),
    "A1.2": Check("velocity", 1, flow.velocity, lambda g: [(normal(g, 3, 4, 2), normal(g, 3, 4, 2))], {
        "the sign: z = (1 - t) x0 + t noise, so dz/dt = noise - x0": lambda x0, noise: x0 - noise,
        "that is the noise itself, what DDPM learns; the velocity is dz/dt": lambda x0, noise: noise,
        "that is the data itself; the velocity is dz/dt": lambda x0, noise: x0,
        "a sum cannot be a direction from one point to another: subtract": lambda x0, noise: x0 + noise}),
    "A1.3": Check("predict_x0", 1, flow.predict_x0, clips_and_times, {
        "the velocity points towards noise (t = 1): walk back, against it":
            lambda z, v, t: z + aligned(t, z) * v,
        "from time t it is t back to the data at 0, not 1 - t": lambda z, v, t: z - (1 - aligned(t, z)) * v,
        "the way back is as long as t: you took a whole step of length 1": lambda z, v, t: z - v,
        "you walked on to the noise at t = 1; the data is at t = 0":
            lambda z, v, t: z + (1 - aligned(t, z)) * v,
        "t has one number per sample: give it as many axes of length 1 as z has after the first":
            lambda z, v, t: z - t * v,
        "one axis of length 1 is enough for points, not for latents: as many as z has after the first":
            lambda z, v, t: z - t[:, None] * v}),
    "A1.4": Check("flow_loss", 2, flow.flow_loss, lambda g: [
        (normal(g, 2, 6, 4), normal(g, 2, 6, 4), (uniform(g, 2, 6, 1) > 0.4).float())], {
        "what does not count must not be in the mean: divide by the number of *values* that count, "
        "which is the sum of the weight expanded to v's shape":
            lambda v, target, w: ((v - target).square() * w).mean(),
        "every place counts here: multiply by the weight": lambda v, target, w: (v - target).square().mean(),
        "one mean over the whole batch, not a mean of the samples' means: samples with few tokens that "
        "count would weigh more":
            lambda v, target, w: (((v - target).square() * w).sum((1, 2))
                                  / w.expand_as(v).sum((1, 2))).mean(),
        "that is the loss of what is given: weight 1 counts, 0 does not":
            lambda v, target, w: flow.flow_loss(v, target, 1 - w),
        "a mean, not a sum: divide by the number of values that count":
            lambda v, target, w: ((v - target).square() * w).sum(),
        "it is the squared error, not the absolute one":
            lambda v, target, w: ((v - target).abs() * w.expand_as(v)).sum() / w.expand_as(v).sum(),
        "the weight has one number per token and v has one per channel: expand it before you sum it":
            lambda v, target, w: ((v - target).square() * w).sum() / w.sum()}),
    "A1.5": Check("shift_times", 2, lambda t, mu: math.exp(mu) / (math.exp(mu) + (1 / t - 1)),
                  lambda g: [(torch.linspace(1, 0.1, 10), 1.3), (torch.linspace(1, 0.05, 20), -0.4)], {
        "mu is in the exponent: the factor is e to the mu":
            lambda t, mu: mu / (mu + (1 / t - 1)),
        "that shifts towards the data; the shift of positive mu goes towards noise":
            lambda t, mu: math.exp(-mu) / (math.exp(-mu) + (1 / t - 1)),
        "nothing is shifted": lambda t, mu: t,
        "the 1 is missing: e^mu / (e^mu + (1/t - 1))": lambda t, mu: math.exp(mu) / (math.exp(mu) + 1 / t),
        "mind the brackets: 1/t - 1, not 1/(t - 1)":
            lambda t, mu: math.exp(mu) / (math.exp(mu) + 1 / (t - 1)),
        "torch.exp wants a tensor and mu is a number: use math.exp":
            lambda t, mu: torch.exp(mu) / (torch.exp(mu) + (1 / t - 1)),
        "it is 1/t - 1 in the denominator, not 1 - t":
            lambda t, mu: math.exp(mu) / (math.exp(mu) + (1 - t))}),
    "A1.6": Check("euler", 2, sampler.euler, lambda g: [
        (field, normal(g, 4, 3), torch.tensor([1.0, 0.7, 0.45, 0.1, 0.0]))], {
        "the velocity belongs to where the step begins: ask for it at t, not at t_next":
            euler_with(lambda v, z, t, s: z + (s - t)[:, None] * v(z, s)),
        "time runs from 1 down to 0, so t_next - t is negative; your steps go away from the data":
            euler_with(lambda v, z, t, s: z + (t - s)[:, None] * v(z, t)),
        "velocity wants a time for each sample, (B,): t.expand(len(z)) makes it of a single one":
            lambda v, z, s: [v(z, t) for t in s[:-1]],
        "times are (B,), one number per sample, without further axes":
            lambda v, z, s: z + (s[1] - s[0]) * v(z, s[:1].expand(len(z), 1)),
        "ask for the velocity anew at every step: it depends on where you are and on the time":
            lambda v, z, s: z + (s[-1] - s[0]) * v(z, s[:1].expand(len(z))),
        "the last step is missing: it ends at the schedule's last time":
            lambda v, z, s: sampler.euler(v, z, s[:-1]),
        "each step has its own length, t_next - t: these are not all alike":
            lambda v, z, s: euler_with(lambda v, z, t, n: z - v(z, t) / (len(s) - 1))(v, z, s)}),
}


# --- A2: the VAE ------------------------------------------------------------------------------------------

def cut(x, p):
    """(B, C, F, H, W) -> (B, C, F, H/p, row, W/p, column)."""
    B, C, frames, H, W = x.shape
    return x.reshape(B, C, frames, H // p, p, W // p, p)


def pixels(g, *shape):
    return uniform(g, *shape) * 2 - 1


def causal_pad(x):
    """What `vae.CausalConv3d` puts in front."""
    return torch.cat([x[:, :, :1]] * 2 + [x], dim=2)


def noisy_latent(latent, noise, s, mean, std):
    """Normalised latent, mixed with noise there, then un-normalised: what the decoder gets (SPEC 2.3)."""
    return flow.interpolate(latent, noise, s) * std[:, None, None, None] + mean[:, None, None, None]


def statistics_too(g):
    return [(normal(g, 2, 4, 2, 2, 2), normal(g, 2, 4, 2, 2, 2), 0.1, normal(g, 4), uniform(g, 4) + 0.5)]


A2 = {
    "A2.1": Check("patchify", 3, patchify.patchify, lambda g: [(pixels(g, 2, 3, 2, 4, 8), 2),
                                                               (pixels(g, 1, 2, 1, 8, 4), 4)], {
        "inside a patch the column is the slow index here, the row the fast one (unlike PixelUnshuffle)":
            lambda x, p: cut(x, p).permute(0, 1, 4, 6, 2, 3, 5).reshape(
                x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p),
        "a reshape alone mixes pixels of different patches: the axes have to change places first":
            lambda x, p: x.reshape(x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p),
        "the colour must be the slowest of the new channel's three indices (c, column, row)":
            lambda x, p: cut(x, p).permute(0, 6, 4, 1, 2, 3, 5).reshape(
                x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p),
        "pixels of one patch lie next to each other: H splits into (H/p, p), not (p, H/p)":
            lambda x, p: x.reshape(*x.shape[:3], p, x.shape[3] // p, p, x.shape[4] // p).permute(
                0, 1, 5, 3, 2, 4, 6).reshape(x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p),
        "a mean loses pixels; patchify loses nothing":
            lambda x, p: F.avg_pool3d(x, (1, p, p)).repeat(1, p * p, 1, 1, 1)}),
    "A2.2": Check("latent_frames", 1, lambda frames: (frames - 1) // 8 + 1,
                  lambda g: [(1,), (9,), (17,), (97,), (121,)], {
        "the first frame has a latent frame of its own: 8k+1 frames make k+1": lambda frames: frames // 8,
        "one too many: the first frame alone makes one, every 8 further frames one more":
            lambda frames: (frames - 1) // 8 + 2,
        "a ratio, not a whole number: take the first frame out, divide, and put it back":
            lambda frames: frames / 8}),
    "A2.3": Check("causal_pad", 2, causal_pad, lambda g: [(normal(g, 2, 3, 4, 2, 2),),
                                                          (normal(g, 1, 2, 1, 3, 3),)], {
        "that is not causal: a copy behind lets a frame see what comes after it":
            lambda x: torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2),
        "the wrong side: the past stands in front": lambda x: torch.cat([x] + [x[:, :, -1:]] * 2, dim=2),
        "zeros in time look like a fade to black: repeat the first frame instead":
            lambda x: F.pad(x, (0, 0, 0, 0, 2, 0)),
        "a kernel of 3 frames needs two frames in front, not one":
            lambda x: torch.cat([x[:, :, :1], x], dim=2),
        "the axis of frames is the third one (B, C, F, H, W)":
            lambda x: torch.cat([x[:, :1]] * 2 + [x], dim=1)}),
    "A2.4": Check("pixel_norm", 2, vae.pixel_norm, lambda g: [(3 * normal(g, 2, 6, 2, 3, 3) + 1,)], {
        "there is no mean to subtract: only the length of the channel vector is set":
            lambda x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
        "unit *mean* square, not unit length: divide the sum of squares by the number of channels":
            lambda x: x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt(),
        "every voxel on its own: the mean goes over channels only, not over space and time":
            lambda x: x * (x.square().mean((1, 2, 3, 4), keepdim=True) + 1e-8).rsqrt(),
        "that divides by the mean square; take its root first":
            lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8)}),
    "A2.5": Check("kl_divergence", 2, losses.kl_divergence, lambda g: [
        (normal(g, 2, 4, 2, 2, 2), normal(g, 2, 4, 2, 2, 2))], {
        "the sign: a divergence is never negative":
            lambda m, lv: -0.5 * (m.square() + lv.exp() - 1 - lv).mean(),
        "logvar is the log of the variance already: exp(logvar), not its square":
            lambda m, lv: 0.5 * (m.square() + (2 * lv).exp() - 1 - 2 * lv).mean(),
        "the half in front is missing": lambda m, lv: (m.square() + lv.exp() - 1 - lv).mean(),
        "the mean over all latent numbers is asked for, not the sum":
            lambda m, lv: 0.5 * (m.square() + lv.exp() - 1 - lv).sum(),
        "the means count, too: a latent far from 0 costs mean^2 / 2":
            lambda m, lv: 0.5 * (lv.exp() - 1 - lv).mean()}),
    "A2.6": Check("noisy_latent", 2, noisy_latent, statistics_too, {
        "mix in the noise while the latent is normalised, and un-normalise after that: in the raw space "
        "every channel would get noise of another strength than in training":
            lambda z, n, s, m, d: flow.interpolate(z * d[:, None, None, None] + m[:, None, None, None], n, s),
        "the latent fades while the noise comes in: (1 - s) z + s noise":
            lambda z, n, s, m, d: (z + s * n) * d[:, None, None, None] + m[:, None, None, None],
        "the decoder speaks un-normalised latents: times std, plus mean":
            lambda z, n, s, m, d: flow.interpolate(z, n, s),
        "that normalises once more; the inverse multiplies by std and adds the mean":
            lambda z, n, s, m, d: ((flow.interpolate(z, n, s) - m[:, None, None, None])
                                   / d[:, None, None, None]),
        "no noise is left in: the decoder was trained to remove some":
            lambda z, n, s, m, d: z * d[:, None, None, None] + m[:, None, None, None]}),
}


# --- A3: RoPE and attention -------------------------------------------------------------------------------

def seconds_of(frames, fps):
    """Latent frame numbers (f,) -> seconds, of a VAE with 8 frames a latent frame."""
    return (8 * frames + 1 - 8).clamp(min=0) / fps


def angles_of(fractions, n):
    """Fractions of the largest position (N,) -> angles (N, n) at ascending frequencies."""
    return (2 * fractions - 1)[:, None] * (10000.0 ** torch.linspace(0, 1, n) * math.pi / 2)


def turned(g):
    angle = 6 * uniform(g, 5, 4)
    cos, sin = angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)
    return [(normal(g, 2, 5, 8), cos, sin)]


def rotate_halves(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos[..., :half] - b * sin[..., :half],
                      b * cos[..., half:] + a * sin[..., half:]], dim=-1)


def attend(q, k, v, heads):
    """(B, N, D) each -> (B, N, D), softmax(q k / sqrt(D / heads)) v in every head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_with(split, join, scale=None, axis=-1):
    def run(q, k, v, heads):
        q, k, v = (split(x, heads) for x in (q, k, v))
        weights = q @ k.mT / (q.shape[-1] if scale is None else scale(q, heads)) ** 0.5
        return join(weights.softmax(axis) @ v)
    return run


def by_head(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def together(x):
    return x.transpose(1, 2).flatten(2)


def modulate(x, shift, scale):
    """(B, N, D), (B, 1, D), (B, 1, D) -> (B, N, D)."""
    return layers.rms_norm(x) * (1 + scale) + shift


A3 = {
    "A3.1": Check("seconds_of", 2, seconds_of, lambda g: [(torch.arange(6.0), 24.0),
                                                          (torch.arange(3.0), 12.5)], {
        "latent frame 0 stands for one pixel frame only, so all later ones begin 7 frames earlier":
            lambda f, fps: 8 * f / fps,
        "no time before the first frame: clamp at 0": lambda f, fps: (8 * f - 7) / fps,
        "frames over frames per second are seconds: divide by fps":
            lambda f, fps: (8 * f - 7).clamp(min=0) * fps,
        "these are frames, not seconds yet: divide by fps": lambda f, fps: (8 * f - 7).clamp(min=0),
        "a latent frame is 8 pixel frames long": lambda f, fps: f / fps}),
    "A3.2": Check("angles_of", 2, angles_of, lambda g: [(uniform(g, 7), 5)], {
        "positions run from -1 to 1 before they meet a frequency: 2 p - 1":
            lambda p, n: p[:, None] * (10000.0 ** torch.linspace(0, 1, n) * math.pi / 2),
        "these frequencies fall as in a language model; here they ascend from pi/2 to 10000 pi/2":
            lambda p, n: (2 * p - 1)[:, None] * (10000.0 ** -torch.linspace(0, 1, n) * math.pi / 2),
        "the slowest frequency is pi/2, half a turn over the whole range: the factor is missing":
            lambda p, n: (2 * p - 1)[:, None] * 10000.0 ** torch.linspace(0, 1, n),
        "the first of n frequencies is pi/2 and the last one 10000 times that: i / (n - 1), not i / n":
            lambda p, n: (2 * p - 1)[:, None] * (10000.0 ** (torch.arange(n) / n) * math.pi / 2),
        "exponentially from pi/2 to 10000 pi/2: equal *ratios* between neighbours, not equal differences":
            lambda p, n: (2 * p - 1)[:, None] * (torch.linspace(1, 10000, n) * math.pi / 2)}, 1e-4),
    "A3.3": Check("rotate", 3, rope.rotate, turned, {
        "neighbours turn together, channels 2j and 2j+1; you paired the first half with the second":
            rotate_halves,
        "the sign: (a, b) -> (a cos - b sin, b cos + a sin)": lambda x, c, s: rope.rotate(x, c, -s),
        "both channels of a pair change: (a, b) -> (a cos - b sin, b cos + a sin)": lambda x, c, s: x * c,
        "the pairs came apart: stack them on a new last axis and flatten it, instead of joining the halves":
            lambda x, c, s: torch.cat([x[..., ::2] * c[..., ::2] - x[..., 1::2] * s[..., ::2],
                                       x[..., 1::2] * c[..., ::2] + x[..., ::2] * s[..., ::2]], dim=-1),
        "a rotation swaps the pair and flips one sign; without the swap lengths change":
            lambda x, c, s: x * c + x * s}),
    "A3.4": Check("rms_norm", 2, layers.rms_norm, lambda g: [(2 * normal(g, 2, 5, 12) + 0.5,),
                                                             (torch.zeros(1, 2, 6),)], {
        "a row of zeros becomes nan: add 1e-6 to the mean square, under the root":
            lambda x: x / x.square().mean(-1, keepdim=True).sqrt(),
        "RMS norm does not subtract the mean; that is LayerNorm":
            lambda x: F.layer_norm(x, (x.shape[-1],), eps=1e-6),
        "the mean of the squares, not their sum": lambda x: F.normalize(x, dim=-1),
        "over the last axis, token by token, not over tokens":
            lambda x: x * (x.square().mean((1, 2), keepdim=True) + 1e-6).rsqrt(),
        "divide by the root of the mean square": lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6)}),
    "A3.5": Check("attend", 3, attend, lambda g: [(*normal(g, 3, 2, 5, 12), 3),
                                                  (*normal(g, 3, 1, 4, 8), 2)], {
        "each head has its own softmax: split the width into heads first":
            lambda q, k, v, h: attend(q, k, v, 1),
        "each head is D / heads wide, so the scale is 1 / sqrt(D / heads)":
            attend_with(by_head, together, lambda q, heads: q.shape[-1] * heads),
        "the scale 1 / sqrt(D / heads) is missing": attend_with(by_head, together, lambda q, heads: 1),
        "weights over what is looked *at* add up to 1: softmax over the last axis":
            attend_with(by_head, together, axis=-2),
        "a head is a band of neighbouring channels: (D) -> (heads, D / heads), not (D / heads, heads)":
            attend_with(lambda x, h: x.unflatten(-1, (-1, h)).movedim(-1, 1),
                        lambda x: x.movedim(1, -1).flatten(2)),
        "the heads go back behind the tokens before they are joined":
            attend_with(by_head, lambda x: x.reshape(x.shape[0], x.shape[2], -1)),
        "tokens and heads must change places before q meets k: (B, heads, N, D / heads)":
            attend_with(lambda x, h: x.unflatten(-1, (h, -1)), lambda x: x.flatten(2))}),
    "A3.6": Check("modulate", 2, modulate, lambda g: [
        (normal(g, 2, 5, 8), normal(g, 2, 1, 8), normal(g, 2, 1, 8))], {
        "at scale 0 nothing should change: multiply by 1 + scale":
            lambda x, shift, scale: layers.rms_norm(x) * scale + shift,
        "first scale, then shift": lambda x, shift, scale: (layers.rms_norm(x) + shift) * (1 + scale),
        "normalise before you modulate": lambda x, shift, scale: x * (1 + scale) + shift,
        "normalise first, modulate after it":
            lambda x, shift, scale: layers.rms_norm(x * (1 + scale) + shift),
        "the norm here is RMS norm, which takes no mean off":
            lambda x, shift, scale: F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale) + shift,
        "shift and scale have changed places":
            lambda x, shift, scale: layers.rms_norm(x) * (1 + shift) + scale}),
}


# --- A4: the sampler and image-to-video -------------------------------------------------------------------

def strengths(g):
    return [(0.6, torch.tensor([1.0, 0.5, 0.2, 0.0]).reshape(1, 4, 1).expand(2, -1, -1)),
            (0.3, uniform(g, 1, 6, 1))]


def per_token(z, t):
    """A velocity that depends on every token's own time, and on the others' as attention would."""
    return torch.cos(2 * z) - t[..., None] - t.mean(-1)[..., None, None]


def schedules(g):
    """Schedules that hold t, miss it, and hold it but for rounding."""
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    return [(flow.shifted_schedule(8, 2304), 0.6), (even, 0.5), (even + 3e-8, 0.25)]


def given(g):
    strength = torch.tensor([1.0, 1.0, 0.4, 0.0, 0.0]).reshape(1, 5, 1)
    return [(per_token, normal(g, 2, 5, 3), torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]), strength)]


def guided_euler(velocity, z, schedule, strength):
    """Euler in which given tokens keep their own time and place (SPEC 6.2)."""
    return sampler.euler(velocity, z, schedule, strength)


def euler_for_tokens(times, moves):
    def run(velocity, z, schedule, strength):
        for t, t_next in zip(schedule[:-1].tolist(), schedule[1:].tolist()):
            v = velocity(z, times(t, strength))
            z = torch.where(moves(t, strength), z + (t_next - t) * v, z)
        return z
    return run


def own_times(t, s):
    return (1 - s).clamp(max=t)[..., 0]


A4 = {
    "A4.1": Check("guide", 2, sampler.guide, lambda g: [(normal(g, 2, 4, 3), normal(g, 2, 4, 3), 3.0)], {
        "guidance 1 must give the caption's velocity itself: start from v_null":
            lambda null, text, s: text + s * (text - null),
        "that steers away from the caption": lambda null, text, s: null + s * (null - text),
        "that is an average of both; guidance goes past the caption":
            lambda null, text, s: (null + s * text) / (1 + s),
        "from v_null towards v_text, not from v_text towards v_null":
            lambda null, text, s: text + s * (null - text),
        "the difference of the two is scaled, not v_text itself": lambda null, text, s: null + s * text,
        "the guidance is not used": lambda null, text, s: text}),
    "A4.2": Check("token_times", 3, sampler.token_times, strengths, {
        "a given token is nearer to data than the rest: the smaller of t and 1 - strength":
            lambda t, s: ((1 - s).clamp(min=t)[..., 0], t - 1e-6 < 1 - s),
        "strength 1 is kept as it is, so its time is 0: use 1 - strength":
            lambda t, s: (s.clamp(max=t)[..., 0], t - 1e-6 < s),
        "the other way round: a token moves once t has come down to its own time":
            lambda t, s: ((1 - s).clamp(max=t)[..., 0], t - 1e-6 >= 1 - s),
        "a token of strength 0.5 moves, too, once t has come down to 0.5: compare t with 1 - strength":
            lambda t, s: ((1 - s).clamp(max=t)[..., 0], s == 0),
        "a token of strength 0.5 stands still, too, while t is above 0.5: compare t with 1 - strength":
            lambda t, s: ((1 - s).clamp(max=t)[..., 0], s < 1),
        "a given token does not move while t is above its own time":
            lambda t, s: ((1 - s).clamp(max=t)[..., 0], torch.ones_like(s, dtype=torch.bool)),
        "times are (B, N), one axis less than strength":
            lambda t, s: ((1 - s).clamp(max=t), t - 1e-6 < 1 - s)}),
    "A4.3": Check("conditioned_euler", 3, guided_euler, given, {
        "the given tokens moved: a token waits until t has come down to 1 - strength":
            euler_for_tokens(own_times, lambda t, s: torch.ones_like(s, dtype=torch.bool)),
        "the network must be told every token's own time, not the sampler's for all":
            euler_for_tokens(lambda t, s: torch.full(s.shape[:2], t), lambda t, s: t - 1e-6 < 1 - s),
        "only tokens of strength exactly 1 stand still in yours; a softer one waits, too, and then moves":
            euler_for_tokens(own_times, lambda t, s: s < 1),
        "the sign of the step: t_next - t is negative, and that is right":
            lambda v, z, schedule, s: guided_euler(lambda z, t: -v(z, t), z, schedule, s),
        "just the wrong ones move: torch.where(moves, moved, z)":
            euler_for_tokens(own_times, lambda t, s: t - 1e-6 >= 1 - s),
        "no token that has any strength ever moves in yours; a softer one does, from 1 - strength on":
            euler_for_tokens(own_times, lambda t, s: s == 0)}),
    "A4.4": Check("shifted_schedule", 2, flow.shifted_schedule, lambda g: [(8, 2304), (20, 80)], {
        "the shift is missing: uniform steps go through `shift_times` with the number of tokens":
            lambda n, N: torch.linspace(1, 0, n + 1),
        "the last time is 0, the data: append it after the shift":
            lambda n, N: flow.shifted_schedule(n, N)[:-1],
        "shift the times from 1 to 1/steps only, and append the 0 afterwards":
            lambda n, N: flow.shift_times(torch.linspace(1, 0, n + 1, dtype=torch.float64), N, 0.1).float(),
        "not stretched: the last time before 0 should become 0.1":
            lambda n, N: flow.shifted_schedule(n, N, terminal=None),
        "from noise to data is from 1 down to 0": lambda n, N: flow.shifted_schedule(n, N).flip(0)}),
    "A4.5": Check("schedule_from", 2, flow.schedule_from, schedules, {
        "start at t itself, then all times below it": lambda s, t: s[s < t - 1e-6],
        "from the end you kept what is noisier than t; what is left is what is below":
            lambda s, t: torch.cat([s[s > t], s.new_tensor([t])]),
        "t itself comes first, and only once": lambda s, t: torch.cat([s.new_tensor([t]), s[s <= t]]),
        "t times the whole schedule has other times than the model's own":
            lambda s, t: s * t}),
}


# --- A5: an open ablation ---------------------------------------------------------------------------------

def paired(values, reference):
    """Mean and sample standard deviation of the differences seed by seed, and whether they are clear."""
    answer = comparison.compare(values, reference)
    return answer["difference"], answer["difference_spread"], answer["clear"]


def numbers(values, reference):
    d = torch.tensor(values) - torch.tensor(reference)
    return d, d.mean().item(), d.std().item()


A5 = {
    "A5.1": Check("paired_difference", 2, paired, lambda g: [
        ([11.0, 21.0, 31.2], [10.0, 20.0, 30.0]), ([11.0, 19.0, 31.0], [10.0, 20.0, 30.0]),
        ([10.1, 23.0, 30.1], [10.0, 20.0, 30.0])], {
        "compare seed by seed: the spread is that of the differences, not of the values":
            lambda a, b: (numbers(a, b)[1], torch.tensor(a).std().item(),
                          abs(numbers(a, b)[1]) > torch.tensor(a).std().item()),
        "the sign: the level minus the reference":
            lambda a, b: (-numbers(a, b)[1], numbers(a, b)[2],
                          abs(numbers(a, b)[1]) > numbers(a, b)[2] and bool((numbers(a, b)[0] > 0).all())),
        "the sample's standard deviation divides by n - 1":
            lambda a, b: (numbers(a, b)[1], numbers(a, b)[0].std(correction=0).item(), abs(numbers(a, b)[1])
                          > numbers(a, b)[0].std(correction=0).item()
                          and bool((numbers(a, b)[0] * numbers(a, b)[1] > 0).all())),
        "clear needs both: larger than its spread, and one sign for all seeds":
            lambda a, b: (numbers(a, b)[1], numbers(a, b)[2],
                          bool((numbers(a, b)[0] * numbers(a, b)[1] > 0).all()))}),
}

CHECKS = {**A1, **A2, **A3, **A4, **A5}
