"""The config in a checkpoint: read, and checked before a model of it is built.

A file may come from anybody. What it asks for has to be a model, and one that the file's own tensors fill.
"""

import math

import torch

from minltx import require
from minltx.dit import DiTConfig
from minltx.toy.captions import SPECIAL, VOCABULARY, is_word
from minltx.toy.data import DataConfig
from minltx.vae import VAEConfig

# Fields that configs of older files have, with the one value that means what the model does today.
RETIRED = {"shared_logvar": True, "fold": 1, "rope": "exponential", "qk_norm": "rms", "attention": "full",
           "timestep_conditioning": None}


def tuples(x):
    """Lists, at every level, as tuples: what a config had before it was stored."""
    return tuple(tuples(y) for y in x) if isinstance(x, (list, tuple)) else x


def configs_from(stored):
    """A checkpoint's plain dictionary -> DataConfig, VAEConfig, DiTConfig. Raises ValueError for a retired
    variant, for values that no config can have, and for parts that do not fit."""
    parts = []
    for name, cls in (("data", DataConfig), ("vae", VAEConfig), ("dit", DiTConfig)):
        fields = {k: tuples(v) for k, v in stored[name].items()}
        for key in RETIRED.keys() & fields.keys():
            value = fields.pop(key)
            if RETIRED[key] not in (None, value):
                raise ValueError(f"{key} = {value!r:.40} is a variant of the ablations, not of this model")
        parts.append(cls(**fields))
    check_fit(*parts[1:])
    return parts


def words_and_shapes(stored):
    """The vocabulary and the training's shapes in a checkpoint's plain dictionary, () in older files. Raises
    ValueError for a vocabulary that `captions.learn_words` cannot return, and for shapes without three sizes.
    """
    words, shapes = (tuples(stored.get(name, ())) for name in ("words", "shapes"))
    learned = isinstance(words, tuple) and all(isinstance(x, str) and is_word(x) for x in words[3:])
    if words and not (learned and words[:3] == SPECIAL and len(set(words)) == len(words) <= VOCABULARY):
        raise ValueError(f"words is {words!r:.60}, which is not a vocabulary")
    if not isinstance(shapes, tuple) or len(shapes) > 1000:
        raise ValueError(f"shapes is {shapes!r:.60}, not (frames, height, width) of clips")
    for shape in shapes:
        require.row("one of shapes", shape, 3, require.whole, 1, 2**16)
    return words, shapes


# --- What fits together -----------------------------------------------------------------------------------

def check_fit(vae, dit):
    """Raises ValueError if the transformer's tokens are not the VAE's latents. The configs themselves check
    single values."""
    for name in ("latent_channels", "stride"):
        own, other = getattr(dit, name), getattr(vae, name)
        if own != other:
            raise ValueError(f"DiTConfig.{name} is {own!r:.60}, and the VAE's is {other!r:.60}")


def check_depth(vae, dit, tensors):
    """Raises ValueError if configs ask for more blocks than a file with so many tensors can fill."""
    blocks = dit.depth + sum(block[1] if len(block) == 2 and block[0] in ("res", "noisy") else 1
                             for block in vae.encoder_blocks + vae.decoder_blocks)
    if blocks > tensors:
        raise ValueError(f"its config asks for {blocks} blocks, and the file holds {tensors} tensors")


# --- The weights ------------------------------------------------------------------------------------------

def check_tensors(model, weights):
    """Raises ValueError unless weights (name -> tensor) are those of a model: names, shapes, finite numbers.

    The model may be on the meta device, where it takes no memory.
    """
    needed = model.state_dict()
    if weights.keys() != needed.keys():
        odd = sorted(map(str, weights.keys() ^ needed.keys()))
        raise ValueError(f"{odd[0]:.80} is {'missing' if odd[0] in needed else 'unknown'}")
    for name, x in weights.items():
        if not torch.is_tensor(x) or x.shape != needed[name].shape or (
                x.is_floating_point() != needed[name].is_floating_point()):
            raise ValueError(f"{name} is not {math.prod(needed[name].shape)} numbers of the shape "
                             f"{tuple(needed[name].shape)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
