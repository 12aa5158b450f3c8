"""The networks of diffusers around the weights of minltx's: the same tensors, the same inputs.

diffusers' networks are built from minltx's configs and share its tensors, so 2 B parameters are in memory
once. Each is called as its users call it: minltx as its sampler does, diffusers as its pipelines do.
"""

import torch

from minltx.pretrained.diffusers import read_vae, vae_fields
from minltx.pretrained.names import diffusers_dit_names, diffusers_vae_names
from minltx.pretrained.official import dit_fields

COMPARED = ("dit", "encode", "decode")


def import_diffusers():
    """The package. Raises ValueError if it is not installed."""
    try:
        import diffusers
    except ImportError:
        raise ValueError("--against diffusers needs the optional package: pip install diffusers") from None
    return diffusers


def sharing(network, cls, fields, known):
    """A network of diffusers around the tensors of minltx's; known: minltx name -> name in diffusers."""
    with torch.device("meta"):
        other = cls.from_config(fields)
    weights = {known[name]: tensor for name, tensor in network.state_dict().items()}
    other.load_state_dict(weights, assign=True)         # strict: both have the same tensors
    return other.eval().requires_grad_(False)


def theirs_of_dit(dit, compiled=False):
    """DiT -> LTXVideoTransformer3DModel, compiled block by block as its documentation recommends."""
    fields = {"patch_size": 1, "patch_size_t": 1, "qk_norm": "rms_norm_across_heads",
              **dit_fields(dit.config)}
    other = sharing(dit, import_diffusers().LTXVideoTransformer3DModel, fields, diffusers_dit_names(dit))
    for block in other.transformer_blocks if compiled else ():
        block.compile()
    return other


def theirs_of_vae(vae, compiled=False):
    """VideoVAE -> AutoencoderKLLTXVideo, compiled block by block like minltx's."""
    fields = vae_fields(vae.config)
    other = sharing(vae, import_diffusers().AutoencoderKLLTXVideo, fields,
                    diffusers_vae_names(vae, read_vae(fields)[1]))
    for part in (other.encoder, other.decoder) if compiled else ():
        for block in (*getattr(part, "down_blocks", ()), part.mid_block, *getattr(part, "up_blocks", ())):
            block.compile()
    return other


def theirs(name, part, compiled=False):
    """The same part by diffusers -> a function without arguments that returns what the part's work does.

    name is "dit", "encode" or "decode"; part is a `Part` with its network and inputs.
    """
    other = (theirs_of_dit if name == "dit" else theirs_of_vae)(part.network, compiled)
    if name == "encode":
        return lambda: other.encode(*part.inputs).latent_dist.mean
    if name == "decode":
        return lambda: other.decode(*part.inputs).sample
    tokens, t, coordinates, text, mask = part.inputs
    return lambda: other(tokens, text, 1000 * t, mask, video_coords=coordinates[None], return_dict=False)[0]
