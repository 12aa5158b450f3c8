"""From noise to video: Euler steps down the velocity, guidance, conditions, a decoder that ends the job.

One mask says what is given: strength 1 where a token is given, 0 where it is free, in between where it may be
changed towards the end. A given token has a time of its own, nearer to data, and does not move; that alone is
image-to-video, keyframes, and extension at either end (SPEC 6). Unusual: the transformer's result is made
slightly noisy again before decoding: the decoder was trained to remove the last noise.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from minltx.dit import flatten_latent, unflatten_tokens
from minltx.flow import interpolate, predict_x0
from minltx.rope import latent_coordinates


# --- Following the velocity -------------------------------------------------------------------------------

def token_times(t, strength):
    """The time of every token while the sampler is at t, and whether it moves (SPEC 6.2).

    t a number or (B, 1, 1), strength (B, N, 1) -> times (B, N) = min(t, 1 - strength), moves (B, N, 1).
    """
    return (1 - strength).clamp(max=t)[..., 0], t - 1e-6 < 1 - strength


def euler(velocity, z, schedule, strength=None, renoise=None, before=None, progress=None):
    """Follow velocity(z, t) from schedule[0] down to schedule[-1] by Euler steps.

    z (B, ..., C) at the first time; schedule (steps + 1,). strength, (1 or B, N, 1), gives every token its
    own time and lets it move only when its turn comes, see `token_times`. velocity gets t as (B,) without a
    strength and as (B or 1, N) with one. renoise(z), fresh noise of z's shape, makes the sampler stochastic:
    it goes to the end of the path and back up (SPEC 5.1). before(z, t) -> z is called in front of every step;
    progress wraps the iterator over steps, for instance tqdm.
    """
    steps = list(zip(schedule[:-1].tolist(), schedule[1:].tolist()))
    for t, t_next in progress(steps) if progress else steps:
        z = before(z, t) if before else z
        times, moves = torch.full((len(z),), t, device=z.device), True
        if strength is not None:
            times, moves = token_times(t, strength)
        v = velocity(z, times)
        if renoise is None:
            moved = z + (t_next - t) * v                                  # dt < 0: towards data
        else:
            moved = interpolate(predict_x0(z, v, t), renoise(z), t_next)
        z = moved if moves is True else torch.where(moves, moved, z)
    return z


def draw(shape, generators, device=None):
    """Standard normal noise (B, *shape), one generator per sample:
    a video does not depend on its neighbours."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def seeded_noise(shape, seeds):
    """`draw` from fresh generators, one seed per sample."""
    return draw(shape, [torch.Generator().manual_seed(seed) for seed in seeds])


# --- Guidance ---------------------------------------------------------------------------------------------

def guide(v_null, v_text, guidance):
    """Classifier-free guidance: from the velocity without a caption towards, and past, the one with it.

    1 gives v_text itself (SPEC 5.2).
    """
    return v_null + guidance * (v_text - v_null)


FEW_TOKENS = 512    # in a batch up to here both captions are asked for at once; beyond, one after the other
STG_MODES = ("attention_values", "attention_skip", "transformer_block")


@dataclass(frozen=True)
class Guidance:
    """How far to steer, and away from what (SPEC 5.2). cfg: from no caption (1 and below: off, the network
    is asked once); stg, spatio-temporal guidance: from the same network, blind in `stg_blocks` (0: off);
    rescale: after STG, how far to pull the spread of v back to v_text's, 0 not at all, 0.7 in the released
    configs, and exactly 1 switches it off, as there. ValueError for an unknown mode and for no blocks."""

    cfg: float = 1.0
    stg: float = 0.0
    stg_blocks: tuple = ()
    stg_mode: str = "attention_values"
    rescale: float = 1.0

    def __post_init__(self):
        if self.stg_mode not in STG_MODES:
            raise ValueError(f"unknown STG mode {self.stg_mode!r}: use one of {', '.join(STG_MODES)}")
        if self.stg > 0 and not self.stg_blocks:
            raise ValueError("STG needs the blocks to make blind: give stg_blocks, (19,) for the 2 B model")


# --- Conditions -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Condition:
    """A given picture or clip: its normalised latent (1 or B, C, f, h, w), encoded alone; the pixel frame
    where it starts; how strong it is, from 1 (kept as it is) to 0 (ignored)."""

    latent: torch.Tensor
    frame: int = 0
    strength: float = 1.0


def check_condition(condition, grid, stride):
    """ValueError if a condition cannot stand where it is put in a grid (f, h, w) of latents."""
    frames, st = (grid[0] - 1) * stride[0] + 1, stride[0]
    f, *size = condition.latent.shape[2:]
    length = (f - 1) * st + 1
    if tuple(size) != tuple(grid[1:]):
        raise ValueError(f"a condition of {size[0]}x{size[1]} latents does not fit a video of "
                         f"{grid[1]}x{grid[2]}: resize the picture to the video's size")
    if condition.frame < 0 or condition.frame + length > frames:
        raise ValueError(f"a condition of {length} frames at frame {condition.frame} leaves a video of "
                         f"{frames}: put it at 0 to {frames - length}" if length <= frames else
                         f"a condition of {length} frames is longer than the video of {frames}")
    if f > 1 and condition.frame % st:
        low = condition.frame // st * st
        raise ValueError(f"a clip cannot start at frame {condition.frame}: use a multiple of {st}, "
                         f"for instance {low} or {min(low + st, frames - length)}")
    if not 0 <= condition.strength <= 1:
        raise ValueError(f"a strength of {condition.strength} is out of range: use 0 to 1")


def place(conditions, noise, stride, fps, causal_time):
    """Lay out the tokens of a video and of what is given -> clean, strength, coordinates (SPEC 6.2).

    noise (B, C, f, h, w) says how large the video is. clean (B, M+N, C) holds the given latents
    (0 elsewhere), strength (1, M+N, 1), coordinates (3, M+N).
    A condition that starts at frame 0 lies in the grid itself. Later in the video no latent frame stands for
    one pixel frame, as the first of a condition does; so its first two latent frames become M extra tokens in
    front of the grid's N, with the coordinates of the frames they show, and only the rest lies in the grid.
    """
    grid, device = tuple(noise.shape[2:]), noise.device
    clean, strength, parts = torch.zeros_like(noise), torch.zeros_like(noise[:1, :1]), []
    for c in conditions:
        check_condition(c, grid, stride)
        given, start = c.latent.expand(len(noise), -1, -1, -1, -1), 0
        if c.frame > 0:
            prefix, given, start = given[:, :, :2], given[:, :, 2:], c.frame // stride[0] + 2
            where = latent_coordinates(tuple(prefix.shape[2:]), stride, fps, causal_time, device, c.frame)
            held = flatten_latent(torch.full_like(prefix[:1, :1], c.strength))
            parts.append((flatten_latent(prefix), held, where))
        clean[:, :, start : start + given.shape[2]] = given
        strength[:, :, start : start + given.shape[2]] = c.strength
    parts.append((flatten_latent(clean), flatten_latent(strength),
                  latent_coordinates(grid, stride, fps, causal_time, device)))
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


# --- Sampling ---------------------------------------------------------------------------------------------

@torch.no_grad()
def sample_latent(dit, noise, schedule, text, null_text=None, guidance=Guidance(), fps=24.0, conditions=(),
                  start=None, condition_noise=0.0, stochastic=False, generators=None, progress=None):
    """Noise (B, C, f, h, w) -> normalised latent of the same shape, float32.

    text and null_text are pairs (B, L, width), mask (B, L), 1 = keep; null_text is needed for
    guidance.cfg > 1. conditions are `Condition`s. start (B, C, f, h, w) is a latent to begin from, made noisy
    to schedule[0]: video-to-video. condition_noise moves given tokens a little, by condition_noise * t^2,
    which brings stills to life (SPEC 6.1). generators, one per sample, draw whatever noise is needed
    beyond `noise`.
    """
    N, z = noise[0, 0].numel(), flatten_latent(noise)
    if start is not None:
        z = interpolate(flatten_latent(start), z, schedule[0].item())
    clean, strength, coordinates = place(conditions, noise, dit.config.stride, fps, dit.config.causal_time)
    if clean.shape[1] > N:
        z = torch.cat([draw((clean.shape[1] - N, z.shape[2]), generators, z.device), z], dim=1)  # (B, M+N, C)
    z = torch.lerp(z, clean, strength)

    def move_given(z, t):
        noisy = clean + condition_noise * t**2 * draw(z.shape[1:], generators, z.device)
        return torch.where(strength > 1 - 1e-6, noisy, z)

    guided = guidance.cfg > 1
    together = guided and len(z) * z.shape[1] <= FEW_TOKENS
    if not together or guidance.stg > 0:
        words = dit.prepare(coordinates, *text)
    if together:
        pairs = (pad_sequence([*null, *known], batch_first=True) for null, known in zip(null_text, text))
        both = dit.prepare(coordinates, *pairs)                                             # (2B, L, D)
    elif guided:
        nothing = dit.prepare(coordinates, *null_text)

    def ask(z, t, given, perturb=None):
        times = t[:, None] if t.ndim == 1 else t                                            # (B or 1, 1 or N)
        return dit.step(z.to(text[0].dtype), times, given, perturb).float()

    def velocity(z, t):
        if together:
            v_null, v_text = ask(torch.cat([z, z]), t if len(t) == 1 else torch.cat([t, t]), both).chunk(2)
        else:
            v_text = ask(z, t, words)
            v_null = ask(z, t, nothing) if guided else None
        v = guide(v_null, v_text, guidance.cfg) if guided else v_text
        if guidance.stg > 0:
            v = v + guidance.stg * (v_text - ask(z, t, words, (guidance.stg_mode, guidance.stg_blocks)))
            if guidance.rescale != 1:
                ratio = v_text.std((1, 2), keepdim=True) / v.std((1, 2), keepdim=True)
                v = v * (guidance.rescale * ratio + 1 - guidance.rescale)
        return v

    z = euler(velocity, z, schedule, strength if conditions else None, progress=progress,
              renoise=(lambda z: draw(z.shape[1:], generators, z.device)) if stochastic else None,
              before=move_given if conditions and condition_noise > 0 else None)
    return unflatten_tokens(z[:, -N:], tuple(noise.shape[2:]))


@torch.no_grad()
def decode(vae, latent, t=0.05, noise_scale=0.025, noise=None, generator=None, mix_raw=False):
    """Normalised latent (B, C, f, h, w) -> video (B, 3, F, H, W), clamped to [-1, 1].

    Two knobs (SPEC 2.3): `noise_scale` is how much noise is mixed in, in the normalised space; `t` is what
    the decoder is told. `noise` is standard normal noise of the latent's shape (only for noise_scale > 0);
    generator draws the noise that a VAE with "noisy" blocks injects. mix_raw mixes in the un-normalised
    space instead, where the channels' noise is no longer what training had: only to compare with diffusers.
    """
    if noise_scale > 0 and mix_raw:
        latent = interpolate(vae.denormalize(latent), noise, noise_scale)
    elif noise_scale > 0:
        latent = vae.denormalize(interpolate(latent, noise, noise_scale))
    else:
        latent = vae.denormalize(latent)
    times = torch.full((len(latent),), float(t), device=latent.device)
    return vae.decode(latent, times, generator).clamp(-1, 1)


@torch.no_grad()
def generate(vae, dit, text, null_text, seeds, size, schedule, guidance, fps, conditions=(), start=None,
             condition_noise=0.0, stochastic=False, decode_t=0.05, decode_noise=0.025, mix_raw=False,
             progress=None):
    """The whole way: noise from `seeds` (one per sample), sampling, decoding -> (B, 3, F, H, W) in [-1, 1].

    The same seed gives the same video, alone or in company (0.9.1's VAE draws the noise that it injects once
    for the whole batch, from the first seed).

    size is (frames, height, width) in pixels; conditions are (video (1 or B, 3, F', H, W), frame, strength);
    start is a video (1 or B, 3, F, H, W) to begin from at schedule[0]. The rest as in `sample_latent` and
    `decode`. ValueError for a size that the VAE cannot code.
    """
    def encode(video):
        return vae.normalize(vae.encode(video.to(text[0]))[0]).float().expand(len(seeds), -1, -1, -1, -1)

    shape, device = vae.latent_shape(*size), text[0].device
    generators = [torch.Generator().manual_seed(seed + 2**32) for seed in seeds]         # for all noise after
    latent = sample_latent(dit, seeded_noise(shape, seeds).to(device), schedule, text, null_text, guidance,
                           fps, [Condition(encode(video), *where) for video, *where in conditions],
                           None if start is None else encode(start), condition_noise, stochastic, generators,
                           progress)
    noise = draw(shape, generators, device)
    return decode(vae, latent.to(text[0].dtype), decode_t, decode_noise, noise.to(text[0].dtype),
                  generators[0], mix_raw)
