"""When two values out of files are the same: to the bit, so NaN is the same as itself and 0.0 is not -0.0."""

import struct

import torch


def same(a, b):
    """Whether two values out of files are equal, tensors and numbers bit for bit."""
    if type(a) is not type(b):
        return False
    if torch.is_tensor(a):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("d", a) == struct.pack("d", b) if isinstance(a, float) else a == b


def bits(tensor):
    """A tensor's numbers as bytes."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)
