"""A released model that takes prompts as the toy takes captions: embedded before, or by T5 now."""

from torch import nn

from minltx.pretrained.releases import NEGATIVE
from minltx.pretrained.t5 import encode_prompts, load_embeddings, load_t5
from minltx.pretrained.weights import load_pretrained


class PromptedVideo(nn.Module):
    """An LTXVideo and the embeddings of some prompts, the last of which is the negative one."""

    def __init__(self, model, prompts, text, mask):
        super().__init__()
        self.model, self.vae, self.prompts, self.text, self.mask = model, model.vae, prompts, text, mask

    def generate(self, prompts, seeds, **how):
        """Prompts and as many seeds -> video (B, 3, F, H, W); how: see `LTXVideo.generate`."""
        rows, null = [self.prompts.index(prompt) for prompt in prompts], [-1] * len(prompts)
        text, null_text = ((self.text[i], self.mask[i]) for i in (rows, null))
        return self.model.generate(text, null_text, seeds, **how)

    def sampling_defaults(self):
        """How the release samples, as plain values."""
        return self.model.sampling_defaults()


def load_prompted(weights, prompts, text=None, t5=None, negative=None, **how):
    """Released weights and the embeddings of these prompts -> PromptedVideo.

    text is a file written by `minltx.pretrained.t5`, or t5 a folder with T5 itself; negative is the prompt to
    steer away from (None: the released one). how: dtype, device and release, as in `load_pretrained`. Raises
    ValueError for missing or foreign files, and for prompts without an embedding.
    """
    if bool(text) == bool(t5):
        raise ValueError("released weights need the prompts' embeddings: --text FILE, written by "
                         "python -m minltx.pretrained.t5, or --t5 FOLDER")
    prompts = [*prompts, NEGATIVE if negative is None else negative]
    if text:
        load_embeddings(text, prompts)                # an unknown prompt is reported before the long load
    model = load_pretrained(weights, **how)
    style = model.config.sampling.text_tokens, model.config.sampling.lowercase
    if text:
        embedded = load_embeddings(text, prompts, *style)[:2]
    else:
        embedded = encode_prompts(prompts, *load_t5(t5), *style)
    if embedded[0].shape[2] != model.config.dit.text_width:
        raise ValueError(f"the embeddings have width {embedded[0].shape[2]}, but the model reads "
                         f"{model.config.dit.text_width}: embed the prompts with the T5 that belongs to it")
    return PromptedVideo(model, prompts, *embedded)
