"""The config in a checkpoint: read, and checked before a model of it is built.

A file may come from anybody. What it asks for has to be a model, and one that the file's own tensors fill.
"""

import math

import torch

from minltx.dit import DiTConfig
from minltx.toy.captions import SPECIAL, VOCABULARY, is_word
from minltx.toy.data import DataConfig
from minltx.vae import BLOCKS, VAEConfig

# Fields that configs of older files have, with the one value that means what the model does today.
RETIRED = {"shared_logvar": True, "fold": 1, "rope": "exponential", "qk_norm": "rms", "attention": "full",
           "timestep_conditioning": None}


def tuples(x):
    """Lists, at every level, as tuples: what a config had before it was stored."""
    return tuple(tuples(y) for y in x) if isinstance(x, (list, tuple)) else x


def configs_from(stored):
    """A checkpoint's plain dictionary -> DataConfig, VAEConfig, DiTConfig. Raises ValueError for a retired
    variant and for values that `check` refuses."""
    parts = []
    for name, cls in (("data", DataConfig), ("vae", VAEConfig), ("dit", DiTConfig)):
        fields = {k: tuples(v) for k, v in stored[name].items()}
        for key in RETIRED.keys() & fields.keys():
            value = fields.pop(key)
            if RETIRED[key] not in (None, value):
                raise ValueError(f"{key} = {value!r:.40} is a variant of the ablations, not of this model")
        parts.append(cls(**fields))
    check(*parts)
    return parts


def words_and_shapes(stored):
    """The vocabulary and the training's shapes in a checkpoint's plain dictionary, () in older files. Raises
    ValueError for a vocabulary that `captions.learn_words` cannot return, and for shapes without three sizes.
    """
    words, shapes = (tuples(stored.get(name, ())) for name in ("words", "shapes"))
    learned = isinstance(words, tuple) and all(isinstance(x, str) and is_word(x) for x in words[3:])
    if words and not (learned and words[:3] == SPECIAL and len(set(words)) == len(words) <= VOCABULARY):
        raise ValueError(f"words is {words!r:.60}, which is not a vocabulary")
    if not isinstance(shapes, tuple) or len(shapes) > 1000 or not all(triple(x, whole) for x in shapes):
        raise ValueError(f"shapes is {shapes!r:.60}, not (frames, height, width) of clips")
    return words, shapes


# --- What a config may hold -------------------------------------------------------------------------------

def whole(x, low=1, high=2**16):
    """Is x a whole number from low to high?"""
    return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def positive(x):
    """Is x a positive number, neither infinite nor NaN?"""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < 1e9


def triple(x, right):
    """Is x three values that are all right?"""
    return isinstance(x, tuple) and len(x) == 3 and all(map(right, x))


def is_block(block):
    """Is it a block of a VAE: ("res", n), ("width", C) or ("down", stride, C), with sensible numbers?"""
    if not isinstance(block, tuple) or len(block) not in (2, 3) or block[0] not in BLOCKS:
        return False
    return whole(block[-1]) and all(triple(stride, lambda n: whole(n, 1, 2)) for stride in block[1:-1])


def are_blocks(blocks):
    return isinstance(blocks, tuple) and all(map(is_block, blocks))


def check(data, vae, dit):
    """Raises ValueError, which names the first field of the three configs that is not as it has to be.

    What a network's own constructor refuses is left to it.
    """
    sides = data.size if isinstance(data.size, tuple) else (data.size, data.size)
    fit_vae = are_blocks(vae.encoder_blocks) and whole(vae.patch, 1, 64)
    rules = {
        (data, "frames"): whole(data.frames), (data, "digits"): whole(data.digits, 0, 6),
        (data, "size"): len(sides) == 2 and all(map(whole, sides)),
        (data, "digit_size"): whole(data.digit_size, 0), (data, "fps"): positive(data.fps),
        (data, "speed"): isinstance(data.speed, tuple) and len(data.speed) == 2 and all(
            map(positive, data.speed)),
        (vae, "latent_channels"): whole(vae.latent_channels), (vae, "patch"): whole(vae.patch, 1, 64),
        (vae, "encoder_width"): whole(vae.encoder_width), (vae, "decoder_width"): whole(vae.decoder_width),
        (vae, "encoder_blocks"): are_blocks(vae.encoder_blocks),
        (vae, "decoder_blocks"): are_blocks(vae.decoder_blocks),
        (dit, "latent_channels"): dit.latent_channels == vae.latent_channels,
        (dit, "width"): whole(dit.width, 6) and dit.width % 2 == 0, (dit, "depth"): whole(dit.depth),
        (dit, "heads"): whole(dit.heads) and whole(dit.width, 6) and dit.width % dit.heads == 0,
        (dit, "text_width"): whole(dit.text_width), (dit, "stride"): fit_vae and dit.stride == vae.stride,
        (dit, "max_position"): triple(dit.max_position, positive), (dit, "theta"): positive(dit.theta),
        (dit, "causal_time"): isinstance(dit.causal_time, bool)}
    for (config, name), right in rules.items():
        if not right:
            raise ValueError(f"{type(config).__name__}.{name} is {getattr(config, name)!r:.60}, which no "
                             "model can have")


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
