"""The checkpoint of several processes: one file each, of tensors and plain values only.

FSDP2 cuts a tensor along its first axis, so the parts of all processes, in their order, are the tensor. A
tensor that every process holds whole is in the file of process 0. Any number of processes can read them.
torch's distributed checkpoint does the same and keeps its table of contents as a pickle, which executes code
when it is read; these files are read by `files.read_torch`.
"""

import json
import re

import torch

from minltx.files import put_in_place, read_torch, write_torch
from minltx.training.parallel import like_shard

FORMAT = "minltx-shard-1"


def leaves(tree, path=""):
    """Every tensor in dictionaries and lists in each other, as (path, tensor)."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            yield from leaves(value, f"{path}{key}/")
        elif torch.is_tensor(value):
            yield f"{path}{key}", value


def write_parts(file, folder, tree, state, world):
    """Write this process's part of the tensors in a tree, then the JSON file that names the complete folder.

    state: plain values for all processes. The other processes wait until the JSON file is there.
    """
    own = {path: x.to_local() if hasattr(x, "to_local") else x for path, x in leaves(tree)
           if world.rank == 0 or hasattr(x, "to_local")}
    write_torch(file.parent / folder / f"{world.rank}.pt", {
        "format": FORMAT, "part": world.rank, "parts": world.size, "state": state, "tensors": own})
    world.wait()
    if world.rank == 0:
        pointer = json.dumps({"folder": folder, "parts": world.size})
        put_in_place(file, lambda part: part.write_text(pointer))
    world.wait()


def read_parts(file):
    """The JSON file of `write_parts` -> every process's part, as dictionaries; tensors are read when used.

    Raises ValueError if a file is missing, foreign, damaged or of another checkpoint.
    """
    try:
        pointer = json.loads(file.read_text())
        folder, count = file.parent / pointer["folder"], pointer["parts"]
        if not re.fullmatch(r"shards-\d+-\d+", pointer["folder"]) or count not in range(1, 10**4):
            raise ValueError("it names no folder of parts")
        count = int(count)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, or was written before 0.2.0 ({error}): start again with "
                         "another --out") from None
    parts = []
    for number in range(count):
        path = folder / f"{number}.pt"
        try:
            part = read_torch(path, mmap=True)
            if not isinstance(part, dict) or [part.get(k) for k in ("format", "part", "parts")] != [
                    FORMAT, number, count]:
                raise ValueError("it is of another checkpoint")
            parts.append({"state": part["state"], "tensors": dict(part["tensors"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}): copy the folder again, or start again "
                             "with another --out") from None
    return parts


@torch.no_grad()
def fill(tree, parts):
    """Copy stored tensors into those of a tree of the same form; each process takes its part of them.

    Raises ValueError for a tensor that is missing, of another shape or not finite.
    """
    for path, target in leaves(tree):
        found = [part["tensors"][path] for part in parts if path in part["tensors"]]
        if not found or not all(map(torch.is_tensor, found)):
            raise ValueError(f"{path} is missing")
        try:
            whole = found[0] if len(found) == 1 else torch.cat(found)
        except RuntimeError as error:
            raise ValueError(f"{path} is cut into parts that do not fit ({str(error)[:80]})") from None
        if whole.shape != target.shape or not whole.isfinite().all():
            raise ValueError(f"{path} has the shape {tuple(whole.shape)}, not {tuple(target.shape)}, or is "
                             "not finite")
        target.copy_(like_shard(whole.to(target.device), target))
