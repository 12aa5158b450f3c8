"""Rectified flow: a straight path from data to noise, its constant velocity, training times and schedules.

Pure functions on tensors of any shape: the same code moves 2-D points in a notebook and video latents. Time
runs as in LTX-Video: t = 1 is noise, t = 0 is data. Unusual: training times are shifted towards noise by the
number of tokens. Neighbouring tokens are similar, so in a large video the content stays visible through more
noise, and high t has to be trained more (paper, section 3.1; SPEC 4). Up to release 0.9.1 the sampler's times
are shifted in the same way (`shifted_schedule`, which the toy uses too); releases from 0.9.5 on have
`linear_quadratic_schedule`.
"""

import math

import torch

from minltx import require


def expand_like(t, x):
    """Append axes of length 1 to t (B, ...) until it broadcasts over x (B, ...). Numbers stay as they are."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if torch.is_tensor(t) else t


def interpolate(x0, noise, t):
    """The point z_t = (1 - t) x0 + t noise on the straight path; t is a number, (B,), or broadcasts to x0."""
    t = expand_like(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0, noise):
    """dz/dt along the path, the same at every t: this is what the network learns to predict."""
    return noise - x0


def predict_x0(z, v, t):
    """Follow velocity v from z at time t down to t = 0: x0 = z - t v."""
    return z - expand_like(t, z) * v


def flow_loss(v, target, weight):
    """Mean squared error where weight is 1; tokens that the sampler would not move at their time have 0.
    weight broadcasts to v. Raises ValueError if nothing counts."""
    require.counted(weight)
    weight = weight.expand_as(v)
    return ((v - target).square() * weight).sum() / weight.sum()


SHIFT = ((1024, 0.95), (4096, 2.05))    # two points (tokens, mu) of the straight line of SPEC 4.2


def shift_mu(tokens, line=SHIFT):
    """How far times are shifted towards noise, as the mean of logit(t): linear in the tokens, not clamped."""
    (low, mu_low), (high, mu_high) = line
    return mu_low + (tokens - low) * (mu_high - mu_low) / (high - low)


def sample_t(count, tokens, generator=None, offset=0.0):
    """Training times (count,): logit-normal around the shift, plus one in ten uniform (SPEC 4.2).

    Logit-normal: t = sigmoid(mu + N(0, 1)). This is stretched so that its 0.5 and 99.9 percentiles become 0
    and 1; values below 0 are reflected, values above 1 clamped. The uniform tenth trains every time. offset,
    which the paper has not, is added to the shift: below 0, times of little noise are trained more.
    """
    mu = shift_mu(tokens) + offset
    low, high = (1 / (1 + math.exp(-(mu + z))) for z in (-2.5758, 3.0902))   # percentiles 0.5 and 99.9
    t = torch.sigmoid(mu + torch.randn(count, generator=generator))
    t = ((t - low) / (high - low)).abs().clamp(0, 1)                                      # (count,)
    choice, uniform = torch.rand(2, count, generator=generator)
    return torch.where(choice < 0.1, uniform, t)


def shift_times(t, tokens, terminal=None, line=SHIFT):
    """Shift times (steps,), from 1 down, towards noise by the number of tokens (SPEC 4.3).

    With `terminal`, the times are then stretched so that the last one becomes `terminal`, and the sampler's
    last step goes from there to 0. Raises ValueError for a negative number of tokens,
    and for terminal outside [0, 1].
    """
    require.whole("tokens", tokens, 0)
    require.times("terminal", terminal or 0)
    mu = shift_mu(tokens, line)
    t = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return t if terminal is None or len(t) == 1 else 1 - (1 - t) * (1 - terminal) / (1 - t[-1])


def shifted_schedule(steps, tokens, terminal=0.1):
    """The sampler's times (steps + 1,) from 1 down to 0: uniform, then shifted (SPEC 4.3).

    Raises ValueError if steps < 1, and as `shift_times` does.
    """
    require.whole("steps", steps, 1)
    t = shift_times(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), tokens, terminal)
    return torch.cat([t, t.new_zeros(1)]).float()


def linear_quadratic_schedule(steps, threshold=0.025):
    """The sampler's times (steps + 1,) of release 0.9.5 and later, for any number of tokens (SPEC 4.4).

    In the first half of the steps t falls from 1 to only 1 - threshold, linearly; in the second half it falls
    to 0 along a parabola. Raises ValueError if steps < 1.
    """
    require.whole("steps", steps, 1)
    if steps == 1:
        return torch.tensor([1.0, 0.0])
    i, linear = torch.arange(steps + 1, dtype=torch.float64), steps // 2
    bend = (linear - threshold * steps) / (linear * (steps - linear) ** 2)   # chosen so that the last t is 0
    return (1 - threshold * i / linear - bend * (i - linear).clamp(min=0) ** 2).float()


def schedule_from(schedule, t):
    """The rest of a schedule for video-to-video, whose input is only noised to t: t, then all later times.
    Raises ValueError for t outside [0, 1]."""
    require.times("t", t)
    return torch.cat([schedule.new_tensor([t]), schedule[schedule < t - 1e-6]])
