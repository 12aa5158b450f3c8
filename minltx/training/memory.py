"""How much memory a training or a sampling will need, estimated before anything is allocated.

    python -m minltx.training.memory                                     train the released 2 B transformer
    python -m minltx.training.memory --stage vae --checkpointing         train its autoencoder
    python -m minltx.training.memory --stage sample --size 121x512x768
    python -m minltx.training.memory --parallel fsdp --ranks 8 --precision bf16

Weights, gradients, the optimiser's moments and the averaged weights have the size of the parameters: that is
arithmetic. Activations are measured. A forward and backward pass runs on torch's fake tensors, which have
shapes but no contents, so that nothing is computed or allocated, and `LiveTensors` adds up the bytes that are
alive at the same time. tests/test_memory.py compares the result with real passes.

For several processes the figures are those of parallel.py. With "fsdp-bf16", which docs/scale.md assumes,
weights would be gathered in bf16. Before FSDP shards a model, each process holds all of it in the host's
memory, 4 bytes per parameter; the figures do not include that.

Nor do they include the memory of the device's own libraries (a CUDA context needs about half a GiB), the
workspaces of convolutions, communication buffers and fragmentation. Leave a tenth of the memory for them.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from minltx.command import COUNT, Parser, device_name, one_line, sizes
from minltx.dit import DiT, DiTConfig
from minltx.fast_gpu import blocks_of
from minltx.memory import LiveTensors, device_memory, made_in
from minltx.objectives import VAERecipe, vae_objective
from minltx.vae import VAEConfig, VideoVAE

BYTES = {"float32": 4, "bf16": 2}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MOMENTS = {"adamw": 8, "muon": 4}               # bytes per parameter: two float32 moments, or one
PARALLEL = ("none", "ddp", "fsdp", "fsdp-bf16")


@dataclass(frozen=True)
class Plan:
    """How one network is trained: `batch` is the micro-batch of one rank, which sums the gradients of
    `micro_batches` of them; precision "bf16" means autocast, with weights in float32; `ema`: an average of
    the weights is kept. Raises ValueError for settings without an estimate."""

    batch: int = 1
    precision: str = "float32"
    checkpointing: bool = False
    optimizer: str = "adamw"
    ema: bool = True
    parallel: str = "none"
    ranks: int = 1
    micro_batches: int = 1

    def __post_init__(self):
        for name, known in (("precision", BYTES), ("optimizer", MOMENTS), ("parallel", PARALLEL)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: use one of {', '.join(known)}")
        for name in ("batch", "ranks", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: use 1 or more")
        if self.parallel == "none" and self.ranks > 1:
            raise ValueError(f"{self.ranks} ranks do not share the work yet: use parallel ddp or fsdp")
        if self.parallel == "fsdp-bf16" and self.precision != "bf16":
            raise ValueError("fsdp-bf16 gathers bf16 weights: use precision bf16, or parallel fsdp")


# --- Per parameter ----------------------------------------------------------------------------------------

def on_meta(network, config):
    """A network that has shapes only."""
    with torch.device("meta"):
        return network(config)


def parameters(module):
    """How many numbers are learned."""
    return sum(p.numel() for p in module.parameters())


def weights_of(network, config):
    """The float32 weights of a network (DiT or VideoVAE) that is on the device and not trained, in bytes."""
    return 4 * parameters(on_meta(network, config))


def copies(module, precision, but=()):
    """Bytes of the copies that autocast makes of the weights, except for some layers."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv3d)) and m not in but]
    return sum(2 * layer.weight.numel() for layer in layers) if precision == "bf16" else 0


def states(module, blocks, plan):
    """Weights, gradients, optimiser and average -> dict of bytes on one rank.

    The weights are float32 in either precision: under bf16 autocast makes copies of them. DDP keeps
    everything on each rank. Its gradients are views of the buckets that it sends; sums over several
    micro-batches are kept next to the buckets until the last one. FSDP2 shards everything over `ranks` and
    gathers one block at a time, weights and gradients; parameters outside the blocks stay gathered. Two
    things are not sharded: autocast's copies, which autograd keeps, and gradients while they are summed.
    "fsdp-bf16" has only the second.
    """
    P, sharded, several = parameters(module), plan.parallel.startswith("fsdp"), plan.micro_batches > 1
    share = plan.ranks if sharded else 1
    items = {"weights": 4 * P / share, "gradients": 4 * P / share,
             f"optimiser ({plan.optimizer})": MOMENTS[plan.optimizer] * P / share,
             "averaged weights": 4 * P / share if plan.ema else 0}
    if sharded:
        sizes = [parameters(block) for block in blocks]
        gathered = max(sizes) + P - sum(sizes)
        items["one gathered block"] = (4 if plan.parallel == "fsdp-bf16" else 8) * gathered
    if several and (sharded or plan.ranks > 1):
        items["sums of gradients over micro-batches"] = 4 * P
    if plan.parallel != "fsdp-bf16" and plan.precision == "bf16":
        items["bf16 copies of the weights"] = copies(module, plan.precision)
    return {name: round(count) for name, count in items.items()}


# --- Activations ------------------------------------------------------------------------------------------

def training_peak(network, loss_of, precision="float32", checkpointing=False):
    """The most bytes alive in a forward and backward pass of loss_of(), next to weights and gradients."""
    for block in blocks_of(network) if checkpointing else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)                    # estimated elsewhere, so made outside
    with LiveTensors() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
    return live.peak


def dit_inputs(config, tokens, words, batch=1, times=1):
    """Random arguments for `DiT.forward_tokens`; times is 1, or `tokens` for one per token."""
    return (torch.randn(batch, tokens, config.latent_channels), torch.rand(batch, times),
            torch.rand(3, tokens), torch.randn(batch, words, config.text_width), torch.ones(batch, words))


@functools.cache
def dit_activations(config, tokens, words, batch=1, times=1, precision="float32", checkpointing=False):
    """`training_peak` of the transformer; words is the caption's length, padding included."""
    with FakeTensorMode():
        dit, inputs = DiT(config), dit_inputs(config, tokens, words, batch, times)
        return training_peak(dit, lambda: dit.forward_tokens(*inputs).float().square().mean(), precision,
                             checkpointing)


@functools.cache
def vae_activations(config, size, batch=1, precision="float32", checkpointing=False):
    """`training_peak` of the autoencoder, without the networks of the perceptual and adversarial losses."""
    with FakeTensorMode():
        vae, video = VideoVAE(config), torch.rand(batch, 3, *size)
        return training_peak(vae, lambda: vae_objective(vae, video, VAERecipe(), None, foreground=1.0)[0],
                             precision, checkpointing)


# --- Estimates --------------------------------------------------------------------------------------------

def estimate_dit(config, tokens, words, batch=1, times=1, **plan):
    """Training the transformer -> dict of bytes on one rank.

    words is the caption's length, padding included; times is 1, or `tokens` where given pictures are trained
    too; plan: fields of `Plan`. Raises ValueError for settings without an estimate.
    """
    p, dit = Plan(batch, **plan), on_meta(DiT, config)
    kept = dit_activations(config, tokens, words, batch, times, p.precision, p.checkpointing)
    return {**states(dit, dit.blocks, p), "activations": kept}


def estimate_vae(config, size, batch=1, **plan):
    """The same for training the autoencoder on clips of (frames, height, width) pixels, without the networks
    of the perceptual and adversarial losses. FSDP2 leaves it to DDP, see parallel.py."""
    p, vae = Plan(batch, **{"ema": False, **plan}), on_meta(VideoVAE, config)
    kept = vae_activations(config, tuple(size), batch, p.precision, p.checkpointing)
    p = replace(p, parallel="none" if p.parallel == "none" else "ddp")
    return {**states(vae, (), p), "activations": kept}


def sampling_peaks(dit_config, vae_config, size, words=256, batch=1, precision="float32"):
    """The most bytes alive in a pass of the transformer, in encoding and in decoding, next to the weights.
    Without gradients a block keeps nothing, so one block stands for all."""
    with FakeTensorMode(), torch.no_grad(), made_in(DTYPES[precision]):
        dit, vae, peaks = DiT(replace(dit_config, depth=1)), VideoVAE(vae_config), []
        shape = vae.latent_shape(*size)
        tokens = dit_inputs(dit_config, math.prod(shape[1:]), words, batch)
        video, latent, t = torch.rand(1, 3, *size), torch.randn(1, *shape), torch.rand(1)
        for work in (lambda: dit.forward_tokens(*tokens), lambda: vae.encode(video),
                     lambda: vae.decode(latent, t)):
            with LiveTensors() as live:
                work()
            peaks.append(live.peak)
    return peaks


def estimate_sampling(dit, vae, size, words=256, batch=1, precision="float32"):
    """Sampling clips of (frames, height, width) pixels with both networks loaded -> dict of bytes, without
    the text encoder. batch counts the passes of guidance that run together; "bf16" weights are bf16 too."""
    Plan(batch, precision)                              # raises ValueError
    items = {f"weights of the {name}": BYTES[precision] * weights_of(network, config) // 4
             for name, network, config in (("transformer", DiT, dit), ("autoencoder", VideoVAE, vae))}
    return {**items, "largest live activations": max(sampling_peaks(dit, vae, size, words, batch, precision))}


def refuse(what, count, limit):
    """Raises ValueError if so many bytes do not fit in `limit`, see `device_memory`."""
    if limit is not None and count > limit:
        raise ValueError(f"{what}: this needs {count / 2**30:,.0f} GiB of memory, and the device has "
                         f"{limit / 2**30:.0f} GiB: use less at once")


def table(estimate, limit=None):
    """An estimate as lines for a terminal, GiB per item and in all, with a warning if it exceeds `limit`
    bytes, see `device_memory`."""
    rows = {**estimate, "together, on each rank": sum(estimate.values())}
    width = max(len(name) for name in rows)
    lines = [f"  {name:<{width}}  {count / 2**30:9.3f} GiB" for name, count in rows.items() if count]
    if limit is not None and sum(estimate.values()) > limit:
        lines.append(f"  That is more than the {limit / 2**30:.1f} GiB of this device: use a smaller batch "
                     "or clip, activation checkpointing, or fsdp on more ranks.")
    return "\n".join(lines)


def options():
    parser = Parser(prog="python -m minltx.training.memory", description=__doc__)
    add = parser.add_argument
    add("--stage", choices=("dit", "vae", "sample"), default="dit", help="(default: %(default)s)")
    add("--size", type=sizes(example="121x512x768"), default="121x512x768", metavar="FxHxW",
        help="of a clip in pixels (default: %(default)s)")
    add("--words", type=COUNT, help="of a caption (default: 256)")
    add("--batch", type=COUNT, default=1, help="clips at once on one rank (default: %(default)s)")
    add("--precision", choices=BYTES, default="float32")
    add("--checkpointing", action="store_true")
    add("--optimizer", choices=MOMENTS, help="(default: adamw)")
    add("--parallel", choices=PARALLEL, help="(default: none)")
    add("--ranks", type=COUNT, help="processes (default: 1)")
    add("--micro-batches", type=COUNT, help="per rank and step (default: 1)")
    add("--device", type=device_name, default="cpu",
        help="whose memory it has to fit (default: %(default)s)")
    return parser


def asked_for(args):
    """The command line -> dict of bytes. Raises ValueError for options that the stage does not have."""
    plan = {name: value for name in ("checkpointing", "optimizer", "parallel", "ranks", "micro_batches")
            if (value := getattr(args, name)) not in (None, False)}
    if args.stage == "sample" and plan:
        raise ValueError(f"--{next(iter(plan)).replace('_', '-')} is for training, not for --stage sample")
    if args.stage == "vae" and args.words:
        raise ValueError("--words is for the transformer, not for --stage vae")
    dit, vae, words = DiTConfig(), VAEConfig(), args.words or 256
    tokens = math.prod(on_meta(VideoVAE, vae).latent_shape(*args.size)[1:])
    if args.stage == "sample":
        return estimate_sampling(dit, vae, args.size, words, args.batch, args.precision)
    plan |= {"batch": args.batch, "precision": args.precision}
    if args.stage == "vae":
        return estimate_vae(vae, args.size, **plan)
    return estimate_dit(dit, tokens, words, **plan)


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser):
        print(table(asked_for(args), device_memory(args.device)))


if __name__ == "__main__":
    main()
