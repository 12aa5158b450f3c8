"""The training objectives: one step of each stage, what is noised and what is compared with what.

Stage 1 trains the VAE. A clip is encoded, a latent is drawn from the posterior (the encoder's mean and
variance), *noise is added to it*, and the decoder, conditioned on how much, has to return the clean clip. So
the decoder learns to remove the last noise (paper, section 2.1.2).

Stage 2 trains the transformer on latents (means) of the finished VAE. Each token is moved along the straight
path towards noise, to a time t, and the network has to predict the path's velocity, noise - x0. Some batches
have a *condition*, for example the first frame. A given token of strength s gets the time min(t, 1-s): with
s = 1 it stays clean, and does not count in the loss. This is all that distinguishes image-to-video from
text-to-video, so both are trained together (paper, section 2.3; SPEC 6, 8).

The defaults are the toy's.
"""

from dataclasses import dataclass, replace

import torch

from minltx.dit import flatten_latent
from minltx.flow import expand_like, flow_loss, interpolate, sample_t, velocity
from minltx.losses import Critics, LossConfig, discriminator_loss, vae_loss
from minltx.sampler import Condition, layout_tokens, token_times


# --- Stage 1: the VAE -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class VAERecipe:
    """What a step of stage 1 needs to know."""

    loss: LossConfig = LossConfig()    # the terms and their weights
    noise_range: float = 0.2           # the decoder learns to remove noise up to this t (also in the paper)
    clean: float = 0.3                 # share of clips without noise: a clean latent must decode best


def vae_objective(vae, video, recipe, generator, foreground=None, critics=Critics()):
    """Encode, sample the posterior, add noise of a random degree t, decode, compare with the clean clip.

    video (B, 3, F, H, W) in [-1, 1]. foreground replaces the recipe's weight of bright pixels: the training
    loop lowers it step by step. Returns the loss and its terms by name; with a discriminator, its own loss is
    one of the terms but not part of the sum.
    """
    mean, logvar = vae.encode(video)                                                    # (B, C, f, h, w) each
    latent = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)

    # How much noise each clip gets, from 0 to noise_range. The decoder is conditioned on the same number.
    share, choice = torch.rand(2, len(video), generator=generator).to(mean)               # (B,) each
    t = recipe.noise_range * share * (choice > recipe.clean)                              # (B,)

    # Here the latent is not normalised. To mix normalised latents with standard normal noise is the same as
    # to mix these with noise * std + mean. Both are measured when the VAE is finished; until then, per batch.
    axes = (0, 2, 3, 4)
    center, spread = mean.detach().mean(axes, keepdim=True), mean.detach().std(axes, keepdim=True)
    noise = torch.randn(mean.shape, generator=generator).to(mean) * spread + center

    output = vae.decode(interpolate(latent, noise, t), t)                                 # (B, 3, F, H, W)

    config, first = recipe.loss, None
    if foreground is not None:
        config = replace(config, foreground=foreground)
    if critics.discriminator is not None:
        first = (torch.rand(len(video), generator=generator) < 0.5).to(video.device)     # (B,), see losses.py
    loss, terms = vae_loss(video, output, (mean, logvar), config, critics, first)
    if critics.discriminator is not None:
        terms["discriminator"] = discriminator_loss(critics.discriminator, video, output, first)
    return loss, terms


# --- Stage 2: the transformer -----------------------------------------------------------------------------

@dataclass(frozen=True)
class FlowRecipe:
    """What a step of stage 2 needs to know."""

    caption_dropout: float = 0.1     # share of clips that train on the null caption, which guidance needs
    conditioned: float = 0.8         # share of clips that use their batch's condition; the others: strength 0
    soft: float = 0.25               # of those that use it, the share with a strength drawn from 0 to 1
    condition_noise: float = 0.0     # the rest of these: a strength from 1 minus this to 1, with its time
                                     # (the sampler's condition_noise keeps time 0)
    time_offset: float = 0.0         # added to the shift of the training times, see `flow.sample_t`
    token_drop: float = 0.0          # up to this share of a batch's tokens is left out (paper, section 2.4)


@dataclass(frozen=True)
class Batch:
    """What a step of stage 2 learns from; training/latents.py makes it from a cache of latents.

    The layouts take turns. Of ten batches of whole clips, five have no condition; in one each the first frame
    or first few latent frames, the last frames, or a single later frame (a keyframe) are given; two are
    images, clips of one frame, without condition.
    """

    latent: torch.Tensor                   # normalised, (B, C, f, h, w)
    captions: list                         # B strings
    fps: float                             # frames per second of the pixels
    condition: Condition | None = None     # what is given, with one latent for each clip


def draw_strength(count, recipe, generator):
    """How strongly each clip uses the condition, (B, 1, 1): mostly 1, kept, or 0, noised like the rest."""
    use, soft, strength = torch.rand(3, count, 1, 1, generator=generator)
    nearly_one = 1 - recipe.condition_noise * strength
    return torch.where(soft < recipe.soft, strength, nearly_one) * (use < recipe.conditioned)


def flow_objective(model, batch, recipe, generator, draw_t=None):
    """Noise every token to its own time, predict the velocity, compare where the token is not given.

    model has a `dit` and `embed(captions)`. draw_t, a function like `flow.sample_t`, replaces it. Returns the
    loss and, for plots of the error over time, t (B,) and the mean squared error of each sample (B,).
    """
    dit, latent, condition = model.dit, batch.latent, batch.condition
    B, N = len(latent), latent[0, 0].numel()
    dropped = torch.rand(B, generator=generator) < recipe.caption_dropout
    captions = ["" if drop else caption for caption, drop in zip(batch.captions, dropped)]
    t = draw_t(B, N, generator) if draw_t else sample_t(B, N, generator, recipe.time_offset)
    t, strength = t.to(latent), draw_strength(B, recipe, generator).to(latent)            # (B,), (B, 1, 1)

    # All tokens: what they show, which are given (1, else 0), where they are. In training the grid is the
    # clip itself, so it replaces the last N tokens; of the condition's latent only M extra tokens are used.
    clean, given, coordinates = layout_tokens([condition] if condition else [], latent, dit.config.stride,
                                              batch.fps, dit.config.causal_time)
    clean = torch.cat([clean[:, :-N], flatten_latent(latent)], dim=1)                     # (B, M+N, C)
    if recipe.token_drop:
        share = recipe.token_drop * torch.rand(1, generator=generator).item()
        keep = torch.randperm(clean.shape[1], generator=generator)[int(share * clean.shape[1]) :].sort()[0]
        clean, given, coordinates = clean[:, keep], given[:, keep], coordinates[:, keep]

    # The time of every token, and whether the sampler would move it at t: if t <= 1 - strength.
    times, moves = t[:, None], torch.ones_like(given)                                     # (B, 1), (1, N, 1)
    if condition:
        times, moves = token_times(expand_like(t, clean), given * strength)            # (B, M+N), (B, M+N, 1)

    noise = torch.randn(clean.shape, generator=generator).to(latent)
    noisy = interpolate(clean, noise, times[..., None])                                   # (B, M+N, C)
    v = dit.forward_tokens(noisy, times, coordinates, *model.embed(captions))             # (B, M+N, C)

    target, weight = velocity(clean, noise), moves.to(v)     # the others are not in the loss
    error = ((v - target).square() * weight).detach().mean((1, 2)) / weight.mean((1, 2))  # (B,)
    return flow_loss(v, target, weight), t, error
