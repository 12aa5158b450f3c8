"""How many bytes are alive while something is computed, and how many a device has."""

import os
import weakref
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Inside this context `now` is the bytes of all living tensors that were made inside it, and `peak` is
    the most that they ever were. Autocast's copies of weights from outside are not counted.

    With layouts=True `peak` also has room for the copies of its input and output that a convolution makes
    while it runs, because its library (oneDNN, cuDNN) works in a memory layout of its own.
    """

    def __init__(self, layouts=False):
        super().__init__()
        self.known, self.now, self.peak, self.layouts = {}, 0, 0, layouts

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.note((args, kwargs), count=False)          # made outside, or counted when it was made
        result = function(*args, **(kwargs or {}))
        cast = function is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter)
        self.note(result, count=not cast)
        copies = self.layouts and function is torch.ops.aten.convolution.default
        self.peak = max(self.peak, self.now + (args[0].nbytes + result.nbytes if copies else 0))
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
def made_in(dtype):
    """New tensors and networks are of this floating-point type."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def device_memory(device="cpu"):
    """Bytes of memory that the device has, or None if the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
