"""Rectified flow: the straight path from data to noise, its velocity, training times and schedules.

Pure functions on tensors of any shape: 2-D points move as video latents do. Time runs as in LTX-Video: t = 1
is noise, t = 0 is data. Unusual: the training times, and up to 0.9.1 the sampler's steps, are shifted towards
noise by the number of tokens, because the more tokens show the same thing, the more noise it takes to hide it
(SPEC 4).
"""

import math

import torch


def like(t, x):
    """t (B, ...) with ones appended, so that it multiplies x (B, ..., more axes); a number stays a number."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if torch.is_tensor(t) else t


def interpolate(x0, noise, t):
    """The point z_t = (1 - t) x0 + t noise on the straight path; t a number, (B,) or broadcastable to x0."""
    t = like(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0, noise):
    """dz/dt along the path, constant in t: what the network learns."""
    return noise - x0


def predict_x0(z, v, t):
    """Where the path from z with velocity v ends: x0 = z - t v."""
    return z - like(t, z) * v


def flow_loss(v, target, weight):
    """Mean squared error over the places that count; weight (1 = counts, 0 = given) broadcastable to v."""
    weight = weight.expand_as(v)
    return ((v - target).square() * weight).sum() / weight.sum()


SHIFT = ((1024, 0.95), (4096, 2.05))    # tokens and mu, at two points of a straight line (SPEC 4.2)


def shift_mu(tokens, line=SHIFT):
    """How far times are shifted towards noise: a straight line in the number of tokens, not clamped."""
    (low, mu_low), (high, mu_high) = line
    return mu_low + (tokens - low) * (mu_high - mu_low) / (high - low)


TIMES = ("shifted", "logit-normal", "uniform")


def sample_t(count, tokens, generator=None, kind="shifted"):
    """Training times (count,): logit-normal around the shift, stretched so that its 0.5 and 99.9 percentiles
    become 0 and 1 (what falls below 0 is reflected, above 1 clamped), and one in ten uniform, so that no time
    starves (SPEC 4.2). To compare: the same without a shift ("logit-normal"), or simply "uniform"."""
    if kind not in TIMES:
        raise ValueError(f"unknown training times {kind!r}: use one of {', '.join(TIMES)}")
    if kind == "uniform":
        return torch.rand(count, generator=generator)
    mu = shift_mu(tokens) if kind == "shifted" else 0.0
    low, high = (1 / (1 + math.exp(-(mu + z))) for z in (-2.5758, 3.0902))
    t = torch.sigmoid(mu + torch.randn(count, generator=generator))
    t = ((t - low) / (high - low)).abs().clamp(0, 1)
    uniform = torch.rand(2, count, generator=generator)
    return torch.where(uniform[0] < 0.1, uniform[1], t)


def shift_times(t, tokens, terminal=None, line=SHIFT):
    """Times (steps,) from 1 down, shifted towards noise by the number of tokens, then stretched so that the
    last of them is `terminal` (None: not stretched) (SPEC 4.3)."""
    mu = shift_mu(tokens, line)
    t = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return t if terminal is None or len(t) == 1 else 1 - (1 - t) * (1 - terminal) / (1 - t[-1])


def shifted_schedule(steps, tokens, terminal=0.1):
    """The sampler's times (steps + 1,), from 1 down to 0: uniform steps, shifted (SPEC 4.3)."""
    if steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, not {steps}")
    t = shift_times(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), tokens, terminal)
    return torch.cat([t, t.new_zeros(1)]).float()


def linear_quadratic_schedule(steps, threshold=0.025):
    """The sampler's times (steps + 1,) of 0.9.5 and later, whatever the number of tokens: half of the steps
    remove only the first `threshold` of the noise, evenly; the others ever more, quadratically (SPEC 4.4)."""
    if steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, not {steps}")
    if steps == 1:
        return torch.tensor([1.0, 0.0])
    i, linear = torch.arange(steps + 1, dtype=torch.float64), steps // 2
    bend = (linear - threshold * steps) / (linear * (steps - linear) ** 2)   # so that nothing is left at last
    return (1 - threshold * i / linear - bend * (i - linear).clamp(min=0) ** 2).float()


def schedule_from(schedule, t):
    """The rest of a schedule for what is already denoised to the time t: t itself, then all later times."""
    return torch.cat([schedule.new_tensor([t]), schedule[schedule < t - 1e-6]])
