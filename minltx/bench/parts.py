"""What the benchmark measures: four configs with random weights, and the work of each part of the system.

A part is measured alone: its builder makes only the networks that it needs, on the device and in the dtype
in which they work. Every number of them is random, tables and norms too, so that nothing is trivially zero.
"""

import copy
import importlib.util
import math
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minltx import fast_gpu
from minltx.bench.flops import META, counted, t5_flops
from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.fast_cpu import accelerate
from minltx.flow import linear_quadratic_schedule
from minltx.layers import swap_class
from minltx.objectives import Batch, flow_objective
from minltx.rope import latent_coordinates
from minltx.sampler import Guidance, Sampling, generate
from minltx.toy.captions import CaptionEncoder, tokenize
from minltx.training.memory import on_meta
from minltx.training.settings import TOY
from minltx.vae import VAEConfig, VideoVAE
from minltx.video.files import save_video

CAPTION = "a red 3 moving right and a blue 7 moving up"     # the toy's longest kind
DECODE_T = 0.05


# --- Configs ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Preset:
    """Two networks, the size (frames, height, width) of the clip that each is measured on, the length of a
    caption, the fields of its T5 encoder (None: the toy's own encoder), frames per second, and the dtype."""

    dit: DiTConfig
    vae: VAEConfig
    dit_size: tuple
    vae_size: tuple
    words: int = 256
    t5: dict | None = None
    fps: float = 24.0
    dtype: str = "float32"


def quarter(blocks):
    """A VAE's block list with a quarter of all widths."""
    return tuple(block if block[0] == "res" else (*block[:-1], block[-1] // 4) for block in blocks)


FULL, CLIP = VAEConfig(), (121, 512, 768)
QUARTER = replace(FULL, encoder_width=FULL.encoder_width // 4, encoder_blocks=quarter(FULL.encoder_blocks),
                  decoder_width=FULL.decoder_width // 4, decoder_blocks=quarter(FULL.decoder_blocks))
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
SMALL_T5 = {**XXL, "d_ff": 2560, "num_layers": 2, "num_heads": 16, "vocab_size": 1024}
PRESETS = {
    # The toy with the released RoPE: diffusers has no other.
    "toy": Preset(DiTConfig(4, 128, 6, 4, 64, (4, 8, 8)), TOY.model.vae, (17, 32, 32), (17, 32, 32),
                  len(CAPTION.split()), fps=TOY.model.data.fps),
    "quarter": Preset(DiTConfig(width=512, depth=8, heads=8), QUARTER, (41, 512, 512), (17, 128, 192),
                      t5=SMALL_T5),
    "2b-small": Preset(DiTConfig(), FULL, (9, 128, 128), (1, 256, 256), 16, t5=SMALL_T5),
    "2b": Preset(DiTConfig(), FULL, CLIP, CLIP, t5=XXL, dtype="bfloat16")}


@dataclass(frozen=True)
class Setup:
    """Everything that a part needs to know: a preset, where and how it runs."""

    preset: Preset
    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    steps: int = 8
    guidance: float = 1.0
    compiled: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Part:
    """work(network) does it once and returns the result. traffic, in bytes: weights (in each step), inputs
    and outputs, each once. tokens and frames: how many it handles, or None. inputs are for diffusers.py."""

    name: str
    network: nn.Module
    work: object
    traffic: int
    tokens: int | None = None
    frames: int | None = None
    inputs: tuple = ()
    training: bool = False
    note: str = ""


# --- Networks and inputs ----------------------------------------------------------------------------------

def randomise(network):
    """Every parameter and statistic random: matrices by fan-in, norms around 1, the rest around 0."""
    with torch.no_grad():
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            x.normal_(std=0.3 if "table" in name or x.ndim < 2 else 1 / math.sqrt(x[0].numel()))
            if "norm" in name and name.endswith("weight"):
                x.add_(1)
            elif name.endswith("timestep_scale_multiplier"):
                x.fill_(1000.0)
    return network


def build(network, config, setup, dtype=None):
    """network(config) with random weights, allocated once, on the device and in the dtype; compiled by
    `fast_gpu.accelerate` if the setup says so."""
    made = on_meta(network, config).to(dtype or setup.dtype).to_empty(device=setup.device)
    torch.manual_seed(setup.seed)
    randomise(made).eval()
    return fast_gpu.accelerate(made) if setup.compiled else made


def twin(network):
    """Another network around the same tensors."""
    return copy.deepcopy(network, {id(x): x for x in (*network.parameters(), *network.buffers())})


def swaps(network):
    """Every class that `accelerate` swaps in this network alone: name of the new one -> a twin with it."""
    pairs = zip(network.modules(), accelerate(twin(network)).modules())
    pairs = {type(new): type(old) for old, new in pairs if type(old) is not type(new)}
    return {new.__name__: swap_class(twin(network), old, new) for new, old in pairs.items()}


def noise(setup, *shape, dtype=None):
    """Standard normal numbers on the device."""
    return torch.randn(shape, device=setup.device, dtype=dtype or setup.dtype)


def words_for(setup, dtype=None):
    """A caption as the transformer gets it: embeddings (1, L, text width), and a mask (1, L) of ones, since
    padding costs as much as words."""
    p = setup.preset
    text = noise(setup, 1, p.words, p.dit.text_width, dtype=dtype)
    return text, torch.ones(1, p.words, device=setup.device)


def latent_grid(setup, size):
    """Pixels (F, H, W) -> latent frames, rows, columns. Raises ValueError for a size that the VAE cannot
    encode."""
    return on_meta(VideoVAE, setup.preset.vae).latent_shape(*size)[1:]


def token_inputs(setup):
    """The arguments of `DiT.forward_tokens` in a step of the sampler: tokens (1, N, C), t, coordinates
    (3, N), caption and mask."""
    c, grid = setup.preset.dit, latent_grid(setup, setup.preset.dit_size)
    tokens = flatten_latent(noise(setup, 1, c.latent_channels, *grid))
    where = latent_coordinates(grid, c.stride, setup.preset.fps, c.causal_time, setup.device)
    return tokens, torch.full((1, 1), 0.7, device=setup.device), where, *words_for(setup)


def clip(setup):
    """A video (1, 3, F, H, W) in [-1, 1] at the VAE's size: colours that drift, so that writing it to a file
    costs about as much as a real one."""
    f, y, x = torch.meshgrid(*(torch.linspace(0, 3, n, device=setup.device) for n in setup.preset.vae_size),
                             indexing="ij")
    return torch.stack([(a * x + f).sin() * (b * y - f).cos()
                        for a, b in ((1, 2), (2, 1), (3, 3))])[None].to(setup.dtype)


def size_in_bytes(*holders):
    """Bytes of tensors and of networks' weights, each once; not of a table of words, which is looked up."""
    total = 0
    for holder in holders:
        tensors = [holder]
        if isinstance(holder, nn.Module):
            tensors = [p for m in holder.modules() if not isinstance(m, nn.Embedding)
                       for p in m.parameters(recurse=False)]
        total += sum(x.numel() * x.element_size() for x in tensors)
    return total


# --- The parts --------------------------------------------------------------------------------------------

def text_part(setup):
    """One caption through its encoder. Raises ValueError if that is T5 and transformers is not installed."""
    p = setup.preset
    if p.t5 is None:
        encoder = build(CaptionEncoder, p.dit.text_width, setup)
        ids, mask = (x.to(setup.device) for x in tokenize([CAPTION]))
        note = f"the toy's caption encoder, {p.words} words"
    else:
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("T5 needs the optional package transformers: pip install transformers")
        from transformers import T5Config, T5EncoderModel

        config = T5Config(**p.t5, feed_forward_proj="gated-gelu", use_cache=False, is_encoder_decoder=False)
        encoder = build(T5EncoderModel, config, setup)
        ids = torch.randint(p.t5["vocab_size"], (1, p.words), device=setup.device)
        mask, note = torch.ones_like(ids), f"T5 encoder of {p.t5['num_layers']} layers, {p.words} words"

    def work(encoder):
        return encoder(ids, mask) if p.t5 is None else encoder(ids, attention_mask=mask).last_hidden_state

    output = p.words * p.dit.text_width * setup.dtype.itemsize
    return Part("text", encoder, work, size_in_bytes(encoder, ids, mask) + output, p.words, note=note)


def dit_part(setup):
    """One step of the sampler without guidance: the velocity at every token."""
    dit, inputs = build(DiT, setup.preset.dit, setup), token_inputs(setup)
    return Part("dit step", dit, lambda dit: dit.forward_tokens(*inputs),
                size_in_bytes(dit, *inputs, inputs[0]), inputs[0].shape[1], inputs=inputs)


def sample_part(setup):
    """From noise to video, decoding included; the caption's encoder is not."""
    p, words, null = setup.preset, words_for(setup), words_for(setup)
    model = nn.ModuleDict({"dit": build(DiT, p.dit, setup), "vae": build(VideoVAE, p.vae, setup)})
    sampling = Sampling(linear_quadratic_schedule(setup.steps), Guidance(setup.guidance), p.fps)
    video = 3 * math.prod(p.dit_size) * setup.dtype.itemsize
    guidance = f"guidance {setup.guidance:g}" if setup.guidance > 1 else "no guidance"
    return Part("sampling", model,
                lambda model: generate(model, words, null, [setup.seed], p.dit_size, sampling),
                setup.steps * size_in_bytes(model.dit, *words) + size_in_bytes(model.vae.decoder) + video,
                math.prod(latent_grid(setup, p.dit_size)), p.dit_size[0],
                note=f"{setup.steps} steps, {guidance}, with decoding, without the text encoder")


def encode_part(setup):
    """Pixels to latents, before normalisation."""
    vae, video, size = build(VideoVAE, setup.preset.vae, setup), clip(setup), setup.preset.vae_size
    latent = math.prod(vae.latent_shape(*size)) * setup.dtype.itemsize
    return Part("encode", vae, lambda vae: vae.encode(video)[0],
                size_in_bytes(vae.encoder, video) + latent, frames=size[0], inputs=(video,))


def decode_part(setup):
    """Latents, before normalisation, to pixels."""
    vae, size = build(VideoVAE, setup.preset.vae, setup), setup.preset.vae_size
    latent, t = noise(setup, 1, *vae.latent_shape(*size)), torch.full((1,), DECODE_T, device=setup.device)
    video = 3 * math.prod(size) * setup.dtype.itemsize
    return Part("decode", vae, lambda vae: vae.decode(latent, t),
                size_in_bytes(vae.decoder, latent, t) + video, frames=size[0], inputs=(latent, t))


def save_part(setup):
    """A video from the device to a file."""
    video, folder = clip(setup), tempfile.TemporaryDirectory()
    ending = "gif" if importlib.util.find_spec("av") is None else "mp4"

    def work(network):
        save_video(Path(folder.name) / f"clip.{ending}", video, [CAPTION], setup.preset.fps)

    return Part("saving", nn.Identity(), work, size_in_bytes(video) + video.numel(), frames=video.shape[2],
                note=f"as {ending}; the floor is that of reading the video and writing it as bytes")


def train_part(setup):
    """One optimiser step of AdamW on one clip's latents, with the loss of `flow_objective`; in bfloat16 by
    autocast, with weights in float32."""
    p, full = setup.preset, torch.float32
    dit, words = build(DiT, p.dit, setup, full).train(), words_for(setup, full)
    for block in fast_gpu.blocks_of(dit) if setup.checkpointing else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    latent = noise(setup, 1, p.dit.latent_channels, *latent_grid(setup, p.dit_size), dtype=full)
    batch, generator = Batch(latent, [CAPTION], p.fps), torch.Generator().manual_seed(setup.seed)
    optimizer = torch.optim.AdamW(dit.parameters(), 1e-5)

    def work(dit):
        model = SimpleNamespace(dit=dit, embed=lambda captions: words)
        half = setup.dtype != full
        with torch.autocast(setup.device.type, setup.dtype) if half else nullcontext():
            loss = flow_objective(model, batch, TOY, generator)[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    # Weights and two moments are read and written; other traffic depends on the implementation.
    return Part("training step", dit, work, 6 * size_in_bytes(dit) + size_in_bytes(latent, *words),
                latent[0, 0].numel(), training=True,
                note="with activation checkpointing" if setup.checkpointing else "")


PARTS = {"text": text_part, "dit": dit_part, "sample": sample_part, "encode": encode_part,
         "decode": decode_part, "save": save_part, "train": train_part}


def operations(name, setup):
    """Floating-point operations of a part, counted on the meta device; T5's by formula, because its code
    reads the values of the mask. Those that activation checkpointing does twice count once, as is usual."""
    p = setup.preset
    if name == "save":
        return 0
    if name == "sample" and setup.steps > 1:        # its steps are alike: count one
        one = operations(name, replace(setup, steps=1))
        decoding = operations("decode", replace(setup, preset=replace(p, vae_size=p.dit_size)))
        return one + (setup.steps - 1) * (one - decoding)
    if name == "text" and p.t5 is not None:
        return t5_flops(p.words, *(p.t5[k] for k in ("d_model", "num_layers", "num_heads", "d_kv", "d_ff")))
    part = PARTS[name](replace(setup, device=META, dtype=torch.float32, compiled=False, checkpointing=False))
    with torch.set_grad_enabled(part.training):
        return counted(lambda: part.work(part.network)).get_total_flops()
