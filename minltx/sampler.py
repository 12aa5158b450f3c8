"""From noise to video: Euler steps down the velocity, guidance, given frames, a decoder that ends the job.

One mask says what is given (image-to-video, and later more): strength 1 where a latent voxel is given, 0
where it is free. A given token gets its own, earlier time, and is not moved. Unusual: the transformer's
result is made slightly noisy again before decoding: the decoder was trained to remove the last noise.
"""

import torch


def guide(v_null, v_text, guidance):
    """Classifier-free guidance: from the velocity without a caption towards, and past, the one with it.

    1 gives v_text itself. `sample_latent` then, and below 1, asks the network about the
    caption only (SPEC 5.2).
    """
    return v_null + guidance * (v_text - v_null)


def euler(velocity, z, schedule, strength=None, progress=None):
    """Follow velocity(z, t) from schedule[0] down to schedule[-1] by Euler steps.

    z (B, C, ...) at the first time; schedule (steps + 1,). strength, broadcastable to z with one channel
    ((B, 1, f, h, w)), gives every place its own time min(t, 1 - strength) and lets it move only while
    t <= 1 - strength (SPEC 6.2): a place of strength 1 stays as it is. velocity gets t as (B,) without a
    strength and as (B, f, h, w) with one. progress wraps the iterator over steps, for instance tqdm.
    """
    steps = list(zip(schedule[:-1].tolist(), schedule[1:].tolist()))
    for t, t_next in progress(steps) if progress else steps:
        if strength is None:
            v = velocity(z, torch.full((len(z),), t, device=z.device))
            z = z + (t_next - t) * v                                      # dt < 0: towards data
        else:
            moves = (t - 1e-6 < 1 - strength).to(z.dtype)
            v = velocity(z, (1 - strength).clamp(max=t)[:, 0])
            z = z + (t_next - t) * moves * v
    return z


def seeded_noise(shape, seeds):
    """Standard normal noise (B, *shape), one seed per sample: a video does not depend on its neighbours."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.no_grad()
def sample_latent(dit, noise, schedule, text, text_mask, null_text, null_mask, guidance=1.0, fps=24.0,
                  first_frame=None, progress=None):
    """Noise (B, C, f, h, w) -> normalised latent of the same shape.

    text (B, L, width) and null_text (B, M, width) with masks, 1 = keep; first_frame (B, C, 1, h, w) is the
    normalised latent of a given picture, which the result then starts with, exactly.
    """
    strength, z = None, noise
    if first_frame is not None:
        strength = torch.zeros_like(noise[:, :1])
        strength[:, :, :1] = 1
        z = torch.cat([first_frame, noise[:, :, 1:]], dim=2)

    def velocity(z, t):
        v_text = dit(z, t, text, text_mask, fps)
        if guidance <= 1:
            return v_text
        return guide(dit(z, t, null_text, null_mask, fps), v_text, guidance)

    return euler(velocity, z, schedule, strength, progress)


@torch.no_grad()
def decode(vae, latent, t=0.05, noise_scale=0.025, noise=None):
    """Normalised latent (B, C, f, h, w) -> video (B, 3, F, H, W), clamped to [-1, 1].

    Two knobs (SPEC 2.3): `noise_scale` is how much noise is mixed in, in the normalised space; `t` is what
    the decoder is told. `noise` is standard normal noise of the latent's shape (only for noise_scale > 0).
    """
    if noise_scale > 0:
        latent = (1 - noise_scale) * latent + noise_scale * noise
    times = torch.full((len(latent),), float(t), device=latent.device)
    return vae.decode(vae.denormalize(latent), times).clamp(-1, 1)
