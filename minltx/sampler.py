"""From noise to video: Euler steps along the velocity, guidance, conditions, decoding.

Image-to-video, keyframes and extension of a clip at either end are one mechanism (SPEC 6): every token has a
strength, 1 where it is given, 0 where it is free. With strength s a token starts as the given latent with
1-s of noise, has its own time min(t, 1-s), and does not move before the sampler's t falls below 1-s. With
s = 1 it is clean and never moves (but see `condition_noise`). A picture at frame 0 is part of the result. A
keyframe is not: it is extra tokens, which all others attend to, and which are dropped at the end.

Unusual: the sampler goes to t = 0, then a little noise is added to its result, and the decoder, which was
trained on noisy latents, removes that noise together with the small errors of sampling.
"""

from dataclasses import dataclass
from typing import Callable

import torch
from torch.nn.utils.rnn import pad_sequence

from minltx import require
from minltx.dit import flatten_latent, unflatten_tokens
from minltx.flow import interpolate, predict_x0
from minltx.rope import latent_coordinates


# --- Following the velocity -------------------------------------------------------------------------------

def token_times(t, strength):
    """The time of every token while the sampler is at t, and whether the token moves (SPEC 6.2).

    t a number or (B, 1, 1), strength (1 or B, M+N, 1) -> times (1 or B, M+N) = min(t, 1 - strength), moves
    (1 or B, M+N, 1): whether t <= 1 - strength. With t = 0.8, tokens of strength 0, 0.4 and 1 have times 0.8,
    0.6 and 0, and only the first one moves.
    """
    return (1 - strength).clamp(max=t)[..., 0], t - 1e-6 < 1 - strength


def euler(velocity, z, schedule, strength=None, stochastic_noise=None, pre_step=None, progress=None):
    """Follow velocity(z, t) from schedule[0] down to schedule[-1] by Euler steps -> z (B, ..., C).

    z (B, ..., C) is at the first time; schedule (steps + 1,). strength (1 or B, N, 1) gives every token its
    own time, see `token_times`; velocity then gets t as (B or 1, N), otherwise as (B,).
    stochastic_noise(z), fresh noise of z's shape, makes the sampler stochastic: each step predicts x0, then
    adds that noise to it, up to the next time (SPEC 5.1). pre_step(z, t) -> z is called before every step;
    progress wraps the list of steps, for instance tqdm. If 1 - strength is between two times of the schedule,
    the token waits for the lower one, and the noise above it is never removed, as in the released code.
    """
    steps = list(zip(schedule[:-1].tolist(), schedule[1:].tolist()))
    for t, t_next in progress(steps) if progress else steps:
        z = pre_step(z, t) if pre_step else z
        times, moves = torch.full((len(z),), t, device=z.device), None
        if strength is not None:
            times, moves = token_times(t, strength)
        v = velocity(z, times)
        if stochastic_noise is None:
            moved = z + (t_next - t) * v                                                 # t_next < t: to data
        else:
            moved = interpolate(predict_x0(z, v, t), stochastic_noise(z), t_next)
        z = moved if moves is None else torch.where(moves, moved, z)
    return z


def randn_per_sample(shape, generators, device=None):
    """Standard normal noise (B, *shape), one generator per sample, so that a sample does not depend on the
    rest of its batch."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def seeded_noise(shape, seeds):
    """`randn_per_sample` from fresh generators, one seed per sample."""
    return randn_per_sample(shape, [torch.Generator().manual_seed(seed) for seed in seeds])


# --- Guidance ---------------------------------------------------------------------------------------------

def classifier_free_guidance(v_null, v_text, scale):
    """From the velocity of the null caption towards that of the caption, and past it; 1 is v_text itself
    (SPEC 5.2)."""
    return v_null + scale * (v_text - v_null)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance with scale `cfg`; 1 or less turns it off. Subclasses steer in other ways."""

    cfg: float = 1.0

    def velocity(self, predict, text, null_text):
        """The velocity (B, N, C) to follow. predict(text, mask) is the network at the current z and t.

        text and null_text, the null or negative caption, are pairs (B, L, width), mask (B, L). Both run in
        one batch, padded to one length: the first half is the null caption.
        """
        if self.cfg <= 1:
            return predict(*text)
        embeddings = pad_sequence([*null_text[0], *text[0]], batch_first=True)            # (2B, L, width)
        masks = pad_sequence([*null_text[1], *text[1]], batch_first=True)                 # (2B, L)
        v_null, v_text = predict(embeddings, masks).chunk(2)                              # (B, N, C) each
        return classifier_free_guidance(v_null, v_text, self.cfg)


# --- Conditions -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Condition:
    """A given picture (one latent frame) or clip."""

    latent: torch.Tensor     # normalised, (1 or B, C, f, h, w), encoded on its own
    frame: int = 0           # the pixel frame where it starts
    strength: float = 1.0    # 1: its tokens stay as given; 0: they start as pure noise


def check_condition(condition, grid, stride):
    """Raises ValueError if a condition does not fit into a grid (f, h, w) of latents."""
    frames, st = (grid[0] - 1) * stride[0] + 1, stride[0]
    f, *size = condition.latent.shape[2:]
    length = (f - 1) * st + 1
    if tuple(size) != tuple(grid[1:]):
        raise ValueError(f"a condition of {size[0]}x{size[1]} latents does not fit a video of "
                         f"{grid[1]}x{grid[2]}: resize the picture to the video's size")
    if length > frames:
        raise ValueError(f"a condition of {length} frames is longer than the video of {frames}")
    if not 0 <= condition.frame <= frames - length:
        raise ValueError(f"a condition of {length} frames at frame {condition.frame} exceeds a video of "
                         f"{frames}: place it at 0 to {frames - length}")
    if f > 1 and condition.frame % st:
        low = condition.frame // st * st
        raise ValueError(f"a clip cannot start at frame {condition.frame}: use a multiple of {st}, "
                         f"for instance {low} or {min(low + st, frames - length)}")
    if not 0 <= condition.strength <= 1:
        raise ValueError(f"a strength of {condition.strength} is out of range: use 0 to 1")


def layout_tokens(conditions, like, stride, fps, causal_time):
    """All tokens of a video and its conditions -> clean, strength, coordinates (SPEC 6.2).

    like (B, C, f, h, w) has the video's size, N = f*h*w tokens. clean (B, M+N, C) holds the given latents, 0
    elsewhere; strength (1, M+N, 1); coordinates (3, M+N). Raises ValueError if a condition does not fit.

    A condition at frame 0 fills the first tokens of the grid. A later one cannot: its first latent frame
    shows one pixel frame, and in the grid only latent frame 0 does that. So this latent frame becomes extra
    tokens in front of the grid, with the coordinates of the frame that it shows. Of a clip, the second latent
    frame becomes extra tokens too, as the released model was trained, and only the rest fills the grid.
    """
    grid, device = tuple(like.shape[2:]), like.device
    clean, strength, parts = torch.zeros_like(like), torch.zeros_like(like[:1, :1]), []
    for c in conditions:
        check_condition(c, grid, stride)
        given, first = c.latent.expand(len(like), -1, -1, -1, -1), 0
        if c.frame > 0:
            extra, given, first = given[:, :, :2], given[:, :, 2:], c.frame // stride[0] + 2
            where = latent_coordinates(tuple(extra.shape[2:]), stride, fps, causal_time, device, c.frame)
            extra_strength = torch.full_like(extra[:1, :1], c.strength)
            parts.append((flatten_latent(extra), flatten_latent(extra_strength), where))
        clean[:, :, first : first + given.shape[2]] = given
        strength[:, :, first : first + given.shape[2]] = c.strength
    parts.append((flatten_latent(clean), flatten_latent(strength),
                  latent_coordinates(grid, stride, fps, causal_time, device)))
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


# --- Sampling ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sampling:
    """How to get from noise to video. The defaults for decoding are those of all releases."""

    schedule: torch.Tensor              # the times (steps + 1,), from 1 down to 0
    guidance: Guidance = Guidance()
    fps: float = 24.0                   # frames per second of the pixels
    condition_noise: float = 0.0        # before each step given tokens become clean + condition_noise * t^2
                                        # * noise, or a still picture makes a still video (SPEC 6.1)
    stochastic: bool = False            # see `euler`
    decode_t: float = 0.05              # the time that the decoder is conditioned on
    decode_noise: float = 0.025         # how much noise its input gets
    progress: Callable | None = None    # see `euler`


@torch.no_grad()
def sample_latent(dit, noise, text, null_text, sampling, conditions=(), start=None, generators=None):
    """Noise (B, C, f, h, w) -> normalised latent of the same shape, float32.

    text and null_text are pairs (B, L, width), mask (B, L) with 1 = keep; null_text may be None without
    guidance. conditions are `Condition`s. start (B, C, f, h, w) is a latent to change, noised to
    schedule[0]: video-to-video. generators, one per sample, draw all further noise: of extra tokens, of
    stochastic steps, of condition_noise. Without any of these they may be None. Raises ValueError for other
    shapes, a schedule that does not fall, guidance that is not finite, generators that are not one per
    sample, and as `check_condition` does.
    """
    require.sampling(dit.config, noise, text, null_text, sampling, conditions, generators)
    s, z = sampling, flatten_latent(noise)                                                # (B, N, C)
    if start is not None:
        z = interpolate(flatten_latent(start), z, s.schedule[0].item())
    clean, strength, coordinates = layout_tokens(conditions, noise, dit.config.stride, s.fps,
                                                 dit.config.causal_time)
    extra = clean.shape[1] - z.shape[1]
    if extra:
        z = torch.cat([randn_per_sample((extra, z.shape[2]), generators, z.device), z], dim=1)   # (B, M+N, C)
    z = torch.lerp(z, clean, strength)    # strength s: (1 - s) z + s clean; s = 1: what is given, unchanged

    def fresh_noise(z):
        return randn_per_sample(z.shape[1:], generators, z.device)

    def noise_given(z, t):
        return torch.where(strength > 1 - 1e-6, clean + s.condition_noise * t**2 * fresh_noise(z), z)

    def velocity(z, t):
        t = t[:, None] if t.ndim == 1 else t                                              # (B or 1, 1 or N)

        def predict(text, mask):
            copies = len(text) // len(z)                                                  # 2 with guidance
            tokens, times = z.repeat(copies, 1, 1), t if len(t) == 1 else t.repeat(copies, 1)
            return dit.forward_tokens(tokens.to(text.dtype), times, coordinates, text, mask).float()

        return s.guidance.velocity(predict, text, null_text)

    z = euler(velocity, z, s.schedule, strength if conditions else None,
              fresh_noise if s.stochastic else None,
              noise_given if conditions and s.condition_noise > 0 else None, s.progress)
    return unflatten_tokens(z[:, extra:], tuple(noise.shape[2:]))                 # without the extra tokens


@torch.no_grad()
def decode(vae, latent, t=0.05, noise_scale=0.025, noise=None, generator=None):
    """Normalised latent (B, C, f, h, w) -> video (B, 3, F, H, W), clamped to [-1, 1].

    `noise_scale` is how much `noise` (standard normal, of the latent's shape, needed if noise_scale > 0) is
    mixed in, and `t` is the time that the decoder is conditioned on. In training both are the same number;
    all releases mix in 0.025 and say 0.05, without a reason given, and so does the toy (SPEC 2.3).
    generator draws the noise of "noisy" blocks. Raises ValueError for t or noise_scale outside [0, 1], and
    without the noise that noise_scale needs.
    """
    require.mixable(latent, noise, noise_scale)
    if noise_scale > 0:
        latent = interpolate(latent, noise, noise_scale)
    times = torch.full((len(latent),), float(t), device=latent.device)                    # (B,)
    return vae.decode(vae.denormalize(latent), times, generator).clamp(-1, 1)


@torch.no_grad()
def generate(model, text, null_text, seeds, size, sampling, conditions=(), start=None):
    """The whole way: noise from `seeds` (one per sample), sampling, decoding -> (B, 3, F, H, W) in [-1, 1].

    model has a `vae` and a `dit`; size is (frames, height, width) in pixels; conditions are (video (1 or B,
    3, F', H, W), frame, strength); start is a video (1 or B, 3, F, H, W) to change, noised to schedule[0].
    The same seed gives the same video, alone or in a batch (except that "noisy" decoder blocks draw one noise
    map per batch, from the first seed). Raises ValueError for a size that the VAE cannot encode.
    """
    vae, device, dtype = model.vae, text[0].device, text[0].dtype

    def encode(video):
        return vae.normalize(vae.encode(video.to(text[0]))[0]).float().expand(len(seeds), -1, -1, -1, -1)

    shape = vae.latent_shape(*size)
    generators = [torch.Generator().manual_seed(seed + 2**32) for seed in seeds]   # not seeded_noise's
    given = [Condition(encode(video), frame, strength) for video, frame, strength in conditions]
    latent = sample_latent(model.dit, seeded_noise(shape, seeds).to(device), text, null_text, sampling, given,
                           None if start is None else encode(start), generators)
    noise = randn_per_sample(shape, generators, device)
    return decode(vae, latent.to(dtype), sampling.decode_t, sampling.decode_noise, noise.to(dtype),
                  generators[0])
