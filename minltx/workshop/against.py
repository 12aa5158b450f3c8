"""minltx beside diffusers: the same weights, the same inputs, in the same process, in turn.

diffusers' networks are built from minltx's configs and take over the very tensors that minltx's hold, so 2 B
parameters are there once. Each is called as its users call it: minltx as its sampler does, diffusers as its
pipelines do.
"""

import torch

from minltx.pretrained import names
from minltx.pretrained.releases import dit_fields, vae_from_diffusers, vae_to_diffusers
from minltx.workshop import stopwatch
from minltx.workshop.bench_parts import DECODE_T, build_dit, build_vae, clip, noise, token_inputs


def import_diffusers():
    """The package. ValueError if it is not installed."""
    try:
        import diffusers
    except ImportError:
        raise ValueError("--against diffusers needs the optional package: pip install diffusers") from None
    return diffusers


def sharing(network, cls, fields, known):
    """A network of diffusers around the tensors of minltx's; known: minltx name -> name in diffusers."""
    with torch.device("meta"):
        twin = cls.from_config(fields)
    weights = {known[name]: tensor for name, tensor in network.state_dict().items()}
    twin.load_state_dict(weights, assign=True)          # strict: nothing is left out on either side
    return twin.eval().requires_grad_(False)


def dit_twin(dit, compiled=False):
    """DiT -> LTXVideoTransformer3DModel, its blocks compiled as its documentation recommends."""
    cls = import_diffusers().LTXVideoTransformer3DModel
    fields = {"patch_size": 1, "patch_size_t": 1, "qk_norm": "rms_norm_across_heads",
              **dit_fields(dit.config)}
    twin = sharing(dit, cls, fields, names.diffusers_dit_names(dit))
    if compiled and hasattr(twin, "compile_repeated_blocks"):
        twin.compile_repeated_blocks()
    elif compiled:
        for block in twin.transformer_blocks:
            block.compile()
    return twin


def vae_twin(vae, compiled=False):
    """VideoVAE -> AutoencoderKLLTXVideo; compiled block by block, for which it has no method of its own."""
    fields = vae_to_diffusers(vae.config)
    known = names.diffusers_vae_names(vae, vae_from_diffusers(fields)[1])
    twin = sharing(vae, import_diffusers().AutoencoderKLLTXVideo, fields, known)
    if compiled:
        for block in (*twin.encoder.down_blocks, twin.encoder.mid_block,
                      *twin.decoder.up_blocks, twin.decoder.mid_block):
            block.compile()
    return twin


def dit_pair(setup):
    """One forward pass of both transformers, as two works that return (1, N, C)."""
    dit = build_dit(setup)
    twin, inputs = dit_twin(dit, setup.compiled), token_inputs(setup)
    tokens, t, where, text, mask = inputs

    def theirs():
        return twin(tokens, text, 1000 * t, mask, video_coords=where[None], return_dict=False)[0]

    return lambda: dit.forward_tokens(*inputs), theirs


def encode_pair(setup):
    """Both encoders, as two works that return the mean of the latents."""
    vae, video = build_vae(setup), clip(setup)
    twin = vae_twin(vae, setup.compiled)
    return lambda: vae.encode(video)[0], lambda: twin.encode(video).latent_dist.mean


def decode_pair(setup):
    """Both decoders, as two works that return the video."""
    vae = build_vae(setup)
    twin, t = vae_twin(vae, setup.compiled), torch.full((1,), DECODE_T, device=setup.device)
    latent = noise(setup, 1, *vae.latent_shape(*setup.preset.vae_size))
    return lambda: vae.decode(latent, t), lambda: twin.decode(latent, t).sample


PAIRS = {"dit": ("dit step", dit_pair), "encode": ("encode", encode_pair), "decode": ("decode", decode_pair)}


def difference(ours, theirs):
    """How far two outputs are apart at most: absolutely, and in standard deviations of theirs."""
    apart = (ours.float() - theirs.float()).abs().max().item()
    return {"largest_difference": apart, "relative_difference": apart / theirs.float().std().item()}


@torch.inference_mode()
def compare(pair, setup, repeats):
    """A pair of works -> both medians in seconds, the median of the pairwise ratios minltx / diffusers, all
    with quartiles, and how far the outputs are apart."""
    ours, theirs = pair
    # The first cosines of a process are now and then 1e-4 off on several threads (Intel's vector library).
    ours(), theirs()
    figures = difference(ours(), theirs())
    times = stopwatch.in_turn(ours, theirs, stopwatch.timer(setup.device), repeats)
    for name, numbers in (("minltx", times[0]), ("diffusers", times[1]),
                          ("ratio", [a / b for a, b in zip(*times, strict=True)])):
        figures[name], figures[f"{name}_quartiles"] = stopwatch.spread(numbers)
    return figures
