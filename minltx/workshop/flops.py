"""Floating-point operations by formula: what a forward pass, a training step and a caption cost.

    python -m minltx.workshop.flops         the released 2 B model at 121 frames of 512 x 768

A multiplication and the addition behind it count 2. Only matrix products and convolutions are counted, since
norms, activations and softmax are below a hundredth of the sum; torch's FlopCounterMode has the same
rule, and tests/test_flops.py holds every formula here to it, to the last digit. All figures are for one
sample: times the batch is the batch's.
"""

import math

import torch

from minltx.dit import DiTConfig
from minltx.vae import VAEConfig, VideoVAE

SINUSOIDS = 256     # numbers that a TimestepEmbedder turns a time into, before its two layers


def linear(rows, inputs, outputs):
    """A linear layer on `rows` vectors, or a matrix product (rows, inputs) @ (inputs, outputs)."""
    return 2 * rows * inputs * outputs


def time_embedder(times, hidden, width):
    """A TimestepEmbedder on `times` times."""
    return linear(times, SINUSOIDS, hidden) + linear(times, hidden, width)


# --- The transformer --------------------------------------------------------------------------------------

def block_parts(config, tokens, words):
    """One block of the transformer, on one sample -> dict of operations.

    Heads do not matter: h products of width D/h cost what one of width D does. "space-time" attention costs
    what the full one does, since its masks are looked at, not skipped.
    """
    N, L, D = tokens, words, config.width
    return {
        "self-attention, q k v out": 4 * linear(N, D, D),
        "self-attention, q k' and weights v": linear(N, D, N) + linear(N, N, D),
        "cross-attention, q k v out": 2 * linear(N, D, D) + 2 * linear(L, D, D),
        "cross-attention, q k' and weights v": linear(N, D, L) + linear(N, L, D),
        "feed-forward": linear(N, D, 4 * D) + linear(N, 4 * D, D)}


def dit_parts(config, tokens, words, times=1):
    """A forward pass of DiT on one sample -> dict of operations, all blocks together.

    words is the caption's length, padding included; times is 1, or `tokens` for a time per token.
    """
    D, C = config.width, config.latent_channels
    parts = {name: config.depth * count for name, count in block_parts(config, tokens, words).items()}
    return {**parts,
            "latents in and out": linear(tokens, C, D) + linear(tokens, D, C),
            "caption projection": linear(words, config.text_width, D) + linear(words, D, D),
            "time": time_embedder(times, D, D) + linear(times, D, 6 * D)}


def dit_flops(config, tokens, words, times=1):
    """A forward pass of DiT on one sample: the sum of `dit_parts`."""
    return sum(dit_parts(config, tokens, words, times).values())


def training_flops(config, tokens, words, checkpointing=False, times=1):
    """A forward and backward pass of DiT on one sample.

    Backward every product is done twice, once for the gradient of each factor. Nobody asks for the gradients
    of the noisy latents, of the precomputed caption and of the time, so three products are done once only.
    With activation checkpointing the blocks go forward once more.
    """
    D = config.width
    unasked = (linear(tokens, config.latent_channels, D) + linear(words, config.text_width, D)
               + linear(times, SINUSOIDS, D))
    again = config.depth * sum(block_parts(config, tokens, words).values()) if checkpointing else 0
    return 3 * dit_flops(config, tokens, words, times) - unasked + again


# --- The VAE ----------------------------------------------------------------------------------------------

def convolution(grid, inputs, outputs, kernel=27):
    """A convolution that puts out the grid (frames, rows, columns). Padding counts as if it were data."""
    return linear(math.prod(grid), kernel * inputs, outputs)


def grids(config, size):
    """Pixels (frames, height, width) -> the grids of the encoder's first and of its last convolution, which
    are those of the decoder's last and first. ValueError for a size that the VAE cannot code."""
    with torch.device("meta"):
        VideoVAE(config).latent_shape(*size)
    st, sy, sx = config.product_of_strides(config.encoder_blocks)
    frames, height, width = size
    return ((frames, height // config.patch, width // config.patch),
            ((frames - 1) // st + 1, height // sy, width // sx))


def walk(blocks, width, grid):
    """A config's block list, as `build_blocks` reads it -> for each block (name, arguments, width before and
    after, grid that its convolution works on, grid after)."""
    for name, *args in blocks:
        outputs = width if name in ("res", "noisy") else args[-1]
        works_on = after = grid
        if name == "down":
            works_on = (grid[0] + (args[0][0] == 2), *grid[1:])         # frame 0 is there twice
            after = tuple(n // s for n, s in zip(works_on, args[0], strict=True))
        elif name == "stride":
            works_on = after = tuple((n - 1) // s + 1 for n, s in zip(grid, args[0], strict=True))
        elif name in ("up", "plain_up"):
            after = tuple(n * s for n, s in zip(grid, args[0], strict=True))
            after = (after[0] - (args[0][0] == 2), *after[1:])          # the first frame is dropped
        yield name, args, width, outputs, works_on, after
        width, grid = outputs, after


def blocks_flops(blocks, width, grid, conditioned):
    """A block list on one sample -> (operations, width at its end)."""
    total = 0
    for name, args, inputs, outputs, works_on, _ in walk(blocks, width, grid):
        box = math.prod(args[0]) if len(args) == 2 else 1
        if name in ("res", "noisy"):
            total += args[0] * 2 * convolution(works_on, inputs, inputs)
            total += time_embedder(1, 4 * inputs, 4 * inputs) if conditioned else 0
        elif name == "width":
            total += convolution(works_on, inputs, outputs) + convolution(works_on, outputs, outputs)
            total += convolution(works_on, inputs, outputs, kernel=1) if inputs != outputs else 0
        elif name == "down":
            total += convolution(works_on, inputs, outputs // box)
        elif name == "stride":
            total += convolution(works_on, inputs, outputs)
        else:
            total += convolution(works_on, inputs, box * outputs)
        width = outputs
    return total, width


def encode_flops(config, size):
    """VideoVAE.encode on one clip of (frames, height, width) pixels."""
    first, last = grids(config, size)
    blocks, width = blocks_flops(config.encoder_blocks, config.encoder_width, first, conditioned=False)
    logvars = 1 if config.shared_logvar else config.latent_channels
    return (convolution(first, 3 * config.patch**2, config.encoder_width) + blocks
            + convolution(last, width, config.latent_channels + logvars))


def decode_flops(config, size):
    """VideoVAE.decode to one clip of (frames, height, width) pixels."""
    last, first = grids(config, size)
    conditioned = config.timestep_conditioning
    blocks, width = blocks_flops(config.decoder_blocks, config.decoder_width, first, conditioned)
    return (convolution(first, config.latent_channels, config.decoder_width) + blocks
            + convolution(last, width, 3 * config.patch**2)
            + (time_embedder(1, 2 * width, 2 * width) if conditioned else 0))


def vae_training_flops(config, size):
    """Encode, decode and go back, on one clip; the losses' own networks are not counted.

    As in `training_flops`, only that here the clip's gradient is the one that nobody asks for.
    """
    unasked = convolution(grids(config, size)[0], 3 * config.patch**2, config.encoder_width)
    return 3 * (encode_flops(config, size) + decode_flops(config, size)) - unasked


# --- The caption ------------------------------------------------------------------------------------------

def t5_flops(tokens, width=4096, layers=24, heads=64, head_width=64, hidden=10240):
    """The T5 encoder on one caption of `tokens`, padding included; the defaults are T5 v1.1 XXL (SPEC 7)."""
    inner = heads * head_width
    attention = 4 * linear(tokens, width, inner) + 2 * linear(tokens, inner, tokens)
    gated = 3 * linear(tokens, width, hidden)           # the gate and the values in, their product out
    return layers * (attention + gated)


def main():
    """Print the released model's figures."""
    dit, vae, size, words = DiTConfig(), VAEConfig(), (121, 512, 768), 256
    tokens = math.prod(grids(vae, size)[1])
    parts = {f"  {name}": count for name, count in dit_parts(dit, tokens, words).items()}
    rows = {f"transformer, {tokens:,} tokens and {words} words": dit_flops(dit, tokens, words), **parts,
            "its training step": training_flops(dit, tokens, words),
            "the same with checkpointing": training_flops(dit, tokens, words, checkpointing=True),
            "encode " + "x".join(map(str, size)): encode_flops(vae, size),
            "decode": decode_flops(vae, size),
            "training step of the VAE": vae_training_flops(vae, size),
            f"T5-XXL, {words} words": t5_flops(words)}
    for name, count in rows.items():
        print(f"{name:<40} {count / 1e12:10.3f} TFLOP")


if __name__ == "__main__":
    main()
