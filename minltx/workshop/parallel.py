"""One training in several processes: which batches are whose, and where the parameters live.

    torchrun --nproc-per-node 2 train_tiny.py --micro-batches 2 --parallel fsdp

A step is `micro_batches` small batches, each drawn from (seed, stage, its number) alone, and the mean of
their gradients. Process r of W computes the batches r, r + W, ..., so that loss, gradients and the whole
curve are the same for any number of processes (up to the order of additions).

"ddp" keeps everything in every process and averages gradients. "fsdp" (torch's FSDP2) keeps a W-th of every
parameter, gradient, average and optimiser state of the transformer in each, and gathers a block's parameters
while it works; the autoencoder, a sixth of the work and with a scalar among its parameters that FSDP2 cannot
cut, is trained as with "ddp".
"""

import copy
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp
import torch.distributed.tensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from minltx.dit import DiT


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, how they share ("none", "ddp", "fsdp"), and its
    device."""

    device: torch.device
    rank: int = 0
    size: int = 1
    parallel: str = "none"

    def mean(self, values):
        """Numbers by name, averaged over the processes; each process must know the same names."""
        if self.size == 1:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist()))

    def gather(self, x):
        """Every process's tensor (n, ...) of the same shape -> (W*n, ...)."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def average_gradients(self, module):
        """Replace every gradient of a module that nothing else takes care of by its mean."""
        if self.size > 1:
            for p in module.parameters():
                dist.all_reduce(p.grad)
                p.grad /= self.size

    def wait(self):
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(parallel, device):
    """Take part in what torchrun has started, or be alone -> World.

    parallel: "ddp", "fsdp" or None, which is "ddp" under torchrun. ValueError without torchrun where there is
    something to share.
    """
    if "RANK" not in os.environ:
        if parallel:
            raise ValueError(f"--parallel {parallel} is for several processes: start them with "
                             "torchrun --nproc-per-node 2 train_tiny.py ...")
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # One process may encode all clips while the others wait.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    return World(device, dist.get_rank(), dist.get_world_size(), parallel or "ddp")


def leave():
    """Undo `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Objective(nn.Module):
    """A loss as a module, because DistributedDataParallel acts when a module is called."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *args):
        return self.loss(self.model, *args)


def blocks_of(module):
    """The parts of a network that are computed one after the other: what is compiled, recomputed and gathered
    as one."""
    return [block for m in module.modules() for name in ("blocks", "down_blocks", "up_blocks")
            for block in getattr(m, name, ())]


def share(world, model, parts, loss, checkpointing=False, compiled=False):
    """Make the named parts of a model trainable, and them alone, in this world.

    -> (the model to work with, a function of loss's other arguments that computes loss(model, ...)). With
    "fsdp" that model has copies of these parts, sharded, and the model itself stays whole, see `collect`.
    checkpointing: blocks keep only their input and are recomputed in the backward pass. compiled: blocks go
    through torch.compile.
    """
    sharded = world.parallel == "fsdp" and "dit" in parts
    model.requires_grad_(False)
    if sharded:
        # The whole parts wait in the host's memory; the copy's go to the device as shards, one by one.
        for part in map(model.get_submodule, parts):
            part.to("cpu")
        rest = {id(child): child for name, child in model.named_children() if name not in parts}
        model = copy.deepcopy(model, rest)
        mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    for part in map(model.get_submodule, parts):
        part.requires_grad_(True)
        for block in blocks_of(part):
            if checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            if compiled:
                block.compile()
            if sharded:
                fsdp.fully_shard(block, mesh=mesh)
        if sharded:
            # What a forward gathered is let go after it, at the root too: the next step would find it stale.
            fsdp.fully_shard(part, mesh=mesh, reshard_after_forward=True)
            if isinstance(part, DiT):
                fsdp.register_fsdp_forward_method(part, "forward_tokens")
    if world.size > 1 and not sharded:
        return model, DistributedDataParallel(Objective(model, loss), broadcast_buffers=False,
                                              gradient_as_bucket_view=True)
    return model, partial(loss, model)


def synchronise(objective, model, now):
    """Whether the next backward pass averages gradients over the processes; in all but the last of a step's
    batches they are only added up."""
    if isinstance(objective, DistributedDataParallel):
        objective.require_backward_grad_sync = now
    for module in model.modules():
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(now, recurse=False)


@torch.no_grad()
def collect(model, work, device):
    """Copy the parameters of `share`'s model into the whole one, and that back to its device."""
    if work is not model:
        for whole, part in zip(model.parameters(), work.parameters(), strict=True):
            whole.copy_(full(part))
        model.to(device)


def full(x):
    """A tensor of which this process may hold only a shard, whole."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def like_shard(x, p):
    """This process's shard of a whole tensor x, cut as p is; x itself if p is whole."""
    if not hasattr(p, "full_tensor"):
        return x
    return dist.tensor.distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)
