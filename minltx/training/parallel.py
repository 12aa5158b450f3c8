"""One training in several processes: which process computes which batches, and where the parameters are.

    torchrun --nproc-per-node 2 -m minltx.training --micro-batches 2 --parallel fsdp

A step is `micro_batches` small batches, each drawn from (seed, stage, its number) alone, and the mean of
their gradients. Process r of W computes the batches r, r + W, ..., so that loss, gradients and the whole
curve are the same for any number of processes (up to the order of additions).

"ddp" keeps everything in every process and averages gradients. "fsdp" (torch's FSDP2) keeps a W-th of every
parameter, gradient, average and optimiser state of the transformer in each process, and gathers a block's
parameters while it works. The autoencoder is a sixth of the work and has a scalar among its parameters, which
FSDP2 cannot cut; it is trained with "ddp" in both cases.
"""

import copy
import gc
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from minltx.dit import DiT
from minltx.fast_gpu import blocks_of, compile_blocks


@dataclass(frozen=True)
class World:
    """Where a training is computed, and how; nothing in here changes its numbers.

    This process is `rank` among `size`, which share the work as `parallel` says: "none", "ddp", "fsdp".
    checkpointing: blocks keep only their input and are recomputed in the backward pass. compiled: blocks go
    through torch.compile.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    parallel: str = "none"
    checkpointing: bool = False
    compiled: bool = False

    def batches(self, step, count, stage):
        """The numbers of this process's batches among the `count` of a step. A number decides what is in its
        batch. Gradients are averaged over the processes in the last one; before, they are only added up."""
        own = range(step * count + self.rank, (step + 1) * count, self.size)
        for number in own:
            if self.size > 1:
                synchronise(stage, number == own[-1])
            yield number

    def mean(self, rows):
        """A list of dictionaries of numbers, one per batch of this process -> their mean over all batches of
        all processes. Every dictionary has the same names."""
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if self.size == 1:
            return means
        numbers = torch.tensor(list(means.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(means, (numbers / self.size).tolist()))

    def gather(self, x):
        """Every process's tensor (n, ...) of the same shape -> (W*n, ...)."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def average_gradients(self, module):
        """Replace every gradient of a module by its mean over the processes; for modules without DDP."""
        if self.size > 1:
            for p in module.parameters():
                dist.all_reduce(p.grad)
                p.grad /= self.size

    def wait(self):
        """Wait until every process has come this far."""
        if self.size > 1:
            dist.barrier()


def join(parallel, device, **how):
    """Join the processes that torchrun has started, or be alone -> World; how: its other fields.

    parallel: "ddp", "fsdp" or None, which is "ddp" under torchrun. Raises ValueError if it is given without
    torchrun.
    """
    if "RANK" not in os.environ:
        if parallel:
            raise ValueError(f"--parallel {parallel} is for several processes: start them with "
                             "torchrun --nproc-per-node 2 -m minltx.training ...")
        return World(device, **how)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # One process may encode all clips while the others wait.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    return World(device, dist.get_rank(), dist.get_world_size(), parallel or "ddp", **how)


def leave():
    """Undo `join`."""
    if dist.is_initialized():
        gc.collect()        # networks cut by FSDP2 are cycles, and hold the group of processes
        dist.destroy_process_group()


class Objective(nn.Module):
    """An objective as a module, because DistributedDataParallel acts when a module is called."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, *args):
        return self.objective(self.model, *args)


def parallelize(world, model, parts, objective):
    """Make the named parts of a model trainable, and only them, in this world.

    -> the model to train, and a function of the objective's other arguments that computes objective(model,
    ...). With "fsdp" that model has sharded copies of these parts, and the given one stays whole, see
    `gather_params`.
    """
    model.zero_grad()
    model.requires_grad_(False)
    sharded = world.parallel == "fsdp" and "dit" in parts
    if sharded:
        # The whole parts wait in the host's memory; the copy's go to the device as shards, one by one.
        for part in map(model.get_submodule, parts):
            part.to("cpu")
        rest = {id(child): child for name, child in model.named_children() if name not in parts}
        model = copy.deepcopy(model, rest)
    for part in map(model.get_submodule, parts):
        part.requires_grad_(True)
        for block in blocks_of(part) if world.checkpointing else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if world.compiled:
            compile_blocks(part)
        if sharded:
            shard(part, world)
    if world.size > 1 and not sharded:
        return model, nn.parallel.DistributedDataParallel(
            Objective(model, objective), broadcast_buffers=False, gradient_as_bucket_view=True)
    return model, partial(objective, model)


def shard(part, world):
    """Cut the parameters of a network into one shard per process, with FSDP2."""
    from torch.distributed import fsdp

    mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    for block in blocks_of(part):
        fsdp.fully_shard(block, mesh=mesh)
    # Also at the root, gathered parameters are freed after a forward pass: the next step changes the shards.
    fsdp.fully_shard(part, mesh=mesh, reshard_after_forward=True)
    if isinstance(part, DiT):
        fsdp.register_fsdp_forward_method(part, "forward_tokens")


def synchronise(stage, now):
    """Whether the next backward pass averages gradients over the processes."""
    if isinstance(stage.compute, nn.parallel.DistributedDataParallel):
        stage.compute.require_backward_grad_sync = now
    for module in stage.model.modules():
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(now, recurse=False)


@torch.no_grad()
def gather_params(model, trained, device):
    """Copy the parameters of `parallelize`'s model into the whole one, and that back to its device."""
    if trained is not model:
        for whole, part in zip(model.parameters(), trained.parameters(), strict=True):
            whole.copy_(to_full_tensor(part))
        model.to(device)


def to_full_tensor(x):
    """A tensor of which this process may hold only a shard, whole."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def like_shard(x, p):
    """This process's shard of a whole tensor x, cut as p is; x itself if p is whole."""
    if not hasattr(p, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)
