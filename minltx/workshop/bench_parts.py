"""What the benchmark measures: three configs, random weights for them, and each part's work with what it
costs by formula.

A part is measured alone: its builder makes only the networks that it needs, on the device and in the dtype
in which they work. Every number of them is random, tables and norms too, so that nothing is trivially zero.
"""

import importlib.util
import math
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import train_tiny
from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.flow import linear_quadratic_schedule
from minltx.rope import latent_coordinates
from minltx.sampler import FEW_TOKENS, Guidance, generate
from minltx.text import CaptionEncoder, tokenize
from minltx.vae import ResGroup, VAEConfig, VideoVAE
from minltx.workshop import pictures
from minltx.workshop.flops import (decode_flops, dit_flops, dit_parts, encode_flops, linear, t5_flops,
                                   training_flops)

CAPTION = "a red 3 moving right and a blue 7 moving up"     # the toy's longest kind
DECODE_T = 0.05


# --- Configs ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Preset:
    """Two networks, the size (frames, height, width) of the clip that each is measured on, the length of a
    caption, the fields of its T5 encoder (none: the toy's own encoder), frames per second, and the dtype."""

    dit: DiTConfig
    vae: VAEConfig
    dit_size: tuple
    vae_size: tuple
    words: int = 256
    t5: tuple = ()
    fps: float = 24.0
    dtype: str = "float32"


def quarter(blocks):
    """A VAE's block list with a quarter of all widths."""
    return tuple(block if block[0] == "res" else (*block[:-1], block[-1] // 4) for block in blocks)


FULL = VAEConfig()
QUARTER = replace(FULL, encoder_width=FULL.encoder_width // 4, encoder_blocks=quarter(FULL.encoder_blocks),
                  decoder_width=FULL.decoder_width // 4, decoder_blocks=quarter(FULL.decoder_blocks))
XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
SMALL_T5 = {**XXL, "d_ff": 2560, "num_layers": 2, "num_heads": 16, "vocab_size": 1024}
TOY = train_tiny.TOY.model
PRESETS = {
    "toy": Preset(TOY.dit, TOY.vae, (17, 32, 32), (17, 32, 32), len(CAPTION.split()), fps=TOY.data.fps),
    "quarter": Preset(DiTConfig(width=512, depth=8, heads=8), QUARTER, (41, 512, 512), (17, 128, 192),
                      t5=tuple(SMALL_T5.items())),
    "2b": Preset(DiTConfig(), FULL, (121, 512, 768), (121, 512, 768), t5=tuple(XXL.items()),
                 dtype="bfloat16")}


@dataclass(frozen=True)
class Setup:
    """All that a part needs to know: a preset, where and how it runs."""

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
    """work() does it once and returns what it made. operations by formula; traffic, in bytes: weights,
    inputs and outputs, each once. tokens and frames: how many it handles, or None."""

    name: str
    work: object
    operations: int
    traffic: int
    tokens: int | None = None
    frames: int | None = None
    training: bool = False
    note: str = ""


# --- Networks and inputs ----------------------------------------------------------------------------------

def randomise(network):
    """Every parameter and statistic random: matrices by fan-in, the rest around its usual value."""
    with torch.no_grad():
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            table = "table" in name or "per_channel" in name
            x.normal_(std=0.3 if table or x.ndim < 2 else 1 / math.sqrt(x[0].numel()))
            if name.endswith("timestep_scale_multiplier"):
                x.fill_(1000.0)
            elif name == "latent_std":
                x.abs_().add_(0.5)
            elif "norm" in name and name.endswith("weight"):
                x.add_(1)
    return network


def build(make, setup, dtype=None):
    """make() -> its network with random weights, allocated once: on the device, in the dtype."""
    with torch.device("meta"):
        network = make()
    network = network.to(dtype or setup.dtype).to_empty(device=setup.device)
    torch.manual_seed(setup.seed)
    return randomise(network).eval()


def build_dit(setup, dtype=None, checkpointing=False):
    """The transformer, its blocks compiled if that is asked for."""
    dit = build(lambda: DiT(setup.preset.dit), setup, dtype)
    for block in dit.blocks:
        if checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if setup.compiled:
            block.compile()
    return dit


def build_vae(setup):
    """The autoencoder, its residual blocks compiled if that is asked for."""
    vae = build(lambda: VideoVAE(setup.preset.vae), setup)
    for group in vae.modules():
        if setup.compiled and isinstance(group, ResGroup):
            group.compile()
    return vae


def noise(setup, *shape, dtype=None):
    """Standard normal numbers on the device."""
    return torch.randn(shape, device=setup.device, dtype=dtype or setup.dtype)


def words_for(setup, dtype=None):
    """A caption as the transformer gets it: embeddings (1, L, text width), and a mask (1, L) of ones, since
    the released models' padding is looked at by nobody but computed all the same."""
    p = setup.preset
    text = noise(setup, 1, p.words, p.dit.text_width, dtype=dtype)
    return text, torch.ones(1, p.words, device=setup.device)


def latent_grid(setup, size):
    """Pixels (F, H, W) -> latent frames, rows, columns. ValueError for a size that the VAE cannot code."""
    with torch.device("meta"):
        return VideoVAE(setup.preset.vae).latent_shape(*size)[1:]


def token_inputs(setup):
    """What a step of the sampler gives the transformer: tokens (1, N, C), t, coordinates (3, N), caption and
    mask."""
    c, grid = setup.preset.dit, latent_grid(setup, setup.preset.dit_size)
    tokens = flatten_latent(noise(setup, 1, c.latent_channels, *grid))
    where = latent_coordinates(grid, c.stride, setup.preset.fps, c.causal_time, setup.device)
    return tokens, torch.full((1, 1), 0.7, device=setup.device), where, *words_for(setup)


def clip(setup):
    """A video (1, 3, F, H, W) in [-1, 1] at the VAE's size: colours that drift, so that writing it to a file
    costs about what a real one does."""
    F, H, W = setup.preset.vae_size
    f, y, x = (torch.linspace(0, 3, n, device=setup.device)[shape] for n, shape in (
        (F, (slice(None), None, None)), (H, (None, slice(None), None)), (W, (None, None, slice(None)))))
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
    """One caption through its encoder. ValueError if that is T5 and transformers is not installed."""
    p, t5 = setup.preset, dict(setup.preset.t5)
    if t5:
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("T5 needs the optional package transformers: pip install transformers")
        from transformers import T5Config, T5EncoderModel

        config = T5Config(**t5, feed_forward_proj="gated-gelu", use_cache=False, is_encoder_decoder=False)
        encoder = build(lambda: T5EncoderModel(config), setup)
        ids = torch.randint(t5["vocab_size"], (1, p.words), device=setup.device)
        mask = torch.ones_like(ids)
        operations = t5_flops(p.words, t5["d_model"], t5["num_layers"], t5["num_heads"], t5["d_kv"],
                              t5["d_ff"])
        note = f"T5 encoder of {t5['num_layers']} layers, {p.words} words"

        def work():
            return encoder(ids, attention_mask=mask).last_hidden_state
    else:
        D, L = p.dit.text_width, p.words
        encoder = build(lambda: CaptionEncoder(D), setup)
        ids, mask = (x.to(setup.device) for x in tokenize([CAPTION]))
        operations = 4 * linear(L, D, D) + linear(L, D, L) + linear(L, L, D) + 2 * linear(L, D, 4 * D)
        note = f"the toy's caption encoder, {L} words"

        def work():
            return encoder(ids, mask)

    output = p.words * p.dit.text_width * setup.dtype.itemsize
    return Part("text", work, operations, size_in_bytes(encoder, ids, mask) + output, p.words, note=note)


def dit_part(setup):
    """One step of the sampler without guidance: the velocity at every token."""
    dit, inputs = build_dit(setup), token_inputs(setup)
    tokens = inputs[0].shape[1]
    return Part("dit step", lambda: dit.forward_tokens(*inputs),
                dit_flops(setup.preset.dit, tokens, setup.preset.words),
                size_in_bytes(dit, *inputs, inputs[0]), tokens)


def sample_part(setup):
    """From noise to video, decoding included; the caption's encoder is not."""
    p, dit, vae = setup.preset, build_dit(setup), build_vae(setup)
    grid, words, nothing = latent_grid(setup, p.dit_size), words_for(setup), words_for(setup)
    tokens, captions = math.prod(grid), 2 if setup.guidance > 1 else 1
    passes, parts = captions * setup.steps, dit_parts(p.dit, tokens, p.words)
    # Captions are projected once; the time is embedded once a step where both captions go in one batch.
    once, together = parts["caption projection"], captions == 2 and tokens <= FEW_TOKENS
    operations = passes * (sum(parts.values()) - once) + captions * once
    operations -= setup.steps * parts["time"] if together else 0
    schedule = linear_quadratic_schedule(setup.steps)
    latent, video = tokens * p.dit.latent_channels, 3 * math.prod(p.dit_size)
    a_pass = size_in_bytes(dit, *words) + 2 * latent * setup.dtype.itemsize
    guidance = f"guidance {setup.guidance:g}" if setup.guidance > 1 else "no guidance"
    return Part("sampling", lambda: generate(vae, dit, words, nothing, [setup.seed], p.dit_size, schedule,
                                             Guidance(setup.guidance), p.fps),
                operations + decode_flops(p.vae, p.dit_size),
                passes * a_pass + size_in_bytes(vae.decoder) + (latent + video) * setup.dtype.itemsize,
                tokens, p.dit_size[0],
                note=f"{setup.steps} steps, {guidance}, with decoding, without the text encoder")


def encode_part(setup):
    """Pixels to latents, before normalisation."""
    vae, video, size = build_vae(setup), clip(setup), setup.preset.vae_size
    latent = math.prod(vae.latent_shape(*size)) * setup.dtype.itemsize
    return Part("encode", lambda: vae.encode(video)[0], encode_flops(setup.preset.vae, size),
                size_in_bytes(vae.encoder, video) + latent, frames=size[0])


def decode_part(setup):
    """Latents, before normalisation, to pixels."""
    vae, size = build_vae(setup), setup.preset.vae_size
    latent, t = noise(setup, 1, *vae.latent_shape(*size)), torch.full((1,), DECODE_T, device=setup.device)
    video = 3 * math.prod(size) * setup.dtype.itemsize
    return Part("decode", lambda: vae.decode(latent, t), decode_flops(setup.preset.vae, size),
                size_in_bytes(vae.decoder, latent, t) + video, frames=size[0])


def save_part(setup):
    """A video from the device to a file."""
    video, folder = clip(setup), tempfile.TemporaryDirectory()
    ending = "gif" if importlib.util.find_spec("av") is None else "mp4"

    def work():
        pictures.save_video(Path(folder.name) / f"clip.{ending}", video, [CAPTION], setup.preset.fps)

    return Part("saving", work, 0, size_in_bytes(video) + video.numel(), frames=video.shape[2],
                note=f"as {ending}; the floor is that of reading the video and writing it as bytes")


def train_part(setup):
    """One optimiser step of AdamW on one clip's latents, as train_tiny.py computes the loss; in bfloat16 by
    autocast, with weights in float32. Operations do not count what checkpointing computes twice."""
    p, full = setup.preset, torch.float32
    dit = build_dit(setup, full, setup.checkpointing).train()
    grid, words = latent_grid(setup, p.dit_size), words_for(setup, full)
    latent = noise(setup, 1, p.dit.latent_channels, *grid, dtype=full)
    model = SimpleNamespace(dit=dit, embed=lambda captions: words,
                            config=SimpleNamespace(data=SimpleNamespace(fps=p.fps)))
    optimizer = torch.optim.AdamW(dit.parameters(), 1e-5)
    generator, half = torch.Generator().manual_seed(setup.seed), setup.dtype != full

    def work():
        with torch.autocast(setup.device.type, setup.dtype, enabled=half):
            loss = train_tiny.dit_step(model, latent, [CAPTION], None, train_tiny.TOY, generator)[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    tokens = math.prod(grid)
    # Weights and two moments are read and written; what else a step moves depends on how it is done.
    return Part("training step", work, training_flops(p.dit, tokens, p.words),
                6 * size_in_bytes(dit) + size_in_bytes(latent, *words), tokens, training=True,
                note="with activation checkpointing" if setup.checkpointing else "")


PARTS = {"text": text_part, "dit": dit_part, "sample": sample_part, "encode": encode_part,
         "decode": decode_part, "save": save_part, "train": train_part}
