"""From noise to video as the releases do it: one pass, or two with the latent upsampler between (SPEC 5.5).

The first pass makes a small video. Its latent becomes twice as large, is noised again to the first time of
the second pass, and sampled from there; the result is resized to the size that was asked for. The networks
do not see the difference: each pass is a call of `sampler.sample_latent`.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from minltx.flow import interpolate
from minltx.pretrained.upsampler import adain, tone_map
from minltx.sampler import Condition, decode, randn_per_sample, sample_latent, seeded_noise

SMALLER = 0.6666666      # how large the first pass is, on each side; the second is twice that


def first_size(size, stride):
    """The size (frames, height, width) of the first pass, cut to whole latents. Raises ValueError if there is
    none."""
    sides = [int(side * SMALLER) // s * s for side, s in zip(size[1:], stride[1:])]
    if not min(sides):
        raise ValueError(f"{size[1]}x{size[2]} is too small for two passes: use at least {2 * stride[1]}x"
                         f"{2 * stride[2]}, or one pass")
    return size[0], *sides


def resized(video, height, width):
    """A video (B, 3, F, H, W) in another size, frame by frame, bilinear, as the released code does it."""
    if tuple(video.shape[3:]) == (height, width):
        return video
    frames = video.transpose(1, 2).flatten(0, 1)                                          # (B*F, 3, H, W)
    frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (len(video), -1)).transpose(1, 2)


def check_overlaps(conditions, stride):
    """Raises ValueError if two conditions (video, frame, strength) fill the same latent frames and the later
    one, with a strength below 1, would be blended over the earlier (SPEC 6.2)."""
    taken = set()
    for video, frame, strength in conditions:
        first = frame // stride[0] + 2 if frame else 0
        count = (video.shape[2] - 1) // stride[0] + 1 - (2 if frame else 0)
        filled = set(range(first, first + max(count, 0)))
        if filled & taken and strength < 1:
            raise ValueError(f"two given clips overlap at frame {frame}: give the later one strength 1, "
                             "which replaces the earlier, or move one of them")
        taken |= filled


@contextmanager
def at_work(module, device):
    """In this context the module is on the device, afterwards on the CPU; without a device nothing moves."""
    if device is not None:
        module.to(device)
    yield module
    if device is not None:
        module.to("cpu")


def encode_given(model, conditions, size, count, like):
    """Conditions (video, frame, strength) -> `Condition`s of a pass of this size, for `count` samples."""
    with at_work(model.vae, model.offload if conditions else None) as vae:
        def encode(video):
            latent = vae.normalize(vae.encode(resized(video.to(like), *size[1:]))[0])
            return latent.float().expand(count, -1, -1, -1, -1)

        return [Condition(encode(video), frame, strength) for video, frame, strength in conditions]


def upsample(model, latent, dtype):
    """Normalised latent (B, C, f, h, w) -> (B, C, f, 2h, 2w), with the statistics that it had."""
    with at_work(model.upsampler, model.offload) as upsampler, at_work(model.vae, model.offload) as vae:
        larger = vae.normalize(upsampler(vae.denormalize(latent.to(dtype))))
    return adain(larger.float(), latent)


@torch.no_grad()
def generate(model, text, null_text, seeds, size, passes, conditions=(), start=None):
    """`sampler.generate` of an `LTXVideo`, in one or two passes, each a `Sampling`.

    Of two passes the second one is on the upsampled latent; the model then needs its `upsampler`. start is a
    video to change, with one pass only. The same seed gives the same video, as in `sampler.generate`.
    Raises ValueError for a size that the VAE cannot encode, and for conditions that do not fit.
    """
    vae, dit, like = model.vae, model.dit, text[0]
    vae.latent_shape(*size)                                                  # raises ValueError
    check_overlaps(conditions, vae.config.stride)
    generators = [torch.Generator().manual_seed(seed + 2**32) for seed in seeds]   # not seeded_noise's
    now = first_size(size, vae.config.stride) if len(passes) > 1 else size
    noise, latent = seeded_noise(vae.latent_shape(*now), seeds).to(like.device), None
    if start is not None:
        latent = encode_given(model, [(start, 0, 1.0)], size, len(seeds), like)[0].latent
    for sampling in passes:
        if sampling is not passes[0]:
            now = (now[0], 2 * now[1], 2 * now[2])
            noise = randn_per_sample(vae.latent_shape(*now), generators, like.device)
            latent = upsample(model, latent, like.dtype)
        given = encode_given(model, conditions, now, len(seeds), like)
        with at_work(dit, model.offload):
            latent = sample_latent(dit, noise, text, null_text, sampling, given, latent, generators)
    return resized(decoded(model, latent, passes[-1], generators, like.dtype), *size[1:])


def decoded(model, latent, sampling, generators, dtype):
    """Normalised latent -> video (B, 3, F, H, W) in [-1, 1]: noise is mixed in, the tones are mapped, and the
    decoder removes the noise."""
    noise = randn_per_sample(latent.shape[1:], generators, latent.device)
    if sampling.decode_noise > 0:
        latent = interpolate(latent.to(dtype), noise.to(dtype), sampling.decode_noise)
    latent = tone_map(latent, model.tone_map) if model.tone_map else latent
    with at_work(model.vae, model.offload) as vae:
        return decode(vae, latent.to(dtype), sampling.decode_t, noise_scale=0, generator=generators[0])
