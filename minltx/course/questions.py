"""The questions of the assignments: the correct function, inputs to try it on, and common mistakes.

Every mistake is here as code, next to the hint that a learner who made it needs. A test checks that each hint
is given for its own mistake.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F

from minltx import flow, layers, losses, patchify, rope, sampler, vae


@dataclass(frozen=True)
class Check:
    """One question: the function's name, its points, the correct function, inputs(generator) -> list of
    argument tuples, mistakes {hint: function, or several functions}, and the arguments whose gradients are
    compared."""

    name: str
    points: int
    reference: Callable
    inputs: Callable
    mistakes: dict
    gradients: tuple = ()
    tolerance: float = 1e-5


def normal(g, *shape):
    return torch.randn(*shape, generator=g)


def uniform(g, *shape):
    return torch.rand(*shape, generator=g)


# --- A1: flow ---------------------------------------------------------------------------------------------

along = flow.expand_like


def clips_and_times(g):
    """Latents (B, C, f, h, w), points (B, 2), tokens in a batch of one, numbers (B,): two of each, and times
    (B,), also both ends. In the first, B is also the size of other axes, so that t broadcasts along a wrong
    one."""
    shapes = (3, 3, 2, 3, 3), (5, 2), (1, 6, 4), (4,)
    return [(normal(g, *shape), normal(g, *shape), with_ends(uniform(g, shape[0]))) for shape in shapes]


def with_ends(t):
    """Times (B,), of which two are 0 and 1 if there are more than three."""
    return torch.cat([t[:2], t.new_tensor([0.0, 1.0]), t[4:]]) if len(t) > 3 else t


def tokens_that_count(g):
    """Velocities, targets and weights; the samples have different numbers of tokens that count, and one of
    these has no error."""
    found = [(normal(g, B, N, C), normal(g, B, N, C),
              torch.arange(B * N).reshape(B, N, 1).remainder(n).ne(1).float())
             for B, N, C, n in ((2, 7, 4, 3), (1, 3, 3, 2), (3, 2, 5, 99))]
    found[0][0][0, 0] = found[0][1][0, 0]
    return found


def with_axes(formula):
    """A mistake in a formula of two tensors and t: t always gets the same number of axes."""
    return tuple(lambda a, b, t, n=n: formula(a, b, t.reshape(-1, *[1] * n)) for n in (0, 2, 3, 4))


def path_with(data, noise):
    """A mistake in the path: other weights of data and noise, both functions of t."""
    return lambda x0, n, t: data(along(t, x0)) * x0 + noise(along(t, x0)) * n


def shift_with(formula):
    """A mistake in the shift: formula(t, mu)."""
    return lambda t, tokens: formula(t, flow.shift_mu(tokens))


def field(z, t):
    """A velocity that depends on place and time, so that every error in Euler's method shows. It needs one
    time per sample."""
    return torch.sin(3 * z) + torch.cat([z, t[:, None]], dim=1)[:, -1:]


def first_time(z, t):
    """A velocity that is the first time everywhere, as a view: whoever writes into it gets an error."""
    return t.flatten()[:1].expand_as(z)


def euler_with(step):
    """Euler's method with another step: step(velocity, z, t, t_next)."""
    def run(velocity, z, schedule):
        for t, t_next in zip(schedule[:-1], schedule[1:]):
            z = step(velocity, z, t.expand(len(z)), t_next.expand(len(z)))
        return z
    return run


def equal_steps(length):
    """Euler's method with steps of one length, length(schedule)."""
    def run(velocity, z, schedule):
        step = length(schedule)
        return euler_with(lambda v, z, t, t_next: z - step * v(z, t))(velocity, z, schedule)
    return run


def training_loss(network, x0, noise, t):
    """One step of flow matching: the network's velocity at a point of the path, against the true one."""
    return loss_with(flow.interpolate)(network, x0, noise, t)


def loss_with(point, time=lambda t: t, target=flow.velocity, mean=lambda d: d.square().mean()):
    """The training loss, with a mistake in the point, in the network's time, in the target or in the mean."""
    return lambda network, x0, noise, t: mean(network(point(x0, noise, t), time(t)) - target(x0, noise))


def backwards(x0, noise, t):
    return flow.interpolate(noise, x0, t)


def square_of_mean(d):
    return d.mean().square()


INSIDE = "the times 0 and 1 are on the path too: do not keep t away from them"

A1 = {
    "A1.1": Check("interpolate", 2, flow.interpolate, clips_and_times, {
        "t = 1 is noise and t = 0 is data; your path runs the other way":
            path_with(lambda t: t, lambda t: 1 - t),
        "that is the curved path of DDPM, whose squared weights add up to 1; rectified flow is straight":
            path_with(lambda t: (1 - t**2).sqrt(), lambda t: t),
        "the data must fade out: multiply x0 by 1 - t": path_with(lambda t: 1, lambda t: t),
        "append axes of length 1 to t until it has as many axes as x0":
            with_axes(lambda x, n, t: (1 - t) * x + t * n),
        "one more axis is enough for points, not for latents: t needs as many axes as x0":
            lambda x, n, t: (1 - t[:, None]) * x + t[:, None] * n,
        "every sample has its own time; you used the first one for all":
            lambda x, n, t: (1 - t[0]) * x + t[0] * n,
        INSIDE: lambda x0, noise, t: flow.interpolate(x0, noise, t.clamp(0.001, 0.999))}, (0, 1, 2)),
    "A1.2": Check("velocity", 1, flow.velocity, lambda g: [
        (normal(g, *shape), normal(g, *shape)) for shape in ((3, 4, 2), (1, 2), (4,))], {
        "the sign: z = (1 - t) x0 + t noise, so dz/dt = noise - x0": lambda x0, noise: x0 - noise,
        "that is the noise itself, which DDPM learns; the velocity is dz/dt": lambda x0, noise: noise,
        "that is the data itself; the velocity is dz/dt": lambda x0, noise: x0,
        "a sum is not the direction from one point to another: subtract": lambda x0, noise: x0 + noise,
        "the path takes a time of 1, whatever its length: do not normalise":
            lambda x0, noise: F.normalize(noise - x0, dim=-1)}, (0, 1)),
    "A1.3": Check("predict_x0", 1, flow.predict_x0, clips_and_times, {
        "the velocity points towards noise: walk back, against it": lambda z, v, t: z + along(t, z) * v,
        "the distance to the data is t, not 1 - t": lambda z, v, t: z - (1 - along(t, z)) * v,
        "the way back has length t; you took a whole step of length 1": lambda z, v, t: z - v,
        "you went on to the noise; the data is at t = 0": lambda z, v, t: z + (1 - along(t, z)) * v,
        "v is the velocity, not the noise": lambda z, v, t: (z - along(t, z) * v) / (1 - along(t, z)),
        "append axes of length 1 to t until it has as many axes as z": with_axes(lambda z, v, t: z - t * v),
        "one more axis is enough for points, not for latents: t needs as many axes as z":
            lambda z, v, t: z - t[:, None] * v,
        INSIDE: lambda z, v, t: flow.predict_x0(z, v, t.clamp(0.001, 0.999))}, (0, 1, 2)),
    "A1.4": Check("flow_loss", 2, flow.flow_loss, tokens_that_count, {
        "given tokens are not part of the mean: divide by the sum of the weight, expanded to v's shape":
            lambda v, x, w: ((v - x).square() * w).mean(),
        "a token without an error counts too: divide by the sum of the weight": lambda v, x, w: (
            lambda e: e[e != 0].mean())((v - x).square() * w),
        "every token counts here: multiply by the weight": lambda v, x, w: (v - x).square().mean(),
        "one mean over the batch, not a mean per sample: samples with few tokens would weigh more":
            lambda v, x, w: (((v - x).square() * w).sum((1, 2)) / w.expand_as(v).sum((1, 2))).mean(),
        "weight 1 counts and 0 does not; you swapped them": lambda v, x, w: flow.flow_loss(v, x, 1 - w),
        "a mean, not a sum: divide by the sum of the weight": tuple(
            lambda v, x, w, count=count: ((v - x).square() * w).sum() / count(v)
            for count in (lambda v: 1, len, lambda v: v.shape[-1])),
        "the mean over channels must keep its axis, so that it is (B, N, 1) as the weight: keepdim=True":
            lambda v, x, w: ((v - x).square().mean(-1) * w).sum() / w.sum(),
        "use the squared error, not the absolute error":
            lambda v, x, w: ((v - x).abs() * w.expand_as(v)).sum() / w.expand_as(v).sum(),
        "the weight has one number per token, v has one per channel: expand the weight before you sum it":
            lambda v, x, w: ((v - x).square() * w).sum() / w.sum()}, (0, 1)),
    "A1.5": Check("shift_times", 2, flow.shift_times, lambda g: [
        (torch.linspace(1, 0.1, 10), 1024), (torch.linspace(1, 0.05, 20), 80),
        (0.98 * uniform(g, 7) + 0.01, 6144), (torch.tensor([0.5]), 2304), (torch.tensor([1e-4, 2e-3]), 80)], {
        "mu is added to the logit of t, not to t itself": shift_with(lambda t, mu: t + mu),
        "that is still a logit: the sigmoid of it is a time": shift_with(lambda t, mu: torch.logit(t) + mu),
        "the odds t / (1 - t) grow by e^mu, not t itself": shift_with(lambda t, mu: t * math.exp(mu)),
        "mu is added to the logit of t: take it first": shift_with(lambda t, mu: torch.sigmoid(t + mu)),
        "mu is an exponent: the odds t / (1 - t) grow by e^mu":
            shift_with(lambda t, mu: mu / (mu + 1 / t - 1)),
        "that shifts towards data; a positive mu must shift towards noise":
            shift_with(lambda t, mu: math.exp(-mu) / (math.exp(-mu) + 1 / t - 1)),
        "the number of tokens is not mu: compute mu = shift_mu(tokens) first":
            lambda t, tokens: torch.sigmoid(torch.logit(t) + tokens),
        "the logit is log(t / (1 - t)); you took log(t)":
            shift_with(lambda t, mu: math.exp(mu) / (math.exp(mu) + 1 / t)),
        "the odds are t / (1 - t), so their inverse is (1/t) - 1, not 1/(t - 1)":
            shift_with(lambda t, mu: math.exp(mu) / (math.exp(mu) + 1 / (t - 1))),
        "torch.exp needs a tensor and mu is a number: use math.exp": shift_with(lambda t, mu: torch.exp(mu)),
        "the inverse of the odds is 1/t - 1, not 1 - t":
            shift_with(lambda t, mu: math.exp(mu) / (math.exp(mu) + (1 - t)))}),
    "A1.6": Check("euler", 2, sampler.euler, lambda g: [
        (field, normal(g, 4, 3), torch.tensor([1.0, 0.7, 0.45, 0.1, 0.0])),
        (field, normal(g, 1, 2), torch.tensor([0.8, 0.35, 0.2])),
        (field, normal(g, 2, 2), torch.tensor([0.6])),
        (first_time, normal(g, 3, 2), torch.tensor([1.0, 0.5, 0.0]))], {
        "use the velocity at the beginning of the step: evaluate it at t, not at t_next":
            euler_with(lambda v, z, t, s: z + (s - t)[:, None] * v(z, s)),
        "time runs from 1 down to 0, so t_next - t is negative; your steps move away from the data":
            euler_with(lambda v, z, t, s: z + (t - s)[:, None] * v(z, t)),
        "velocity needs a time per sample, (B,): t.expand(len(z))":
            lambda v, z, s: sampler.euler(lambda z, t: v(z, t[0]), z, s),
        "times are (B,), one number per sample, without further axes":
            lambda v, z, s: sampler.euler(lambda z, t: v(z, t[:, None]), z, s),
        "evaluate the velocity again at every step: it depends on place and time":
            lambda v, z, s: z + (s[-1] - s[0]) * v(z, s[:1].expand(len(z))),
        "the last step is missing: it ends at the last time": lambda v, z, s: sampler.euler(v, z, s[:-1]),
        "the first step is missing: it begins at the first time": lambda v, z, s: sampler.euler(v, z, s[1:]),
        "the step is t_next - t, not t": euler_with(lambda v, z, t, s: z - t[:, None] * v(z, t)),
        "each step has its own length, t_next - t; the steps are not equal": (
            lambda v, z, s: euler_with(lambda v, z, t, n: z - v(z, t) / (len(s) - 1))(v, z, s),
            *map(equal_steps, (lambda s: 1 / (len(s) - 1), lambda s: 1 / len(s), lambda s: s[0] - s[1],
                               lambda s: (s[0] - s[-1]) / (len(s) - 1), lambda s: (s[0] - s[-1]) / len(s)))),
        "do not write into what `velocity` returns: it may use it again":
            euler_with(lambda v, z, t, s: z + v(z, t).mul_((s - t)[:, None])),
        "the loop returns after its first step: the return belongs after the loop":
            lambda v, z, s: sampler.euler(v, z, s[:2]) if len(s) > 1 else None}, (1,)),
    "A1.7": Check("training_loss", 2, training_loss, lambda g: [
        (field, normal(g, B, 2), normal(g, B, 2), with_ends(uniform(g, B))) for B in (6, 1)], {
        "nothing is repaired yet": loss_with(backwards, mean=square_of_mean),
        "one error is left: compare each number before you average, errors of both signs cancel":
            loss_with(flow.interpolate, mean=square_of_mean),
        "one error is left: at t = 0 the network should see the data": loss_with(backwards),
        "the target is now the wrong one: it was noise - x0":
            loss_with(flow.interpolate, target=lambda x0, noise: x0 - noise),
        "repair the path, not the network's time": loss_with(backwards, lambda t: 1 - t),
        "path and target now agree, but with t = 0 as noise: repair the path and keep the target":
            loss_with(backwards, target=lambda x0, noise: x0 - noise),
        "the network's time must be that of its point": loss_with(flow.interpolate, lambda t: 1 - t),
        "the target is the velocity, not the noise": loss_with(flow.interpolate, target=lambda x0, n: n),
        "use the squared error, not the absolute error":
            loss_with(flow.interpolate, mean=lambda d: d.abs().mean()),
        "the mean of the squared errors over all numbers, coordinates too, not their sum": tuple(
            loss_with(point, mean=mean) for point in (flow.interpolate, backwards)
            for mean in (lambda d: d.square().sum(), lambda d: d.square().sum(-1).mean()))}, (1, 2)),
}


# --- A2: the VAE ------------------------------------------------------------------------------------------

def cut(x, p):
    """(B, C, F, H, W) -> (B, C, F, H/p, row, W/p, column)."""
    B, C, frames, H, W = x.shape
    return x.reshape(B, C, frames, H // p, p, W // p, p)


def fold_with(split, order):
    """A mistake in patchify: the axes after `split` in another order, then joined."""
    return lambda x, p: split(x, p).permute(order).reshape(
        x.shape[0], -1, x.shape[2], x.shape[3] // p, x.shape[4] // p)


def norm_with(square, axis):
    """x divided by the root of square(x, mean square of x), with a mistake in `square` or the axis."""
    return lambda x: x / square(x, x.square().mean(axis, keepdim=True)).sqrt()


def norm_mistakes(axis, eps):
    """The mistakes that A2.4 and A3.4 share. eps: the small number, in words."""
    e, several = float(eps), {
        f"zeros become nan: add {eps} inside the root": [lambda x, m: m],
        f"add {eps} inside the root, not to the root": [lambda x, m: (m.sqrt() + e) ** 2],
        f"the number inside the root is {eps}": [
            lambda x, m: m + 1e-5, lambda x, m: m + 2**-23, lambda x, m: m + e / 100],
        f"add {eps} to the mean square: less, or only keeping it from 0, is not the same": [
            lambda x, m: m.clamp(min=e), lambda x, m: m.clamp(min=e**2),
            lambda x, m: m.clamp(min=1e-24 / x.shape[axis])],
        "divide by the root of the mean square": [lambda x, m: (m + e) ** 2, lambda x, m: m**2],
        "divide by the root, do not multiply by it": [lambda x, m: 1 / (m + e)],
        "use the mean of the squares, not their sum": [
            lambda x, m: m * x.shape[axis] + e, lambda x, m: m * x.shape[axis],
            lambda x, m: (m * x.shape[axis]).clamp(min=1e-24)],
        "squares, not absolute values": [lambda x, m: (x.abs().mean(axis, keepdim=True) + e) ** 2],
        "a standard deviation subtracts the mean: use the root of the mean square":
            [lambda x, m: x.var(axis, keepdim=True), lambda x, m: (x.std(axis, keepdim=True) + e) ** 2],
        "keep the axis of the mean: mean(..., keepdim=True)": [lambda x, m: m.squeeze(axis) + e]}
    return {hint: tuple(norm_with(square, axis) for square in squares) for hint, squares in several.items()}


def causal_pad(x):
    """The padding of `vae.CausalConv3d`."""
    return torch.cat([x[:, :, :1]] * 2 + [x], dim=2)


def noisy_latent(latent, noise, s, mean, std):
    """Normalised latent, mixed with noise, then un-normalised: the decoder's input (SPEC 2.3)."""
    return raw(flow.interpolate(latent, noise, s), mean, std)


def raw(latent, mean, std):
    return latent * std[:, None, None, None] + mean[:, None, None, None]


def latent_frames(frames):
    """Pixel frames, 8k + 1 -> latent frames."""
    return (frames - 1) // 8 + 1


def unfold_with(split, order):
    """Patches back into pixels, with a mistake: channels split by `split`, axes in another order."""
    def run(x, p):
        B, C, frames, H, W = x.shape
        x = x.reshape(B, *split(C, p), frames, H, W).permute(order)
        return x.reshape(B, C // p**2, frames, H * p, W * p)
    return run


def colour_first(C, p):
    return C // p**2, p, p


def colour_last(C, p):
    return p, p, C // p**2


A2 = {
    "A2.1": Check("patchify", 3, patchify.patchify, lambda g: [
        (normal(g, 2, 3, 2, 4, 8), 2), (normal(g, 1, 2, 1, 8, 4), 4), (normal(g, 2, 1, 3, 3, 6), 3),
        (normal(g, 1, 2, 1, 3, 5), 1)], {
        "within a patch the column is the slow index and the row the fast one (unlike PixelUnshuffle)":
            fold_with(cut, (0, 1, 4, 6, 2, 3, 5)),
        "reshape alone mixes pixels of different patches: permute the axes first":
            fold_with(lambda x, p: x, (0, 1, 2, 3, 4)),
        "the colour must be the slowest of the new channel's three indices (c, column, row)":
            (fold_with(cut, (0, 6, 4, 1, 2, 3, 5)), fold_with(cut, (0, 4, 6, 1, 2, 3, 5))),
        "the pixels of a patch are neighbours: H splits into (H/p, p), not (p, H/p)":
            fold_with(lambda x, p: x.reshape(*x.shape[:3], p, x.shape[3] // p, p, x.shape[4] // p),
                      (0, 1, 5, 3, 2, 4, 6)),
        "a mean loses pixels; patchify keeps every number":
            lambda x, p: F.avg_pool3d(x, (1, p, p)).repeat(1, p * p, 1, 1, 1)}, (0,)),
    "A2.2": Check("latent_frames", 1, latent_frames, lambda g: [(n,) for n in (1, 9, 17, 97, 121, 1001)], {
        "the first frame has a latent frame of its own: 8k+1 frames make k+1": lambda frames: frames // 8,
        "one too many: one for the first frame, one for every 8 more": lambda frames: (frames - 1) // 8 + 2,
        "it must be a whole number: subtract the first frame, divide, add 1": lambda frames: frames / 8,
        "it must be a whole number: divide with //": lambda frames: (frames - 1) / 8 + 1}),
    "A2.3": Check("causal_pad", 2, causal_pad, lambda g: [
        (normal(g, 2, 3, 4, 2, 2),), (normal(g, 1, 2, 1, 3, 3),), (normal(g, 1, 5, 2, 1, 4),)], {
        "that is not causal: with a copy at the end a frame sees the frame after it":
            lambda x: torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2),
        "the wrong side: the padding must come before the first frame":
            lambda x: torch.cat([x] + [x[:, :, -1:]] * 2, dim=2),
        "zeros look like a fade from black: repeat the first frame": lambda x: F.pad(x, (0, 0, 0, 0, 2, 0)),
        "a kernel of 3 frames needs two more frames, not one": lambda x: torch.cat([x[:, :, :1], x], dim=2),
        "x[:, :, 0] drops an axis, x[:, :, :1] does not": lambda x: torch.cat([x[:, :, 0]] * 2 + [x], dim=2),
        "frames are the third axis of (B, C, F, H, W)": lambda x: torch.cat([x[:, :1]] * 2 + [x], dim=1),
        "repeat the *first* frame twice; you copied the first two frames":
            lambda x: torch.cat([x[:, :, :2], x], dim=2)}, (0,)),
    "A2.4": Check("pixel_norm", 2, vae.pixel_norm, lambda g: [
        (3 * normal(g, 2, 6, 2, 3, 3) + 1,), (normal(g, 1, 5, 1, 1, 2) / 10000,),
        (torch.zeros(1, 2, 1, 1, 1),)], {
        "do not subtract a mean: only the length of the channel vector changes":
            lambda x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
        "normalise each voxel on its own: the mean is over channels, not over space and time":
            norm_with(lambda x, m: m + 1e-8, (1, 2, 3, 4)),
        "the channels are axis 1 of (B, C, f, h, w), not a later axis":
            (norm_with(lambda x, m: m + 1e-8, -1), norm_with(lambda x, m: m + 1e-8, 2)),
        **norm_mistakes(1, "1e-8")}, (0,)),
    "A2.5": Check("kl_divergence", 2, losses.kl_divergence, lambda g: [
        (normal(g, B, C, *size), normal(g, B, channels, *size))
        for B, C, channels, size in ((2, 4, 4, (2, 2, 2)), (1, 3, 3, (1, 1, 1)), (2, 4, 1, (1, 2, 3)))] + [
        (normal(g, 1, 2, 1, 1, 2), torch.tensor([5.0, -35.0]).repeat(2).view(1, 2, 1, 1, 2))], {
        "a divergence is never negative": lambda m, lv: -0.5 * (m.square() + lv.exp() - 1 - lv).mean(),
        "logvar is already the log of the variance: use exp(logvar), not its square": tuple(
            lambda m, lv, k=k: 0.5 * (m.square() + (2 * lv).exp() - 1 - k * lv).mean() for k in (1, 2)),
        "the factor 1/2 is missing": lambda m, lv: (m.square() + lv.exp() - 1 - lv).mean(),
        "take the mean over all numbers, not the sum": tuple(
            lambda m, lv, axes=axes: 0.5 * (m.square() + lv.exp() - 1 - lv).sum(axes).mean()
            for axes in (1, (1, 2, 3, 4), (0, 1, 2, 3, 4))),
        "the -1 is missing: N(0, 1) must give 0": lambda m, lv: 0.5 * (m.square() + lv.exp() - lv).mean(),
        "the sign of logvar: subtract it": lambda m, lv: 0.5 * (m.square() + lv.exp() - 1 + lv).mean(),
        "the term of the mean is missing, mean^2 / 2": lambda m, lv: 0.5 * (lv.exp() - 1 - lv).mean(),
        "logvar is the log of the variance, not the variance: use exp(logvar)":
            (lambda m, lv: 0.5 * (m.square() + lv - 1 - lv.log()).mean(),
             lambda m, lv: 0.5 * (m.square() + lv.square() - 1 - lv).mean()),
        "logvar has no limits: leave out the clamp":
            lambda m, lv: losses.kl_divergence(m, lv.clamp(-30, 20)),
        "the mean is squared": lambda m, lv: 0.5 * (m + lv.exp() - 1 - lv).mean()}, (0, 1)),
    "A2.6": Check("noisy_latent", 2, noisy_latent, lambda g: [
        (normal(g, B, 4, *size), normal(g, B, 4, *size), s, normal(g, 4), uniform(g, 4) + 0.5)
        for B, size, s in ((2, (2, 2, 2), 0.1), (1, (1, 3, 4), 0.0), (1, (4, 1, 4), 0.9))], {
        "mix before you un-normalise; in the raw space each channel would get another noise level":
            lambda z, n, s, m, d: flow.interpolate(raw(z, m, d), n, s),
        "the latent must fade out: (1 - s) z + s noise": lambda z, n, s, m, d: raw(z + s * n, m, d),
        "the decoder expects un-normalised latents: multiply by std, then add mean":
            lambda z, n, s, m, d: flow.interpolate(z, n, s),
        "that normalises once more; to un-normalise, multiply by std and add mean":
            lambda z, n, s, m, d: raw(flow.interpolate(z, n, s), -m / d, 1 / d),
        "the noise is missing": lambda z, n, s, m, d: raw(z, m, d),
        "the mean is missing: add it": lambda z, n, s, m, d: raw(flow.interpolate(z, n, s), 0 * m, d),
        "add mean after you multiply by std": lambda z, n, s, m, d: raw(flow.interpolate(z, n, s), m * d, d),
        "mean and std are swapped": lambda z, n, s, m, d: raw(flow.interpolate(z, n, s), d, m),
        "mean and std belong to channels, axis 1: append three axes of length 1 to them":
            lambda z, n, s, m, d: flow.interpolate(z, n, s) * d + m,
        "s is the share of the noise, not of the latent":
            lambda z, n, s, m, d: raw(flow.interpolate(n, z, s), m, d)}, (0, 1)),
    "A2.7": Check("unpatchify", 3, patchify.unpatchify, lambda g: [
        (normal(g, 2, 12, 2, 2, 3), 2), (normal(g, 1, 32, 1, 2, 1), 4), (normal(g, 2, 9, 3, 1, 2), 3),
        (normal(g, 1, 2, 1, 3, 5), 1)], {
        "nothing is repaired yet": unfold_with(colour_last, (0, 3, 4, 5, 1, 6, 2)),
        "one error is left: rows and columns within a patch; the slow index is the column":
            unfold_with(colour_first, (0, 1, 4, 5, 2, 6, 3)),
        "one error is left: which of the three indices of a channel is the slowest?":
            unfold_with(colour_last, (0, 3, 4, 5, 2, 6, 1)),
        "the frames moved: their axis stays before the rows":
            unfold_with(colour_first, (0, 1, 5, 3, 4, 6, 2)),
        "a pixel's row is (patch, row within the patch): the patch first":
            unfold_with(colour_first, (0, 1, 4, 3, 5, 2, 6)),
        "reshape alone does not bring pixels back to their places":
            unfold_with(colour_first, (0, 1, 2, 3, 4, 5, 6))}, (0,)),
}


# --- A3: RoPE and attention -------------------------------------------------------------------------------

def seconds_of(frames, fps):
    """Latent frame numbers (f,) -> seconds, for a VAE with 8 frames per latent frame."""
    return (8 * frames + 1 - 8).clamp(min=0) / fps


def angles_with(frequencies):
    """Fractions of the largest position (N,) -> angles (N, n) at the frequencies(n, theta)."""
    return lambda fractions, n, theta: (2 * fractions - 1)[:, None] * frequencies(n, theta)


def angles_of(fractions, n, theta):
    """Fractions of the largest position (N,) -> angles (N, n), at n frequencies from pi/2 to theta pi/2."""
    frequencies = theta ** torch.linspace(0, 1, n, device=fractions.device) * math.pi / 2
    return (2 * fractions - 1)[:, None] * frequencies


def vectors_and_tables(g):
    """x (B, N, D), cos and sin (N, D)."""
    found = []
    for B, N, D in ((2, 5, 8), (1, 1, 2), (3, 4, 6)):
        angle = 6 * uniform(g, N, D // 2)
        tables = (x.repeat_interleave(2, -1) for x in (angle.cos(), angle.sin()))
        found.append((normal(g, B, N, D), *tables))
    return found


def rotate_halves(x, cos, sin):
    a, b = x.chunk(2, -1)
    (cos_a, cos_b), (sin_a, sin_b) = cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.cat([a * cos_a - b * sin_a, b * cos_b + a * sin_b], dim=-1)


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x):
    return x.transpose(1, 2).flatten(2)


def tokens_first(x):
    """A mistake in joining: a reshape instead of a transpose."""
    return x.reshape(x.shape[0], x.shape[2], -1)


def attend_with(split=split_heads, join=join_heads, scale=lambda q, heads: q.shape[-1],
                softmax=lambda scores: scores.softmax(-1)):
    """Attention in heads with a mistake in splitting, joining, the scale or the softmax."""
    def run(q, k, v, heads):
        q, k, v = (split(x, heads) for x in (q, k, v))
        return join(softmax(q @ k.mT / scale(q, heads) ** 0.5) @ v)
    return run


def attend(q, k, v, heads):
    """(B, N, D) each -> (B, N, D): softmax(q k / sqrt(D / heads)) v in every head."""
    return attend_with()(q, k, v, heads)


def masked_with(bias=lambda keep: (keep - 1) * 10000.0, after=lambda w, keep: w, axis=-1):
    """Attention to a caption with a mistake: the bias of the scores, the weights afterwards, the axis."""
    def run(q, k, v, keep):
        keep = keep[:, None]                                                              # (B, 1, L)
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + bias(keep)).softmax(axis)              # (B, N, L)
        return after(weights, keep) @ v
    return run


def masked_attend(q, k, v, keep):
    """q (B, N, D), k and v (B, L, D), keep (B, L), 1 for words and 0 for padding -> (B, N, D)."""
    return masked_with()(q, k, v, keep)


def without_padding(q, k, v, keep):
    """A mistake: scores of -inf."""
    return masked_with(lambda keep: torch.where(keep > 0, 0.0, -math.inf))(q, k, v, keep)


def no_bias(keep):
    return 0 * keep


def zeroed(weights, keep):
    return weights * keep


def captions(g):
    """Queries, keys, values and masks: captions of several lengths, a full one, one without any word. In the
    last, scores are whole numbers and halves, which keep their digits when 10000 is subtracted."""
    found = []
    for keep in ([[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 1]]):
        keep = torch.tensor(keep, dtype=torch.float32)
        found.append((normal(g, len(keep), 3, 6), *normal(g, 2, *keep.shape, 6), keep))
    keep = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float32)
    return [*found, (normal(g, 2, 3, 4).round(), normal(g, 2, 5, 4).round(), normal(g, 2, 5, 4), keep)]


LAYER_NORMS = tuple(lambda x, eps=eps: F.layer_norm(x, x.shape[-1:], eps=eps) for eps in (1e-6, 1e-5))


def adaptive_norm(x, shift, scale):
    """(B, N, D), (B, 1, D), (B, 1, D) -> (B, N, D)."""
    return layers.modulate(layers.rms_norm(x), shift, scale)


A3 = {
    "A3.1": Check("seconds_of", 2, seconds_of, lambda g: [
        (torch.arange(6.0), 24.0), (torch.arange(3.0), 12.5), (torch.tensor([4.0, 0.0, 9.0]), 30.0)], {
        "latent frame 0 covers one pixel frame, so all later ones begin earlier": lambda f, fps: 8 * f / fps,
        "no time is before the first frame: clamp at 0": lambda f, fps: (8 * f - 7) / fps,
        "divide by fps instead of multiplying": lambda f, fps: (8 * f - 7).clamp(min=0) * fps,
        "these are still frames, not seconds: divide by fps": lambda f, fps: (8 * f - 7).clamp(min=0),
        "a latent frame covers 8 pixel frames": lambda f, fps: f / fps,
        "seconds are not whole numbers: use /, not //": lambda f, fps: (8 * f - 7).clamp(min=0) // fps,
        "use the numbers in `frames`: they need not be 0, 1, 2, ..., nor begin with 0":
            (lambda f, fps: torch.cat([0 * f[:1], (8 * f[1:] - 7).clamp(min=0)]) / fps,
             lambda f, fps: torch.cat([0 * f[:1], 8 * f[1:] - 7]) / fps,
             lambda f, fps: (8 * torch.arange(len(f)).to(f) - 7).clamp(min=0) / fps),
        "latent frame 1 begins at pixel frame 1, latent frame 2 at 9: 8 f - 7":
            (lambda f, fps: (8 * f - 8).clamp(min=0) / fps, lambda f, fps: (8 * f + 1) / fps),
        "the first latent frame covers 1 pixel frame, so the others begin 7 earlier, not 1":
            lambda f, fps: (8 * f - 1).clamp(min=0) / fps}),
    "A3.2": Check("angles_of", 2, angles_of, lambda g: [
        (uniform(g, 7), 5, 10000.0), (uniform(g, 1), 2, 10.0), (torch.tensor([-0.5, 0.2, 1.4]), 3, 100.0),
        (uniform(g, 2), 5, 100.0)], {
        "positions outside [0, 1] go on: do not clamp": lambda p, *rest: angles_of(p.clamp(0, 1), *rest),
        "positions are first moved to [-1, 1]: 2 p - 1": lambda p, *rest: angles_of((p + 1) / 2, *rest),
        "theta is not always 10000": lambda p, n, theta: angles_of(p, n, 10000.0),
        "these frequencies descend, as in a language model; here they ascend from pi/2 to theta pi/2":
            angles_with(lambda n, theta: theta ** -torch.linspace(0, 1, n) * math.pi / 2),
        "the factor pi/2 is missing": angles_with(lambda n, theta: theta ** torch.linspace(0, 1, n)),
        "the first of n frequencies is pi/2 and the last is theta times that: i / (n - 1), not i / n":
            angles_with(lambda n, theta: theta ** (torch.arange(n) / n) * math.pi / 2),
        "equal *ratios* between neighbouring frequencies, not equal differences":
            angles_with(lambda n, theta: torch.linspace(1, theta, n) * math.pi / 2)}, (0,), 1e-4),
    "A3.3": Check("rotate", 3, rope.rotate, vectors_and_tables, {
        "neighbours rotate together, channels 2j and 2j+1; you paired the first half with the second":
            rotate_halves,
        "the sign: (a, b) -> (a cos - b sin, b cos + a sin)": lambda x, c, s: rope.rotate(x, c, -s),
        "both channels of a pair change: (a, b) -> (a cos - b sin, b cos + a sin)": lambda x, c, s: x * c,
        "pairs must stay neighbours: stack a and b on a new last axis and flatten, do not concatenate":
            lambda x, c, s: torch.cat([rope.rotate(x, c, s)[..., i::2] for i in (0, 1)], dim=-1),
        "put -b and a next to each other again: stack them on a new last axis, then flatten":
            lambda x, c, s: x * c + torch.cat([-x[..., 1::2], x[..., 0::2]], dim=-1) * s,
        "the tables contain each cosine twice in a row: take every second one, cos[..., ::2]":
            lambda x, c, s: rope.rotate(x, *(y.chunk(2, -1)[0].repeat_interleave(2, -1) for y in (c, s))),
        "a rotation swaps the pair and flips one sign; yours does not": lambda x, c, s: x * c + x * s,
        "one minus is missing: (a, b) -> (a cos - b sin, b cos + a sin)":
            lambda x, c, s: x * c + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * s,
        "cos and sin are swapped": lambda x, c, s: rope.rotate(x, s, c)}, (0,)),
    "A3.4": Check("rms_norm", 2, layers.rms_norm, lambda g: [
        (2 * normal(g, 2, 5, 12) + 0.5,), (torch.zeros(1, 2, 6),), (normal(g, 1, 1, 3),),
        (normal(g, 2, 3, 1, 4) / 1000,)], {
        "that is LayerNorm: do not subtract the mean": LAYER_NORMS,
        "normalise over the last axis, token by token, not over tokens":
            (norm_with(lambda x, m: m + 1e-6, (1, 2)), norm_with(lambda x, m: m + 1e-6, 1)),
        **norm_mistakes(-1, "1e-6")}, (0,)),
    "A3.5": Check("attend", 3, attend, lambda g: [
        (*normal(g, 3, 2, 5, 12), 3), (*normal(g, 3, 1, 4, 8), 2), (*normal(g, 3, 2, 1, 6), 3),
        (*normal(g, 3, 1, 3, 4), 1), (*20 * normal(g, 2, 1, 4, 8).round(), normal(g, 1, 4, 8), 2)], {
        "each head has its own softmax: split the width into heads": lambda q, k, v, h: attend(q, k, v, 1),
        "the scale is 1 / sqrt(D / heads), not 1 / sqrt(D)": attend_with(scale=lambda q, h: q.shape[-1] * h),
        "the scale 1 / sqrt(D / heads) is missing": attend_with(scale=lambda q, h: 1),
        "the weights of all *keys* add up to 1: softmax over the last axis":
            attend_with(softmax=lambda scores: scores.softmax(-2)),
        "a head is a group of neighbouring channels: (D) -> (heads, D / heads), not (D / heads, heads)":
            attend_with(lambda x, h: x.unflatten(-1, (-1, h)).movedim(-1, 1),
                        lambda x: x.movedim(1, -1).flatten(2)),
        "move the heads back after the tokens before you join them":
            (attend_with(join=tokens_first), attend_with(join=lambda x: x.flatten(2))),
        "that reshape mixes tokens: reshape to (B, N, heads, D / heads), then swap the axes of N and heads":
            tuple(attend_with(lambda x, h: x.reshape(len(x), h, x.shape[1], -1), join)
                  for join in (join_heads, tokens_first)),
        "q and k are swapped": lambda q, k, v, h: attend(k, q, v, h),
        "exp of a large score is infinite: use softmax, or subtract the largest score first":
            attend_with(softmax=lambda scores: scores.exp() / scores.exp().sum(-1, keepdim=True)),
        "swap the axes of tokens and heads before you multiply q by k: (B, heads, N, D / heads)":
            attend_with(lambda x, h: x.unflatten(-1, (h, -1)), lambda x: x.flatten(2))}, (0, 1, 2)),
    "A3.6": Check("adaptive_norm", 2, adaptive_norm, lambda g: [
        (normal(g, 2, 5, 8), normal(g, 2, 1, 8), normal(g, 2, 1, 8)), tuple(normal(g, 3, 1, 3, 4))], {
        "a scale of 0 changes nothing: multiply by 1 + scale":
            lambda x, shift, scale: layers.rms_norm(x) * scale + shift,
        "first scale, then shift": lambda x, shift, scale: (layers.rms_norm(x) + shift) * (1 + scale),
        "normalise x before you scale and shift it": layers.modulate,
        "normalise first, then scale and shift; you did it the other way round":
            lambda x, shift, scale: layers.rms_norm(layers.modulate(x, shift, scale)),
        "the norm is RMS norm, which does not subtract the mean": tuple(
            lambda x, shift, scale, f=f: layers.modulate(f(x), shift, scale) for f in LAYER_NORMS),
        "multiply by 1 + scale; you added the scale": lambda x, b, a: layers.rms_norm(x) + a + b,
        "shift and scale are swapped": lambda x, shift, scale: adaptive_norm(x, scale, shift)}, (0, 1, 2)),
    "A3.7": Check("masked_attend", 3, masked_attend, captions, {
        "nothing is repaired yet": masked_with(no_bias, zeroed, 1),
        "one error is left: the weights of the remaining words must add up to 1, so mask before the softmax":
            masked_with(no_bias, zeroed),
        "one error is left: the softmax must run over the words of the caption": masked_with(axis=1),
        "a caption without any word gives nan: the bias must be -10000, not -inf": without_padding,
        "a caption without any word must give what it gives without a mask: use a bias of -10000":
            lambda *arguments: without_padding(*arguments).nan_to_num(),
        "add -10000 to a score: with a number of larger size, or instead of the score, all words of an empty "
        "caption become equal":
            masked_with(lambda keep: (keep - 1) * 1e30),
        "keep itself is not a bias: 0 and 1 hardly change the scores": masked_with(lambda keep: keep),
        "keep is 1 for words and 0 for padding; you masked the words":
            masked_with(lambda keep: -10000.0 * keep),
        "the mask is not used": masked_with(no_bias),
        "a score of 0 is not a weight of 0: add a large negative number before the softmax":
            lambda q, k, v, keep: (q @ k.mT / q.shape[-1] ** 0.5 * keep[:, None]).softmax(-1) @ v,
        "the scale 1 / sqrt(D) is missing now":
            lambda q, k, v, keep: masked_attend(q * q.shape[-1] ** 0.5, k, v, keep)}, (0, 1, 2)),
}


# --- A4: the sampler and image-to-video -------------------------------------------------------------------

def strengths(g):
    return [(0.6, torch.tensor([1.0, 0.5, 0.2, 0.0, 0.4]).reshape(1, 5, 1).repeat(2, 1, 1)),
            (0.3, uniform(g, 1, 6, 1)), (1.0, torch.zeros(3, 2, 1)), (0.25, torch.ones(1, 1, 1)),
            *((t, torch.tensor([[[0.4], [0.0]]])) for t in (0.600005, 0.6000005))]


def per_token(z, t):
    """A velocity that depends on every token's value and time, and on the others' as attention would."""
    return torch.cos(2 * z) + z.mean(1, keepdim=True) - t[..., None] - t.mean(-1)[..., None, None]


def per_token_strictly(z, t):
    """The same, for times of exactly the shape (B, N)."""
    return per_token(z, torch.cat([z, t[..., None]], dim=-1)[..., -1])


def schedules(g):
    """Schedules that do not contain t, contain it, nearly contain it, and contain it except for rounding; one
    that neither starts at 1 nor ends at 0; a t below all times but the last, below all times, above them."""
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    return [(flow.shifted_schedule(8, 2304), 0.61234567), (even, 0.5), (even, 0.500005), (even - 3e-8, 0.25),
            (torch.tensor([0.8, 0.6, 0.449, 0.1]), 0.45), (even, 0.1), (torch.tensor([1.0, 0.5, 0.3]), 0.2),
            (torch.tensor([0.7, 0.3, 0.0]), 0.9)]


def tokens_and_strengths(g):
    """In the first, a token's time is in the schedule but for rounding; the second has no conditions; the
    third starts late and has another condition in each sample, one with a time inside a step; the fourth's
    velocity cannot be written into."""
    strength = torch.tensor([1.0, 1.0, 0.4, 0.0, 0.0]).reshape(1, 5, 1)
    other = torch.tensor([[1.0, 0.0], [0.0, 0.6]])[..., None]
    return [(per_token, normal(g, 2, 5, 3), torch.tensor([1.0, 0.6000004, 0.5, 0.2, 0.0]), strength),
            (per_token, normal(g, 1, 4, 2), torch.tensor([1.0, 0.4, 0.0]), torch.zeros(1, 4, 1)),
            (per_token, normal(g, 2, 2, 3), torch.tensor([0.9, 0.35, 0.3, 0.05]), other),
            (first_time, normal(g, 1, 2, 3), torch.tensor([1.0, 0.5, 0.0]), torch.zeros(1, 2, 1))]


def arange_schedule(steps, tokens):
    """A mistake in the schedule: for 49 steps, rounding makes the even times one longer."""
    t = torch.arange(1, 0, -1 / steps, dtype=torch.float64)
    return torch.cat([flow.shift_times(t, tokens, 0.1), t.new_zeros(1)]).float()


def own_times(t, strength):
    return sampler.token_times(t, strength)[0]


def moves(t, strength):
    return sampler.token_times(t, strength)[1]


def euler_for_tokens(times=own_times, moves=moves, at=lambda schedule, t, t_next: t, kept=1):
    """Euler's method with conditions, with a mistake in the times, in which tokens move, in the time of both,
    or in what the other tokens keep."""
    def run(velocity, z, schedule, strength):
        for t, t_next in zip(schedule[:-1].tolist(), schedule[1:].tolist()):
            now = at(schedule, t, t_next)
            moved = z + (t_next - t) * velocity(z, times(now, strength))
            z = torch.where(moves(now, strength), moved, kept * z)
        return z
    return run


def partly(velocity, z, schedule, strength):
    """A mistake: a token moves from its own time on, also within a step."""
    times, own = schedule.tolist(), 1 - strength[..., 0]
    for t, t_next in zip(times[:-1], times[1:]):
        now, then = own.clamp(max=t), own.clamp(max=t_next)
        z = z + (then - now)[..., None] * velocity(z, now)
    return z


def image_to_video_loss(network, x0, noise, t, given):
    """Tokens x0 and noise (B, N, C), t (B,), given (B, N, 1) of 0 and 1. Given tokens are clean, have time 0
    and do not count."""
    return given_with()(network, x0, noise, t, given)


def given_with(point=lambda t, given: t * (1 - given), time=lambda t, given: t * (1 - given),
               weight=lambda given: 1 - given, target=flow.velocity, loss=flow.flow_loss):
    """The loss of image-to-video, with a mistake in the times of the points, the network's times, what
    counts, the target, or the mean."""
    def run(network, x0, noise, t, given):
        t = t[:, None, None]
        v = network(flow.interpolate(x0, noise, point(t, given)), time(t, given).expand_as(given)[..., 0])
        return loss(v, target(x0, noise), weight(given))
    return run


def whole(t, given):
    return t


def clips_with_pictures(g):
    """Tokens of which some are given; none in the second."""
    given = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.float32)[..., None]
    return [(per_token_strictly, *normal(g, 2, *x.shape[:2], 3), uniform(g, len(x)), x)
            for x in (given, torch.zeros(1, 4, 1), given[1:])]


A4 = {
    "A4.1": Check("classifier_free_guidance", 2, sampler.classifier_free_guidance,
                  lambda g: [(normal(g, *shape), normal(g, *shape), scale)
                             for shape, scale in (((2, 4, 3), 3.5), ((1, 1, 2), 1.0), ((1, 3, 1), 0.0),
                                                  ((2, 1, 1), 12.25))], {
        "a scale of 1 must give v_text itself: start from v_null": lambda v0, v1, s: v1 + s * (v1 - v0),
        "that steers away from the caption: use v_text - v_null": lambda v0, v1, s: v0 + s * (v0 - v1),
        "that is an average; guidance goes past the caption": lambda v0, v1, s: (v0 + s * v1) / (1 + s),
        "go from v_null to v_text, not from v_text to v_null": lambda v0, v1, s: v1 + s * (v0 - v1),
        "scale the difference of the two, not v_text itself": lambda v0, v1, s: v0 + s * v1,
        "the scale is not used": lambda v0, v1, s: v1,
        "the scale may be a fraction: do not round it": tuple(
            lambda v0, v1, s, f=f: v0 + f(s) * (v1 - v0) for f in (int, round)),
        "multiply the difference by scale, not by scale - 1": lambda v0, v1, s: v0 + (s - 1) * (v1 - v0),
        "that is the difference only; add it to v_null": lambda v0, v1, s: s * (v1 - v0)}, (0, 1)),
    "A4.2": Check("token_times", 3, sampler.token_times, strengths, {
        "a given token is nearer to data than the rest: the smaller of t and 1 - strength":
            (lambda t, s: ((1 - s).clamp(min=t)[..., 0], moves(t, s)),
             lambda t, s: (t * (1 - s)[..., 0], moves(t, s)), lambda t, s: ((1 - s)[..., 0], moves(t, s))),
        "a given token has its own time, not t": lambda t, s: (torch.full_like(s, t)[..., 0], moves(t, s)),
        "strength 1 means kept, at time 0: use 1 - strength": lambda t, s: sampler.token_times(t, 1 - s),
        "a token moves from its own time on, not before":
            (lambda t, s: (own_times(t, s), ~moves(t, s)), lambda t, s: (own_times(t, s), 1 - s < t)),
        "a token of strength 0.5 also moves, when t has reached 0.5": lambda t, s: (own_times(t, s), s == 0),
        "a token of strength 0.5 also stays fixed, until t has reached 0.5":
            lambda t, s: (own_times(t, s), s < 1),
        "a given token does not move while t is above its own time":
            lambda t, s: (own_times(t, s), torch.ones_like(s, dtype=torch.bool)),
        "times are (B, N), one axis less than strength": lambda t, s: ((1 - s).clamp(max=t), moves(t, s)),
        "also return which tokens move: two results": own_times,
        "the tolerance is 0.000001; yours is larger": lambda t, s: (own_times(t, s), moves(t - 9e-6, s)),
        "leave a tolerance of 0.000001: 1 - 0.4 and 0.6 differ by rounding": (
            lambda t, s: (own_times(t, s), torch.full_like(s, t, dtype=torch.float64) <= 1 - s.double()),
            lambda t, s: (own_times(t, s), t <= 1 - s), lambda t, s: (own_times(t, s), t < 1 - s))}),
    "A4.3": Check("conditioned_euler", 3, sampler.euler, tokens_and_strengths, {
        "the given tokens moved: a token stays fixed until t has come down to 1 - strength":
            euler_for_tokens(moves=lambda t, s: torch.ones_like(s, dtype=torch.bool)),
        "the network needs each token's own time": euler_for_tokens(lambda t, s: torch.full(s.shape[:2], t)),
        "a token of strength below 1 also stays fixed at first": euler_for_tokens(moves=lambda t, s: s < 1),
        "the sign of the step: t_next - t is negative, and that is correct":
            lambda v, z, schedule, s: sampler.euler(lambda z, t: -v(z, t), z, schedule, s),
        "the wrong tokens move: where(moves, moved, z)": euler_for_tokens(moves=lambda t, s: ~moves(t, s)),
        "a token of strength below 1 moves in the end": euler_for_tokens(moves=lambda t, s: s == 0),
        "call token_times with t, not with t_next": euler_for_tokens(at=lambda s, t, t_next: t_next),
        "call token_times again at every step": euler_for_tokens(at=lambda s, t, t_next: s[0].item()),
        "a token that does not move keeps its value: where(moves, moved, z)": euler_for_tokens(kept=0),
        "a token whose time lies inside a step waits for the next one: all steps are t_next - t": partly,
        "the last step is missing": lambda v, z, times, strength: sampler.euler(v, z, times[:-1], strength),
        "the conditions are not used":
            lambda v, z, schedule, s: sampler.euler(v, z, schedule, torch.zeros_like(s))}, (1,)),
    "A4.4": Check("shifted_schedule", 2, flow.shifted_schedule, lambda g: [
        (8, 2304), (20, 80), (1, 500), (49, 1024)], {
        "the shift is missing: apply `shift_times`": lambda n, N: torch.linspace(1, 0, n + 1),
        "torch.arange with a fraction is one time too long for some numbers of steps: use torch.linspace":
            arange_schedule,
        "the last time is 0: append it after the shift": lambda n, N: flow.shifted_schedule(n, N)[:-1],
        "shift only the times from 1 to 1/steps, and append the 0 afterwards":
            lambda n, N: flow.shift_times(torch.linspace(1, 0, n + 1, dtype=torch.float64), N, 0.1).float(),
        "the last time before 0 must be 0.1": lambda n, N: flow.shifted_schedule(n, N, terminal=None),
        "from noise to data means from 1 down to 0": lambda n, N: flow.shifted_schedule(n, N).flip(0)}),
    "A4.5": Check("schedule_from", 2, flow.schedule_from, schedules, {
        "start at t itself, then all times below it":
            (lambda s, t: s[s < t - 1e-6], lambda s, t: s[s < t], lambda s, t: s[s <= t]),
        "the first time is t, not the schedule's first": lambda s, t: torch.cat([s[:1], s[s < t - 1e-6]]),
        "keep the times below t, not those above": lambda s, t: torch.cat([s[s > t], s.new_tensor([t])]),
        "t itself comes first, and only once": lambda s, t: torch.cat([s.new_tensor([t]), s[s <= t]]),
        "t times the whole schedule gives other times than the model's own": lambda s, t: s * t,
        "t comes first, also if it is above the schedule's first time":
            lambda s, t: s.clone() if t >= s[0] else flow.schedule_from(s, t),
        "t itself, not rounded": (lambda s, t: flow.schedule_from(s, round(t, 4)),
                                  lambda s, t: torch.cat([s.new_tensor([round(t, 4)]), s[s < t - 1e-6]])),
        "a time of the schedule within 0.000001 of t is t itself: leave it out":
            lambda s, t: torch.cat([s.new_tensor([t]), s[s < t]])}),
    "A4.6": Check("image_to_video_loss", 3, image_to_video_loss, clips_with_pictures, {
        "nothing is repaired yet": given_with(whole, whole, torch.ones_like),
        "one error is left: the given tokens are noised, although the sampler will show them clean":
            given_with(point=whole),
        "one error is left: the network must be given the time 0 for given tokens": given_with(time=whole),
        "one error is left: given tokens do not count in the mean": given_with(weight=torch.ones_like),
        "two errors are left: the network's times, and what counts":
            given_with(time=whole, weight=torch.ones_like),
        "two errors are left: the points of given tokens, and what counts":
            given_with(point=whole, weight=torch.ones_like),
        "two errors are left: given tokens are clean and have time 0": given_with(whole, whole),
        "the weight is 1 - given, not given": given_with(weight=lambda given: given),
        "divide by the sum of the weight: given tokens are not part of the mean":
            given_with(loss=lambda v, x, weight: ((v - x).square() * weight).mean()),
        "given is 1 for given tokens; you swapped them":
            lambda v, x, n, t, given: given_with()(v, x, n, t, 1 - given),
        "the target is now the wrong one: it was noise - x0":
            given_with(target=lambda x0, noise: x0 - noise)}, (1, 2)),
}


# --- A5: an open ablation ---------------------------------------------------------------------------------

# The 97.5th percentile of Student's t by degrees of freedom: 95 % of it is between minus and plus this.
T975 = dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                       2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093), start=1))


def paired_interval(values, reference):
    """Values and reference, one per seed -> mean difference, and its 95 % interval: low, high."""
    return interval_with()(values, reference)


def stdev_of_differences(values, reference, differences):
    return statistics.stdev(differences)


def interval_with(spread=stdev_of_differences, quantile=lambda n: T975[n - 1], count=math.sqrt):
    """The interval with a mistake in the standard deviation, the quantile or the number of seeds."""
    def run(values, reference):
        d = [a - b for a, b in zip(values, reference)]
        mean, half = statistics.mean(d), quantile(len(d)) * spread(values, reference, d) / count(len(d))
        return mean, mean - half, mean + half
    return run


def holm(p):
    """p values of a family of comparisons -> Holm's corrected p values, in the same order."""
    return holm_with()(p)


def holm_with(factor=lambda rank, n: n - rank, monotone=True, cap=1.0, back=True, ranked=True):
    """Holm's correction with a mistake: factor, running maximum, cap at 1, order of the result, ranks."""
    def run(p):
        order, found, largest = sorted(range(len(p)), key=lambda i: p[i] * ranked), [0.0] * len(p), 0.0
        for rank, i in enumerate(order):
            value = min(cap, factor(rank, len(p)) * p[i])
            largest = max(largest, value) if monotone else value
            found[i if back else rank] = largest
        return found
    return run


def neighbours(p):
    """A mistake in the running maximum: each product is compared with the one before it only."""
    raw = holm_with(monotone=False, back=False)(p)
    largest = [max(pair) for pair in zip(raw, [0.0, *raw])]
    return [largest[rank] for rank in torch.tensor(p).argsort(stable=True).argsort().tolist()] if p else []


def either_way(**mistake):
    """A mistake in Holm's correction, with the running maximum and without it."""
    return holm_with(**mistake), holm_with(**mistake, monotone=False)


def decide(low, high, more_is_better):
    """A 95 % interval of level minus reference -> "holds", "does not" or "cannot be told"."""
    if not more_is_better:
        low, high = -high, -low
    return "holds" if low > 0 else "does not" if high < 0 else "cannot be told"


def seeds_needed(spread, effect):
    """The spread of paired differences, an effect to be seen -> the smallest number of seeds, at most 20."""
    return seeds_with()(spread, effect)


def seeds_with(quantile=lambda n: T975[n - 1], root=lambda n: n**0.5, first=2, last=20):
    def run(spread, effect):
        for n in range(first, last + 1):
            if quantile(n) * spread / root(n) <= effect:
                return n
        return None
    return run


def levels_and_reference(g):
    """Values for several numbers of seeds, whose spread is larger than the difference; in the last, two seeds
    have no difference."""
    found = []
    for n, shift in ((5, 1.0), (3, -0.2), (2, 0.5), (16, 0.3)):
        values, reference = (10 * normal(g, 2, n)).tolist()
        found.append(([a + b + shift for a, b in zip(values, reference)], reference))
    values, reference = found[-1]
    return [*found[:-1], (reference[:2] + values[2:], reference)]


A5 = {
    "A5.1": Check("paired_interval", 2, paired_interval, levels_and_reference, {
        "the spread of the differences, not of the values":
            interval_with(lambda a, b, d: statistics.stdev(a)),
        "the same seed in both belongs together: take differences seed by seed":
            interval_with(lambda a, b, d: math.sqrt(statistics.variance(a) + statistics.variance(b))),
        "the sign: the level minus the reference": lambda a, b: paired_interval(b, a),
        "the sample standard deviation divides by n - 1":
            interval_with(lambda a, b, d: statistics.pstdev(d)),
        "with few seeds the quantile is Student's, T975[n - 1], not 1.96":
            interval_with(quantile=lambda n: 1.96),
        "the quantile is T975[n - 1] for any number of seeds": interval_with(
            quantile=lambda n: T975[min(n - 1, 10)]),
        "a difference of 0 is a seed too": lambda a, b: paired_interval(
            *zip(*((x, y) for x, y in zip(a, b) if x != y))),
        "n seeds leave n - 1 degrees of freedom": interval_with(quantile=lambda n: T975[n]),
        "that is one standard error: multiply it by T975[n - 1]": interval_with(quantile=lambda n: 1),
        "that is an interval of single differences; the mean's is narrower by the root of n":
            interval_with(count=lambda n: 1),
        "divide by the root of n, not by n": interval_with(count=lambda n: n)}),
    "A5.2": Check("holm", 2, holm, lambda g: [
        (uniform(g, 5).mul(0.06).tolist(),), ([0.04, 0.01, 0.03, 0.011],), ([0.2],), ([0.9, 0.8],), ([],),
        ([0.01, 0.03, 0.01],), ([0.02, 0.021, 0.022, 0.05],), ([0.0, 0.04],)], {
        "that is Bonferroni: only the smallest p is multiplied by n, the next by n - 1":
            (holm_with(lambda rank, n: n), holm_with(lambda rank, n: n, cap=math.inf)),
        "a larger p must not become smaller than the one before it: keep the largest so far":
            (holm_with(monotone=False), lambda p: [min(1.0, (len(p) - sorted(p).index(x)) * x) for x in p],
             neighbours),
        "a p value is at most 1": either_way(cap=math.inf),
        "return them in the order in which they came, not sorted": either_way(back=False),
        "that is Benjamini and Hochberg's factor; Holm's is n, n - 1, ..., 1":
            either_way(factor=lambda rank, n: n / (rank + 1)),
        "the smallest p gets the largest factor": either_way(factor=lambda rank, n: rank + 1),
        "the factors are n, n - 1, ..., 1; yours end at 0": either_way(factor=lambda rank, n: n - rank - 1),
        "sort first: a factor belongs to a rank, not to a place in the list": either_way(ranked=False),
        "p values are not corrected": (lambda p: list(p), sorted)}),
    "A5.3": Check("decide", 1, decide, lambda g: [
        (0.5, 2.0, True), (0.5, 2.0, False), (-2.0, -0.5, True), (-2.0, -0.5, False), (-1.0, 3.0, True),
        (-3.0, 1.0, False), (0.0, 1.0, True), (-1.0, 0.0, True), (0.0, 1.0, False), (-1.0, 0.0, False),
        (0.001, 0.004, True), (-0.004, -0.001, True), (1e-7, 1e-6, True)], {
        "where less is better, a negative difference is the good one": lambda a, b, more: decide(a, b, True),
        "both ends must be on one side of 0":
            lambda a, b, more: "holds" if (a + b > 0) == more else "does not",
        "an interval that contains 0 cannot tell; that is not evidence against the claim":
            lambda a, b, more: "holds" if decide(a, b, more) == "holds" else "does not",
        "an interval that ends at 0 contains 0": tuple(
            lambda a, b, more, up=up, down=down: decide(a or up[more] / 1e9, b or -down[more] / 1e9, more)
            for up, down in (((1, 1), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 0)), ((1, 0), (0, 1)))),
        "'holds' and 'does not' are swapped": lambda a, b, more: decide(a, b, not more)}),
    "A5.4": Check("seeds_needed", 2, seeds_needed, lambda g: [
        (1.0, 1.3), (2.0, 1.0), (0.5, 4.5), (1.0, 0.48), (1.0, 0.11), (3.0, 3.0), (2.0, 3.182), (0.0, 0.0)], {
        "nothing is repaired yet": seeds_with(lambda n: T975[n], lambda n: n, last=19),
        "two errors are left: the degrees of freedom, and the root of n":
            (seeds_with(lambda n: T975[n], lambda n: n), seeds_with(lambda n: T975[min(n, 19)], lambda n: n)),
        "two errors are left: degrees of freedom, last n of the loop": seeds_with(lambda n: T975[n], last=19),
        "two errors are left: root of n, last n of the loop": seeds_with(root=lambda n: n, last=19),
        "one error is left: how many degrees of freedom do n seeds leave?":
            (seeds_with(lambda n: T975[n]), seeds_with(lambda n: T975[min(n, 19)])),
        "one error is left: the mean's spread falls with the root of n": seeds_with(root=lambda n: n),
        "20 seeds are allowed: range(2, 21)": seeds_with(last=19),
        "`return None` belongs after the loop, which must go on": seeds_with(last=2),
        "return None if 20 seeds are not enough": lambda s, e: seeds_needed(s, e) or 20,
        "a half as wide as the effect is enough: use <=": lambda s, e: seeds_needed(s, e - 1e-9),
        "divide by the root of n": seeds_with(root=lambda n: 1),
        "divide by the root of n, not of n - 1": seeds_with(root=lambda n: (n - 1) ** 0.5),
        "with few seeds the quantile is Student's, not 1.96":
            (seeds_with(lambda n: 1.96), lambda s, e: max(2, math.ceil((1.96 * s / e) ** 2)))}),
}

CHECKS = {**A1, **A2, **A3, **A4, **A5}
