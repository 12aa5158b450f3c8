"""Tensors in safetensors files, read strictly: every tensor that is expected, no other,
each of the right shape.

safetensors is an optional package; nothing else of minltx needs it. A safetensors file is a table of numbers:
nothing in it can be executed.
"""

import json
from pathlib import Path

import torch

from minltx.workshop.pictures import put_in_place


def library():
    """The safetensors package, or one sentence on how to get it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ValueError("reading and writing the released format needs a package: "
                         "pip install safetensors") from None
    return safetensors


def sentence(error):
    """The first line of an error, shortened; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:80]


def open_file(path):
    """path -> an open safetensors file. ValueError with one sentence for one that is none or is cut off."""
    safetensors = library()
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return safetensors.safe_open(path, framework="pt")
    except Exception as error:      # the library's own kinds of error differ from version to version
        raise ValueError(f"{path} is no safetensors file, or is cut off ({sentence(error)}): "
                         "download it again") from None


def metadata(path):
    """The header's own dictionary of strings; {} if it has none."""
    return open_file(path).metadata() or {}


def parse_json(text, where):
    """JSON -> values. ValueError with one sentence."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable as JSON ({sentence(error)})") from None


def read_json(path):
    """A JSON file. ValueError with one sentence."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable ({sentence(error)})") from None
    return parse_json(text, path)


def locate(files):
    """safetensors files -> tensor name -> the open file that holds it."""
    where = {}
    for path in files:
        opened = open_file(path)
        for name in opened.keys():
            if name in where:
                raise ValueError(f"{path} holds the tensor {name} for a second time")
            where[name] = opened
    return where


def shards(folder):
    """The weight files of a diffusers component, one or several with an index."""
    folder = Path(folder)
    index, single = (folder / f"diffusion_pytorch_model.safetensors{end}" for end in (".index.json", ""))
    if index.is_file():
        stored = read_json(index)
        weights = stored.get("weight_map") if isinstance(stored, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
            raise ValueError(f"{index} has no weight_map")
        return [folder / Path(name).name for name in sorted(set(weights.values()))]
    if single.is_file():
        return [single]
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    if pickles:
        raise ValueError(f"{folder} holds {pickles[0]}, a pickle, which could execute code: "
                         "save it as safetensors (diffusers: save_pretrained) and load that")
    raise ValueError(f"{folder} has no diffusion_pytorch_model.safetensors")


def listed(names, most=3):
    """A few names in a sentence."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check(module, names, where, source):
    """ValueError unless a file holds every tensor of a module in its shape.

    names: the module's name -> the file's; where: the file's name -> its open file. Nothing is read yet.
    """
    targets = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    missing = [stored for stored in names.values() if stored not in where]
    if missing:
        raise ValueError(f"{source} lacks {listed(missing)}")
    for name, stored in names.items():
        part = where[stored].get_slice(stored)
        shape, kind = tuple(part.get_shape()), part.get_dtype()
        if shape != tuple(targets[name].shape):
            raise ValueError(f"{source}: {stored} has the shape {shape}, and its config asks for "
                             f"{tuple(targets[name].shape)}")
        if not kind.startswith(("F", "BF")):
            raise ValueError(f"{source}: {stored} holds {kind}, not floating-point numbers")


def refuse_left_over(where, used, source):
    """ValueError if a file holds more than was asked for."""
    left = set(where) - set(used)
    if left:
        raise ValueError(f"{source} holds tensors that its config has no place for: {listed(left)}")


def fill(module, names, where, dtype, device, source):
    """Put a file's tensors into a module on the meta device, one by one: nothing is ever held twice."""
    for name, stored in names.items():
        try:
            tensor = where[stored].get_tensor(stored).to(device=device, dtype=dtype)
        except Exception as error:      # a kind of number that this torch does not have, a full memory
            raise ValueError(f"{source}: cannot read {stored} ({sentence(error)})") from None
        owner, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner)
        setattr(owner, leaf, torch.nn.Parameter(tensor) if leaf in owner._parameters else tensor)


def write(path, tensors, header=None):
    """Write tensors (name -> tensor) to one safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save = library().torch.save_file
    put_in_place(path, lambda part: save(tensors, part, metadata={"format": "pt", **(header or {})}))


def write_json(path, values):
    """Write a JSON file, whole or not at all."""
    put_in_place(path, lambda part: part.write_text(json.dumps(values, indent=2) + "\n"))
