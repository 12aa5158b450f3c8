"""A released model: both networks, and how to sample from them as the release does."""

import math
from dataclasses import replace

import torch
from torch import nn

from minltx.dit import DiT
from minltx.flow import schedule_from
from minltx.pretrained.early import build_vae
from minltx.pretrained.passes import first_size, generate
from minltx.pretrained.stg import FollowingGuidance, GuidanceOverTime
from minltx.sampler import Guidance, Sampling


class LTXVideo(nn.Module):
    """A released model: `dit` (a DiT), `vae` (a VideoVAE) and `config` (a ReleaseConfig).

    upsampler is the `LatentUpsampler` of a release that samples in two passes, or None. offload, a device,
    says that every network is on it only while it computes, and otherwise on the CPU.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.upsampler, self.offload = config, None, None
        self.dit, self.vae = DiT(config.dit), build_vae(config.vae)

    @property
    def tone_map(self):
        """How much the result's tones are compressed before it is decoded, 0 to 1."""
        c = self.config.sampling
        return (c.second or c).tone_map

    def use_one_pass(self):
        """From now on sample in one pass at full size, also a release that has two."""
        self.config = replace(self.config, sampling=self.config.sampling.one_pass())
        return self

    def schedule(self, steps=None, tokens=0):
        """The release's times (steps + 1,). Raises ValueError as `SamplingConfig.schedule_of` does."""
        return self.config.sampling.schedule_of(steps, tokens)

    def sampling(self, size=None, steps=None, guidance=None, stg=None, fps=None, change=None, **more):
        """How to sample a video of size (frames, height, width) in the first or only pass:
        `sampler.Sampling`; None means as released.

        guidance is the scale of classifier-free guidance, or a `Guidance`; stg the scale of spatio-temporal
        guidance. change, in [0, 1], is for video-to-video: start from that time (a distilled model: from its
        nearest own time). more: condition_noise, stochastic, decode_t, decode_noise, progress. Raises
        ValueError for a size that the VAE cannot encode, for steps that the release does not have, and for
        change outside [0, 1].
        """
        return self.sampling_by(self.config.sampling, size, steps, guidance, stg, change=change,
                                fps=self.config.sampling.fps if fps is None else fps, **more)

    def sampling_by(self, c, size, steps=None, guidance=None, stg=None, change=None, **more):
        """`sampling` by the SamplingConfig c."""
        schedule = c.schedule_of(steps, math.prod(self.vae.latent_shape(*(size or c.size))[1:]))
        if change is not None:
            change = min(c.times, key=lambda t: abs(t - change)) if c.times and change > 0 else change
            schedule = schedule_from(schedule, change)
        if not isinstance(guidance, Guidance):
            guidance = c.guidance.scaled(guidance, stg)
        elif stg is not None:
            guidance = replace(guidance, stg=stg)
        if hasattr(guidance, "of"):
            guidance = guidance.of(self.dit)
        if isinstance(guidance, GuidanceOverTime):
            guidance = FollowingGuidance(guidance, more.get("progress"))
            more["progress"] = guidance.follow
        for name in ("condition_noise", "stochastic", "decode_t", "decode_noise"):
            more[name] = getattr(c, name) if more.get(name) is None else more[name]
        return Sampling(schedule, guidance, **more)

    def passes(self, size, how, start=None):
        """The `Sampling` of every pass, one or two. Raises ValueError if a release of two passes has no
        upsampler, and for video-to-video in two passes."""
        c = self.config.sampling
        how = how if start is not None else {**how, "change": None}
        first = self.sampling(size, **how)
        if c.second is None:
            return [first]
        if self.upsampler is None:
            raise ValueError("this release samples in two passes: load its latent upsampler too "
                             "(--upsampler), or ask for one pass (--one-pass)")
        if start is not None:
            raise ValueError("video-to-video is one pass: add --one-pass (one_pass=True)")
        small = first_size(size, self.vae.config.stride)
        large = (small[0], 2 * small[1], 2 * small[2])
        rest = {k: v for k, v in how.items() if k not in ("steps", "change", "fps")}
        return [self.sampling(small, **how), self.sampling_by(c.second, large, fps=first.fps, **rest)]

    def sampling_defaults(self):
        """How the release samples, as plain values: what `save_pretrained` stores."""
        return self.config.sampling.stored()

    @torch.no_grad()
    def generate(self, text, null_text=None, seeds=(0,), size=None, conditions=(), start=None, **how):
        """text = (B or 1, L, text width), mask (B or 1, L), and B seeds -> (B, 3, F, H, W), on the CPU.

        null_text, the negative prompt's pair, is needed for guidance above 1. size is (frames, height,
        width). conditions are (video (1 or B, 3, F', H, W), frame where it starts, strength), resized to the
        video; start is a video to change, noised to the time `change`. how: see `sampling`; of two passes,
        steps are those of the first, and guidance and stg hold in both. Raises ValueError for illegal sizes,
        steps and conditions.
        """
        size = size or self.config.sampling.size
        passes = self.passes(size, how, start)
        if null_text is None and any(sampling.guidance.cfg > 1 for sampling in passes):
            raise ValueError("guidance needs null_text, the embedding of the negative prompt: give it, "
                             "or set cfg to 1")
        device = self.offload or self.dit.proj_out.weight.device

        def for_each_seed(x):
            return x.to(device, self.dit.proj_out.weight.dtype).expand(len(seeds), *x.shape[1:])

        pairs = [None if pair is None else tuple(map(for_each_seed, pair)) for pair in (text, null_text)]
        return generate(self, *pairs, seeds, size, passes, conditions, start).float().cpu()
