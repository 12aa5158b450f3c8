"""A released model that takes prompts as the toy takes captions: embedded before, or by T5 now."""

import torch
from torch import nn

from minltx import require
from minltx.command import pick_device
from minltx.pretrained.releases import NEGATIVE
from minltx.pretrained.t5 import encode_prompts, load_embeddings, load_t5
from minltx.pretrained.upsampler import load_upsampler
from minltx.pretrained.weights import load_pretrained, read_config


class PromptedVideo(nn.Module):
    """An LTXVideo and the embeddings of some prompts, the last of which is the negative one."""

    def __init__(self, model, prompts, text, mask):
        super().__init__()
        self.model, self.vae, self.prompts, self.text, self.mask = model, model.vae, prompts, text, mask

    def generate(self, prompts, seeds, **how):
        """Prompts and as many seeds -> video (B, 3, F, H, W); how: see `LTXVideo.generate`. Raises ValueError
        for a prompt without an embedding, and as that does."""
        for prompt in prompts:
            require.choice("the prompt", prompt, self.prompts)
        rows, null = [self.prompts.index(prompt) for prompt in prompts], [-1] * len(prompts)
        text, null_text = ((self.text[i], self.mask[i]) for i in (rows, null))
        return self.model.generate(text, null_text, seeds, **how)

    def sampling_defaults(self):
        """How the release samples, as plain values."""
        return self.model.sampling_defaults()


def load_prompted(weights, prompts, text=None, t5=None, negative=None, **how):
    """Released weights and the embeddings of these prompts -> PromptedVideo.

    text is a file written by `minltx.pretrained.t5`, or t5 a folder with T5 itself, which is removed from
    memory before the networks are loaded; negative is the prompt to steer away from (None: the released one).
    how: see `load_released`. Raises ValueError for missing or foreign files, and for prompts without an
    embedding.
    """
    if bool(text) == bool(t5):
        raise ValueError("released weights need the prompts' embeddings: --text FILE, written by "
                         "python -m minltx.pretrained.t5, or --t5 FOLDER")
    prompts = [*prompts, NEGATIVE if negative is None else negative]
    if text:
        load_embeddings(text, prompts)                # an unknown prompt is reported before the long load
    sampling = read_config(weights, how.get("release"))[0].sampling
    style = sampling.text_tokens, sampling.lowercase
    if text:
        embedded = load_embeddings(text, prompts, *style)[:2]
    else:
        t5 = load_t5(t5, how.get("dtype") or torch.float32, how.get("device", "cpu"))
        embedded, t5 = encode_prompts(prompts, *t5, *style), None
    model = load_released(weights, **how)
    width = model.config.dit.text_width
    if embedded[0].shape[2] != width:
        raise ValueError(f"the embeddings have width {embedded[0].shape[2]}, but the model reads {width}: "
                         "embed the prompts with the T5 that belongs to it")
    return PromptedVideo(model, prompts, *embedded)


def load_released(weights, upsampler=None, one_pass=False, offload=False, dtype=None, device="cpu",
                  release=None):
    """`load_pretrained`, with what the release needs to sample -> LTXVideo.

    upsampler is the latent upsampler of a release with two passes; one_pass: do with one. offload: the
    networks wait on the CPU, and only the one that computes is on the device. Raises ValueError for an
    upsampler that the release does not use or that belongs to another VAE.
    """
    device = pick_device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    place = "cpu" if offload else device
    model = load_pretrained(weights, dtype, place, release=release)
    if upsampler and model.config.sampling.second is None:
        raise ValueError("this release samples in one pass: leave out --upsampler, or give --release")
    if one_pass:
        model.use_one_pass()
    elif upsampler:
        model.upsampler = load_upsampler(upsampler, dtype, place)
        known, needed = model.upsampler.config.latent_channels, model.config.dit.latent_channels
        if known != needed or model.upsampler.config.stride != (1, 2, 2):
            raise ValueError(f"{upsampler} upsamples {known} channels by {model.upsampler.config.stride}: "
                             f"this release needs {needed} channels and (1, 2, 2)")
    model.offload = device if offload else None
    return model
