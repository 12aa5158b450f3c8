"""Tensors in safetensors files, read strictly: every expected tensor, no other one, each of the right shape.

safetensors is an optional package; nothing else in minltx needs it. A safetensors file is a table of numbers:
nothing in it can be executed.
"""

import json
import zlib
from collections import Counter
from pathlib import Path

import torch

from minltx.files import put_in_place
from minltx.pretrained.names import UNUSED_STATISTICS

WEIGHTS = "diffusion_pytorch_model.safetensors"     # in a diffusers folder; INDEX if it is in several files
INDEX = WEIGHTS + ".index.json"
DIGEST = "minltx checksums"                         # in the header: {name: CRC-32}; "" is the header's own
MOST = 2**24                                        # bytes of a header; the released ones have 300 kB
MOST_LISTS = 2**18                                  # of a header, which has three for each tensor
SCALES = ("weight_scale", "scale_weight", "input_scale", "scale_input", "scaled_fp8", ".scales")


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
    """path -> an open safetensors `File`. Raises ValueError if it is not safetensors or is damaged."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    safetensors = library()
    try:
        check_header(path)
        opened = safetensors.safe_open(path, framework="pt")
    except Exception as error:      # the library's own kinds of error differ from version to version
        raise ValueError(f"{path} is not a safetensors file, or is truncated ({sentence(error)}): "
                         "name another file, or download it again") from None
    return File(path, opened)


class File:
    """An open safetensors file. Files of minltx hold a checksum of each tensor and one of the header, under
    DIGEST in the header; they are compared. Files of others have none. Raises ValueError if one differs."""

    def __init__(self, path, opened):
        self.path, self.opened = path, opened
        self.keys, self.get_slice = opened.keys, opened.get_slice
        header = dict(opened.metadata() or {})
        digests = header.pop(DIGEST, None)
        self.digests = None if digests is None else parse_json(digests, f"{path}: its checksums")
        if digests is not None and (not isinstance(self.digests, dict)
                                    or self.digests.get("") != checksum_of_header(header, opened.keys())):
            raise ValueError(f"{path} is damaged: the checksum of its header differs: copy it again")
        self.header = header

    def metadata(self):
        """The header's own dictionary of strings."""
        return self.header

    def get_tensor(self, name):
        """A tensor by its name. Raises ValueError if its checksum differs."""
        tensor = self.opened.get_tensor(name)
        if self.digests is not None and self.digests.get(name) != checksum(tensor):
            raise ValueError(f"{self.path} is damaged: the checksum of {name} differs: copy it again")
        return tensor


def checksum(tensor):
    """A tensor's type, shape and numbers as a CRC-32."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), zlib.crc32(kind))


def checksum_of_header(header, names):
    """The header's strings and the tensors' names as a CRC-32."""
    return zlib.crc32(json.dumps([sorted(header.items()), sorted(names)]).encode())


def check_header(path):
    """Raises ValueError for a safetensors file whose header is too large, not JSON, or has a name twice."""
    def once(pairs):
        names = [name for name, _ in pairs]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"it has {twice[0]:.80} twice")
        return dict(pairs)

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST:
            raise ValueError(f"a header of {length} bytes")
        header = file.read(length)
        if header.count(b"[") + header.count(b"{") > MOST_LISTS:        # each takes 20 times its own bytes
            raise ValueError(f"a header of more than {MOST_LISTS} lists")
        json.loads(header, object_pairs_hook=once)


def metadata(path):
    """The header's own dictionary of strings; {} if it has none."""
    return open_file(path).metadata()


def parse_json(text, where):
    """JSON -> values. Raises ValueError, which names `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable as JSON ({sentence(error)})") from None


def read_json(path):
    """A JSON file -> values. Raises ValueError if it is missing or not JSON."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is missing or not readable ({sentence(error)})") from None
    return parse_json(text, path)


def locate(source):
    """A safetensors file, or a part of a diffusers folder -> tensor name -> the open file that holds it.
    Raises ValueError for broken or missing files, and for a tensor that comes twice."""
    where = {}
    for path in shards(source) if Path(source).is_dir() else [source]:
        opened = open_file(path)
        for name in opened.keys():
            if name in where:
                raise ValueError(f"{path} holds the tensor {name} for a second time")
            where[name] = opened
    return where


def shards(folder):
    """The weight files of a part of a diffusers folder, one or several with an index. Raises ValueError if
    there are none, or only pickles."""
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
    scaled = sorted(name for name in where if name.endswith(SCALES))
    if scaled:
        raise ValueError(f"{source} has float8 weights with scales of their own ({scaled[0]}), which minltx "
                         "does not read: use the bfloat16 file, or one that was only cast to float8")
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
    with other roundings on those. Raises ValueError for a tensor that cannot be read or is not finite.
    """
    for name, stored in names.items():
        try:
            tensor = where[stored].get_tensor(stored).to(device=device, dtype=dtype, copy=True)
        except Exception as error:      # a kind of number that this torch does not have, a full memory
            raise ValueError(f"{source}: cannot read {stored} ({sentence(error)})") from None
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: {stored} holds numbers that are not finite as {dtype}")
        owner, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner)
        setattr(owner, leaf, torch.nn.Parameter(tensor) if leaf in owner._parameters else tensor)


def write(path, tensors, header=None):
    """Write tensors (name -> tensor) to one safetensors file, with checksums, completely or not at all.
    Raises ValueError as `library` does, and OSError if the file cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header, safetensors = {"format": "pt", **(header or {})}, library()
    digests = {name: checksum(tensor) for name, tensor in tensors.items()}
    digests[""] = checksum_of_header(header, tensors)

    def save(part):
        try:
            safetensors.torch.save_file(tensors, part, metadata={**header, DIGEST: json.dumps(digests)})
        except safetensors.SafetensorError as error:                    # the library's word for a full disk
            raise OSError(f"cannot write {path} ({sentence(error)})") from None

    put_in_place(path, save)


def write_json(path, values):
    """Write a JSON file, completely or not at all."""
    put_in_place(path, lambda part: part.write_text(json.dumps(values, indent=2) + "\n"))
