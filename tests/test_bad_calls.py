"""Bad command lines of every command: each gets one line that says what is wrong, exit code 2, and nothing is
written. Most are called in this process; the slow tier starts some as a user does."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train_tiny
from minltx.ablation import __main__ as ablation
from minltx.bench import __main__ as bench
from minltx.command import Parser, not_empty, pick_device
from minltx.evaluation import conditions
from minltx.files import write_torch
from minltx.pretrained import __main__ as which
from minltx.pretrained import t5
from minltx.training import __main__ as training
from minltx.training import memory

ROOT = Path(__file__).parents[1]
P = '"a red 7 moving left"'
COMMANDS = {"sample": (sample.main, sample.options, "sample.py"),
            "train_tiny": (train_tiny.main, train_tiny.arguments, "train_tiny.py"),
            "training": (training.main, training.arguments, "python -m minltx.training"),
            "ablation": (ablation.main, ablation.options, "python -m minltx.ablation"),
            "bench": (bench.main, bench.options, "python -m minltx.bench"),
            "memory": (memory.main, memory.options, "python -m minltx.training.memory"),
            "conditions": (conditions.main, conditions.options, "python -m minltx.evaluation.conditions"),
            "t5": (t5.main, t5.options, "python -m minltx.pretrained.t5"),
            "which": (which.main, which.options, "python -m minltx.pretrained")}
NEEDED = {"sample": P, "ablation": "rope", "t5": "folder words", "which": "text.txt"}   # words before

# --- The table --------------------------------------------------------------------------------------------

# Options with numbers: command -> names. Each is called with every value of the line below.
WHOLE = {"sample": "steps frames seed halo", "train_tiny": "seed prompts",
         "training": "seed prompts micro-batches", "ablation": "seeds jobs prompts",
         "bench": "steps repeats seed", "memory": "words batch ranks micro-batches",
         "conditions": "clips seed"}
NOT_WHOLE = ["", "x", "nan", "inf", "-1", "1.5", "1e3", "99999999999999999999", "1_0", "0x10"]
NUMBERS = {"sample": "change guidance fps decode-t decode-noise stg", "train_tiny": "budget",
           "training": "budget token-drop", "ablation": "minutes budget shared-budget",
           "bench": "guidance toy-budget"}
NOT_NUMBERS = ["", "x", "nan", "inf", "-inf", "-0.5", "1e999", "1,5", "1_0"]
# Options whose text may not be empty.
TEXTS = {"sample": "out image start checkpoint weights text t5 release device size tiles upsampler",
         "train_tiny": "out digits device photos start",
         "training": "out digits clips buckets text latents vae weights device",
         "ablation": "digits model device out keep", "bench": "size parts device out headline items",
         "memory": "size device", "conditions": "checkpoint out", "t5": "clips out device", "which": "device"}
CHOICES = {"train_tiny": "preset world", "training": "preset only precision optimizer parallel",
           "bench": "config against dtype attention", "memory": "stage precision optimizer parallel",
           "sample": "dtype", "t5": "release dtype", "which": "release"}
DEVICES = {name: "device" for name in COMMANDS if name != "conditions"}
NOT_DEVICES = ["meta", "abacus", "cpu:x", "cuda:99", "CPU"]
SIZES = {"sample": "tiles", "bench": "size", "memory": "size"}
NOT_SIZES = ["17x32", "17x32x32x1", "0x32x32", "17x-32x32", "17x3.5x32", "axbxc", "9999999x32x32", "17*32*32"]

EACH = [(name, f"--{option}={value}", f"argument --{option}: ")
        for table, values in ((WHOLE, NOT_WHOLE), (NUMBERS, NOT_NUMBERS), (TEXTS, [""]),
                              (CHOICES, ["", "new"]), (DEVICES, NOT_DEVICES), (SIZES, NOT_SIZES))
        for name, options in table.items() for option in options.split() for value in values]

OTHERS = {
    "sample": {
        "--frames 10": "10 frames cannot be encoded: use 4k+1, such as 9 or 13",
        "--image picture.png --image text.txt": "argument --image: it is given twice: give it once",
        "--size 30": "a height of 30 is not a multiple of 8: use 24 or 32",
        "--size 32x30": "a width of 30 is not a multiple of 8",
        "--size big": "argument --size: 'big' is not understood",
        "--size 8000000000": "1 video of 17x8000000000x8000000000: this needs",
        "--size 8000000000000": "argument --size: 8000000000000 is out of range",
        "--frames 1000000001": "argument --frames: 1000000001 is out of range",
        "--size 999968": "1 video of 17x999968x999968: this needs",
        "--size 1000000x1000000": "1 video of 17x1000000x1000000: this needs",
        "--size 999968 --image picture.png": "1 video of 17x999968x999968: this needs",
        "--out x.avi": "argument --out: cannot write x.avi: use a name that ends in .gif, .png, .npz, .mp4",
        "--out x": "argument --out: cannot write x: use a name that ends in",
        "--out folder.gif": "argument --out: folder.gif is not a file",
        "--out text.txt/x.gif": "argument --out: cannot write in ",
        "--image absent.png": "cannot read absent.png as a picture or clip",
        "--image text.txt": "cannot read text.txt as a picture or clip: cannot be read to its end (it is",
        "--image cut.npz": "cannot read cut.npz as a picture or clip: cannot be read to its end (it is dam",
        "--image bare.npz": "cannot read bare.npz as a picture or clip: cannot be read to its end (it has no "
                            "array named frames, which sample.py --out x.npz writes): make or copy it again",
        "--image flat.npz": "cannot read flat.npz as a picture or clip: cannot be read to its end (its "
                            "frames are float64 of shape (3,), not uint8 (B, F, H, W, 3)): make or copy it",
        "--start bare.npz": "cannot read bare.npz as a picture or clip: cannot be read to its end (it has no",
        "--given cut.npz 4": "cannot read cut.npz as a picture or clip: cannot be read to its end (it is",
        "--image folder": "cannot read folder as a picture or clip",
        "--given absent.npz 4": "cannot read absent.npz as a picture or clip",
        "--given picture.png": "--given picture.png  is not understood: write FILE FRAME",
        "--given picture.png two": "--given picture.png two is not understood",
        "--given picture.png 17": "a condition of 1 frames at frame 17 exceeds a video of 17",
        "--given picture.png -1": "a condition of 1 frames at frame -1 exceeds a video of 17",
        "--given picture.png 4 2": "a strength of 2.0 is out of range: use 0 to 1",
        "--given picture.png 4 nan": "a strength of nan is out of range: use 0 to 1",
        "--given picture.png 1 1 1": "--given picture.png 1 1 1 is not understood",
        "--image picture.png --given picture.png 0": "two pictures or clips are given at frame 0: give one",
        "--start absent.npz": "cannot read absent.npz as a picture or clip",
        "--start picture.png --frames 17": "picture.png has 1 frames, not 17: leave out --frames",
        "--change 0.5": "--change is for a clip to change: add --start",
        "--change 0": "--change is for a clip to change: add --start",
        "--halo 3": "--halo is for tiles: add --tiles",
        "--tiles 2x4x4 --halo 0": "tiles in time need a halo of at least 1",
        "--text x.safetensors": "--text is for released weights: add --weights",
        "--t5 folder": "--t5 is for released weights: add --weights",
        "--negative ugly": "--negative is for released weights: add --weights",
        "--stg 0": "--stg is for released weights: add --weights",
        "--release 0.9.5": "--release is for released weights: add --weights",
        "--dtype float32": "--dtype is for released weights: add --weights",
        "--upsampler folder": "--upsampler is for released weights: add --weights",
        "--one-pass": "--one-pass is for released weights: add --weights",
        "--offload": "--offload is for released weights: add --weights",
        "--clean": "--clean is for released weights: add --weights",
        "--weights a --upsampler b --one-pass": "--upsampler and --one-pass contradict: give one",
        "--weights a --checkpoint b": "--weights and --checkpoint are two models: give one",
        "--weights a --text b --t5 c": "--text and --t5 are two sources of embeddings: give one",
        "--weights absent": "released weights need the prompts' embeddings",
        "--weights absent.safetensors --text absent.safetensors": "there is no file absent.safetensors",
        "--weights text.txt --text text.txt": "text.txt is not a safetensors file",
        "--checkpoint absent.pt": "there is no checkpoint absent.pt",
        "--checkpoint text.txt": "text.txt is not a checkpoint of minltx",
        "--checkpoint folder": "folder is a folder: name the file in it, such as folder",
        "--checkpoint cut.npz": "cut.npz is not a checkpoint of minltx, or is damaged (it is not a whole "
                                "file of torch): name another one, or copy it again",
        "--res 32": "unrecognized arguments: --res 32",
        "--frame 17": "unrecognized arguments: --frame 17",
        "--check x.pt": "unrecognized arguments: --check x.pt",
        "--guid 3": "unrecognized arguments: --guid 3",
        "--resume": "unrecognized arguments: --resume",
        "--out": "argument --out: expected one argument"},
    "train_tiny": {
        "--out text.txt": "argument --out: text.txt is not a folder",
        "--out text.txt/run": "argument --out: cannot write in ",
        "--digits absent": "no digits in absent: it needs", "--digits text.txt": "no digits in text.txt",
        "--digits folder": "no digits in folder: it needs", "--photos folder": "",
        "--digits cut": f"{Path('cut/train-images-idx3-ubyte')} is not an intact IDX file of nx28x28 "
                        "unsigned bytes (its header is cut off, or of another kind of file): copy or down",
        "--res": "unrecognized arguments: --res", "--prompt 3": "unrecognized arguments: --prompt 3",
        "--preset tiny": "argument --preset: invalid choice: 'tiny'",
        "--start absent.pt": "there is no checkpoint absent.pt",
        "--world texture --photos small": f"{Path('small/line.png')} cannot be read as a picture (it is",
        "--world texture --photos bomb": f"{Path('bomb/huge.png')} cannot be read as a picture (Image size",
        "--seed 1 --seed 2": "argument --seed: it is given twice: give it once",
        "--start text.txt": "text.txt is not a checkpoint of minltx",
        "--preset short --start shipped": "the transformer in shipped is another one than this run's",
        "stray": "unrecognized arguments: stray",
        "--resume --out folder": "there is no checkpoint folder",
        "--budget": "argument --budget: expected one argument"},
    "training": {
        "--out text.txt": "argument --out: text.txt is not a folder",
        "--latents text.txt": "text.txt does not hold latents, or is damaged",
        "--latents new/../folder": "argument --latents: new/../folder is not a file",
        "--latents folder": "argument --latents: folder is not a file",
        "--latents text.txt/x": "argument --latents: cannot write in ",
        "--buckets 17x32x32": "--buckets is for a folder of clips: add --clips",
        "--text words.safetensors": "--text is for a folder of clips: add --clips",
        "--vae a --weights b": "--vae and --weights are two sources of the autoencoder: give one",
        "--only vae --vae a": "--only and --vae leave nothing to train: give one",
        "--only vae --weights a": "--only and --weights leave nothing to train: give one",
        "--only vae --token-drop 0.2": "--only and --token-drop do not fit",
        "--clips folder --digits drawn": "--clips and --digits are two sources of data: give one",
        "--clips absent": "there is no folder absent", "--clips text.txt": "there is no folder text.txt",
        "--clips folder": "there is no usable clip in folder",
        "--clips folder --buckets 17x32": "'17x32' is not understood: write frames x height x width",
        "--clips folder --buckets x": "'x' is not understood: write frames x height x width",
        "--clips folder --text absent.safetensors": "there is no file absent.safetensors",
        "--preset 2b": "the preset 2b is trained on your clips: give --clips FOLDER",
        "--parallel ddp": "--parallel ddp is for several processes: start them with torchrun",
        "--parallel fsdp": "--parallel fsdp is for several processes",
        "--only dit": "argument --only: invalid choice: 'dit'",
        "--digits absent": "no digits in absent: it needs", "--digits text.txt": "no digits in text.txt",
        "--precision bf": "argument --precision: invalid choice",
        "--res": "unrecognized arguments: --res",
        "--checkpoint-act": "unrecognized arguments: --checkpoint-act",
        "--micro 2": "unrecognized arguments: --micro 2",
        "--resume --out folder": "there is no checkpoint folder",
        "--vae absent.pt --digits drawn": "there is no checkpoint absent.pt",
        "--vae text.txt": "text.txt is not a checkpoint of minltx",
        "--vae a --start b": "--start and --vae are two sources of the autoencoder: give one",
        "--weights a --start b": "--start and --weights are two sources of the weights: give one",
        "--start folder": "folder is a folder: name the file in it, such as folder",
        "--preset clips": "the preset clips is trained on your clips: give --clips FOLDER",
        "--preset large --clips folder": "the preset large is for digits: use --preset clips",
        "--vae folder": "folder is a folder: name the file in it, such as folder",
        "--weights folder": "folder has no folder transformer", "--weights absent": "there is no absent",
        "--latents cut.npz": "cut.npz does not hold latents, or is damaged (it is not a whole file of torch)",
        "--digits cut": f"{Path('cut/train-images-idx3-ubyte')} is not an intact IDX file of nx28x28"},
    "ablation": {
        "--minutes 1 --budget 1": "--minutes and --budget are two lengths of a run: give one",
        "--model x.pt --shared-budget 1": "--model and --shared-budget are two ways to a shared model",
        "--all": "--all is all switches: leave out the names, or --all",
        "nothing": "'nothing' is not a switch: use ", "rope=new": "rope has no level 'new': use ",
        "rope=none,none": "rope has the level none twice",
        "loss.dwt=0.1,0.1": "loss.dwt has the level 0.1 twice",
        "optimizer=sgd,muon": "optimizer is 'sgd': use 'muon' or 'adamw'",
        "optimizer=sgd": "optimizer is 'sgd': use 'muon' or 'adamw'",
        "model=1,2": "model is 1: use ModelConfig",
        "depth=null,1": "'depth' is not a setting",
        "model.dit.depth=null,2": "depth is None: use a whole number",
        "model.dit.depth=0,2": "depth is 0: use a whole number from 1",
        "model.dit.heads=4,7": "heads is 7: use a number that divides the width 96",
        "model.dit.theta=-1,1": "theta is -1: use a number",
        "token_drop=1.5,0": "token_drop is 1.5: use a number from 0 to 0.99",
        "vae_phases=1,2": "vae_phases is 1: use a tuple", "layouts=1,2": "layouts is 1: use a tuple",
        "soft=2,0": "soft is 2: use a number from 0 to 1",
        "dit_batch=0,1": "dit_batch is 0: use a whole number",
        "dit_steps=x,1": "dit_steps is 'x': use a value like the default, 900",
        "loss.dwt=-1,0": "loss.dwt is -1: use a number from 0",
        "loss.dwt=nan,0": "loss.dwt is 'nan': use a value like the default, 0.1",
        "loss.dwt=abc": "loss.dwt is 'abc': use a value like the default, 0.1",
        "loss.dwt=0.1": "loss.dwt=0.1 has nothing to compare: give loss.dwt two values or more",
        "loss.nothing=1,2": "'nothing' is not a setting: LossConfig has",
        "precision=float16,float32": "precision is 'float16': use 'float32' or 'bf16'",
        "caption_dropout=-1,0": "caption_dropout is -1: use a number from 0 to 1",
        "rope=exponential": "rope=exponential has nothing to compare: give rope two levels or more of ",
        "rope=exponential,none rope=exponential,inverse": "rope is named twice: give all its levels at once",
        "rope --out new --keep new": "--keep and --out are one folder",
        "rope=exponential,none --seeds 1 --out ablated":
            f"{Path('ablated/dit/rope=none/seed0/spec.json')} is damaged",
        "rope=exponential,none --seeds 1 --minutes 1 --out spent": f"{Path('spent/budget.json')} is damaged",
        "mine.py:Weak": "Weak cannot be created: TypeError: ",
        "mine.py:Wrong": "mine = Wrong cannot be trained: ValueError: the loss of its first step is not",
        "mine.py:TABLE": "dict is not an idea",
        "exits.py:Own": "exits.py cannot be imported: SystemExit: usage",
        "absent.py:Idea": "the file ", "--out text.txt": "argument --out: text.txt is not a folder",
        "--model absent.pt": "there is no checkpoint absent.pt",
        "--model text.txt": "text.txt is not a checkpoint of minltx",
        "--model folder": "folder is a folder: name the file in it",
        "--digits cut": f"{Path('cut/train-images-idx3-ubyte')} is not an intact IDX file of nx28x28",
        "--digits absent": "no digits in absent: it needs", "--digits text.txt": "no digits in text.txt",
        "--keep text.txt": "argument --keep: text.txt is not a folder",
        "--seed 1": "unrecognized arguments: --seed 1", "--min 1": "unrecognized arguments: --min 1",
        "--jobs": "argument --jobs: expected one argument"},
    "bench": {
        "--size 18x32x32": "18 frames cannot be encoded: use 4k+1, such as 17 or 21",
        "--parts dit,dream": "--parts 'dream' is not known: use some of",
        "--parts dit,": "--parts '' is not known: use some of",
        "--against diffusers --parts save": "--parts 'save' is not known: use some of dit,encode,decode",
        "--out bench.txt": "argument --out: cannot write bench.txt: use a name that ends in .json",
        "--out folder.json": "argument --out: folder.json is not a file",
        "--out " + 250 * "l" + ".json": "argument --out: the name " + 40 * "l" + "... is too long",
        "--size 800001x320000x320000 --parts dit": "1 video of 800001x320000x320000",
        "--headline results --items bench": f"{Path('results/bench.json')} is damaged, or not a result",
        "--items dit_flash": "--items is for all figures of a device: add --headline",
        "--toy-budget 1": "--toy-budget is for all figures of a device: add --headline",
        "--headline new --items gold": "--items 'gold' is not known: use some of bench,",
        "--headline text.txt": "argument --headline: text.txt is not a folder",
        "--headline new --parts dit": "--headline and --parts do not fit",
        "--headline new --steps 3": "--headline and --steps do not fit",
        "--headline new --out x.json": "--headline and --out do not fit",
        "--headline new --compile": "--headline and --compile do not fit",
        "--headline new --against plain": "--headline and --against do not fit",
        "--rep 3": "unrecognized arguments: --rep 3", "--conf toy": "unrecognized arguments: --conf toy",
        "toy": "unrecognized arguments: toy"},
    "memory": {
        "--size 122x512x768": "122 frames cannot be encoded: use 8k+1, such as 121 or 129",
        "--size 121x500x768": "a height of 500 is not a multiple of 32: use 480 or 512",
        "--stage sample --optimizer muon": "--optimizer is for training, not for --stage sample",
        "--stage sample --ranks 2": "--ranks is for training, not for --stage sample",
        "--stage sample --checkpointing": "--checkpointing is for training, not for --stage sample",
        "--stage vae --words 3": "--words is for the transformer, not for --stage vae",
        "--ranks 2": "2 ranks do not share the work yet: use parallel ddp or fsdp",
        "--parallel fsdp-bf16": "fsdp-bf16 gathers bf16 weights: use precision bf16",
        "--stag vae": "unrecognized arguments: --stag vae", "dit": "unrecognized arguments: dit"},
    "conditions": {
        "--out x.txt": "argument --out: cannot write x.txt: use a name that ends in .json",
        "--out folder.json": "argument --out: folder.json is not a file",
        "--out taken/x.json": f"the examples go to {Path('taken/x.png')}, which is a folder",
        "--clips 0": "argument --clips: 0 is out of range: use 2 to 10000",
        "--checkpoint absent.pt": "there is no checkpoint absent.pt",
        "--checkpoint text.txt": "text.txt is not a checkpoint of minltx",
        "--checkpoint folder": "folder is a folder: name the file in it",
        "--clip 3": "unrecognized arguments: --clip 3",
        "--device cpu": "unrecognized arguments: --device cpu"},
    "t5": {
        "--out x.txt": "argument --out: cannot write x.txt: use a name that ends in .safetensors",
        "--out folder.safetensors": "argument --out: folder.safetensors is not a file",
        "--clips absent": "there is no folder absent", "--clips text.txt": "there is no folder text.txt",
        "--release 1.0": "argument --release: invalid choice: '1.0'",
        "": "folder has no folder text_encoder", "--neg x": "unrecognized arguments: --neg x"},
    "which": {
        "": "text.txt is not a safetensors file",
        "--release 1.0": "argument --release: invalid choice: '1.0'",
        "--dev cpu": "unrecognized arguments: --dev cpu", "folder": "unrecognized arguments: folder",
        "--device": "argument --device: expected one argument", "--weights": "unrecognized arguments"}}
BARE = [("sample", "--words --weights text.txt", "--words and --weights do not fit: released weights take"),
        ("sample", "", "one of the arguments PROMPT --words is required"),
        ("ablation", "", "name a switch: "), ("ablation", "--grid", "name a switch: "),
        ("t5", "", "the following arguments are required: folder"),
        ("t5", "folder", "there is nothing to embed: give prompts, or --clips FOLDER"),
        ("t5", "absent words", "absent has no folder text_encoder"),
        ("which", "", "the following arguments are required: FILE_OR_FOLDER"),
        ("which", "absent", "there is no absent"), ("which", "folder", "folder has no"),
        ("which", "picture.png", "picture.png is not a safetensors file"),
        ("sample", '"a purple 7 moving left"', "unknown word 'purple': the toy knows only:"),
        ("sample", '"a red 7" "a red 12"', "unknown word '12'"),
        ("sample", '"a red 7 and a blue 3"', "'a red 7 and a blue 3' names more than 1 digit"),
        ("sample", '"a <pad> 7"', "unknown word '<pad>'"),
        ("sample", f'"{"a " * 17}"', "a caption of 17 words is too long: use at most 16"),
        ("bench", "--against diffusers --parts text", "--parts 'text' is not known")]


def whole_line(name, line):
    """With the words that the command needs before the options; the ablation's own words replace them."""
    return line if name == "ablation" and not line.startswith("-") else f"{NEEDED.get(name, '')} {line}"


TABLE = [*((name, whole_line(name, line), start) for name, line, start in EACH), *BARE,
         *((name, whole_line(name, line), start) for name, lines in OTHERS.items()
           for line, start in lines.items())]

MINE = """from minltx.ablation.ideas import Idea
from minltx.dit import Block

TABLE = {"Block": Block}

class Weak(Idea):
    def __init__(self, weight):
        super().__init__({"loss.dwt": weight})

class Wrong(Block):
    def forward(self, *args):
        return float("nan") * super().forward(*args)
"""

# Without that package, files that are not safetensors are not opened to find out.
MISSING = "reading and writing the released format needs a package"
NO_SAFETENSORS = [] if find_spec("safetensors") else [MISSING]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text, a picture, broken files, and folders with names like files."""
    for name in ("folder", "folder.gif", "folder.json", "folder.safetensors"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.txt").write_text("hello")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    np.savez(tmp_path / "bare.npz", x=np.ones(3))
    np.savez(tmp_path / "flat.npz", frames=np.ones(3))
    for name in ("cut", "small", "bomb", "results", "taken", "taken/x.png", "spent",
                 "ablated/dit/rope=none/seed0"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("L", (64, 1)).save(tmp_path / "small" / "line.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb" / "huge.png")
    for name in ("results/bench.json", "spent/budget.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "ablated/dit/rope=none/seed0/spec.json").write_text("{}")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "exits.py").write_text("import sys\nsys.exit('usage: exits.py IN OUT')\n")
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / "cut" / f"train-{name}-ubyte").write_bytes(b"\0\0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(name, line, capsys):
    """-> exit code, lines of the error."""
    main, _, prog = COMMANDS[name]
    try:
        main(shlex.split(line))
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_calls_get_one_line_and_exit_code_2_and_write_nothing(name, place, capsys):
    before = sorted(place.rglob("*"))
    rows = [(line, start) for command, line, start in TABLE if command == name]
    wrong = []
    for line, start in rows:
        code, error = called(name, line, capsys)
        starts = [f"{COMMANDS[name][2]}: {answer}" for answer in (start, *NO_SAFETENSORS)]
        if code != 2 or len(error) != 1 or not error[0].startswith(tuple(starts)):
            wrong.append((line, code, error[:3]))
        assert sorted(place.rglob("*")) == before, line
    assert wrong == [] and len(rows) >= 15


def test_latents_of_other_clips_are_refused_before_the_first_stage(place, capsys):
    write_torch("other", {"mark": ["0", 1, 0, []], "views": []})
    code, error = called("training", "--latents other", capsys)
    assert code == 2 and "other holds the latents of other clips: name another file" in error[0]
    assert not (place / "runs").exists()


def test_the_table_is_long():
    assert len({(name, line) for name, line, _ in TABLE}) == len(TABLE) >= 300


# --- Every option has a type ------------------------------------------------------------------------------

def actions(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions(sub)
        else:
            yield action


def test_every_option_of_every_command_has_a_type_that_checks():
    """So that a new option refuses an empty text, NaN and values out of range as the others do."""
    parsers = [options() for _, options, _ in COMMANDS.values()]
    found = [action for parser in parsers for action in actions(parser) if action.nargs != 0]
    free = {action.dest for action in found if action.type is str}
    unchecked = [action.dest for action in found
                 if action.type not in (None, str) and not getattr(action.type, "checks", False)]
    assert unchecked == [] and free == {"prompts", "negative"} and len(found) > 80
    assert not any(parser.allow_abbrev for parser in parsers)


def test_all_commands_of_the_package_are_in_the_table():
    files = [*(ROOT / "minltx").rglob("*.py"), ROOT / "sample.py", ROOT / "train_tiny.py"]
    users = {path.relative_to(ROOT).as_posix() for path in files
             if "Parser(prog=" in path.read_text(encoding="utf-8")}
    own = {Path(main.__code__.co_filename).relative_to(ROOT).as_posix() for main, _, _ in COMMANDS.values()}
    # Those of the course are in test_assignments.py, as its packages are optional.
    assert users - own == {"minltx/course/__main__.py", "minltx/course/diagrams.py", "minltx/bench/flops.py",
                           "minltx/evaluation/digits.py"}               # the last two have no options
    parser = Parser(prog="any")
    parser.add_argument("--text")
    with pytest.raises(argparse.ArgumentTypeError):
        parser._registry_get("type", None)("")
    assert not_empty("x") == "x"


def test_devices_are_known_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("meta", "cpu:1", "xla", "", "cuda:", "cuda:-1"):
        with pytest.raises(ValueError, match="is not a device: use cpu, cuda or mps"):
            pick_device(name)


# --- Ctrl-C, and commands as they are started -------------------------------------------------------------

@pytest.mark.parametrize("name, target", [
    ("sample", "sample.sample"), ("bench", "minltx.bench.__main__.bench"), ("train_tiny", "train_tiny.train"),
    ("conditions", "minltx.evaluation.conditions.compare"), ("ablation", "minltx.ablation.__main__.ablate"),
    ("training", "minltx.training.__main__.train")])
@pytest.mark.parametrize("error, code, says", [
    (KeyboardInterrupt, 130, "stopped"), (MemoryError, 2, "out of memory"),
    (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"), 2, "fit in memory"),
    (lambda: OSError(28, "No space left on device"), 2, "No space left"),
    (lambda: ValueError("first\nsecond"), 2, "first")])
def test_every_ending_is_one_line(name, target, error, code, says, place, capsys, monkeypatch):
    def fail(*_):
        raise error()

    monkeypatch.setattr(target, fail)
    found, lines = called(name, NEEDED.get(name, ""), capsys)
    lines = [line for line in lines if line]
    assert found == code and len(lines) == 1 and says in lines[0], lines


def test_a_mistake_of_the_programs_keeps_its_traceback(place, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(sample, "sample", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        sample.main(["a red 7"])


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["sample.py", "a red 7", "--size", "999968"], ["sample.py", "a red 7", "--frames", "1000000001"],
    ["sample.py", "a red 7", "--out", ""], ["train_tiny.py", "--budget", "nan"],
    ["-m", "minltx.training", "--clips", "absent"], ["-m", "minltx.ablation", "optimizer=sgd,muon"],
    ["-m", "minltx.bench", "--size", "17x32"], ["-m", "minltx.bench.flops", "--x"],
    ["-m", "minltx.training.memory", "--device", "x"], ["-m", "minltx.evaluation.conditions", "--clips", "0"],
    ["-m", "minltx.pretrained.t5", "folder", "words"]], ids=" ".join)
def test_the_answer_comes_at_once(words, place):
    begin = time.monotonic()
    script = [str(ROOT / words[0])] if words[0].endswith(".py") else [words[0]]
    done = subprocess.run([sys.executable, *script, *words[1:]], capture_output=True, text=True, cwd=place,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr
    assert time.monotonic() - begin < 60      # 10 s on an idle machine; others may work on this one
