"""The toy: VAE, transformer and caption encoder in one module, and the one file that stores it."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from minltx import require
from minltx.dit import DiT, DiTConfig
from minltx.files import read_torch, write_torch
from minltx.flow import schedule_from, shifted_schedule
from minltx.sampler import Guidance, Sampling, generate
from minltx.toy.captions import (WORDS, CaptionEncoder, StoredText, caption_warnings, most_words,
                                 motion_alone, tokenize)
from minltx.toy.data import DataConfig
from minltx.toy.stored import check_depth, check_tensors, configs_from, words_and_shapes
from minltx.vae import VAEConfig, VideoVAE

FORMAT = "minltx-1"
STEPS = 20                  # of the sampler, if none are asked for
NEGATIVES = ("nothing", "motion")
SHIPPED = Path(__file__).with_name("toy.pt")


@dataclass(frozen=True)
class ModelConfig:
    """The whole toy: its clips and both networks; the caption encoder is as wide as dit.text_width.

    For a folder of clips, data.digits is 0 and data.size may be (height, width). With stored_text there is no
    caption encoder: captions were embedded before, see `StoredText`. words: the vocabulary, () for that of
    the digits. shapes: every (frames, height, width) in training, () for that of the data alone. negative:
    what guidance steers away from: nothing, the null caption, or motion, see `ToyModel.negative`. guidance
    and stochastic are how the model samples unless asked otherwise: the scale, and whether each step adds
    fresh noise, see `sampler.euler`. Raises ValueError for values that these three cannot have."""

    data: DataConfig
    vae: VAEConfig
    dit: DiTConfig
    stored_text: bool = False
    words: tuple = ()
    shapes: tuple = ()
    negative: str = "nothing"
    guidance: float = 3.0
    stochastic: bool = False

    def __post_init__(self):
        require.choice("negative", self.negative, NEGATIVES)
        require.number("guidance", self.guidance, 0, 100)
        require.require(isinstance(self.stochastic, bool), "stochastic", self.stochastic, "True or False")


class ToyModel(nn.Module):
    """The VAE, the transformer and its caption encoder."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vae = VideoVAE(config.vae)
        self.dit = DiT(config.dit)
        self.words = list(config.words) or WORDS
        self.text = (StoredText() if config.stored_text else
                     CaptionEncoder(config.dit.text_width, words=self.words))

    def embed(self, captions):
        """Captions -> (B, L, text width), mask (B, L). Raises ValueError for unknown words."""
        device = self.dit.scale_shift_table.device
        if self.config.stored_text:
            return self.text(captions, device)
        ids, mask = (x.to(device) for x in tokenize(captions, self.words))
        return self.text(ids, mask), mask

    def negative(self, captions):
        """What guidance compares each caption with: a list of as many captions.

        Guidance goes from what this caption stands for towards, and past, what the whole caption stands for.
        With the null caption everything is exaggerated, speed too. With the caption's motion alone, such as
        "a _ _ moving left", which was in training, the difference is what the clip shows, and motion stays as
        it was learned.
        """
        if self.config.negative == "motion":
            return [motion_alone(caption) for caption in captions]
        return [""] * len(captions)

    def check(self, captions):
        """Raises ValueError if there is no caption, or one has a word that the digits' vocabulary has not, or
        more digits than a clip of the training had."""
        require.require(captions and not isinstance(captions, str), "captions", captions, "a list of texts")
        if self.config.stored_text:
            return [self.text.check(caption) for caption in captions]
        tokenize(captions, self.words)
        most = self.config.data.digits
        for text in captions:
            if most and sum(word.strip(",.").isdigit() for word in text.split()) > most:
                raise ValueError(f"{text!r} names more than {most} digit{'s' * (most > 1)}, "
                                 f"but this model was trained with {most} per clip: "
                                 "use fewer, or a --checkpoint trained with more")

    def warnings(self, captions, size, fps=None):
        """What of a request was not in training, one line each: such videos are often wrong.

        size: (frames, height, width). A picture, of one frame, was in training in every size of a clip."""
        shapes = self.config.shapes or (self.config.data.clip_shape,)
        known, lines = {*shapes, *((1, *shape[1:]) for shape in shapes)}, []
        if tuple(size) not in known:
            lines.append(f"{'x'.join(map(str, size))} (frames x height x width) was not in training: it had "
                         + ", ".join("x".join(map(str, shape)) for shape in shapes))
        if fps not in (None, self.config.data.fps):
            lines.append(f"{fps:g} frames per second were not in training: it had {self.config.data.fps:g}")
        for caption in captions if not self.config.stored_text else ():
            lines += caption_warnings(caption, self.words, still=size[0] == 1)
        return lines

    def sampling(self, size=None, steps=None, guidance=None, fps=None, change=None, stochastic=None, **more):
        """How this model samples a video of size (frames, height, width): `sampler.Sampling`.

        None means the model's default. change, in (0, 1], is for video-to-video: start from that time. more:
        other fields of Sampling. Raises ValueError for sizes that the VAE cannot encode, for less than one
        step, and for change outside [0, 1].
        """
        tokens = math.prod(self.vae.latent_shape(*(size or self.config.data.clip_shape))[1:])
        schedule = shifted_schedule(STEPS if steps is None else steps, tokens)
        if change is not None:
            schedule = schedule_from(schedule, change)
        return Sampling(schedule, Guidance(self.config.guidance if guidance is None else guidance),
                        self.config.data.fps if fps is None else fps,
                        stochastic=self.config.stochastic if stochastic is None else stochastic, **more)

    def sampling_defaults(self):
        """How this model samples by default, as plain values: for a script, or to be stored in another
        format. The names are those of `pretrained.releases.SamplingConfig`."""
        return {"schedule": "uniform", "shifted": True, "terminal": 0.1, "steps": STEPS,
                "guidance": {"cfg": self.config.guidance}, "stochastic": self.config.stochastic,
                "condition_noise": 0.0, "text_tokens": most_words(self.words),
                "size": self.config.data.clip_shape, "fps": self.config.data.fps}

    @torch.no_grad()
    def generate(self, captions, seeds, size=None, conditions=(), start=None, **how):
        """Captions and as many seeds -> video (B, 3, F, H, W) in [-1, 1], on the CPU.

        size (frames, height, width) defaults to the training clips'. conditions are (video (1 or B, 3, F', H,
        W), frame where it starts, strength). start (1 or B, 3, F, H, W) is a video to change, with
        change=0.7 for example. how: steps, guidance, fps and whatever else `sampling` takes. The same seed
        gives the same video, whatever else is in the batch. Raises ValueError for unknown words, for
        sizes that the VAE cannot encode, for another number of seeds, and as `sampler.generate` does.
        """
        self.check(captions)
        size = size or self.config.data.clip_shape
        null = self.embed(self.negative(captions))
        return generate(self, self.embed(captions), null, seeds, size, self.sampling(size, **how), conditions,
                        start).cpu()


def start_from(model, path):
    """Give a model all weights in another file ("shipped": of the shipped model), with the statistics of its
    latents. Raises ValueError if its networks or words are others, and as `load_checkpoint` does."""
    other = load_checkpoint(SHIPPED if path == "shipped" else path)[0].to(next(model.parameters()).device)
    for name in ("vae", "dit", "words"):
        if getattr(other.config, name) != getattr(model.config, name):
            what = {"vae": "autoencoder", "dit": "transformer", "words": "vocabulary"}[name]
            raise ValueError(f"the {what} in {path} is another one than this run's: start from a model that "
                             "was trained with the same networks and words")
    model.load_state_dict(other.state_dict())


def config_from(stored):
    """The ModelConfig in a checkpoint's plain dictionary. Raises ValueError for a config that cannot be."""
    text = stored.get("stored_text", False)
    if not isinstance(text, bool):
        raise ValueError(f"stored_text is {text!r:.60}, not true or false")
    return ModelConfig(*configs_from(stored), text, *words_and_shapes(stored),
                       **{name: stored[name] for name in ("negative", "guidance", "stochastic")
                          if name in stored})


def with_zero_conditioning(weights, stored, model):
    """Old files may hold a decoder without timestep conditioning: modulation by zeros computes the same."""
    if stored["vae"].get("timestep_conditioning", True):
        return weights
    own = model.state_dict()
    return {k: torch.zeros(v.shape) for k, v in own.items() if k.startswith("vae.decoder.")} | weights


def save_checkpoint(path, model, half=False, **extra):
    """Write model, config and `extra` (tensors and plain values, in lists and dictionaries) to one file.

    With `half` the weights are stored as float16, but for tensors with larger numbers than it has: half the
    size, for a finished model. The old file stays whole until the new one is complete and on the disk.
    """
    weights = {k: v.half() if half and v.abs().max() < 65504 else v for k, v in model.state_dict().items()}
    write_torch(path, {"format": FORMAT, "config": asdict(model.config), "model": weights, **extra})


def read_checkpoint(path):
    """path -> the file's dictionary: "config", "model" (the weights) and whatever else was saved.

    Only tensors and plain values are read, so a file from a stranger runs no code. Raises ValueError for a
    missing, foreign or damaged file.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name the file in it, such as {Path(path) / 'model.pt'}")
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}: train one with python train_tiny.py")
    try:
        stored = read_torch(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of minltx, or is damaged ({error}): name another "
                         "one, or copy it again") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of minltx ({FORMAT}): write one with train_tiny.py")
    return stored


def load_checkpoint(path):
    """path -> (ToyModel on the CPU in float32, the rest of the file as a dictionary).

    Nothing is built before config and weights are known to belong together. Raises ValueError for a missing,
    foreign or damaged file, a config that cannot be, and weights that do not fit it or are not finite.
    """
    stored = read_checkpoint(path)
    try:
        config, weights = stored.pop("config"), stored.pop("model")
        built = config_from(config)
        check_depth(built.vae, built.dit, len(weights))
        with torch.device("meta"):
            model = ToyModel(built)
        weights = with_zero_conditioning(weights, config, model)
        check_tensors(model, weights)
        model.load_state_dict({k: v.float().contiguous() for k, v in weights.items()}, assign=True)
    except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no model: its config is wrong, or its weights do not fit "
                         f"({str(error).splitlines()[0][:200]})") from None
    return model.eval(), stored
