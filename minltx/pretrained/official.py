"""The configs in the header of an official single file (SPEC 9.6) as minltx configs, and back.

The VAE is translated block by block. A field with a value that minltx does not have is an error with the
field's name, never a guess. An absent field has the official code's default. Where that is another value than
the released models have, the field is required. `attention_bias` is not: the tensors show the biases.
"""

import json
from contextlib import suppress

from minltx.dit import DiTConfig
from minltx.flow import linear_quadratic_schedule
from minltx.pretrained import store
from minltx.pretrained.early import PlainVAEConfig
from minltx.pretrained.fields import Fields, between
from minltx.pretrained.releases import (RELEASES, ReleaseConfig, SamplingConfig, recipe, release_of,
                                        sampling_for)
from minltx.vae import VAEConfig


# --- The transformer --------------------------------------------------------------------------------------

def dit_config(fields, vae, causal_time):
    """A transformer's fields, which have the same names in both formats -> DiTConfig. Raises ValueError for
    values that minltx does not have."""
    fields.not_null("qk_norm", "standardization_norm", "norm_eps")          # without a norm, in both formats
    fields.must_be(
        _class_name=("Transformer3DModel", "LTXVideoTransformer3DModel"), activation_fn="gelu-approximate",
        qk_norm=("rms_norm", "rms_norm_across_heads"), standardization_norm="rms_norm", norm_eps=1e-6,
        norm_elementwise_affine=False, patch_size=1, patch_size_t=1, timestep_scale_multiplier=1000,
        attention_bias=True, attention_out_bias=True, positional_embedding_type="rope",
        double_self_attention=False, only_cross_attention=False)     # other fields: older classes, no effect
    heads, C = fields.count("num_attention_heads"), fields.count("in_channels")
    width, depth = heads * fields.count("attention_head_dim"), fields.count("num_layers")
    fields.must_be(out_channels=C, cross_attention_dim=width)
    if vae.latent_channels != C:
        raise ValueError(f"the transformer has {C} latent channels and the VAE {vae.latent_channels}")
    if width < 6 or width % 2 or width > 2**16 or depth > 1000:
        raise ValueError(f"{fields.where}: {depth} layers of width {width} cannot be built: RoPE needs pairs "
                         "of channels, at least 6, and no released model has 1,000 layers")
    reach = fields.listed("positional_embedding_max_pos", lambda x: between(x, 1e-9, 1e9),
                          "positive numbers", (20.0, 2048.0, 2048.0))
    if len(reach) != 3:
        raise ValueError(f"{fields.where}: positional_embedding_max_pos is {reach}, not one number per axis")
    theta = float(fields.number("positional_embedding_theta", 10000.0))
    return DiTConfig(C, width, depth, heads, fields.count("caption_channels"), vae.stride,
                     tuple(map(float, reach)), theta, causal_time)


def dit_fields(config):
    """DiTConfig -> the fields that both formats share."""
    return {"num_attention_heads": config.heads, "attention_head_dim": config.width // config.heads,
            "num_layers": config.depth, "in_channels": config.latent_channels,
            "out_channels": config.latent_channels, "cross_attention_dim": config.width,
            "caption_channels": config.text_width, "norm_eps": 1e-6, "norm_elementwise_affine": False,
            "activation_fn": "gelu-approximate"}


# What the official code takes for an absent field, where that is another model than the released ones.
ABSENT = {
    "the header's transformer": {
        "standardization_norm": "layer norm", "norm_eps": "1e-5", "activation_fn": "another activation",
        "qk_norm": "queries and keys without a norm", "timestep_scale_multiplier": "unscaled times",
        "positional_embedding_theta": "no RoPE", "positional_embedding_max_pos": "no RoPE"},
    "the header's vae": {
        "patch_size": "no patches", "norm_layer": "group norm", "latent_log_var": "a variance per channel",
        "use_quant_conv": "more convolutions"}}


def require_fields(fields):
    """Raises ValueError if a field is absent for which the official code has another default than minltx."""
    for name, means in ABSENT[fields.where].items():
        if name not in fields.values:
            raise ValueError(f"{fields.where} lacks the field {name!r}; without it the official code has "
                             f"{means}, which minltx has not")


# --- The VAE ----------------------------------------------------------------------------------------------

STRIDES = {"compress_time": (2, 1, 1), "compress_space": (1, 2, 2), "compress_all": (2, 2, 2)}


def listed_blocks(fields, names):
    """The block list under the first of `names` that is there, as [(name, Fields)]. Raises ValueError for
    anything else, and for more than 100 blocks."""
    known = [name for name in names if name in fields.values] or names
    blocks = fields.listed(known[0], lambda x: isinstance(x, (list, tuple)) and len(x) == 2
                           and isinstance(x[0], str), "blocks, pairs of a name and parameters")
    if len(blocks) > 100:
        raise ValueError(f"{fields.where}: {known[0]} has {len(blocks)} blocks, and no VAE has over 100")
    return [(name, Fields({"num_layers": p} if isinstance(p, int) else p, f"{fields.where}, block {name}"))
            for name, p in blocks]


def read_encoder(fields):
    """-> (base width, minltx blocks). Raises ValueError for an unknown kind of block."""
    base = width = fields.count("encoder_base_channels", 128)
    blocks = []
    for name, p in listed_blocks(fields, ("encoder_blocks", "blocks")):
        if name != "res_x" and name not in STRIDES:
            width *= p.count("multiplier", 2)
        if name.startswith("res_x"):
            p.must_be(inject_noise=False)
        if name == "res_x":
            blocks.append(("res", p.count("num_layers")))
        elif name == "res_x_y":
            blocks.append(("width", width))
        elif name.endswith("_res") and name[:-4] in STRIDES:
            blocks.append(("down", STRIDES[name[:-4]], width))
        elif name in STRIDES or name == "compress_all_x_y":
            blocks.append(("stride", STRIDES.get(name, (2, 2, 2)), width))
        else:
            raise ValueError(f"{p.where}: minltx does not know this kind of block")
    return base, tuple(blocks)


def read_decoder(fields):
    """-> (first width, minltx blocks). The list is written shallow to deep: the last block comes first.
    Raises ValueError for an unknown kind of block."""
    width, blocks = fields.count("decoder_base_channels", 128), []
    for name, p in listed_blocks(fields, ("decoder_blocks", "blocks")):
        if name == "res_x":
            blocks.append(("noisy" if p.flag("inject_noise") else "res", p.count("num_layers")))
        elif name == "res_x_y":
            p.must_be(inject_noise=False)
            blocks.append(("width", width))
            width *= p.count("multiplier", 2)
        elif name in STRIDES:
            if name != "compress_all":
                p.must_be(multiplier=1, residual=False)
            blocks.append(("up" if p.flag("residual") else "plain_up", STRIDES[name], width))
            width *= p.count("multiplier", 1)
        else:
            raise ValueError(f"{p.where}: minltx does not know this kind of block")
    return width, tuple(blocks[::-1])


FIXED = {"dims": 3, "in_channels": 3, "out_channels": 3, "norm_layer": "pixel_norm",
         "latent_log_var": "uniform", "use_quant_conv": False, "causal_decoder": False, "scaling_factor": 1.0}


def read_vae(values):
    """The "vae" object of a header -> VAEConfig. Raises ValueError for values that minltx does not have."""
    fields = Fields(values, "the header's vae")
    fields.must_be(_class_name="CausalVideoAutoencoder", spatial_padding_mode="zeros",
                   normalize_latent_channels=False, **FIXED)
    require_fields(fields)
    kind = VAEConfig if fields.flag("timestep_conditioning") else PlainVAEConfig
    return kind(fields.count("latent_channels"), fields.count("patch_size", 4), *read_encoder(fields),
                *read_decoder(fields))


def written_blocks(blocks, width):
    """minltx blocks from this width on -> the official list in the same order, and the last width."""
    written, names = [], {stride: name for name, stride in STRIDES.items()}
    for kind, *arguments in blocks:
        if kind in ("res", "noisy"):
            written.append(["res_x", {"num_layers": arguments[0], "inject_noise": kind == "noisy"}])
            continue
        *stride, outputs = arguments
        name = names.get(*stride) if stride else "res_x_y"
        end = {"down": "_res", "stride": "" if outputs == width else "_x_y"}.get(kind, "")
        residual = {"residual": kind == "up"} if kind in ("up", "plain_up") else {}
        factor = max(width, outputs) // min(width, outputs)
        written.append([f"{name}{end}", {"multiplier": factor, **residual}])
        width = outputs
    return written, width


def vae_object(config):
    """VAEConfig -> the "vae" object. Raises ValueError if it would be read back as another VAE."""
    encoder, _ = written_blocks(config.encoder_blocks, config.encoder_width)
    decoder, last_width = written_blocks(config.decoder_blocks, config.decoder_width)
    values = {"_class_name": "CausalVideoAutoencoder", **FIXED, "latent_channels": config.latent_channels,
              "encoder_blocks": encoder, "decoder_blocks": decoder[::-1],
              "encoder_base_channels": config.encoder_width, "decoder_base_channels": last_width,
              "patch_size": config.patch, "timestep_conditioning": not isinstance(config, PlainVAEConfig)}
    with suppress(ValueError):
        if read_vae(values) == config:
            return values
    raise ValueError("the official format cannot express this VAE: its widths change by whole factors, "
                     f"and its strides are {', '.join(map(str, STRIDES.values()))}")


# --- The whole header -------------------------------------------------------------------------------------

def read_header(path, release=None):
    """The header of an official file -> ReleaseConfig. release, a name in RELEASES, says which release's way
    to sample it has; for a file without a header, also what it is. Raises ValueError for a broken or foreign
    file, for one that does not say what it is, and for values that minltx does not have."""
    header = store.metadata(path)
    if "config" not in header and release is not None:
        return RELEASES[release]
    if "config" not in header:
        raise ValueError(f"{path} does not say what it is (its header has no config): name its "
                         f"release (--release, release=), one of {', '.join(RELEASES)}")
    own = header.get("minltx")
    header = Fields(store.parse_json(header["config"], f"the config in the header of {path}"), "the header")
    vae = read_vae(header.get("vae"))
    transformer = Fields(header.get("transformer"), "the header's transformer")
    require_fields(transformer)
    dit = dit_config(transformer, vae, transformer.flag("causal_temporal_positioning"))
    known = read_schedule(header)
    if own is not None and release is None:
        own = store.parse_json(own, "the header's minltx")
        return ReleaseConfig(dit, vae, SamplingConfig.restored(own, "the header's minltx"))
    release = release or release_of(path, dit, vae, distilled="times" in known)
    return ReleaseConfig(dit, vae, (recipe(release, dit, vae, **known) if release else
                                    sampling_for(dit, vae, **known)))


def read_schedule(header):
    """What a header says about the times: fields of `SamplingConfig`. Raises ValueError for a scheduler that
    minltx does not have."""
    scheduler = Fields(header.get("scheduler"), "the header's scheduler")
    scheduler.must_be(_class_name="RectifiedFlowScheduler", sampler=("Uniform", "LinearQuadratic"),
                      shifting="SD3", num_train_timesteps=1000)
    quadratic = scheduler.get("sampler", "Uniform") == "LinearQuadratic"
    known = {"schedule": "linear_quadratic" if quadratic else "uniform",
             "shifted": scheduler.get("shifting", None) is not None,
             "terminal": scheduler.get("target_shift_terminal", None)}
    if header.get("allowed_inference_steps", ()):
        times = header.listed("allowed_inference_steps", lambda t: between(t, 1e-6, 1), "times", ())
        known |= {"times": unrounded(times), "steps": len(times)}
    return known


def unrounded(times):
    """Allowed times, which a header has with 4 digits -> the times of the schedule that they were rounded
    from, as the official sampler computes them; the list itself if they are from no schedule (SPEC 4.5)."""
    schedule = linear_quadratic_schedule(len(times)).tolist()[:-1]
    return tuple(schedule) if [round(t, 4) for t in schedule] == list(times) else times


def header_of(config):
    """ReleaseConfig -> the header's strings. What the format cannot express about sampling is in "minltx".

    Every field is written for which the official classes have another default (SPEC 9.6).
    """
    s = config.sampling
    header = {
        "transformer": {"_class_name": "Transformer3DModel", "qk_norm": "rms_norm",
                        "standardization_norm": "rms_norm", "attention_bias": True,
                        "positional_embedding_type": "rope", "positional_embedding_theta": config.dit.theta,
                        "positional_embedding_max_pos": config.dit.max_position,
                        "timestep_scale_multiplier": 1000,
                        "causal_temporal_positioning": config.dit.causal_time, **dit_fields(config.dit)},
        "vae": vae_object(config.vae),
        "scheduler": {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000,
                      "sampler": "LinearQuadratic" if s.schedule == "linear_quadratic" else "Uniform",
                      "shifting": "SD3" if s.shifted else None, "target_shift_terminal": s.terminal}}
    if s.times:
        allowed = {*s.times, *(s.second.times if s.second else ())}                       # of both passes
        header["allowed_inference_steps"] = [round(t, 4) for t in sorted(allowed, reverse=True)]
    return {"config": json.dumps(header), "minltx": json.dumps(s.stored())}
