"""Lessons and solutions fit the package and run from a clean kernel; the committed outputs are complete."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
SOLUTIONS = sorted((NOTEBOOKS / "assignments").glob("*.ipynb"))
ALL = pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=lambda p: p.stem)
# The committed outputs are of the full lessons; the test shortens these parts.
SHORTER = {"STEPS = 150": "STEPS = 12", '"--budget", "0.05"': '"--budget", "0.01"',
           "range(4000)": "range(100)", "steps=100": "steps=12"}


def cells(path, kind="code"):
    """The sources of a notebook's cells."""
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def package_imports(tree):
    """The names that a cell imports from minltx, or binds to one of its modules -> {name: object}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minltx":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "minltx":
                    names[(alias.asname or alias.name).split(".")[0]] = importlib.import_module(alias.name)
    return names


# --- Parsing ----------------------------------------------------------------------------------------------

@ALL
def test_cells_compile_and_every_name_of_the_package_exists(path):
    imported = {}
    for source in cells(path):
        tree = ast.parse(source)
        imported |= package_imports(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in imported:
                assert hasattr(imported[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@ALL
def test_commands_and_files_in_the_text_exist(path):
    text = "\n".join(cells(path, "markdown") + cells(path))
    for module in re.findall(r"python -m (minltx[.\w]*)", text):
        parts = ROOT.joinpath(*module.split("."))
        assert parts.with_suffix(".py").is_file() or (parts / "__main__.py").is_file(), module
    for file in re.findall(r"`((?:minltx|docs)/[\w./-]+)`", text):
        assert (ROOT / file).exists(), file
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
    assert not re.search(r"minltx[./]workshop|train_tiny|Thing\b|encode_bank", text)


def test_there_are_eight_lessons_and_five_assignments():
    assert [p.name[:2] for p in LESSONS] == [f"0{i}" for i in range(8)]
    assert [p.name[:2] for p in SOLUTIONS] == ["A1", "A2", "A3", "A4", "A5"]
    sources = "\n".join(s for p in LESSONS for s in cells(p))
    assert all(long in sources for long in SHORTER)


def test_all_notebooks_find_the_package_in_the_same_way(tmp_path, monkeypatch):
    first, = {cells(path)[0] for path in LESSONS + SOLUTIONS}
    folder = tmp_path / "clone" / "student"
    folder.mkdir(parents=True)
    (tmp_path / "clone" / "minltx").mkdir()
    (tmp_path / "clone" / "minltx" / "patchify.py").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.raises(ImportError, match="clone"):           # nothing can be imported from this clone
        with monkeypatch.context() as m:
            m.setitem(__import__("sys").modules, "minltx", None)
            exec(first, {})
    assert __import__("sys").path == [str(tmp_path / "clone")]
    assert "http" not in first and "git+" not in first        # no address that may be wrong


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_is_short_complete_and_clean(path):
    notebook, text = json.loads(path.read_text()), path.read_text()
    code = cells(path)
    assert len(code) <= 15 and max(len(s.split("\n")) for s in code) <= 20
    assert path.stat().st_size <= 300 * 1024
    assert max(len(line) for s in code for line in s.split("\n")) <= 110
    first, last = ("".join(notebook["cells"][i]["source"]) for i in (0, -1))
    assert "*You will see*" in first and re.search("[Mm]inutes?", first) and "*You need*" in first
    assert "**Three questions.**" in last and "**Change this and rerun**" in last
    assert "**By hand" in text and any("assert " in s for s in code)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(code) + 1))                    # run once, from top to bottom
    shown = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in shown)
    printed = "\n".join("".join(o.get("text", [])) for o in shown)
    assert "Warning" not in printed and not re.search(r"(?<![\w.:])/(home|root|tmp|work|Users|usr)/", printed)


@pytest.mark.slow    # it would fail for a learner who edits a chapter
def test_the_source_that_a_lesson_shows_is_todays():
    """Outputs of inspect.getsource are committed, so they age when a chapter changes."""
    package = {line.rstrip() for p in (ROOT / "minltx").rglob("*.py") for line in p.read_text().split("\n")}
    shown = 0
    for path in LESSONS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code" and "inspect.getsource" in "".join(cell["source"]):
                for output in cell["outputs"]:
                    lines = [line for line in "".join(output.get("text", [])).split("\n") if "  # (" in line]
                    assert [line for line in lines if line.rstrip() not in package] == [], path.name
                    shown += len(lines)
    assert shown >= 15


def test_lessons_show_the_packages_code_and_do_not_paste_it():
    chapters = "\n".join(p.read_text() for p in (ROOT / "minltx").glob("*.py"))
    long = {line.strip() for line in chapters.split("\n") if len(line.strip()) > 60}
    for path in LESSONS:
        assert not long & {line.strip() for s in cells(path) for line in s.split("\n")}, path.name
    assert sum("inspect.getsource" in "".join(cells(p)) for p in LESSONS) >= 6


# --- Running ----------------------------------------------------------------------------------------------

@pytest.mark.slow
@ALL
def test_it_runs_from_a_clean_kernel(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
        cell.metadata.pop("tags", None)                            # a check that fails must fail here
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(path.parent)}}).execute()
    checked = [o.text for c in notebook.cells if c.source.startswith("check(") for o in c.outputs]
    assert all(": correct, " in text for text in checked)
    if path in SOLUTIONS:
        assert len(checked) == sum(s.startswith("check(") for s in cells(path)) > 0
