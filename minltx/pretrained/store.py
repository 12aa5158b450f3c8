"""Tensors in safetensors files, read strictly: every expected tensor, no other one, each of the right shape.

safetensors is an optional package; nothing else in minltx needs it. A safetensors file is a table of numbers:
nothing in it can be executed.
"""

import json
from pathlib import Path

import torch

from minltx.files import put_in_place
from minltx.pretrained.names import UNUSED_STATISTICS

WEIGHTS = "diffusion_pytorch_model.safetensors"     # in a diffusers folder; INDEX if it is in several files
INDEX = WEIGHTS + ".index.json"


def library():
    """The safetensors package. Raises ValueError, which says how to install it."""
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("reading and writing the released format needs a package: "
                         "pip install safetensors") from None
    return safetensors


def sentence(error):
    """The first line of an error, shortened; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:80]


def open_file(path):
    """path -> an open safetensors file. Raises ValueError if it is not safetensors or is truncated."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    safetensors = library()
    try:
        return safetensors.safe_open(path, framework="pt")
    except Exception as error:      # the library's own kinds of error differ from version to version
        raise ValueError(f"{path} is not a safetensors file, or is truncated ({sentence(error)}): "
                         "download it again") from None


def metadata(path):
    """The header's own dictionary of strings; {} if it has none."""
    return open_file(path).metadata() or {}


def parse_json(text, where):
    """JSON -> values. Raises ValueError, which names `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable as JSON ({sentence(error)})") from None


def read_json(path):
    """A JSON file -> values. Raises ValueError."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is missing or not readable ({sentence(error)})") from None
    return parse_json(text, path)


def locate(source):
    """A safetensors file, or a part of a diffusers folder -> tensor name -> the open file that holds it."""
    where = {}
    for path in shards(source) if Path(source).is_dir() else [source]:
        opened = open_file(path)
        for name in opened.keys():
            if name in where:
                raise ValueError(f"{path} holds the tensor {name} for a second time")
            where[name] = opened
    return where


def shards(folder):
    """The weight files of a part of a diffusers folder, one or several with an index."""
    single = Path(folder) / WEIGHTS
    index = single.with_name(INDEX)
    if index.is_file():
        stored = read_json(index)
        weights = stored.get("weight_map") if isinstance(stored, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            raise ValueError(f"{index} has no weight_map")
        return [index.with_name(Path(name).name) for name in sorted(set(weights.values()))]
    pickles = sorted(p.name for p in Path(folder).glob("*.bin"))
    if pickles and not single.is_file():
        raise ValueError(f"{folder} holds {pickles[0]}, a pickle, which could execute code: "
                         "save it as safetensors (diffusers: save_pretrained) and load that")
    if not single.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}")
    return [single]


def check(module, names, where, source):
    """Raises ValueError unless a file holds every tensor of a module in its shape, and no other tensor.

    names: the module's name -> the file's; where: the file's name -> its open file. Nothing is read yet.
    """
    targets = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    needed, held = set(names.values()), {name for name in where if not name.startswith(UNUSED_STATISTICS)}
    for word, left in (("lacks", needed - set(where)), ("has tensors unknown to its config:", held - needed)):
        if left:
            more = f" and {len(left) - 3} more" * (len(left) > 3)
            raise ValueError(f"{source} {word} {', '.join(sorted(left)[:3])}{more}")
    for name, stored in names.items():
        part = where[stored].get_slice(stored)
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != tuple(targets[name].shape):
            raise ValueError(f"{source}: {stored} has the shape {shape}, but its config needs "
                             f"{tuple(targets[name].shape)}")
        if not kind.startswith(("F", "BF")):
            raise ValueError(f"{source}: {stored} holds {kind}, not floating-point numbers")


def fill(module, names, where, source, dtype, device):
    """Put a file's tensors into a module on the meta device, one by one: nothing is ever held twice.

    Copied even without a change of type: tensors in the file are not aligned to 64 bytes, and oneDNN computes
    with other roundings on those.
    """
    for name, stored in names.items():
        try:
            tensor = where[stored].get_tensor(stored).to(device=device, dtype=dtype, copy=True)
        except Exception as error:      # a kind of number that this torch does not have, a full memory
            raise ValueError(f"{source}: cannot read {stored} ({sentence(error)})") from None
        owner, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner)
        setattr(owner, leaf, torch.nn.Parameter(tensor) if leaf in owner._parameters else tensor)


def write(path, tensors, header=None):
    """Write tensors (name -> tensor) to one safetensors file, completely or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save = library().torch.save_file
    put_in_place(path, lambda part: save(tensors, part, metadata={"format": "pt", **(header or {})}))


def write_json(path, values):
    """Write a JSON file, completely or not at all."""
    put_in_place(path, lambda part: part.write_text(json.dumps(values, indent=2) + "\n"))
