"""What a training or a sampler will hold in memory, told before anything is allocated.

    python -m minltx.workshop.memory                                     train the released 2 B transformer
    python -m minltx.workshop.memory --stage vae --checkpointing         train its autoencoder
    python -m minltx.workshop.memory --parallel fsdp --ranks 8 --precision bf16
    python -m minltx.workshop.memory --measure                           the constants below, measured anew

Four things have the size of the parameters: weights, gradients, the optimiser's moments and the averaged
weights. The rest are activations: what the forward pass keeps because the backward pass will ask for it. They
are counted, operation by operation, from what autograd saves:

| a block of the transformer keeps            | tensors (tokens x width) | bytes of all: float32 | bf16 |
|---------------------------------------------|--------------------------|-----------------------|------|
| h before both norms, h behind them          | 4                        | 16                    | 16   |
| the modulated h, a bf16 copy for each layer that reads it: q, k, v, feed-forward | 2 (4) | 8   | 8    |
| h as the cross-attention's q reads it       | 1                        | 4                     | 2    |
| q, k and the cross-attention's q before their norms | 3                | 12                    | 6    |
| the same behind the norms                   | 3                        | 12                    | 6    |
| q, k, v, attended; the other q, attended    | 6                        | 24                    | 12   |
| the hidden layer before and behind GELU     | 8                        | 32                    | 16   |
| what the two gates multiply                 | 2                        | 8                     | 4    |
| together                                    | 29                       | 116                   | 70   |

A ResBlock of the VAE keeps, for each of its two convolutions, the input of the norm, the input of SiLU, the
padded input of the convolution, and if it is told t the normed input before it is scaled.

In several processes the figures are those of parallel.py, which is simpler than FSDP2 could be. "fsdp-bf16"
is what on_paper.py assumes instead: weights are gathered in bf16. The whole model from which FSDP's parts
were cut waits in the host's memory, 4 bytes per parameter and process, and is not in the figures.

Not in the figures: what the device's own libraries take (a CUDA context is about half a GiB), the workspaces
of convolutions, communication buffers and the holes between tensors. Leave a tenth of the memory for them.
"""

import argparse
import math
import os
import weakref
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minltx.layers
import minltx.vae
from minltx.dit import DiT, DiTConfig
from minltx.losses import LossConfig, vae_loss
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop.flops import SINUSOIDS, grids, walk

# --- Constants: bytes that are kept. Run with --measure whenever a forward pass has changed -----------------

BYTES = {"float32": 4, "bf16": 2}
BLOCK = {"float32": 116, "bf16": 70}            # per token and channel of a transformer's block: the table
BLOCK_WORDS = {"float32": 16, "bf16": 8}        # per word and channel: k before, behind its norm, scaled; v
BLOCK_TIMES = 32                # per token and channel if every token has its own time: shifts, scales, gates
STATISTICS, CAUSES = 2, 2                       # float32 numbers per token: of a norm; per head: attentions
HEAD = {"float32": 12, "bf16": 10}              # per token and channel: the last norm and proj_out
TIMES = {"float32": 20, "bf16": 12}             # per time and channel: the embedder, the last norm's scale
ROPE = 4                                        # per token and channel, whatever the batch: cos beside sin
HALF = {"float32": 8, "bf16": 8}                # per voxel and channel of half a ResBlock: norm and SiLU
HALF_TOLD_T = {"float32": 12, "bf16": 12}       # the same in a decoder that is told t
LOSSES = 14                                     # per number of the video: what `vae_loss` keeps
MOMENTS = {"adamw": 8, "muon": 4}               # bytes per parameter: two float32 moments, or one
LIVE_DIT = {"float32": 36, "bf16": 18}          # at the fullest moment of a pass without gradients, per token
LIVE_VAE = {"float32": 24, "bf16": 14}          # and channel; the same per voxel and channel of a ResBlock
LIVE_PIXELS = {"float32": 9, "bf16": 4.5}       # the same per number of the video, at both ends of the VAE

PARALLEL = ("none", "ddp", "fsdp", "fsdp-bf16")


def check(precision, optimizer, parallel, ranks, **counts):
    """ValueError for settings that there are no figures for."""
    for name, value, known in (("precision", precision, BYTES), ("optimizer", optimizer, MOMENTS),
                               ("parallel", parallel, PARALLEL)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
    for name, count in {"ranks": ranks, **counts}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}: use 1 or more")
    if parallel == "none" and ranks > 1:
        raise ValueError(f"{ranks} ranks without a way to share the work: use parallel ddp or fsdp")
    if parallel == "fsdp-bf16" and precision != "bf16":
        raise ValueError("fsdp-bf16 gathers bf16 weights: use precision bf16, or parallel fsdp")


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def autocast(precision):
    """The context in which a forward pass has this precision, on a CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def copies(module, precision, but=()):
    """What autocast's copies of the weights take, in bytes, some layers left out."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv3d)) and m not in but]
    return sum(2 * layer.weight.numel() for layer in layers) if precision == "bf16" else 0


# --- What has the size of the parameters -------------------------------------------------------------------

def states(module, blocks, precision, optimizer, ema, parallel, ranks, micro_batches=1):
    """Weights, gradients, optimiser and average -> dict of bytes on one rank.

    The weights are float32 whatever the precision: under bf16 autocast makes copies of them. DDP keeps
    everything on each rank. Its gradients lie in the buckets that it sends; if a rank adds up those of
    several micro-batches, they stand beside the buckets until the last. FSDP2 cuts everything into `ranks`
    parts and puts together one block at a time, weights and gradients; what is in no block stays together.
    Two things are not cut: autocast's copies, which autograd keeps, and gradients while they are added up.
    "fsdp-bf16" has only the second.
    """
    P, sharded = parameters(module), parallel.startswith("fsdp")
    share, several = ranks if sharded else 1, micro_batches > 1
    items = {"weights": 4 * P / share, "gradients": 4 * P / share,
             f"optimiser ({optimizer})": MOMENTS[optimizer] * P / share,
             "averaged weights": 4 * P / share if ema else 0}
    if sharded:
        sizes = [parameters(block) for block in blocks]
        together = max(sizes) + P - sum(sizes)
        items["one block put together"] = (4 if parallel == "fsdp-bf16" else 8) * together
        items["gradients added up, not cut"] = 4 * P if several else 0
    if parallel == "ddp" and ranks > 1:
        items["buckets of DDP"] = 4 * P if several else 0
    if parallel != "fsdp-bf16" and precision == "bf16":
        items["bf16 copies of the weights"] = copies(module, precision)
    return {name: round(count) for name, count in items.items()}


# --- Activations -------------------------------------------------------------------------------------------

def block_activations(config, tokens, words, times=1, precision="float32"):
    """What one transformer block keeps of one sample, in bytes."""
    D = config.width
    statistics = 4 * (tokens * (5 * STATISTICS + CAUSES * config.heads) + words * STATISTICS)
    return (tokens * D * BLOCK[precision] + words * D * BLOCK_WORDS[precision] + times * D * BLOCK_TIMES
            + statistics)


def dit_activations(config, tokens, words, batch=1, times=1, precision="float32", checkpointing=False):
    """What the transformer keeps for the backward pass of one micro-batch, in bytes.

    words is the caption's length, padding included; times is 1, or `tokens` for a time per token. With
    checkpointing a block keeps its input only, in float32, beside the modulation that all blocks share, and
    one block at a time everything. This is for the default "rms" norms and full attention; the other kinds
    are for comparisons, and differ somewhat.
    """
    D, b = config.width, BYTES[precision]
    block = block_activations(config, tokens, words, times, precision)
    inputs = config.depth * 4 * tokens * D + 6 * b * times * D
    blocks = inputs + block if checkpointing else config.depth * block
    ends = (b * tokens * config.latent_channels + HEAD[precision] * tokens * D
            + b * words * (config.text_width + 3 * D) + times * (TIMES[precision] * D + b * SINUSOIDS))
    return batch * (blocks + ends) + ROPE * tokens * D


def half_res_block(grid, width, told_t, precision):
    """Norm, SiLU and convolution at this grid and width keep so many bytes of one sample."""
    kept = HALF_TOLD_T[precision] if told_t else HALF[precision]
    statistics = 4
    return math.prod(grid) * (kept * width + statistics) + padded(grid, width, precision)


def padded(grid, width, precision):
    """A convolution's input, with its two frames of padding."""
    return BYTES[precision] * math.prod(grid[1:]) * (grid[0] + 2) * width


def vae_blocks(blocks, width, grid, told_t, precision):
    """A block list of the VAE -> for each block (bytes of its input, bytes that it keeps), and the width at
    the end."""
    sizes = []
    for name, args, inputs, outputs, works_on, after in walk(blocks, width, grid):
        if name in ("res", "noisy"):
            kept = 2 * args[0] * half_res_block(grid, inputs, told_t, precision)
        elif name == "width":
            kept = sum(half_res_block(grid, n, False, precision) for n in (inputs, outputs))
            kept += math.prod(grid) * inputs * BYTES[precision] if inputs != outputs else 0
        else:
            kept = padded(grid if name == "stride" else works_on, inputs, precision)
        sizes.append((BYTES[precision] * math.prod(grid) * inputs, kept))
        width, grid = outputs, after
    return sizes, width


def vae_activations(config, size, batch=1, precision="float32", checkpointing=False):
    """What encoding, decoding and the losses keep for the backward pass of one micro-batch of clips of
    (frames, height, width) pixels, in bytes. With checkpointing every block of the config's two lists keeps
    its input only, and one at a time everything."""
    first, last = grids(config, size)
    told_t = config.timestep_conditioning
    down, narrow = vae_blocks(config.encoder_blocks, config.encoder_width, first, False, precision)
    up, wide = vae_blocks(config.decoder_blocks, config.decoder_width, last, told_t, precision)
    sizes = down + up
    kept = sum(kept for _, kept in sizes)
    if checkpointing:
        kept = sum(inputs for inputs, _ in sizes) + max(kept for _, kept in sizes)
    ends = (padded(first, 3 * config.patch**2, precision) + half_res_block(last, narrow, False, precision)
            + padded(last, config.latent_channels, precision)
            + half_res_block(first, wide, told_t, precision))
    return batch * (kept + ends + LOSSES * 3 * math.prod(size))


# --- Estimates ---------------------------------------------------------------------------------------------

def estimate_dit(config, tokens, words, batch=1, times=1, precision="float32", checkpointing=False,
                 optimizer="adamw", ema=True, parallel="none", ranks=1, micro_batches=1):
    """Training the transformer -> dict of bytes on one rank. batch is the micro-batch of one rank, which adds
    up the gradients of `micro_batches` of them; precision "float32", or "bf16" for autocast; parallel one of
    PARALLEL; see `dit_activations` and `states`. ValueError for settings that there are no figures for."""
    check(precision, optimizer, parallel, ranks, tokens=tokens, words=words, batch=batch,
          micro_batches=micro_batches)
    with torch.device("meta"):
        dit = DiT(config)
    kept = dit_activations(config, tokens, words, batch, times, precision, checkpointing)
    items = states(dit, dit.blocks, precision, optimizer, ema, parallel, ranks, micro_batches)
    return {**items, "activations": kept}


def estimate_vae(config, size, batch=1, precision="float32", checkpointing=False, optimizer="adamw",
                 ema=False, parallel="none", ranks=1, micro_batches=1):
    """The same for training the autoencoder on clips of (frames, height, width) pixels, without the networks
    of the perceptual and the adversarial loss. FSDP2 leaves it to DDP, see parallel.py."""
    check(precision, optimizer, parallel, ranks, batch=batch, micro_batches=micro_batches)
    with torch.device("meta"):
        vae = VideoVAE(config)
    kept = vae_activations(config, size, batch, precision, checkpointing)
    parallel = "none" if parallel == "none" else "ddp"
    items = states(vae, (), precision, optimizer, ema, parallel, ranks, micro_batches)
    return {**items, "activations": kept}


def weights_of(network, config):
    """The float32 weights of a network (DiT or VideoVAE) that is on the device and not trained, in bytes."""
    with torch.device("meta"):
        return 4 * parameters(network(config))


def live_dit(config, tokens, batch=1, precision="float32"):
    """The most that a pass without gradients holds at once; under "bf16" the weights are bf16 too."""
    return round((batch * LIVE_DIT[precision] + ROPE) * tokens * config.width)


def live_vae(config, size, batch=1, precision="float32"):
    """The same for encoding or decoding: the hungriest block decides, or in a narrow VAE the pixels.

    A ResBlock holds six tensors of its size, a block that changes the grid about three of the size of its
    input and four of its output's."""
    first, last = grids(config, size)
    most = LIVE_PIXELS[precision] * 3 * math.prod(size)
    for blocks, width, grid in ((config.encoder_blocks, config.encoder_width, first),
                                (config.decoder_blocks, config.decoder_width, last)):
        for name, _, inputs, outputs, _, after in walk(blocks, width, grid):
            before, behind = math.prod(grid) * inputs, math.prod(after) * outputs
            if name in ("res", "noisy", "width"):
                most = max(most, LIVE_VAE[precision] * max(before, behind))
            else:
                most = max(most, BYTES[precision] * (3 * before + 4 * behind))
            grid = after
    return round(batch * most)


def estimate_sampling(dit, vae, size, batch=1, precision="float32"):
    """Sampling clips of (frames, height, width) pixels with both networks loaded -> dict of bytes. The text
    encoder is not counted. batch counts the passes of guidance that are made at once."""
    check(precision, "adamw", "none", 1, batch=batch)
    with torch.device("meta"):
        weights = {"transformer": parameters(DiT(dit)), "autoencoder": parameters(VideoVAE(vae))}
    items = {f"weights of the {name}": BYTES[precision] * count for name, count in weights.items()}
    tokens = math.prod(grids(vae, size)[1]) // vae.fold**2
    most = max(live_dit(dit, tokens, batch, precision), live_vae(vae, size, 1, precision))
    return {**items, "largest live activations": most}


def device_memory(device="cpu"):
    """Bytes of memory that the device has in all, or None if that is not to be known."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def table(estimate, limit=None):
    """An estimate as lines for a terminal, GiB per item and in all; and a sentence if it is more than
    `limit` bytes, see `device_memory`."""
    rows = {**estimate, "together, on each rank": sum(estimate.values())}
    width = max(len(name) for name in rows)
    lines = [f"  {name:<{width}}  {count / 2**30:9.3f} GiB" for name, count in rows.items() if count]
    if limit is not None and sum(estimate.values()) > limit:
        lines.append(f"  That is more than the {limit / 2**30:.1f} GiB of this device: use a smaller batch "
                     "or clip, activation checkpointing, or fsdp on more ranks.")
    return "\n".join(lines)


# --- Measuring ---------------------------------------------------------------------------------------------
#
# torch's FakeTensorMode runs the true code on tensors that have shapes and storages, and no contents: nothing
# is computed or allocated, and what autograd would keep can be counted at any size.

@contextmanager
def without_contents():
    """FakeTensorMode, without a CPU's own paths for a lone clip and for linear layers, which need contents
    (and keep as much)."""
    kept = minltx.vae.FAST_ON_CPU, minltx.layers.FUSED
    minltx.vae.FAST_ON_CPU = minltx.layers.FUSED = False
    try:
        with FakeTensorMode():
            yield
    finally:
        minltx.vae.FAST_ON_CPU, minltx.layers.FUSED = kept


def saved_bytes(module, work):
    """What autograd keeps of work() for its backward pass, in bytes, each storage once, the parameters of
    `module` not counted."""
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage         # held, so that no other one takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    total = sum(storage.nbytes() for storage in saved.values())
    del result
    return total


class Live(TorchDispatchMode):
    """Inside it, `now` is the bytes of all living tensors that were made inside it, and `peak` the most that
    they ever were."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.note((args, kwargs), count=False)          # what came from outside, and views of it, is free
        result = function(*args, **(kwargs or {}))
        self.note(result, count=True)
        self.peak = max(self.peak, self.now)
        return result

    def note(self, tree, count):
        for tensor in tree_leaves(tree):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and id(storage) not in self.known:
                self.known[id(storage)] = storage.nbytes() if count else 0
                self.now += self.known[id(storage)]
                weakref.finalize(storage, self.forget, id(storage))

    def forget(self, key):
        self.now -= self.known.pop(key)


@contextmanager
def made_in(precision):
    """New tensors and networks have this precision."""
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16" else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def dit_and_inputs(config, grid, words, batch=1, per_token=False):
    """A transformer and what its forward takes for (f, h, w) latent voxels."""
    latent, text = torch.randn(batch, config.latent_channels, *grid), torch.randn(batch, words,
                                                                                 config.text_width)
    t = torch.rand(batch, *grid) if per_token else torch.rand(batch)
    return DiT(config), (latent, t, text, torch.ones(batch, words))


def saved_by_dit(config, grid, words, batch=1, per_token=False, precision="float32"):
    """`saved_bytes` of the transformer's forward pass; the copies that autocast makes of the weights are in
    `states`, and taken off here (none is kept of a layer whose input needs no gradient)."""
    with without_contents():
        dit, inputs = dit_and_inputs(config, grid, words, batch, per_token)
        first = (dit.patchify_proj, dit.caption_projection[0], dit.time_embedder.linear_1)
        with autocast(precision):
            return saved_bytes(dit, lambda: dit(*inputs)) - copies(dit, precision, but=first)


def saved_by_vae(config, size, batch=1, precision="float32"):
    """The same for encoding, decoding and the losses of the default `LossConfig`."""
    with without_contents():
        vae, video, t = VideoVAE(config), torch.randn(batch, 3, *size), torch.rand(batch)

        def work():
            mean, logvar = vae.encode(video)
            return vae_loss(video, vae.decode(mean, t).float(), mean, logvar, LossConfig(foreground=1.0))

        with autocast(precision):
            return saved_bytes(vae, work) - copies(vae, precision, but=(vae.encoder.conv_in,))


def live_in_dit(config, grid, words, batch=1, precision="float32"):
    """The most that a pass without gradients holds at once, weights not counted."""
    with without_contents(), torch.no_grad():
        with made_in(precision):
            dit, inputs = dit_and_inputs(config, grid, words, batch)
        with Live() as live:
            dit(*inputs)
    return live.peak


def live_in_vae(config, size, batch=1, precision="float32"):
    """The same for encoding and decoding, whichever is more."""
    with without_contents(), torch.no_grad():
        with made_in(precision):
            vae, video, t = VideoVAE(config), torch.randn(batch, 3, *size), torch.rand(batch)
            latent = torch.randn(batch, *vae.latent_shape(*size))
        with Live() as encoding:
            vae.encode(video)
        with Live() as decoding:
            vae.decode(latent, t)
    return max(encoding.peak, decoding.peak)


def measure():
    """The released model at 121 x 512 x 768: every formula beside what a run without contents counts."""
    dit, vae, size = DiTConfig(), VAEConfig(), (121, 512, 768)
    grid, words = grids(vae, size)[1], 256
    tokens = math.prod(grid)
    rows = []
    for precision in BYTES:
        deep, flat = (saved_by_dit(replace(dit, depth=n), grid, words, precision=precision) for n in (3, 2))
        rows += [(f"a transformer block, {precision}", block_activations(dit, tokens, words, 1, precision),
                  deep - flat),
                 (f"the transformer, {precision}", dit_activations(dit, tokens, words, precision=precision),
                  saved_by_dit(dit, grid, words, precision=precision)),
                 (f"the same, a time per token, {precision}",
                  dit_activations(dit, tokens, words, 1, tokens, precision),
                  saved_by_dit(dit, grid, words, 1, True, precision)),
                 (f"the autoencoder and its losses, {precision}", vae_activations(vae, size, 1, precision),
                  saved_by_vae(vae, size, 1, precision)),
                 (f"live in the transformer, {precision}", live_dit(dit, tokens, 1, precision),
                  live_in_dit(replace(dit, depth=2), grid, words, 1, precision)),
                 (f"live in the autoencoder, {precision}", live_vae(vae, size, 1, precision),
                  live_in_vae(vae, size, 1, precision))]
    for precision, counted in zip(BYTES, (rows[0][2], rows[len(rows) // 2][2]), strict=True):
        print(f"  a block keeps {counted / (tokens * dit.width):.1f} bytes per token and channel, "
              f"{precision}; the constant is {BLOCK[precision]}, and some for words and statistics")
    for name, formula, counted in rows:
        print(f"  {name:<45} formula {formula / 2**30:9.3f} GiB   counted {counted / 2**30:9.3f} GiB   "
              f"{100 * (formula / counted - 1):+5.1f} %")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--stage", choices=("dit", "vae", "sample"), default="dit", help="(default: %(default)s)")
    add("--size", type=int, nargs=3, default=(121, 512, 768), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    add("--words", type=int, default=256, help="(default: %(default)s)")
    add("--batch", type=int, default=1, help="clips at once on one rank (default: %(default)s)")
    add("--precision", choices=BYTES, default="float32")
    add("--checkpointing", action="store_true")
    add("--optimizer", choices=MOMENTS, default="adamw")
    add("--parallel", choices=PARALLEL, default="none")
    add("--ranks", type=int, default=1)
    add("--micro-batches", type=int, default=1, help="of one rank, their gradients added up (default: "
        "%(default)s)")
    add("--device", default="cpu", help="whose memory it has to fit (default: %(default)s)")
    add("--measure", action="store_true", help="compare the formulas with a run that has no contents")
    args = parser.parse_args(argv)
    if args.measure:
        return measure()
    training = {"batch": args.batch, "precision": args.precision, "checkpointing": args.checkpointing,
                "optimizer": args.optimizer, "parallel": args.parallel, "ranks": args.ranks,
                "micro_batches": args.micro_batches}
    try:
        tokens = math.prod(grids(VAEConfig(), args.size)[1])
        if args.stage == "dit":
            items = estimate_dit(DiTConfig(), tokens, args.words, **training)
        elif args.stage == "vae":
            items = estimate_vae(VAEConfig(), args.size, **training)
        else:
            items = estimate_sampling(DiTConfig(), VAEConfig(), args.size, args.batch, args.precision)
    except ValueError as error:
        parser.exit(2, f"minltx.workshop.memory: {error}\n")
    print(table(items, device_memory(args.device)))


if __name__ == "__main__":
    main()
