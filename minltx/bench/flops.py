"""Floating-point operations: what a forward pass, a training step and a caption cost.

    python -m minltx.bench.flops         the released 2 B model at 121 frames of 512 x 768

torch counts them: the real code runs on the meta device, where tensors have shapes and nothing is computed,
under torch's FlopCounterMode. A multiplication and the addition after it count 2. Only matrix products and
convolutions are counted; norms, activations and softmax are below a hundredth of the sum. Padding counts as
if it were data.

Where the counter itself would be wrong: it counts 0 for the fused attention of a CPU and for the oneDNN
operators of `minltx.fast_cpu`. On the meta device attention is made of matrix products, and `accelerate`
changes nothing, so both are counted there. In a backward pass it adds the second computation of the scores
where a GPU's flash attention does one; on the meta device it does not. All figures are for one sample:
multiply by the batch.
"""

import math
from functools import cache, partial

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from minltx.command import Parser
from minltx.dit import DiT, DiTConfig
from minltx.training.memory import dit_inputs, on_meta
from minltx.vae import VAEConfig, VideoVAE

META = torch.device("meta")


def counted(work):
    """The operations of work(), whose tensors are on the meta device -> torch's counter."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter


# --- The transformer --------------------------------------------------------------------------------------

def dit_work(config, tokens, words, checkpointing=False):
    """A forward pass of DiT as a function without arguments; words is the caption's length with padding."""
    dit = on_meta(DiT, config)
    for block in dit.blocks if checkpointing else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    with META:
        inputs = dit_inputs(config, tokens, words)
    return lambda: dit.forward_tokens(*inputs)


@cache
def dit_parts(config, tokens, words):
    """A forward pass of DiT -> dict of operations, all blocks together."""
    counts = counted(dit_work(config, tokens, words)).get_flop_counts()
    parts = {}
    for label, name in (("self-attention", "Block.attn1"), ("cross-attention", "Block.attn2")):
        products = {str(operator): count for operator, count in counts[name].items()}
        parts[f"{label}, q k' and weights v"] = products.pop("aten.bmm")
        parts[f"{label}, q k v out"] = sum(products.values())
    parts["feed-forward"] = sum(counts["Block.ff"].values())
    return {**parts, "latents, caption and time": sum(counts["Global"].values()) - sum(parts.values())}


def dit_flops(config, tokens, words):
    """A forward pass of DiT."""
    return sum(dit_parts(config, tokens, words).values())


@cache
def training_flops(config, tokens, words, checkpointing=False):
    """A forward and backward pass of DiT; with activation checkpointing the blocks run forward twice."""
    work = dit_work(config, tokens, words, checkpointing)
    return counted(lambda: work().sum().backward()).get_total_flops()


# --- The VAE ----------------------------------------------------------------------------------------------

@cache
def vae_flops(config, size):
    """Encoding and decoding one clip of (frames, height, width) pixels, and a training step without the
    losses' own networks -> dict of operations. Raises ValueError for sizes that cannot be encoded."""
    vae = on_meta(VideoVAE, config)
    video, latent, t = (torch.zeros(shape, device=META) for shape in (
        (1, 3, *size), (1, *vae.latent_shape(*size)), (1,)))
    works = {"encode": lambda: vae.encode(video), "decode": lambda: vae.decode(latent, t),
             "training step": lambda: vae.decode(vae.encode(video)[0], t).sum().backward()}
    return {name: counted(work).get_total_flops() for name, work in works.items()}


# --- The caption ------------------------------------------------------------------------------------------

def t5_flops(tokens, width=4096, layers=24, heads=64, head_width=64, hidden=10240):
    """The T5 encoder on one caption of `tokens`, padding included; the defaults are T5 v1.1 XXL (SPEC 7).

    By formula, because its code is in an optional package: 4 products for attention, 2 for its scores and
    values, and a gated feed-forward layer of 3.
    """
    inner = heads * head_width
    return layers * 2 * tokens * (4 * width * inner + 2 * tokens * inner + 3 * width * hidden)


def main(argv=None):
    """Print the released model's figures."""
    Parser(prog="python -m minltx.bench.flops", description=__doc__).parse_args(argv)
    dit, vae, size, words = DiTConfig(), VAEConfig(), (121, 512, 768), 256
    tokens = math.prod(on_meta(VideoVAE, vae).latent_shape(*size)[1:])
    rows = {f"transformer, {tokens:,} tokens and {words} words": dit_flops(dit, tokens, words),
            **{f"  {name}": count for name, count in dit_parts(dit, tokens, words).items()},
            "its training step": training_flops(dit, tokens, words),
            "the same with checkpointing": training_flops(dit, tokens, words, checkpointing=True),
            **{f"VAE, {name}": count for name, count in vae_flops(vae, size).items()},
            f"T5-XXL, {words} words": t5_flops(words)}
    for name, count in rows.items():
        print(f"{name:<40} {count / 1e12:10.3f} TFLOP")


if __name__ == "__main__":
    main()
