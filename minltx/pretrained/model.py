"""A released model: both networks, and how to sample from them as the release does."""

import math
from dataclasses import replace

import torch
from torch import nn

from minltx.dit import DiT
from minltx.flow import linear_quadratic_schedule, schedule_from, shift_times
from minltx.pretrained.early import build_vae
from minltx.pretrained.stg import SpatioTemporalGuidance
from minltx.sampler import Guidance, Sampling, generate


class LTXVideo(nn.Module):
    """A released model: `dit` (a DiT), `vae` (a VideoVAE) and `config` (a ReleaseConfig)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dit, self.vae = DiT(config.dit), build_vae(config.vae)

    def schedule(self, steps=None, tokens=0):
        """The release's times (steps + 1,). A distilled model takes fewer steps by leaving out its last
        times. Raises ValueError if steps < 1, and if a distilled model is asked for more than it has."""
        c = self.config.sampling
        if c.times:
            if steps is not None and not 1 <= steps <= len(c.times):
                raise ValueError(f"this distilled model takes 1 to {len(c.times)} steps, not {steps}")
            return torch.tensor([*c.times[:steps], 0.0])
        steps = c.steps if steps is None else steps
        schedule = linear_quadratic_schedule(steps)                          # raises ValueError if steps < 1
        if c.schedule == "uniform":
            schedule = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if c.shifted:
            shifted = shift_times(schedule[:-1].double(), tokens, c.terminal, c.shift_line)
            schedule = torch.cat([shifted, schedule[-1:]])
        return schedule.float()

    def sampling(self, size=None, steps=None, guidance=None, stg=None, fps=None, change=None, **more):
        """How to sample a video of size (frames, height, width): `sampler.Sampling`; None means as released.

        guidance is the scale of classifier-free guidance, or a `Guidance`; stg the scale of spatio-temporal
        guidance. change, in [0, 1], is for video-to-video: start from that time (a distilled model: from its
        nearest own time). more: condition_noise, stochastic, decode_t, decode_noise, progress.
        """
        c = self.config.sampling
        schedule = self.schedule(steps, math.prod(self.vae.latent_shape(*(size or c.size))[1:]))
        if change is not None:
            change = min(c.times, key=lambda t: abs(t - change)) if c.times and change > 0 else change
            schedule = schedule_from(schedule, change)
        if not isinstance(guidance, Guidance):
            guidance = c.guidance if guidance is None else replace(c.guidance, cfg=guidance)
        guidance = guidance if stg is None else replace(guidance, stg=stg)
        if isinstance(guidance, SpatioTemporalGuidance):
            guidance = guidance.of(self.dit)
        for name in ("condition_noise", "stochastic", "decode_t", "decode_noise"):
            more[name] = getattr(c, name) if more.get(name) is None else more[name]
        return Sampling(schedule, guidance, c.fps if fps is None else fps, **more)

    def sampling_defaults(self):
        """How the release samples, as plain values: what `save_pretrained` stores."""
        return self.config.sampling.stored()

    @torch.no_grad()
    def generate(self, text, null_text=None, seeds=(0,), size=None, conditions=(), start=None, **how):
        """text = (B or 1, L, text width), mask (B or 1, L), and B seeds -> (B, 3, F, H, W), on the CPU.

        null_text, the negative prompt's pair, is needed for guidance above 1. size is (frames, height,
        width). conditions are (video (1 or B, 3, F', H, W), frame where it starts, strength); start is a
        video to change, noised to the time `change`. how: see `sampling`. Raises ValueError for illegal
        sizes, steps and conditions.
        """
        size = size or self.config.sampling.size
        sampling = self.sampling(size, **(how if start is not None else {**how, "change": None}))
        if sampling.guidance.cfg > 1 and null_text is None:
            raise ValueError("guidance needs null_text, the embedding of the negative prompt: give it, "
                             "or set cfg to 1")

        def for_each_seed(x):
            return x.to(self.dit.proj_out.weight).expand(len(seeds), *x.shape[1:])

        pairs = [None if pair is None else tuple(map(for_each_seed, pair)) for pair in (text, null_text)]
        return generate(self, *pairs, seeds, size, sampling, conditions, start).float().cpu()
