"""Which room imports which, what an import costs, how long things are, what CI runs, what a wheel holds."""

import ast
import graphlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.count import CHAPTERS, PACKAGE, ROOT, chapter_lines, code_lines, room_lines

# From the ground up. A module may import its own room and the rooms of the lines above it.
ROOMS = (("under the book",),
         ("book",),
         ("beside the book",),
         ("pretrained",),
         ("toy",),
         ("video",),
         ("evaluation",),
         ("training",),
         ("ablation", "course", "bench"),
         ("scripts",),
         ("tools",))
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
SCRIPTS = ("train_tiny", "sample")
PLACES = {**{room: room for room in LEVEL if " " not in room},
          "require": "under the book", **dict.fromkeys(["minltx", *CHAPTERS], "book"),
          **dict.fromkeys(["files", "command", "threads", "fast_cpu", "fast_gpu", "caption_files",
                           "memory"],
                          "beside the book")}
COMMANDS = ("minltx.ablation", "minltx.bench", "minltx.course", "minltx.training")
OPTIONAL = ("IPython", "av", "diffusers", "ipykernel", "jupyter_client", "nbclient", "nbconvert", "nbformat",
            "safetensors", "sentencepiece", "transformers")


# --- Drawing the imports ----------------------------------------------------------------------------------

def module_name(path):
    """minltx/toy/data.py -> minltx.toy.data; minltx/toy/__init__.py -> minltx.toy."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def our_files():
    """Module -> file, of all code of the project but the tests."""
    scripts = [ROOT / f"{name}.py" for name in SCRIPTS]
    files = [*PACKAGE.rglob("*.py"), *scripts, *(ROOT / "tools").glob("*.py")]
    return {module_name(path): path for path in files}


def imports(source, known):
    """The modules among `known` that a source imports, also inside functions. Imports must be absolute."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in known else node.module for name in names)
    return found & set(known)


def room_of(module):
    """The room of a module. Raises KeyError if it is in none."""
    top, *rest = module.split(".")
    if top in SCRIPTS:
        return "scripts"
    place = rest[0] if top == "minltx" and rest else top
    return PLACES[place]


def may_import(room, other):
    return room == other or LEVEL[other] < LEVEL[room]


GRAPH = {name: imports(path.read_text(encoding="utf-8"), our_files()) for name, path in our_files().items()}


def test_imports_are_found_wherever_they_are_written():
    known = {"minltx.toy", "minltx.toy.data", "minltx.vae", "sample"}
    source = """
        import sample, torch
        from minltx.toy import data
        def f():
            from minltx.toy.data import caption
            from minltx.vae import VAEConfig as config"""
    source = "\n".join(line[8:] for line in source.splitlines())
    assert imports(source, known) == {"sample", "minltx.toy.data", "minltx.vae"}
    assert imports("from minltx.toy import load_toy", known) == {"minltx.toy"}
    with pytest.raises(AssertionError, match="in full"):
        imports("from . import data", known)


def test_every_module_is_in_a_room_and_imports_something_or_is_imported():
    assert len(GRAPH) > 40 and {room_of(name) for name in GRAPH} == set(LEVEL)
    assert sum(map(len, GRAPH.values())) > 80
    with pytest.raises(KeyError):
        room_of("minltx.workshop.run")
    with pytest.raises(KeyError):
        room_of("minltx.utils")


def test_imports_have_no_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()         # raises CycleError, which names the circle
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({**GRAPH, "minltx.patchify": {"minltx.vae"}}).prepare()


def test_rooms_import_only_rooms_below_them():
    wrong = [f"{name} imports {other}" for name, others in GRAPH.items() for other in others
             if not may_import(room_of(name), room_of(other))]
    assert wrong == []
    assert not may_import("ablation", "bench") and not may_import("pretrained", "training")
    assert not any(may_import(room, "scripts") for room in LEVEL if room not in ("scripts", "tools"))
    assert not any(may_import(room, "tools") for room in LEVEL if room != "tools")


def test_chapters_import_earlier_chapters():
    assert {f"minltx.{name}" for name in CHAPTERS} <= set(GRAPH)
    for position, name in enumerate(CHAPTERS):
        above = {f"minltx.{chapter}" for chapter in CHAPTERS[:position]}
        assert GRAPH[f"minltx.{name}"] <= {"minltx.require"} | above, name


def test_a_room_is_entered_without_importing_its_files():
    """So `import minltx.training.settings` does not import the loops, and `import minltx` imports nothing."""
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent.name not in ("minltx", "toy", "pretrained"):
            assert code_lines(path) == 0, path
    assert code_lines(PACKAGE / "__init__.py") == 1     # the version


# --- What an import costs ---------------------------------------------------------------------------------

def in_a_fresh_process(code, **how):
    """Run code in a new Python -> what it printed as JSON on its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LIGHT = ["under the book", "book", "beside the book", "pretrained", "toy"]
IMPORTED = """
import importlib, json, sys
import torch
before = set(sys.modules)       # `import torch` itself imports parts of torch.distributed
for name in {modules}:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("wanted", [["minltx.pretrained"], LIGHT], ids=["weights", "all"])
def test_loading_weights_needs_no_training_plots_or_notebooks(wanted):
    """No part of torch.distributed that `import torch` leaves out, no matplotlib, no notebooks."""
    modules = [name for name in GRAPH if name in wanted or room_of(name) in wanted]
    loaded = in_a_fresh_process(IMPORTED.format(modules=modules))
    assert set(modules) <= set(loaded)
    tops = {name.split(".")[0] for name in loaded}
    assert tops.isdisjoint({"matplotlib", *OPTIONAL, *SCRIPTS, "tools"})
    assert [name for name in loaded if name.startswith(("torch.distributed", "torch._dynamo"))] == []
    assert {room_of(name) for name in loaded if name in GRAPH} <= set(LIGHT)


BUILT = """
import importlib, json, sys
import torch
built, init, read = [], torch.nn.Module.__init__, torch.load
def counted(self, *args, **kwargs):
    built.append(type(self).__name__)
    init(self, *args, **kwargs)
def counted_load(*args, **kwargs):
    built.append("torch.load")
    return read(*args, **kwargs)
torch.nn.Module.__init__, torch.load = counted, counted_load
for name in {modules}:
    importlib.import_module(name)
imported = len(built)
torch.nn.Linear(1, 1)
print(json.dumps([built[:imported], built[imported:]]))
"""


def test_no_import_builds_a_model_or_reads_one():
    during, after = in_a_fresh_process(BUILT.format(modules=sorted(GRAPH)))
    assert during == [] and after == ["Linear"]


HELPED = """
import contextlib, io, json, runpy, sys
sys.modules.update(dict.fromkeys({absent}))     # None: importing it raises ImportError
texts = []
for command in {commands}:
    sys.argv = [command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            texts.append(stop.code or text.getvalue())
print(json.dumps(texts))
"""


def test_commands_explain_themselves_without_the_optional_packages(tmp_path):
    """In an empty folder, where no script and no checkout is found. The course names the package it needs."""
    code = HELPED.format(absent=OPTIONAL + SCRIPTS + ("tools",), commands=COMMANDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    texts = dict(zip(COMMANDS, json.loads(done.stdout.splitlines()[-1])))
    course = texts.pop("minltx.course")
    assert course.startswith("usage: ") or "\n" not in course and course.endswith("pip install jupyter")
    assert all(text.startswith("usage: ") and "--help" in text for text in texts.values()) and len(texts) == 3
    assert list(tmp_path.iterdir()) == []


# --- How long things are ----------------------------------------------------------------------------------
# In the slow tier, so that a learner who edits a chapter fails no test that counts its lines.

def functions(path):
    """(name, lines, parameters) of every function of a file, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            a = node.args
            yield (f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1,
                   len(a.posonlyargs + a.args + a.kwonlyargs))


@pytest.mark.slow
def test_chapters_stay_a_book():
    counts = chapter_lines()
    assert sum(counts.values()) <= 680 and max(counts.values()) <= 190, counts


# Code lines of the rooms around the book. Before one of them is raised: what in that room can go?
SIZES = {"minltx/ablation": 1170, "minltx/bench": 700, "minltx/course": 1865, "minltx/evaluation": 550,
         "minltx/pretrained": 1750, "minltx/toy": 650, "minltx/training": 1565, "minltx/video": 515,
         "tools": 670}
BESIDE = 750        # all files beside the book and both scripts together


@pytest.mark.slow
def test_rooms_keep_their_sizes():
    rooms = room_lines()
    assert {room: lines for room, lines in rooms.items() if lines > SIZES.get(room, 200)} == {}
    assert sum(lines for room, lines in rooms.items() if room not in SIZES) <= BESIDE
    assert rooms["train_tiny.py"] <= 130 and rooms["sample.py"] <= 130
    files = [path for name, path in our_files().items() if name.removeprefix("minltx.") not in CHAPTERS]
    assert sum(rooms.values()) == sum(map(code_lines, files))


@pytest.mark.slow
def test_functions_fit_on_a_screen():
    found = [one for path in our_files().values() for one in functions(path)]
    assert len(found) > 300
    assert [(name, lines) for name, lines, _ in found if lines > 45] == []
    assert [(name, parameters) for name, _, parameters in found if parameters > 8] == []


@pytest.mark.slow
def test_lines_are_short_enough_to_read():
    files = [*our_files().values(), *(ROOT / "tests").glob("*.py")]
    long = [f"{path.name}:{number}" for path in files
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if len(line) > 110]
    assert len(files) > 70 and long == []


def bodies(tree):
    """Every list of statements of a syntax tree."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and statements:
                yield node, statements


@pytest.mark.slow
def test_a_line_holds_one_statement():
    crowded = []
    for path in our_files().values():
        for node, statements in bodies(ast.parse(path.read_text(encoding="utf-8"))):
            starts = [s.lineno for s in statements]
            own = [node.lineno] if hasattr(node, "lineno") else []
            if len(set(own[:1] + starts)) < len(own + starts):
                crowded.append(f"{path.name}:{starts[0]}")
    assert crowded == []


# --- What CI runs -----------------------------------------------------------------------------------------

FAKE = """#!/usr/bin/env bash
# Logs its arguments. `python3 -m venv X` makes X. Fails if the arguments match the pattern $FAIL.
echo "$(basename "$0") $*" >> "$LOG"
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip"; fi
case "$*" in $FAIL) exit 1;; esac
"""


def run_ci(folder, fail):
    """Run a copy of .ci/run with stand-ins for python and pip -> its exit code, the logged calls."""
    fake = folder / "bin" / "python3"
    fake.parent.mkdir(parents=True)
    fake.write_text(FAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    shutil.copy(ROOT / "README.md", folder)
    log = folder / "log"
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
                   "LOG": str(log), "FAIL": fail}
    done = subprocess.run(["bash", str(folder / ".ci" / "run")], env=environment, capture_output=True)
    return done.returncode, log.read_text().splitlines()


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="needs bash")
def test_ci_runs_the_readmes_command_in_an_environment_of_its_own_then_everything(tmp_path):
    code, calls = run_ci(tmp_path / "passes", fail="nothing at all")
    assert code == 0 and calls == [
        "python3 -m venv .venv", "pip install -q -r requirements.txt", "python -m pytest",
        "python3 -m venv .venv", "pip install -q -r requirements.txt -r .ci/requirements.txt",
        "python -m pytest --slow"]
    code, calls = run_ci(tmp_path / "first", fail="*pytest")
    assert code == 1 and calls[-1] == "python -m pytest --slow"         # the second is still worth seeing
    assert run_ci(tmp_path / "second", fail="*--slow")[0] == 1
    assert run_ci(tmp_path / "install", fail="*.ci/requirements.txt")[0] == 1


# --- What a wheel holds -----------------------------------------------------------------------------------

THREE_LINES = """
from minltx.toy import load_toy
video = load_toy().generate(["a red 7 moving left"], seeds=[0])
print(tuple(video.shape))
"""


@pytest.mark.slow
def test_a_wheel_works_from_an_empty_folder(tmp_path):
    """Everything but the two scripts: the commands, the shipped toy, the version; one top-level module."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"            # a copy, because building writes into the folder
    source.mkdir()
    for name in ("minltx", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "train_tiny.py", "sample.py"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    wheel, = tmp_path.glob("minltx-*.whl")
    version = (PACKAGE / "__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
    assert wheel.name == f"minltx-{version}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"minltx"}
    assert {name for name in held if name.endswith(".py")} == {
        path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert "minltx/toy/toy.pt" in held
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel], check=True)

    def python(*words):
        done = subprocess.run([sys.executable, *words], cwd=empty, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(installed)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    where, said = python("-c", "import minltx; print(minltx.__file__); print(minltx.__version__)").split()
    assert Path(where).is_relative_to(installed) and said == version
    for command in COMMANDS:
        assert "usage:" in python("-m", command, "--help")
    assert python("-c", THREE_LINES).strip() == "(1, 3, 17, 32, 32)"
    assert "A1" in python("-m", "minltx.course", "build", "--out", "student")
    assert len(list((empty / "student").glob("A*.ipynb"))) == len(
        list((ROOT / "notebooks" / "assignments").glob("A*.ipynb"))) > 3
