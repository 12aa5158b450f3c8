"""Nothing is let in: 100 flipped bits in each kind of file, hostile or nonsensical files for every loader.

A file is refused with ValueError in one line. It runs no code, and takes neither 2 seconds of the processor
nor more than twice the memory of the honest file and SLACK. Memory is that of this process above what it had
before, after freed memory was given back to the system: reused, it would not be seen.
"""

import copy
import ctypes
import gc
import gzip
import json
import os
import pickle
import random
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import several_processes
import torch
from equality import same
from PIL import Image

from minltx.files import read_torch, write_torch
from minltx.toy import mnist
from minltx.toy.data import MovingDigits, draw_digits
from minltx.toy.model import SHIPPED, ToyModel, load_checkpoint
from minltx.training import latents, loops, shards
from minltx.training.parallel import World
from minltx.training.run import Run
from minltx.video.files import load_clip, save_video

NAN, SMALL = float("nan"), several_processes.SMALL
SLACK = 2**23       # bytes: the interpreter's own arenas, and what a file of 100 kB of nonsense becomes
DATA = MovingDigits(*draw_digits(200, 0), SMALL.model.data)


# --- Honest files, and how each is loaded ------------------------------------------------------------------

def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def load_run(path):
    """A run's checkpoint, with the state of the stage in which it was written."""
    model = ToyModel(SMALL.model)
    run = Run(path.parent, model, SMALL, 0, "drawn", resume=True)
    stage = loops.prepare(run, model, ["vae"], loops.vae_objective, 0.02, 0.003)
    next(iter(run.steps("vae", 4, stage)))
    return [state_of(model), run.history, run.by_t, [o.state_dict()["state"] for o in stage.optimizers]]


def write_run(path):
    """A run that was stopped after its second step."""
    torch.manual_seed(0)
    run = Run(path.parent, ToyModel(SMALL.model), SMALL, 0, "drawn")
    run.save_every, count = 2, []

    def objective(*args):
        count.append(1)
        if len(count) > 2 * SMALL.micro_batches:
            raise KeyboardInterrupt
        return loops.vae_objective(*args)

    with pytest.raises(KeyboardInterrupt):
        loops.train_vae(run, run.model, [DATA], DATA, objective)


def load_latents(path):
    vae = load_vae()
    return [[cache.latents.clone(), cache.scenes]
            for cache in latents.latent_cache(path, vae, [DATA], SMALL, 0, World())]


def load_vae():
    torch.manual_seed(1)
    return ToyModel(SMALL.model).vae


def load_shards(path):
    target = state_of(ToyModel(SMALL.model))
    parts = shards.read_parts(path.parent.parent / "run.json")
    shards.fill({"model": target}, parts)
    return [target, [part["state"] for part in parts]]


def write_shards(path):
    torch.manual_seed(2)
    tree = {"model": state_of(ToyModel(SMALL.model))}
    shards.write_parts(path.parent.parent / "run.json", path.parent.name, tree, {"step": 2}, World())


def load_release(path):
    from minltx.pretrained import load_pretrained

    model = load_pretrained(path)
    return [state_of(model), str(model.config)]


def write_release(path):
    from tiny_releases import release

    from minltx.pretrained import save_pretrained

    save_pretrained(release(), path)


def load_words(path):
    from minltx.pretrained.t5 import load_embeddings

    return list(load_embeddings(path))


def write_words(path):
    from minltx.pretrained.t5 import save_embeddings

    generator = torch.Generator().manual_seed(0)
    save_embeddings(path, ["a ship", ""], torch.randn(2, 8, 32, generator=generator), torch.ones(2, 8))


KINDS = {
    "model": ("model.pt", lambda path: path.write_bytes(SHIPPED.read_bytes()),
              lambda path: state_of(load_checkpoint(path)[0])),
    "checkpoint": ("checkpoint.pt", write_run, load_run),
    "latents": ("latents.pt", load_latents, load_latents),
    "shards": ("shards-0-2/0.pt", write_shards, load_shards),
    "release": ("ltx.safetensors", write_release, load_release),
    "words": ("words.safetensors", write_words, load_words)}


@pytest.fixture(scope="module", params=KINDS)
def honest(request, tmp_path_factory):
    """A kind of file: its path, what it holds, how it is loaded, and what that costs."""
    if request.param in ("release", "words"):
        pytest.importorskip("safetensors")
    name, write, load = KINDS[request.param]
    path = tmp_path_factory.mktemp(request.param) / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    load(path)
    content, _, memory = measured(load, path)
    return request.param, path, path.read_bytes(), content, load, memory


def measured(function, *args):
    """-> the result or the error, seconds of the processor, bytes of memory at the highest point."""
    gc.collect()
    status = Path("/proc/self/status")
    if status.exists():
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)               # gives back what is free; glibc has it
        Path("/proc/self/clear_refs").write_text("5")                   # the highest point from now on
    before, began = memory("VmRSS"), time.process_time()
    try:
        result = function(*args)
    except Exception as error:    # any but ValueError is a fault, and is reported with the others
        result = error
    return result, time.process_time() - began, memory("VmHWM") - before


def memory(name):
    """A line of /proc/self/status in bytes; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def test_a_hundred_flipped_bits(honest, capsys):
    """Each is noticed, or changes nothing of what is loaded: padding, times, second copies of names."""
    kind, path, content, loaded, load, _ = honest
    choose, noticed, harmless = random.Random(0), 0, 0
    for bit in [choose.randrange(8 * len(content)) for _ in range(100)]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found, _, _ = measured(load, path)
        noticed += isinstance(found, ValueError)
        if not isinstance(found, ValueError):
            assert not isinstance(found, Exception), found
            assert same(found, loaded), f"bit {bit} of {len(content)} bytes"
            harmless += 1
    path.write_bytes(content)
    with capsys.disabled():
        print(f"\n{kind}, {len(content)} bytes: {noticed} of 100 noticed, {harmless} harmless")
    assert noticed + harmless == 100 and noticed >= 60


# --- Hostile and nonsensical files -------------------------------------------------------------------------

class Code:
    """Pickled, it is a call of os.mkdir."""

    def __reduce__(self):
        return os.mkdir, ("proof",)


class Made:
    """Pickled, it is a call of a function."""

    def __init__(self, function, *args):
        self.how = function, args

    def __reduce__(self):
        return self.how


def nested(path, depth=50_000):
    """A config of brackets in brackets, which no pickler would write."""
    def text(x):
        return b"X" + struct.pack("<I", len(x)) + x.encode()

    deep = b"]" * depth + b"a" * (depth - 1)
    data = b"}(" + text("data") + b"}(" + text("size") + deep + b"uu"
    data = b"}(" + text("format") + text("minltx-1") + text("config") + data + text("model") + b"}u"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (("data.pkl", b"\x80\x02" + data + b"."), ("version", b"3\n")):
            file.writestr(f"archive/{name}", content)


def packed(path, method=zipfile.ZIP_DEFLATED, extra=0):
    """The same zip, compressed, with so many zeros more."""
    with zipfile.ZipFile(path) as file:
        entries = [(entry.filename, file.read(entry)) for entry in file.infolist()]
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries + [("archive/data/99999", bytes(extra))] * bool(extra):
            file.writestr(name, data)


def added(path, name, data=b""):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, data)


def any_file():
    """Of no kind, or cut off: name -> a function that writes it in place of an honest file."""
    return {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("no tensors here"),
        "zeros": lambda path: path.write_bytes(bytes(10**6)),
        "a pickle": lambda path: path.write_bytes(pickle.dumps(Code())),
        "a pickle of protocol 0": lambda path: path.write_bytes(pickle.dumps(Code(), 0)),
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "less by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "without its begin": lambda path: path.write_bytes(path.read_bytes()[1000:]),
        "twice": lambda path: path.write_bytes(path.read_bytes()[:1000] * 2),
        "JSON": lambda path: path.write_text(json.dumps({"format": "minltx-1", "model": {}})),
        "brackets": lambda path: path.write_text("[" * 100_000)}


def torch_files():
    """Of torch's form: what a stranger could put into one."""
    values = {
        "code": Code(), "code in a list": {"model": [Code()]}, "a long bytearray": Made(bytearray, 3 * 10**9),
        "a module": torch.nn.Linear(2, 2), "a list": [1], "a tensor": torch.ones(3), "nothing": None,
        "sparse": {"model": {"x": torch.ones(3).to_sparse()}}, "a counter": Counter("aa"), "a set": {1, 2},
        "ordered": OrderedDict(a=1),
        "an import": Made(__import__, "antigravity"), "eval": Made(eval, "1"), "a path": Path("proof"),
        "a type": {"format": "minltx-1", "config": torch.float32}}
    files = {name: lambda path, value=value: torch.save(value, path) for name, value in values.items()}
    return files | {
        "brackets in it": nested, "compressed": packed, "a bomb": lambda path: packed(path, extra=3 * 10**8),
        "two pickles": lambda path: added(path, "archive/DATA.PKL", pickle.dumps(Code(), 2)),
        "two entries of a name": lambda path: added(path, zipfile.ZipFile(path).namelist()[-1], b"x")}


def without(*keys):
    def change(stored):
        place = stored
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
    return change


def put(*keys):
    *path, name, value = keys

    def change(stored):
        place = stored
        for key in path:
            place = place[key]
        place[name] = value
    return change


def changed(change):
    """A function that changes the dictionary in one of torch's files."""
    def write(path):
        stored = read_torch(path)
        change(stored)
        write_torch(path, stored)
    return write


def spread(value):
    """A tensor of ten billion numbers that takes four bytes."""
    return torch.full((1,), value).expand(10**5, 10**5)


def named(write, cases):
    """{name: a function that changes a file}. cases: what `put` takes. Names are cut; the number makes them
    differ."""
    return {f"{number}: {'.'.join(map(str, keys[:-1]))} = {keys[-1]!r:.30}": write(*keys)
            for number, keys in enumerate(cases)}


MODEL = named(lambda *keys: changed(put(*keys)), (
    ("config", "vae", "encoder_blocks", [["down", [0, 2, 2], 64]]), ("config", "vae", "patch", 0),
    ("config", "vae", "decoder_blocks", [["res", 10**9]]),
    ("config", "vae", "decoder_blocks", [["res", 9999]]),
    ("config", "vae", "decoder_blocks", [["res", 1]] * 5000), ("config", "vae", "encoder_width", 10**9),
    ("config", "vae", "encoder_blocks", [["down", [2, 2, 2], NAN]]), ("config", "vae", "latent_channels", -4),
    ("config", "vae", "decoder_blocks", "res"), ("config", "vae", "decoder_blocks", [["rm", 1]]),
    ("config", "vae", "pickle", 1), ("config", "dit", "depth", 999), ("config", "dit", "depth", 10**9),
    ("config", "dit", "depth", "six"), ("config", "dit", "heads", 3), ("config", "dit", "heads", 0),
    ("config", "dit", "theta", NAN), ("config", "dit", "theta", 0), ("config", "dit", "width", 65536),
    ("config", "dit", "width", 10**12), ("config", "dit", "stride", [0, 0, 0]),
    ("config", "dit", "stride", 8),
    ("config", "dit", "max_position", [NAN, 1, 1]), ("config", "dit", "max_position", None),
    ("config", "dit", "causal_time", "yes"), ("config", "data", "fps", 0), ("config", "data", "fps", NAN),
    ("config", "data", "fps", -16.0), ("config", "data", "size", [32]), ("config", "data", "frames", 10**12),
    ("config", "data", "speed", "fast"), ("config", "data", "digits", 11), ("config", "data", None),
    ("config", "stored_text", 1), ("config", "words", "x"), ("config", "words", [7]),
    ("config", "words", ["<pad>", "<nothing>", "<unknown>", "\x1b[2J"]), ("config", "shapes", [[17, 32]]),
    ("config", "words", ["<pad>", "<nothing>", "<unknown>", "red", "red"]), ("config", "shapes", 10**12),
    ("config", "guidance", NAN), ("config", "guidance", "much"), ("config", "stochastic", 1),
    ("config", "shapes", [[17, 32, NAN]]), ("config", []), ("model", []), ("model", {}),
    ("format", "minltx-9"),
    ("model", "text.positions", spread(0.0)), ("model", "text.positions", torch.full((16, 64), NAN)),
    ("model", "text.positions", torch.full((16, 64), float("inf"))), ("model", "text.positions", "x"),
    ("model", "text.positions", torch.zeros(16, 64, dtype=torch.int64)), ("model", "more", torch.ones(1)),
    ("model", 7, torch.ones(1))))
MODEL |= {"no weight": changed(without("model", "text.positions")), "no config": changed(without("config"))}

CHECKPOINT = named(lambda *keys: changed(put("run", *keys)), (
    ("optimizers", []), ("optimizers", None), ("optimizers", 0, "state", []), ("optimizers", 0, {}),
    ("optimizers", 0, "state", 0, "momentum", spread(0.0)), ("optimizers", 0, "state", 0, "momentum", "x"),
    ("optimizers", 1, "state", 0, "exp_avg", torch.full((3,), NAN)),
    ("optimizers", 1, "state", 0, "step", NAN),
    ("history", []), ("history", {"vae pixel": [[1, NAN]]}), ("history", {"vae pixel": [[1]]}),
    ("history", {"vae pixel": "x"}), ("by_t", []), ("by_t", [[0.0, 0]] * 9), ("by_t", [["x", 0]] * 10),
    ("step", "2"), ("step", None), ("stages_done", "vae"), ("seconds", {"vae": "x"}), ("seconds", []),
    ("identity", {}), ("identity", "seed", 1), ("identity", "settings", "x"), ("identity", "settings", {}),
    ("identity", "settings", "dit_steps", 10**9), ("identity", None)))
CHECKPOINT |= {"no run": changed(without("run")), "no step": changed(without("run", "step")),
               "weights not finite": changed(lambda s: s["model"]["vae.latent_mean"].fill_(NAN)),
               "weights missing": changed(without("model", "vae.latent_mean")),
               "weights of another shape": changed(put("model", "vae.latent_mean", spread(0.0)))}

LATENTS = named(lambda *keys: changed(put(*keys)), (
    ("mark", []), ("mark", 0, "1.0"), ("mark", 1, 17), ("mark", 2, 1), ("mark", 3, 0, 0, [9, 32, 40]),
    ("mark", 3, 0, 1, "other captions"), ("mark", 3, 0, 2, "other pictures"), ("views", []), ("views", None),
    ("views", [[torch.zeros(16, 4, 3, 4, 4)]]), ("views", [[torch.zeros(16, 4, 3, 4, 5), [[]] * 16]]),
    ("views", [[torch.zeros(15, 4, 3, 4, 4), [[]] * 15]]),
    ("views", [[torch.full((16, 4, 3, 4, 4), NAN), [[]] * 16]]),
    ("views", [[spread(0.0), [[]] * 16]]), ("views", [["x", [[]] * 16]]), ("views", [None]), ("more", 1),
    ("views", [[torch.zeros(16, 4, 3, 4, 4), [[[11, "red", "up"]]] * 16]]),
    ("views", [[torch.zeros(16, 4, 3, 4, 4), [[[1, "red"]]] * 16]]),
    ("views", [[torch.zeros(16, 4, 3, 4, 4), [7] * 16]])))
LATENTS |= {"no mark": changed(without("mark")), "no views": changed(without("views"))}

SHARDS = named(lambda *keys: changed(put(*keys)), (
    ("format", "x"), ("part", 1), ("parts", 2), ("parts", "1"), ("part", None),
    ("tensors", None), ("tensors", []), ("tensors", {}), ("tensors", "model/vae.latent_mean", spread(0.0)),
    ("tensors", "model/vae.latent_mean", torch.full((4,), NAN)), ("tensors", "model/vae.latent_mean", "x")))
SHARDS |= {"no tensor": changed(without("tensors", "model/vae.latent_mean")),
           "no state": changed(without("state")), "no format": changed(without("format"))}


def pointer(text):
    return lambda path: (path.parent.parent / "run.json").write_text(text)


SHARDS |= named(lambda name, text: pointer(text), [("run.json", text) for text in (
    "", "{", "[]", "null", "7", '{"folder": "shards-0-2"}', '{"folder": "../../tmp", "parts": 1}',
    '{"folder": "shards-0-2/../..", "parts": 1}', '{"folder": "/", "parts": 1}', '{"folder": 1, "parts": 1}',
    '{"folder": "shards-0-2", "parts": 2}', '{"folder": "shards-0-2", "parts": 1e9}',
    '{"folder": "shards-0-2", "parts": "x"}', '{"folder": "shards-9-9", "parts": 1}', "[" * 10**5)])


def tensors_of(path):
    """A safetensors file -> its tensors and its header's strings, without checksums."""
    from safetensors import safe_open

    from minltx.pretrained.store import DIGEST

    with safe_open(path, framework="pt") as file:
        header = {k: v for k, v in file.metadata().items() if k != DIGEST}
        return {name: file.get_tensor(name) for name in file.keys()}, header


def as_foreign(change):
    """A function that writes a safetensors file again as others would, changed: change(tensors, header)."""
    def write(path):
        from safetensors.torch import save_file

        tensors, header = tensors_of(path)
        change(tensors, header)
        save_file(tensors, path, header)
    return write


def config_with(*keys):
    """The header's config with a field changed; or with the first key "minltx", that entry."""
    def change(tensors, header):
        entry = "minltx" if keys[0] == "minltx" else "config"
        values = json.loads(header[entry])
        put(*keys[entry == "minltx":])(values)
        header[entry] = json.dumps(values)
        if entry == "config" and keys[0] in ("allowed_inference_steps", "scheduler"):
            del header["minltx"]                                        # it would be read instead
    return as_foreign(change)


FIRST = "model.diffusion_model.proj_out.weight"
RELEASE = named(config_with, (
    ("allowed_inference_steps", "x"), ("allowed_inference_steps", NAN), ("allowed_inference_steps", {"a": 1}),
    ("allowed_inference_steps", [0.5, 1.0]), ("allowed_inference_steps", [NAN]),
    ("allowed_inference_steps", 5), ("allowed_inference_steps", [2.0]),
    ("scheduler", "target_shift_terminal", 5),
    ("scheduler", "target_shift_terminal", NAN), ("scheduler", "shifting", "x"), ("scheduler", None),
    ("minltx", "guidance", "x"), ("minltx", "guidance", {"cfg": "x"}), ("minltx", "guidance", {"cfg": NAN}),
    ("minltx", "guidance", {"stg_blocks": ["x"]}), ("minltx", "guidance", {"import": 1}),
    ("minltx", "terminal", 5), ("minltx", "terminal", NAN), ("minltx", "shift_line", "x"),
    ("minltx", "shift_line", [[1, 2]]), ("minltx", "times", [0.1, 0.9]), ("minltx", "times", "x"),
    ("minltx", "steps", 0), ("minltx", "size", [1, 2]), ("minltx", "fps", 0), ("minltx", "shifted", "no"),
    ("transformer", "qk_norm", None), ("transformer", "standardization_norm", None),
    ("transformer", "norm_eps", None), ("transformer", "num_layers", 999),
    ("transformer", "num_layers", 10**9),
    ("transformer", "num_attention_heads", 3), ("transformer", "caption_channels", 2**20),
    ("vae", "decoder_blocks", [["res_x", 10**6]]), ("vae", "decoder_blocks", [["res_x", 1]] * 10**5),
    ("vae", "encoder_blocks", [["res_x", 2**20]] * 3), ("vae", "patch_size", 0),
    ("vae", "latent_channels", NAN)))
RELEASE |= {
    "a NaN": as_foreign(lambda t, h: t[FIRST].fill_(NAN)),
    "infinite": as_foreign(lambda t, h: t[FIRST].fill_(1e999)),
    "integers": as_foreign(lambda t, h: t.update({FIRST: torch.ones(t[FIRST].shape, dtype=torch.int32)})),
    "another shape": as_foreign(lambda t, h: t.update({FIRST: torch.ones(3)})),
    "a tensor less": as_foreign(lambda t, h: t.pop(FIRST)),
    "a tensor more": as_foreign(lambda t, h: t.update(more=torch.ones(1))),
    "no config": as_foreign(lambda t, h: h.pop("config")),
    "config not JSON": as_foreign(lambda t, h: h.update(config="{")),
    "config of brackets": as_foreign(lambda t, h: h.update(config="[" * 10**5))}


def raw(header, data=b""):
    """A safetensors file of this text and these bytes."""
    return lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


ONE = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
BYTES = {
    "a tensor twice": raw(f'{{"a": {ONE}, "a": {ONE}}}', bytes(4)),
    "a huge header": lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"),
    "a header of 30 MB": raw('{"__metadata__": {"x": "' + "y" * 30_000_000 + '"}}'),
    "a header of lists": raw('{"a": [' + "[]," * 2_000_000 + "[]]}"),
    "offsets outside": raw('{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', bytes(4)),
    "offsets backwards": raw('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', bytes(4)),
    "overlapping": raw(f'{{"a": {ONE}, "b": {ONE}}}', bytes(4)),
    "a huge shape": raw('{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 4]}}', bytes(4)),
    "an unknown type": raw('{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', bytes(4))}


def kept(**values):
    """The text cache's own entry, changed."""
    return as_foreign(lambda t, h: h.update(minltx=json.dumps({**json.loads(h["minltx"]), **values})))


WORDS = {
    "NaN": as_foreign(lambda t, h: t["text"].fill_(NAN)), "mask of halves": as_foreign(
        lambda t, h: t["mask"].fill_(0.5)), "mask of NaN": as_foreign(lambda t, h: t["mask"].fill_(NAN)),
    "mask of 2": as_foreign(lambda t, h: t["mask"].fill_(2)),
    "integers": as_foreign(lambda t, h: t.update(text=torch.ones(2, 8, 32, dtype=torch.int64))),
    "no mask": as_foreign(lambda t, h: t.pop("mask")),
    "more": as_foreign(lambda t, h: t.update(x=torch.ones(1))),
    "short mask": as_foreign(lambda t, h: t.update(mask=torch.ones(2, 7))),
    "flat": as_foreign(lambda t, h: t.update(text=torch.ones(2, 8))),
    "prompts less": kept(prompts=["a ship"]), "prompts more": kept(prompts=["a", "b", "c"]),
    "prompts numbers": kept(prompts=[1, 2]), "prompts a word": kept(prompts="ab"), "tokens 4": kept(tokens=4),
    "tokens x": kept(tokens="x"), "tokens 0": kept(tokens=0), "tokens NaN": kept(tokens=NAN),
    "lowercase 1": kept(lowercase=1), "no entry": as_foreign(lambda t, h: h.pop("minltx")),
    "entry not JSON": as_foreign(lambda t, h: h.update(minltx="{")),
    "entry a list": as_foreign(lambda t, h: h.update(minltx="[]"))}

HOSTILE = {"model": {**any_file(), **torch_files(), **MODEL},
           "checkpoint": {**any_file(), **torch_files(), **CHECKPOINT},
           "latents": {**any_file(), **torch_files(), **LATENTS},
           "shards": {**any_file(), **torch_files(), **SHARDS},
           "release": {**any_file(), **BYTES, **RELEASE}, "words": {**any_file(), **BYTES, **WORDS}}


def test_hostile_files(honest, tmp_path, monkeypatch, capsys):
    kind, path, content, _, load, memory_of_honest = honest
    monkeypatch.chdir(tmp_path)
    names = {file: file.read_bytes() for file in path.parent.parent.glob("run.json")}
    slowest, most, faults = 0.0, 0, []
    for name, write in HOSTILE[kind].items():
        write(path)
        found, seconds, used = measured(load, path)
        slowest, most = max(slowest, seconds), max(most, used)
        if not isinstance(found, ValueError) or "\n" in str(found):
            faults.append((name, repr(found)[:200] if isinstance(found, Exception) else "was let in"))
        if seconds > 2 or used > 2 * memory_of_honest + SLACK or list(tmp_path.iterdir()):
            faults.append((name, f"{seconds:.1f} s, {used / 2**20:.0f} MB, {list(tmp_path.iterdir())}"))
        path.write_bytes(content)
        for file, text in names.items():
            file.write_bytes(text)
    with capsys.disabled():
        print(f"\n{kind}: {len(HOSTILE[kind])} files refused but {len(faults)}, at most {slowest:.2f} s and "
              f"{most / 2**20:.0f} MB (honest: {memory_of_honest / 2**20:.0f})")
    assert faults == [], "\n".join(map(str, faults))
    assert len(HOSTILE[kind]) >= 40


# --- Files of pictures -------------------------------------------------------------------------------------

def idx(array, kind=8, shape=None):
    shape = array.shape if shape is None else shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.tobytes()


def digits(images, labels):
    """A folder of MNIST's form."""
    def write(folder):
        (folder / "train-images-idx3-ubyte").write_bytes(images)
        (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    return write


def test_hostile_digits(tmp_path, capsys):
    images, labels = np.ones((100, 28, 28), np.uint8), np.arange(100, dtype=np.uint8) % 10
    honest, bomb = (idx(images), idx(labels)), gzip.compress(idx(images) + bytes(10**9), 1)
    large = gzip.compress(idx(images[:0], shape=(1000, 1000, 1000)) + bytes(10**9), 1)
    digits(*honest)(tmp_path)

    def load(folder):
        return [MovingDigits(*some, SMALL.model.data) for some in mnist.read_folder(folder)]

    load(tmp_path)
    _, _, honest_memory = measured(load, tmp_path)
    files = {
        "label 10": digits(honest[0], idx(labels + 1)), "label 255": digits(honest[0], idx(labels * 0 + 255)),
        "27 rows": digits(idx(images[:, 1:]), honest[1]),
        "29 rows": digits(idx(np.ones((100, 29, 28), np.uint8)), honest[1]),
        "a digit absent": digits(honest[0], idx(labels % 9)), "few": digits(idx(images[:5]), idx(labels[:5])),
        "none": digits(idx(images[:0]), idx(labels[:0])), "one": digits(idx(images[:1]), idx(labels[:1])),
        "fewer labels": digits(honest[0], idx(labels[:99])),
        "pictures as labels": digits(honest[0], honest[0]),
        "labels as pictures": digits(honest[1], honest[1]), "short": digits(honest[0][:-1], honest[1]),
        "long": digits(honest[0] + b"x", honest[1]),
        "empty": digits(b"", b""), "text": digits(b"text", b"text"),
        "floats": digits(idx(images, 13), honest[1]), "a huge shape": digits(
            idx(images, shape=(2**31, 2**31, 2**31)), honest[1]),
        "a large shape": digits(idx(images, shape=(10**6, 1000, 1000)), honest[1]),
        "no axis": digits(idx(images, shape=()), honest[1]),
        "255 axes": digits(idx(images, shape=(1,) * 255), honest[1]),
        "unsorted, without a 9 at the end": digits(honest[0], idx(np.sort(labels))),
        **{f"pictures cut at {n}": digits(honest[0][:n], honest[1]) for n in (1, 3, 4, 7, 15, 16, 17, 40000)},
        **{f"labels cut at {n}": digits(honest[0], honest[1][:n]) for n in (1, 3, 4, 7, 8, 9, 100)},
        **{f"type {kind}": digits(idx(images, kind), honest[1]) for kind in (0, 9, 11, 255)}}
    compressed = {"a bomb": bomb, "a bomb that its header announces": large, "text in gz": b"text", "cut gz": gzip.compress(honest[0])[:-9],
                  "flipped gz": gzip.compress(honest[0])[:-3] + b"xyz"}
    faults = []
    for name, write in (files | {name: data for name, data in compressed.items()}).items():
        for old in tmp_path.iterdir():
            old.unlink()
        if callable(write):
            write(tmp_path)
        else:
            (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(write)
            (tmp_path / "train-labels-idx1-ubyte").write_bytes(honest[1])
        found, seconds, used = measured(load, tmp_path)
        if not isinstance(found, ValueError) or seconds > 2 or used > 2 * honest_memory + SLACK:
            faults.append((name, str(found)[:100], seconds, used))
    with capsys.disabled():
        print(f"\ndigits: {len(files) + len(compressed)} folders refused but {len(faults)}")
    assert faults == [] and len(files) + len(compressed) >= 40


def test_hostile_pictures(tmp_path, capsys):
    """One reader for `sample.py` and for folders of clips: 8 bits per colour, GIF, PNG or JPEG."""
    def grey16(path):
        Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(path)

    def of(form, name="a.png"):
        return lambda folder: Image.new("RGB", (8, 8), "red").save(folder / name, format=form)

    def cut(name, share):
        """The beginning of an honest file with 4 noisy frames, or one."""
        def write(folder):
            frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
            if name == "a.npz":
                save_video(folder / name, torch.rand(1, 3, 5, 32, 32) * 2 - 1, ["x"])
            else:
                first, *more = map(Image.fromarray, frames)
                first.save(folder / name, **({"save_all": True, "append_images": more} if "gif" in name else {}))
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(data[: int(share * len(data))])
        return write

    def bomb(folder):
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("frames.npy", "w", force_zip64=True) as entry:
                for _ in range(1100):
                    entry.write(bytes(2**20))

    files = {"16 bits": lambda folder: grey16(folder / "a.png"),
             "16 bits in TIFF": lambda folder: grey16(folder / "a.tif"),
             "a bomb": bomb, "text": lambda folder: (folder / "a.png").write_text("x"),
             "a pickle": lambda folder: np.savez(folder / "a.npz", frames=np.array([Code()], dtype=object)),
             "no frames": lambda folder: np.savez(folder / "a.npz", x=np.ones(3)),
             "floats": lambda folder: np.savez(folder / "a.npz", frames=np.ones((1, 2, 8, 8, 3))),
             "empty": lambda folder: (folder / "a.gif").write_bytes(b""),
             **{form: of(form) for form in ("BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")},
             **{f"{name} cut at {share:.0%}": cut(name, share) for name in ("a.png", "a.jpg", "a.gif", "a.npz")
                for share in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)}}
    assert len(files) >= 40
    save_video(tmp_path / "b.npz", torch.zeros(1, 3, 9, 32, 32), ["x"])
    assert load_clip(tmp_path / "b.npz", 32, 32).shape == (1, 3, 9, 32, 32)
    _, _, honest_memory = measured(load_clip, tmp_path / "b.npz", 32, 32)
    most = 0
    for count, (name, write) in enumerate(files.items()):
        folder = tmp_path / str(count)
        folder.mkdir()
        write(folder)
        path, = folder.iterdir()
        found, seconds, used = measured(load_clip, path, 32, 32)
        assert isinstance(found, ValueError) and seconds < 2, (name, found, seconds)
        assert used < 2 * honest_memory + SLACK, (name, used, honest_memory)
        most = max(most, used)
    with capsys.disabled():
        print(f"\npictures: {len(files)} refused, at most {most / 2**20:.0f} MB")


def test_latents_of_other_digits_are_refused(tmp_path):
    """They have the shape and the captions of these."""
    load_latents(tmp_path / "a.pt")
    other = MovingDigits(*draw_digits(200, 1), SMALL.model.data)
    with pytest.raises(ValueError, match="the latents of other clips"):
        latents.latent_cache(tmp_path / "a.pt", load_vae(), [other], SMALL, 0, World())
    assert same(copy.deepcopy(load_latents(tmp_path / "a.pt")), load_latents(tmp_path / "a.pt"))
