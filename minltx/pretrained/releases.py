"""What the released 2 B checkpoints say about themselves, as minltx configs, and back.

Three languages describe one model: minltx's dataclasses, the JSON in the header of an official single file
(SPEC 9.6), and the config.json files of a diffusers folder (SPEC 1.8). The VAE's is translated block by
block. What a file says and minltx cannot do is an error with the field's name, never a guess.
"""

from dataclasses import dataclass, replace

from minltx.dit import DiTConfig
from minltx.flow import SHIFT
from minltx.sampler import Guidance
from minltx.vae import VAEConfig

NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclass(frozen=True)
class SamplingConfig:
    """How a release samples (SPEC 4, 5.3). `schedule` is "uniform" or "linear_quadratic", then `shifted` by
    the number of tokens (along `shift_line`) or not, and stretched to `terminal` if it is (None: not).
    `times` is a distilled model's fixed list, instead of all that. size is (frames, height, width) in pixels.
    ValueError for nonsense."""

    schedule: str = "linear_quadratic"
    shifted: bool = False
    shift_line: tuple = SHIFT
    terminal: float | None = None
    times: tuple = ()
    steps: int = 40
    guidance: Guidance = Guidance(cfg=3.0, stg=1.0, stg_blocks=(19,), rescale=0.7)
    stochastic: bool = False
    condition_noise: float = 0.15
    decode_t: float = 0.05
    decode_noise: float = 0.025
    text_tokens: int = 256
    lowercase: bool = False
    size: tuple = (121, 704, 1216)
    fps: float = 30.0

    def __post_init__(self):
        wrong = [name for name, right in (
            ("schedule", self.schedule in ("uniform", "linear_quadratic")),
            ("shift_line", all(between(x, -1e6, 1e6) for point in self.shift_line for x in point) and
             len(self.shift_line) == 2 and self.shift_line[0][0] < self.shift_line[1][0]),
            ("terminal", self.terminal is None or between(self.terminal, 0, 1)),
            ("times", all(between(t, 1e-6, 1) for t in self.times) and
             list(self.times) == sorted(set(self.times), reverse=True)),
            ("steps", whole(self.steps)), ("text_tokens", whole(self.text_tokens)),
            ("size", len(self.size) == 3 and all(map(whole, self.size))),
            ("fps", between(self.fps, 1e-6, 1e6)), ("condition_noise", between(self.condition_noise, 0, 1)),
            ("decode_t", between(self.decode_t, 0, 1)), ("decode_noise", between(self.decode_noise, 0, 1)),
        ) if not right]
        if wrong:
            raise ValueError(f"{wrong[0]} is {getattr(self, wrong[0])!r}, which is no way to sample")


def whole(x):
    """Is x a whole number from 1 on, and not absurd?"""
    return isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= 2**20


def between(x, low, high):
    """Is x a number from low to high? (NaN is in no range.)"""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and low <= x <= high


@dataclass(frozen=True)
class ReleaseConfig:
    """A whole release: both networks and how to sample from them."""

    dit: DiTConfig
    vae: VAEConfig
    sampling: SamplingConfig


VAE_090 = VAEConfig(
    encoder_blocks=(("res", 4), ("stride", (2, 2, 2), 128), ("width", 256), ("res", 3),
                    ("stride", (2, 2, 2), 256), ("width", 512), ("res", 3), ("stride", (2, 2, 2), 512),
                    ("res", 3), ("res", 4)),
    decoder_width=512,
    decoder_blocks=(("res", 4), ("res", 3), ("plain_up", (2, 2, 2), 512), ("res", 3), ("width", 256),
                    ("plain_up", (2, 2, 2), 256), ("res", 3), ("width", 128), ("plain_up", (2, 2, 2), 128),
                    ("res", 4)),
    timestep_conditioning=False)
VAE_091 = replace(
    VAE_090, decoder_width=1024, timestep_conditioning=True,
    decoder_blocks=(("res", 8), ("up", (2, 2, 2), 512), ("noisy", 7), ("up", (2, 2, 2), 256), ("noisy", 6),
                    ("up", (2, 2, 2), 128), ("noisy", 5)))
VAE_095 = VAEConfig()

# Steps and guidance as in the official repository's present configs; text, size and fps as at the release.
EARLY = SamplingConfig(schedule="uniform", shifted=True, terminal=0.1, text_tokens=128, lowercase=True,
                       size=(121, 480, 704), fps=25.0)
DISTILLED = SamplingConfig(times=(1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219), steps=8,
                           guidance=Guidance(), stochastic=True)
RELEASES = {
    "0.9.0": ReleaseConfig(DiTConfig(causal_time=False), VAE_090,
                           replace(EARLY, condition_noise=0.0, decode_noise=0.0)),
    "0.9.1": ReleaseConfig(DiTConfig(causal_time=False), VAE_091, EARLY),
    "0.9.5": ReleaseConfig(DiTConfig(), VAE_095, SamplingConfig()),
    "0.9.6-dev": ReleaseConfig(DiTConfig(), VAE_095, SamplingConfig()),
    "0.9.6-distilled": ReleaseConfig(DiTConfig(), VAE_095, DISTILLED),
}


class Fields:
    """A dictionary from a file, read field by field: complaints name the file's part and the field. A field
    that is null counts as absent."""

    def __init__(self, values, where):
        if not isinstance(values, dict):
            raise ValueError(f"{where} is not an object with fields")
        self.values, self.where = {k: v for k, v in values.items() if v is not None}, where

    def get(self, name, *default):
        """The field, or the default where there is one."""
        if name not in self.values and not default:
            raise ValueError(f"{self.where} lacks the field {name!r}")
        return self.values.get(name, *default)

    def checked(self, name, right, kind, default):
        """The field, if right(value); `kind` says in words what it has to be."""
        value = self.get(name, *default)
        if value is not None and not right(value):
            raise ValueError(f"{self.where}: {name} is {value!r:.60}, which is no {kind}")
        return value

    def count(self, name, *default):
        """The field as a positive whole number."""
        return self.checked(name, whole, "positive whole number", default)

    def flag(self, name, default=False):
        """The field as true or false."""
        return self.checked(name, lambda x: isinstance(x, bool), "true or false", (default,))

    def number(self, name, *default):
        """The field as a positive number."""
        return self.checked(name, lambda x: between(x, 1e-9, 1e9), "positive number", default)

    def counts(self, name, default):
        """The field as a list of positive whole numbers."""
        return self.listed(name, whole, "list of positive whole numbers", default)

    def listed(self, name, right, kind, default):
        """The field as a list, not empty, of which every entry is right."""
        return tuple(self.checked(name, lambda x: isinstance(x, (list, tuple)) and len(x) > 0 and all(
            map(right, x)), kind, (default,)))

    def must_be(self, **expected):
        """Each field, where there is one, has to hold this value (or one of a tuple): minltx has no other."""
        for name, values in expected.items():
            values = values if isinstance(values, tuple) else (values,)
            if name in self.values and self.values[name] not in values:
                raise ValueError(f"{self.where}: {name} is {self.values[name]!r:.60}, and minltx only knows "
                                 f"{' or '.join(map(repr, values))}")


# --- The transformer --------------------------------------------------------------------------------------

def dit_config(fields, vae, causal_time):
    """A transformer's fields, official or of diffusers, which use the same names -> DiTConfig."""
    fields.must_be(
        _class_name=("Transformer3DModel", "LTXVideoTransformer3DModel"), activation_fn="gelu-approximate",
        qk_norm=("rms_norm", "rms_norm_across_heads"), standardization_norm="rms_norm", norm_eps=1e-6,
        norm_elementwise_affine=False, patch_size=1, patch_size_t=1, timestep_scale_multiplier=1000,
        attention_bias=True, attention_out_bias=True, positional_embedding_type="rope",
        double_self_attention=False, only_cross_attention=False)     # other fields: older classes, no effect
    heads, C = fields.count("num_attention_heads"), fields.count("in_channels")
    width, depth = heads * fields.count("attention_head_dim"), fields.count("num_layers")
    for name, expected in (("out_channels", C), ("cross_attention_dim", width)):
        if fields.get(name, expected) != expected:
            raise ValueError(f"{fields.where}: {name} is {fields.get(name)!r:.60}, "
                             f"and minltx needs {expected} here")
    if vae.latent_channels != C:
        raise ValueError(f"the transformer has {C} latent channels and the VAE {vae.latent_channels}")
    if width < 6 or width % 2 or width > 2**16 or depth > 1000:
        raise ValueError(f"{fields.where}: {depth} layers of width {width} cannot be built: RoPE turns pairs "
                         "of channels, from 6 on, and no released model has 1,000 layers")
    reach = fields.listed("positional_embedding_max_pos", lambda x: between(x, 1e-9, 1e9),
                          "list of positive numbers", (20.0, 2048.0, 2048.0))
    if len(reach) != 3:
        raise ValueError(f"{fields.where}: positional_embedding_max_pos is {reach}, not one number per axis")
    theta = float(fields.number("positional_embedding_theta", 10000.0))
    return DiTConfig(C, width, depth, heads, fields.count("caption_channels"), vae.stride,
                     tuple(map(float, reach)), theta, causal_time)


def dit_fields(config):
    """DiTConfig -> the fields that both languages share."""
    return {"num_attention_heads": config.heads, "attention_head_dim": config.width // config.heads,
            "num_layers": config.depth, "in_channels": config.latent_channels,
            "out_channels": config.latent_channels, "cross_attention_dim": config.width,
            "caption_channels": config.text_width, "norm_eps": 1e-6, "norm_elementwise_affine": False,
            "activation_fn": "gelu-approximate"}


# --- The VAE, official ------------------------------------------------------------------------------------

STRIDES = {"compress_time": (2, 1, 1), "compress_space": (1, 2, 2), "compress_all": (2, 2, 2)}


def official_blocks(fields, names):
    """The block list under the first of `names` that is there, as [(name, Fields)]."""
    blocks = next((fields.get(n) for n in names if n in fields.values), None)
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f"{fields.where} has no list of blocks {' or '.join(names)}")
    pairs = []
    for block in blocks:
        if not isinstance(block, (list, tuple)) or len(block) != 2:
            raise ValueError(f"{fields.where}: {block!r:.60} is not a block, "
                             "a pair of a name and its parameters")
        name, parameters = block
        if not isinstance(name, str):
            raise ValueError(f"{fields.where}: {name!r:.60} is not the name of a block")
        parameters = {"num_layers": parameters} if isinstance(parameters, int) else parameters
        pairs.append((name, Fields(parameters, f"{fields.where}, block {name}")))
    return pairs


def encoder_from_official(fields):
    """-> (base width, minltx blocks)."""
    base = width = fields.count("encoder_base_channels", 128)
    blocks = []
    for name, p in official_blocks(fields, ("encoder_blocks", "blocks")):
        if name == "res_x":
            p.must_be(inject_noise=False)
            blocks.append(("res", p.count("num_layers")))
            continue
        kind = next((k for k in STRIDES if name in (k, f"{k}_res", f"{k}_x_y")), None)
        width *= 1 if name in STRIDES else p.count("multiplier", 2)
        if name == "res_x_y":
            p.must_be(inject_noise=False)
            blocks.append(("width", width))
        elif kind and name.endswith("_res"):
            blocks.append(("down", STRIDES[kind], width))
        elif kind and (name == kind or name == "compress_all_x_y"):
            blocks.append(("stride", STRIDES[kind], width))
        else:
            raise ValueError(f"{p.where}: minltx does not know this kind of block")
    return base, tuple(blocks)


def decoder_from_official(fields):
    """-> (first width, minltx blocks). The list is written shallow to deep, and walked from its end."""
    listed = official_blocks(fields, ("decoder_blocks", "blocks"))
    width = fields.count("decoder_base_channels", 128)
    for name, p in listed:
        if name == "res_x_y":
            width *= p.count("multiplier", 2)
        elif name == "compress_all":
            width *= p.count("multiplier", 1)
    first, blocks = width, []
    for name, p in reversed(listed):
        if name == "res_x":
            blocks.append(("noisy" if p.flag("inject_noise") else "res", p.count("num_layers")))
        elif name == "res_x_y":
            p.must_be(inject_noise=False)
            width //= p.count("multiplier", 2)
            blocks.append(("width", width))
        elif name in STRIDES:
            if name == "compress_all":
                width //= p.count("multiplier", 1)
            else:
                p.must_be(multiplier=1, residual=False)
            blocks.append(("up" if p.flag("residual") else "plain_up", STRIDES[name], width))
        else:
            raise ValueError(f"{p.where}: minltx does not know this kind of block")
    return first, tuple(blocks)


def vae_from_official(values):
    """The "vae" object of an official header -> VAEConfig."""
    fields = Fields(values, "the header's vae")
    fields.must_be(_class_name="CausalVideoAutoencoder", dims=3, in_channels=3, out_channels=3,
                   causal_decoder=False, norm_layer="pixel_norm", latent_log_var="uniform",
                   use_quant_conv=False, scaling_factor=1.0, spatial_padding_mode="zeros",
                   normalize_latent_channels=False)
    encoder_width, encoder = encoder_from_official(fields)
    decoder_width, decoder = decoder_from_official(fields)
    return VAEConfig(fields.count("latent_channels"), fields.count("patch_size", 4), encoder_width, encoder,
                     decoder_width, decoder, fields.flag("timestep_conditioning"))


def whole_factor(a, b, block):
    if a % b:
        raise ValueError(f"the official format has no words for {block}: its widths are whole multiples")
    return a // b


def vae_to_official(config):
    """VAEConfig -> the "vae" object. ValueError for a block that the official format has no words for."""
    kinds = {stride: kind for kind, stride in STRIDES.items()}
    encoder, decoder, width = [], [], config.encoder_width
    for block in config.encoder_blocks:
        kind, outputs = block[0], block[-1]
        if kind == "res":
            encoder.append(["res_x", {"num_layers": block[1]}])
            continue
        times = whole_factor(outputs, width, block)
        if kind == "width":
            encoder.append(["res_x_y", {"multiplier": times}])
        elif kind == "down":
            encoder.append([kinds.get(block[1], "no") + "_res", {"multiplier": times}])
        elif kind == "stride" and times == 1:
            encoder.append([kinds.get(block[1], "no"), {}])
        elif kind == "stride" and block[1] == (2, 2, 2):
            encoder.append(["compress_all_x_y", {"multiplier": times}])
        else:
            raise ValueError(f"the official format has no words for {block} in an encoder")
        width = outputs
    width = config.decoder_width
    for block in config.decoder_blocks:
        kind, outputs = block[0], block[-1]
        if kind in ("res", "noisy"):
            decoder.append(["res_x", {"num_layers": block[1], "inject_noise": kind == "noisy"}])
            continue
        times = whole_factor(width, outputs, block)
        if kind == "width":
            decoder.append(["res_x_y", {"multiplier": times}])
        elif kind in ("up", "plain_up") and block[1] == (2, 2, 2):
            decoder.append(["compress_all", {"residual": kind == "up", "multiplier": times}])
        elif kind == "plain_up" and times == 1:
            decoder.append([kinds.get(block[1], "no"), {}])
        else:
            raise ValueError(f"the official format has no words for {block} in a decoder")
        width = outputs
    if any(name.startswith("no") for name, _ in encoder + decoder):
        raise ValueError("the official format has no words for a stride of this VAE: it knows (2, 1, 1), "
                         "(1, 2, 2) and (2, 2, 2)")
    return {"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
            "latent_channels": config.latent_channels, "encoder_blocks": encoder,
            "decoder_blocks": decoder[::-1], "encoder_base_channels": config.encoder_width,
            "decoder_base_channels": width, "patch_size": config.patch, "norm_layer": "pixel_norm",
            "latent_log_var": "uniform", "use_quant_conv": False, "causal_decoder": False,
            "scaling_factor": 1.0, "timestep_conditioning": config.timestep_conditioning}


# --- The VAE of diffusers ---------------------------------------------------------------------------------

DOWN_TYPES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
LATE = "LTXVideo095DownBlock3D"       # the down block of 0.9.5 and later; before it, LTXVideoDownBlock3D


def long_enough(where, side, count, **lists):
    for name, values in lists.items():
        if len(values) < count:
            raise ValueError(f"{where}: {name} has {len(values)} entries, fewer than the {count} "
                             f"that the {side} needs")


def layer_count(x):
    return x == 0 and not isinstance(x, bool) or whole(x) and x <= 1000


def is_flag(x):
    return isinstance(x, bool)


def encoder_from_diffusers(f):
    """-> (first width, blocks, the name in diffusers of every block)."""
    widths = f.counts("block_out_channels", (128, 256, 512, 512))
    layers = f.listed("layers_per_block", layer_count, "list of numbers of layers", (4, 3, 3, 3, 4))
    scaled = f.listed("spatio_temporal_scaling", is_flag, "list of true and false", (True, True, True, False))
    types = f.listed("down_block_types", lambda x: x in (LATE, "LTXVideoDownBlock3D"),
                     "list of LTXVideoDownBlock3D or LTXVideo095DownBlock3D", ("LTXVideoDownBlock3D",) * 4)
    downs = f.listed("downsample_type", lambda x: x == "conv" or isinstance(x, str) and x in DOWN_TYPES,
                     "list of conv, spatial, temporal or spatiotemporal", ("conv",) * 4)
    late = types[-1] == LATE
    stages = len(widths) - late
    long_enough(f.where, "encoder", stages, down_block_types=types, spatio_temporal_scaling=scaled,
                downsample_type=downs)
    long_enough(f.where, "encoder", stages + 1, layers_per_block=layers)
    blocks, names, width = [], [], widths[0]

    def add(block, name):
        blocks.append(block)
        names.append(name)

    for i in range(stages):
        outputs, stage = widths[min(i + 1, len(widths) - 1)], f"encoder.down_blocks.{i}"
        if layers[i]:
            add(("res", layers[i]), stage)
        if scaled[i] and types[i] == LATE and downs[i] in DOWN_TYPES:
            add(("down", DOWN_TYPES[downs[i]], outputs), f"{stage}.downsamplers.0")
        elif scaled[i]:
            add(("stride", (2, 2, 2), width), f"{stage}.downsamplers.0")
        if types[i] == "LTXVideoDownBlock3D" and outputs != width:
            add(("width", outputs), f"{stage}.conv_out")
        width = outputs
    if layers[-1]:
        add(("res", layers[-1]), "encoder.mid_block")
    return widths[0], tuple(blocks), names


def decoder_from_diffusers(f):
    """-> (first width, blocks, the name in diffusers of every block). Lists are written shallow to deep."""
    widths = f.counts("decoder_block_out_channels", (128, 256, 512, 512))
    layers = f.listed("decoder_layers_per_block", layer_count, "list of numbers of layers", (4, 3, 3, 3, 4))
    factors, stages = f.counts("upsample_factor", (1,) * 4), len(widths)
    scaled, residual, noisy = (
        f.listed(name, is_flag, "list of true and false", default) for name, default in (
            ("decoder_spatio_temporal_scaling", (True, True, True, False)),
            ("upsample_residual", (False,) * 4), ("decoder_inject_noise", (False,) * 5)))
    long_enough(f.where, "decoder", stages, decoder_spatio_temporal_scaling=scaled,
                upsample_residual=residual, upsample_factor=factors)
    long_enough(f.where, "decoder", stages + 1, decoder_layers_per_block=layers, decoder_inject_noise=noisy)
    widths, scaled, residual, factors, layers, noisy = (
        x[::-1] for x in (widths, scaled, residual, factors, layers, noisy))
    groups = [("noisy" if noise else "res", n) for n, noise in zip(layers, noisy)]
    blocks, names, width = [], [], widths[0]

    def add(block, name):
        blocks.append(block)
        names.append(name)

    if layers[0]:
        add(groups[0], "decoder.mid_block")
    for i in range(stages):
        stage, factor = f"decoder.up_blocks.{i}", factors[i]
        inputs, outputs = width // factor, widths[i] // factor
        if inputs != outputs and (factor > 1 or f.flag("timestep_conditioning")):
            raise ValueError(f"{f.where}: decoder stage {i} narrows {inputs} to {outputs} channels "
                             "beside its upsampling, which a decoder that is told t cannot")
        if inputs != outputs:
            add(("width", outputs), f"{stage}.conv_in")
        if scaled[i]:
            add(("up" if residual[i] else "plain_up", (2, 2, 2), outputs), f"{stage}.upsamplers.0")
        if layers[i + 1]:
            add(groups[i + 1], stage)
        width = outputs
    return widths[0], tuple(blocks), names


def vae_from_diffusers(values):
    """vae/config.json -> VAEConfig, and minltx's name of every block -> the name in diffusers.

    Absent fields have diffusers' defaults, which are 0.9.0's.
    """
    f = Fields(values, "vae/config.json")
    f.must_be(_class_name="AutoencoderKLLTXVideo", in_channels=3, out_channels=3, patch_size_t=1,
              encoder_causal=True, decoder_causal=False, scaling_factor=1.0, resnet_norm_eps=1e-6)
    encoder_width, encoder, down = encoder_from_diffusers(f)
    decoder_width, decoder, up = decoder_from_diffusers(f)
    names = {f"encoder.down_blocks.{i}": name for i, name in enumerate(down)}
    names |= {f"decoder.up_blocks.{i}": name for i, name in enumerate(up)}
    return VAEConfig(f.count("latent_channels", 128), f.count("patch_size", 4), encoder_width, encoder,
                     decoder_width, decoder, f.flag("timestep_conditioning")), names


def stages_of(blocks, order):
    """Cut a block list into stages, dictionaries with at most one block of each kind, in this order."""
    stages, last = [], len(order)
    for block in blocks:
        rank = next((i for i, kinds in enumerate(order) if block[0] in kinds), None)
        if rank is None:
            raise ValueError(f"diffusers has no words for the VAE block {block}")
        if rank <= last:
            stages.append({})
        stages[-1][order[rank][0]], last = block, rank
    return stages


def vae_to_diffusers(config):
    """VAEConfig -> vae/config.json. ValueError for a VAE that diffusers' classes cannot be."""
    encoder, decoder = config.encoder_blocks, config.decoder_blocks
    mid = encoder[-1][1] if encoder and encoder[-1][0] == "res" else 0
    late = any(block[0] == "down" for block in encoder)
    kinds = {stride: name for name, stride in DOWN_TYPES.items()}
    stages = stages_of(encoder[:-1] if mid else encoder, (("res",), ("down", "stride"), ("width",)))
    widths, downs = [config.encoder_width], []
    for stage in stages:
        changed = stage.get("width") or stage.get("down")
        widths.append(changed[-1] if changed else widths[-1])
        is_down = stage.get("down", ("",))[0] == "down"
        downs.append(kinds.get(stage["down"][1], "?") if is_down else "conv")
    first = decoder[0] if decoder and decoder[0][0] in ("res", "noisy") else ("res", 0)
    ups = stages_of(decoder[1:] if first[1] else decoder, (("width",), ("up", "plain_up"), ("res", "noisy")))
    groups = [first] + [stage.get("res", ("res", 0)) for stage in ups]
    if config.timestep_conditioning and not all(n for _, n in groups):
        raise ValueError("diffusers gives every stage of a decoder that is told t a time embedder: "
                         "put residual blocks behind every upsampling")
    width, up_widths, factors = config.decoder_width, [], []
    for stage in ups:
        width = stage["width"][-1] if "width" in stage else width
        outputs = stage["up"][-1] if "up" in stage else width
        factors.append(max(1, width // outputs))
        up_widths.append(outputs * factors[-1])
        width = outputs
    fields = {
        "_class_name": "AutoencoderKLLTXVideo", "in_channels": 3, "out_channels": 3,
        "latent_channels": config.latent_channels, "patch_size": config.patch, "patch_size_t": 1,
        "block_out_channels": widths if late else widths[:-1],
        "down_block_types": [LATE if late else "LTXVideoDownBlock3D"] * len(stages),
        "spatio_temporal_scaling": ["down" in stage for stage in stages], "downsample_type": downs,
        "layers_per_block": [stage.get("res", ("res", 0))[1] for stage in stages] + [mid],
        "decoder_block_out_channels": up_widths[::-1], "upsample_factor": factors[::-1],
        "decoder_spatio_temporal_scaling": ["up" in stage for stage in ups][::-1],
        "upsample_residual": [stage.get("up", ("",))[0] == "up" for stage in ups][::-1],
        "decoder_layers_per_block": [n for _, n in groups][::-1],
        "decoder_inject_noise": [name == "noisy" for name, _ in groups][::-1],
        "timestep_conditioning": config.timestep_conditioning, "encoder_causal": True,
        "decoder_causal": False, "scaling_factor": 1.0, "spatial_compression_ratio": config.stride[1],
        "temporal_compression_ratio": config.stride[0]}
    if config.stride[1] != config.stride[2] or vae_from_diffusers(fields)[0] != config:
        raise ValueError("diffusers has no words for this VAE: it upsamples by (2, 2, 2) only, and knows "
                         "strided convolutions or shortcuts, not both")
    return fields
