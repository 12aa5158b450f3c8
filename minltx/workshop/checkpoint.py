"""One file that holds a model and all it takes to go on training, written whole, read without running
code."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from minltx.data import DataConfig
from minltx.dit import DiT, DiTConfig
from minltx.flow import schedule_from, shifted_schedule
from minltx.sampler import Guidance, generate
from minltx.text import CaptionEncoder, tokenize
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop.pictures import put_in_place

FORMAT = "minltx-1"
STEPS, GUIDANCE = 20, 3.0   # what the toy samples with unless told otherwise; docs/experiments.md says why
SHIPPED = Path(__file__).parents[1] / "assets" / "toy.pt"


@dataclass(frozen=True)
class ModelConfig:
    """All of a toy: what it saw and its two networks; the caption encoder is as wide as dit.text_width.

    Of a folder of clips, data.digits is 0 and data.size may be (height, width). With stored_text there is no
    caption encoder: captions were embedded before, see `StoredText`."""

    data: DataConfig
    vae: VAEConfig
    dit: DiTConfig
    stored_text: bool = False


def pixels(data):
    """What the clips of a DataConfig measure: (frames, height, width)."""
    return data.frames, *(data.size if isinstance(data.size, tuple) else (data.size, data.size))


class StoredText(nn.Module):
    """Captions that were embedded before, by T5: a table instead of an encoder, and no part of a
    checkpoint."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def read(self, path, width):
        """Take the embeddings in a file of minltx.pretrained.t5. ValueError if they are not `width` wide."""
        from minltx.pretrained.t5 import load_embeddings
        text, mask, captions = load_embeddings(path)
        if text.shape[2] != width:
            raise ValueError(f"{path} has embeddings of width {text.shape[2]}, and this transformer reads "
                             f"{width}: embed the captions with its own text encoder")
        self.rows = {c: pair for c, *pair in zip(captions, text.float(), mask.float(), strict=True)}

    def check(self, caption):
        """ValueError for a caption that was not embedded."""
        if caption not in self.rows:
            raise ValueError(f"the caption {caption!r} has no embedding: embed it too, with "
                             "python -m minltx.pretrained.t5")

    def forward(self, captions, device):
        """Captions -> (B, L, width), mask (B, L)."""
        for caption in captions:
            self.check(caption)
        return tuple(torch.stack(x).to(device) for x in zip(*(self.rows[caption] for caption in captions)))


class ToyModel(nn.Module):
    """The VAE, the transformer and its caption encoder under one roof."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vae = VideoVAE(config.vae)
        self.dit = DiT(config.dit)
        self.text = StoredText() if config.stored_text else CaptionEncoder(config.dit.text_width)

    def embed(self, captions):
        """Captions -> (B, L, text width), mask (B, L). ValueError for words the toy does not know."""
        device = self.dit.scale_shift_table.device
        if self.config.stored_text:
            return self.text(captions, device)
        ids, mask = (x.to(device) for x in tokenize(captions))
        return self.text(ids, mask), mask

    def check(self, captions):
        """ValueError if a caption has a word that the toy does not know, or more digits than its clips
        had."""
        if self.config.stored_text:
            return [self.text.check(caption) for caption in captions]
        tokenize(captions)
        most = self.config.data.digits
        for text in captions:
            if most and sum(word.strip(",.").isdigit() for word in text.split()) > most:
                raise ValueError(f"{text!r} names more than {most} digit{'s' * (most > 1)}, "
                                 f"and this model was trained on {most} to a clip: "
                                 "ask for fewer, or use a --checkpoint trained on more")

    @torch.no_grad()
    def generate(self, captions, seeds, frames=None, size=None, steps=STEPS, guidance=GUIDANCE,
                 conditions=(), start=None, change=1.0, fps=None, **more):
        """Captions and as many seeds -> video (B, 3, F, H, W) in [-1, 1], on the CPU.

        frames, size (height, width) and fps default to the training clips'. conditions are (video (1 or B, 3,
        F', H, W), frame where it starts, strength). start (1 or B, 3, F, H, W) is a video to change: it is
        made noisy to the time `change`, 1 leaving nothing of it. `more` goes to `sampler.generate`.
        ValueError for unknown words and for frames or sizes that the VAE cannot code. The same seed gives the
        same video, whatever else is in the batch.
        """
        self.check(captions)
        data = self.config.data
        size = (frames or data.frames, *(size or pixels(data)[1:]))
        schedule = shifted_schedule(steps, math.prod(self.vae.latent_shape(*size)[1:]))
        if start is not None:
            schedule = schedule_from(schedule, change)
        return generate(self.vae, self.dit, self.embed(captions), self.embed([""] * len(captions)), seeds,
                        size, schedule, Guidance(guidance), fps or data.fps, conditions, start, **more).cpu()


def tuples(x):
    """Lists, all the way down, as tuples: what a config had before it was stored."""
    return tuple(tuples(y) for y in x) if isinstance(x, (list, tuple)) else x


def config_from(stored):
    """The ModelConfig in a checkpoint's plain dictionary."""
    return ModelConfig(*(cls(**{k: tuples(v) for k, v in stored[name].items()})
                         for name, cls in (("data", DataConfig), ("vae", VAEConfig), ("dit", DiTConfig))),
                       stored_text=stored.get("stored_text", False))


def save_checkpoint(path, model, half=False, **extra):
    """Write model, config and `extra` (tensors and plain values, lists and dictionaries of them) to one file.

    With `half` the weights are stored as float16: half the size, for a model that is finished. The old file
    stays whole until the new one is complete and on the disk.
    """
    weights = {k: v.half() if half else v for k, v in model.state_dict().items()}
    stored = {"format": FORMAT, "config": asdict(model.config), "model": weights, **extra}
    put_in_place(path, lambda part: torch.save(stored, part))


def load_checkpoint(path):
    """path -> (ToyModel on the CPU in float32, the rest of the file as a dictionary).

    Only tensors and plain values are read (torch's weights_only), so a file from a stranger runs no code.
    ValueError with one sentence for a missing, foreign, broken or misshapen file.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}: train one with python train_tiny.py")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:    # a foreign file can fail in any way at all inside the reader
        kind = type(error).__name__
        raise ValueError(f"{path} is not a checkpoint of minltx, or is damaged ({kind})") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of minltx ({FORMAT}): write one with train_tiny.py")
    try:
        model = ToyModel(config_from(stored.pop("config")))
        model.load_state_dict({k: v.float() for k, v in stored.pop("model").items()})
    except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds weights that do not fit its config "
                         f"({str(error).splitlines()[0][:80]})") from None
    return model.eval(), stored
