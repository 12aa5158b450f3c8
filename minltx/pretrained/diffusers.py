"""The configs of a diffusers folder (SPEC 1.8, 9.4) as minltx configs, and back.

diffusers describes a VAE by stages, in several lists of equal length; minltx describes it block by block.
Absent fields have diffusers' defaults, which are 0.9.0's.
"""

from pathlib import Path

from minltx.dit import DiTConfig
from minltx.pretrained import store
from minltx.pretrained.early import PlainVAEConfig
from minltx.pretrained.fields import Fields, whole
from minltx.pretrained.official import dit_config, dit_fields
from minltx.pretrained.releases import ReleaseConfig, SamplingConfig, recipe, release_of, sampling_for
from minltx.vae import VAEConfig

DOWN_TYPES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
EARLY_STAGE, LATE_STAGE = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"       # before 0.9.5, and since


# --- The VAE, read ----------------------------------------------------------------------------------------

def layer_counts(f, name, length):
    """The field as a list of numbers of layers, which may be 0."""
    return f.listed(name, lambda x: whole(x) and x <= 1000 or x == 0 and x is not False, "numbers of layers",
                    (4, 3, 3, 3, 4), length)


def flags(f, name, default, length):
    """The field as a list of true and false."""
    return f.listed(name, lambda x: isinstance(x, bool), "true and false", default, length)


def read_encoder(f):
    """-> first width, blocks, and the name in diffusers of each."""
    widths = f.listed("block_out_channels", whole, "positive whole numbers", (128, 256, 512, 512))

    def types(length):
        return f.listed("down_block_types", lambda x: x in (LATE_STAGE, EARLY_STAGE),
                        f"{EARLY_STAGE} or {LATE_STAGE}", (EARLY_STAGE,) * 4, length)

    n = len(widths) - (types(1)[-1] == LATE_STAGE)                                         # stages
    downs = f.listed("downsample_type", lambda x: x == "conv" or isinstance(x, str) and x in DOWN_TYPES,
                     "conv, spatial, temporal or spatiotemporal", ("conv",) * 4, n)
    scaled = flags(f, "spatio_temporal_scaling", (True, True, True, False), n)
    layers, blocks, width = layer_counts(f, "layers_per_block", n + 1), {}, widths[0]
    for i, kind in enumerate(types(n)[:n]):
        outputs, stage = widths[min(i + 1, len(widths) - 1)], f"encoder.down_blocks.{i}"
        if layers[i]:
            blocks[stage] = ("res", layers[i])
        if scaled[i] and kind == LATE_STAGE and downs[i] in DOWN_TYPES:
            blocks[f"{stage}.downsamplers.0"] = ("down", DOWN_TYPES[downs[i]], outputs)
        elif scaled[i]:
            blocks[f"{stage}.downsamplers.0"] = ("stride", (2, 2, 2), width)
        if kind == EARLY_STAGE and outputs != width:
            blocks[f"{stage}.conv_out"] = ("width", outputs)
        width = outputs
    if layers[-1]:
        blocks["encoder.mid_block"] = ("res", layers[-1])
    return widths[0], tuple(blocks.values()), list(blocks)


def read_decoder(f):
    """The same for the decoder, whose lists are written shallow to deep. Raises ValueError for widths that a
    decoder of minltx cannot have."""
    widths = f.listed("decoder_block_out_channels", whole, "positive whole numbers", (128, 256, 512, 512))
    n = len(widths)                                                                        # stages
    factors = f.listed("upsample_factor", whole, "positive whole numbers", (1,) * 4, n)
    scaled = flags(f, "decoder_spatio_temporal_scaling", (True, True, True, False), n)
    shortcuts = flags(f, "upsample_residual", (False,) * 4, n)
    layers = layer_counts(f, "decoder_layers_per_block", n + 1)
    noisy = flags(f, "decoder_inject_noise", (False,) * 5, n + 1)
    groups = [("noisy" if noise else "res", count) for count, noise in zip(layers[::-1], noisy[::-1])]
    blocks, width = {"decoder.mid_block": groups[0]} if layers[-1] else {}, widths[-1]
    for i, (outputs, factor, up, shortcut, group) in enumerate(zip(
            widths[::-1], factors[::-1], scaled[::-1], shortcuts[::-1], groups[1:])):
        stage, inputs, outputs = f"decoder.up_blocks.{i}", width // factor, outputs // factor
        if inputs != outputs and (factor > 1 or f.flag("timestep_conditioning")):
            raise ValueError(f"{f.where}: decoder stage {i} narrows {inputs} to {outputs} channels besides "
                             "its upsampling, which a timestep-conditioned decoder cannot")
        if inputs != outputs:
            blocks[f"{stage}.conv_in"] = ("width", outputs)
        if up:
            blocks[f"{stage}.upsamplers.0"] = ("up" if shortcut else "plain_up", (2, 2, 2), outputs)
        if group[1]:
            blocks[stage] = group
        width = outputs
    return widths[-1], tuple(blocks.values()), list(blocks)


def read_vae(values):
    """vae/config.json -> VAEConfig, and minltx's name of every block -> the name in diffusers. Raises
    ValueError for fields and values that minltx does not have."""
    f = Fields(values, "vae/config.json")
    f.must_be(_class_name="AutoencoderKLLTXVideo", in_channels=3, out_channels=3, patch_size_t=1,
              encoder_causal=True, decoder_causal=False, scaling_factor=1.0, resnet_norm_eps=1e-6)
    *encoder, down = read_encoder(f)
    *decoder, up = read_decoder(f)
    names = {f"encoder.down_blocks.{i}": name for i, name in enumerate(down)}
    names |= {f"decoder.up_blocks.{i}": name for i, name in enumerate(up)}
    kind = VAEConfig if f.flag("timestep_conditioning") else PlainVAEConfig
    return kind(f.count("latent_channels", 128), f.count("patch_size", 4), *encoder, *decoder), names


# --- The VAE, written -------------------------------------------------------------------------------------

def stages_of(blocks, *kinds):
    """Cut a block list into stages: lists with at most one block (or None) of each kind, in this order.
    Raises ValueError for a block of another kind."""
    stages, last = [], len(kinds)
    for block in blocks:
        rank = next((i for i, words in enumerate(kinds) if block[0] in words), None)
        if rank is None:
            raise ValueError(f"diffusers cannot express the VAE block {block}")
        if rank <= last:
            stages.append([None] * len(kinds))
        stages[-1][rank], last = block, rank
    return stages


def encoder_fields(config):
    """An encoder's lists."""
    names = {stride: name for name, stride in DOWN_TYPES.items()}
    late = any(kind == "down" for kind, *_ in config.encoder_blocks)
    stages = stages_of(config.encoder_blocks, ("res",), ("down", "stride"), ("width",))
    mid = stages.pop()[0][1] if stages[-1][1:] == [None, None] else 0
    widths = [config.encoder_width]
    for _, down, width in stages:
        widths.append((width or down or widths)[-1])
    return {"block_out_channels": widths if late else widths[:-1],
            "down_block_types": [LATE_STAGE if late else EARLY_STAGE] * len(stages),
            "spatio_temporal_scaling": [down is not None for _, down, _ in stages],
            "downsample_type": [names.get(down[1], "?") if down and down[0] == "down" else "conv"
                                for _, down, _ in stages],
            "layers_per_block": [res[1] if res else 0 for res, _, _ in stages] + [mid]}


def decoder_fields(config):
    """A decoder's lists, shallow to deep. Raises ValueError for a decoder that diffusers cannot express."""
    blocks, nothing = config.decoder_blocks, ("res", 0)
    first = blocks[0] if blocks and blocks[0][0] in ("res", "noisy") else nothing
    stages = stages_of(blocks[1:] if first[1] else blocks, ("width",), ("up", "plain_up"), ("res", "noisy"))
    groups = [first] + [group or nothing for _, _, group in stages]
    if not isinstance(config, PlainVAEConfig) and nothing in groups:
        raise ValueError("diffusers gives every stage of a timestep-conditioned decoder a timestep embedder: "
                         "put residual blocks after every upsampling")
    inputs, widths, factors = config.decoder_width, [], []
    for width, up, _ in stages:
        inputs = width[-1] if width else inputs
        outputs = up[-1] if up else inputs
        factors.append(max(1, inputs // outputs))
        widths.append(outputs * factors[-1])
        inputs = outputs
    return {"decoder_block_out_channels": widths[::-1], "upsample_factor": factors[::-1],
            "decoder_spatio_temporal_scaling": [up is not None for _, up, _ in stages][::-1],
            "upsample_residual": [up is not None and up[0] == "up" for _, up, _ in stages][::-1],
            "decoder_layers_per_block": [n for _, n in groups][::-1],
            "decoder_inject_noise": [kind == "noisy" for kind, _ in groups][::-1]}


def vae_fields(config):
    """VAEConfig -> vae/config.json. Raises ValueError for a VAE that diffusers cannot express."""
    fields = {"_class_name": "AutoencoderKLLTXVideo", "in_channels": 3, "out_channels": 3,
              "latent_channels": config.latent_channels, "patch_size": config.patch, "patch_size_t": 1,
              **encoder_fields(config), **decoder_fields(config),
              "timestep_conditioning": not isinstance(config, PlainVAEConfig), "encoder_causal": True,
              "decoder_causal": False, "scaling_factor": 1.0, "spatial_compression_ratio": config.stride[1],
              "temporal_compression_ratio": config.stride[0]}
    if config.stride[1] != config.stride[2] or read_vae(fields)[0] != config:
        raise ValueError("diffusers cannot express this VAE: it upsamples by (2, 2, 2) only, and has "
                         "strided convolutions or shortcuts, not both")
    return fields


# --- The whole folder -------------------------------------------------------------------------------------

def read_folder(path, release=None):
    """The JSON files of a folder -> ReleaseConfig, and what the VAE's blocks are called there. release, a
    name in RELEASES, says which release's way to sample it has. Raises ValueError for files that are missing
    or broken, and for fields and values that minltx does not have."""
    for part in ("transformer", "vae", "scheduler"):
        if not (Path(path) / part).is_dir():
            raise ValueError(f"{path} has no folder {part}: "
                             "a diffusers folder holds transformer, vae and scheduler")
    vae, blocks = read_vae(store.read_json(path / "vae" / "config.json"))
    own = path / "minltx.json"
    own = Fields(store.read_json(own) if own.exists() else {}, "minltx.json")
    late = any(block[0] == "down" for block in vae.encoder_blocks)      # diffusers too decides by the VAE
    transformer = Fields(store.read_json(path / "transformer" / "config.json"), "transformer/config.json")
    dit = dit_config(transformer, vae, own.flag("causal_temporal_positioning", late))
    scheduler = Fields(store.read_json(path / "scheduler" / "scheduler_config.json"), "scheduler_config.json")
    scheduler.must_be(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000)
    if "sampling" in own.values and release is None:
        return ReleaseConfig(dit, vae, SamplingConfig.restored(own.get("sampling"), "minltx.json")), blocks
    release = release or release_of(path.resolve(), dit, vae)
    if release:
        return ReleaseConfig(dit, vae, recipe(release, dit, vae)), blocks
    known = {"stochastic": scheduler.flag("stochastic_sampling")}
    if not late:              # later pipelines have a list of their own, whatever the scheduler's file says
        known |= read_schedule(scheduler)
    return ReleaseConfig(dit, vae, sampling_for(dit, vae, **known)), blocks


def read_schedule(scheduler):
    """The schedule of 0.9.0 and 0.9.1: uniform, shifted by the number of tokens or not."""
    known = {"schedule": "uniform", "shifted": scheduler.flag("use_dynamic_shifting"),
             "terminal": scheduler.get("shift_terminal", None)}
    scheduler.must_be(use_karras_sigmas=False, use_beta_sigmas=False, use_exponential_sigmas=False,
                      invert_sigmas=False)
    if not known["shifted"]:
        scheduler.must_be(shift=1.0)
        return known
    scheduler.must_be(time_shift_type="exponential")
    line = [(scheduler.number(f"{end}_image_seq_len", tokens), scheduler.number(f"{end}_shift", mu))
            for end, tokens, mu in (("base", 256, 0.5), ("max", 4096, 1.15))]
    return known | {"shift_line": tuple(line)}


def folder_fields(config):
    """ReleaseConfig -> the contents of the folder's four JSON files, by path. Raises ValueError for a model
    that diffusers cannot express."""
    standard, s = DiTConfig(), config.sampling
    if (config.dit.theta, config.dit.max_position) != (standard.theta, standard.max_position):
        raise ValueError(f"diffusers fixes RoPE at theta {standard.theta:g} and {standard.max_position}; "
                         f"this model has {config.dit.theta:g} and {config.dit.max_position}: "
                         "save it as a .safetensors file")
    (low, mu_low), (high, mu_high) = s.shift_line
    return {
        "vae/config.json": vae_fields(config.vae),
        "transformer/config.json": {
            "_class_name": "LTXVideoTransformer3DModel", "patch_size": 1, "patch_size_t": 1,
            "qk_norm": "rms_norm_across_heads", **dit_fields(config.dit)},
        "scheduler/scheduler_config.json": {
            "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000,
            "use_dynamic_shifting": s.shifted, "base_shift": mu_low, "max_shift": mu_high,
            "base_image_seq_len": low, "max_image_seq_len": high, "shift_terminal": s.terminal,
            "stochastic_sampling": s.stochastic, "time_shift_type": "exponential"},
        "minltx.json": {"causal_temporal_positioning": config.dit.causal_time, "sampling": s.stored()}}
