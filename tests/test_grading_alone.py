"""One submission costs no other its grade: each is graded in a process of its own, and all that it started
is ended."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from minltx.course import __main__ as course    # noqa: E402
from minltx.course.alone import descendants, run_alone, states    # noqa: E402

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
EMPTY = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
DETACHED = """
import os, subprocess, sys, time
sleep = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \\
        "os.fork() and sys.exit(); os.setsid(); time.sleep(300)"
for _ in range(20):
    subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
time.sleep(1)
"""


def cell(source, **fields):
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None,
            "id": "a", **fields}


def hang():
    time.sleep(300)


def leave():
    os._exit(3)


def refuse():
    raise SystemExit("enough")


def start_others():
    exec(DETACHED, {})
    return len(descendants(os.getpid()))


def sum_in_parallel():
    """The sum of 2**22 ones by torch, with two threads or more."""
    torch.set_num_threads(max(2, torch.get_num_threads()))
    return torch.ones(2**22).sum().item()


def test_torchs_threads_of_the_grader_do_not_stop_a_call():
    threads = torch.get_num_threads()
    try:
        assert sum_in_parallel() == run_alone(sum_in_parallel, (), 60)
    finally:
        torch.set_num_threads(threads)


def test_a_call_alone_returns_its_result_or_says_why_there_is_none():
    assert run_alone(sorted, ([2, 1],), 60) == [1, 2]          # the server that starts the processes stays
    before = descendants(os.getpid())
    for function, arguments, reason in [(hang, (), "longer than 1 s"), (leave, (), "ended with code 3"),
                                        (refuse, (), "SystemExit: enough"), (object, (), "not JSON"),
                                        (int, ("x",), "ValueError: invalid literal")]:
        with pytest.raises(RuntimeError, match=reason):
            run_alone(function, arguments, 1 if function is hang else 20)
    assert descendants(os.getpid()) <= before


@LINUX
def test_processes_that_detached_themselves_are_ended():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        before = descendants(os.getpid())
        assert other.pid in before
        assert run_alone(start_others, (), 60) >= 1         # the others already belong to this process
        assert descendants(os.getpid()) == before and other.poll() is None
    finally:
        other.kill()
        other.wait()


STRANGE = {
    "null": {**EMPTY, "metadata": None},
    "list": {**EMPTY, "metadata": {"minltx": [1]}},
    "number": {**EMPTY, "metadata": {"minltx": {"assignment": {"a": 1}}}},
    "cell null": {**EMPTY, "cells": [cell("x = 1", metadata=None, outputs=None)]},
    "cells null": {**EMPTY, "cells": None},
    "text": "A1"}


def strange_folder(folder):
    """A folder with submissions that are not notebooks, or hardly."""
    folder.mkdir()
    for name, content in STRANGE.items():
        (folder / f"Z {name}.ipynb").write_text(json.dumps(content))
    (folder / "Z brackets.ipynb").write_text("[" * 100_000)
    (folder / "Z deep.ipynb").write_text(json.dumps(EMPTY)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}")
    (folder / "Z bytes.ipynb").write_bytes(json.dumps(EMPTY).encode() + b"\xff\xfe\x00")
    (folder / "Z empty.ipynb").write_bytes(b"")
    (folder / "Z folder.ipynb").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "Z pipe.ipynb")
    with open(folder / "Z large.ipynb", "wb") as file:
        file.truncate(2**40)
    return folder


def test_files_that_are_hardly_notebooks_get_a_note_each(tmp_path, capsys):
    folder = strange_folder(tmp_path / "in")
    results = course.grade_all(folder, tmp_path / "out", (5.0, 60.0))
    assert len(results) == len(list(folder.iterdir())) >= 12
    assert {r["points"] for r in results} == {0} and all(len(r["notes"]) == 1 for r in results)
    assert json.loads((tmp_path / "out" / "grades.json").read_text()) == results
    assert len((tmp_path / "out" / "grades.csv").read_text().splitlines()) == len(results) + 1
    assert "larger than 50 MiB" in capsys.readouterr().out


def test_the_command_finds_the_function_that_grades_in_its_processes(tmp_path):
    """As a command the module is called __main__, which these processes do not import."""
    (tmp_path / "A1.ipynb").write_text("{")
    done = subprocess.run([sys.executable, "-m", "minltx.course", "grade", str(tmp_path), "--out",
                           str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    result, = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert result["notes"] == [f"{tmp_path / 'A1.ipynb'} is not a Jupyter notebook"]


def test_grades_are_written_as_they_come(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.ipynb").write_text("{")

    def stopped(path, limits, content, seed):
        if path.stem == "c":
            raise KeyboardInterrupt
        return course.empty_result(path, "\ud800 and \x1b[2J")

    monkeypatch.setattr(course, "grade_alone", stopped)
    with pytest.raises(KeyboardInterrupt):
        course.grade_all(tmp_path / "in", tmp_path / "out", (5.0, 60.0))
    stored = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert [r["file"][-7:] for r in stored] == ["a.ipynb", "b.ipynb"]


def test_what_is_printed_suits_every_terminal(tmp_path, monkeypatch):
    """A message with half a surrogate, terminal codes and line ends, on a terminal that knows ASCII only."""
    result = course.empty_result(tmp_path / "ä.ipynb", "\ud800 \x1b[2J \n é")
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        course.print_grade(result)
        monkeypatch.undo()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 and lines[0].endswith("\\xe4.ipynb")
    assert lines[1].strip() == "note: \\ud800 \\x1b[2J \\n \\xe9"


RIGHT = "import torch\ndef velocity(x0, noise):\n    return noise - x0"
HARMFUL = {
    "detached": DETACHED,
    "kills": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "others": "import glob\nfor file in glob.glob({folder!r} + '/*.ipynb'):\n    open(file, 'w').close()",
    "surrogate": "raise ValueError('\\ud800')",
    "log": "import os\nfor i in range(9):\n    os.write(1, b'\\xff' * 99)"}


@LINUX
@pytest.mark.slow
def test_a_submission_that_harms_the_grader_costs_no_other_its_grade(tmp_path):
    """It leaves processes, kills its parent, empties the others' files, prints bytes that are not text."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, (name, harm) in enumerate(HARMFUL.items()):
        page = {**EMPTY, "metadata": {"minltx": {"assignment": "A1"}},
                "cells": [cell(RIGHT), cell(harm.replace("{folder!r}", repr(str(folder))))]}
        (folder / f"{i} {name}.ipynb").write_text(json.dumps(page))
    (folder / "9 honest.ipynb").write_text(json.dumps({**page, "cells": [cell(RIGHT)]}))
    run_alone(sorted, ([2, 1],), 60)                            # the server that starts the processes stays
    before = descendants(os.getpid())
    results = course.grade_all(folder, tmp_path / "out", (10.0, 60.0))
    assert descendants(os.getpid()) == before
    assert len(results) == len(HARMFUL) + 1 and results[-1]["points"] == 1 and results[-1]["notes"] == []
    assert (folder / "9 honest.ipynb").stat().st_size == 0
    assert all(r["points"] == 1 or "cannot be graded: its process ended" in r["notes"][0] for r in results)
    assert (tmp_path / "out" / "grades.csv").read_text().count("\n") == len(results) + 1


# --- What a submission must not change --------------------------------------------------------------------

CHANGES = {
    "written": lambda folder: (folder / "flow.py").write_text("# velocity"),
    "as long and as old": lambda folder: (
        (folder / "flow.py").write_text("v = 2"), os.utime(folder / "flow.py", (1, 1))),
    "new": lambda folder: (folder / "__pycache__").mkdir() or (folder / "__pycache__" / "flow.pyc").touch(),
    "before a module": lambda folder: (folder / "flow").symlink_to(folder.parent),
    "removed": lambda folder: (folder / "flow.py").unlink(),
    "renamed": lambda folder: (folder / "flow.py").rename(folder / "flow2.py"),
    "too large to read": lambda folder: os.truncate(folder / "flow.py", 2**40)}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_file_is_seen(change, tmp_path):
    folder = tmp_path / "minltx"
    folder.mkdir()
    (folder / "flow.py").write_text("v = 1")
    os.utime(folder / "flow.py", (1, 1))
    before = states([folder])
    assert before == states([folder]) and before != {}
    try:
        CHANGES[change](folder)
    except OSError:
        pytest.skip("not on this system")
    assert states([folder]) != before


def small_installation(folder, monkeypatch):
    """Three submissions, and a package and assignments that are not the real ones."""
    for path in ("minltx/flow.py", "assignments/A1_flow.ipynb", "in/a.ipynb", "in/b.ipynb", "in/c.ipynb"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("")
    monkeypatch.setattr(course, "PACKAGE", folder / "minltx")
    monkeypatch.setattr(course, "SOURCES", folder / "assignments")


@pytest.mark.parametrize("target", ["minltx/flow.py", "minltx/new.py", "assignments/A1_flow.ipynb",
                                    "out/grades.json", "out/grades.csv", None])
def test_a_submission_that_changes_the_graders_files_ends_the_grading(target, tmp_path, monkeypatch, capsys):
    """The line names both; the grades before it are kept, as they were."""
    small_installation(tmp_path, monkeypatch)

    def graded(path, limits, content, seed):
        if path.stem == "b" and target:
            (tmp_path / target).write_text("[]")
        return course.empty_result(path, "graded")

    monkeypatch.setattr(course, "grade_alone", graded)
    arguments = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    if target is None:
        course.main(arguments)
    else:
        with pytest.raises(SystemExit, match="2"):
            course.main(arguments)
        error = capsys.readouterr().err
        assert f"{tmp_path / target} changed while {tmp_path / 'in' / 'b.ipynb'} was graded: " in error
        assert error.count("\n") == 1
    stored = json.loads((tmp_path / "out" / "grades.json").read_text())
    graded_ones = ["a.ipynb", "b.ipynb", "c.ipynb"] if target is None else ["a.ipynb"]
    assert [Path(r["file"]).name for r in stored] == graded_ones
    assert (tmp_path / "out" / "grades.csv").read_text().count("\n") == len(stored) + 1


@pytest.mark.slow
def test_a_submission_that_writes_into_the_package_is_named(tmp_path):
    """In a copy: the command, its kernels, and honest submissions before and after it."""
    for name in ("minltx", "notebooks/assignments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    harm = "import minltx.flow\nopen(minltx.flow.__file__, 'a').write('velocity = abs')"
    for name, cells in {"a": [RIGHT], "b": [RIGHT, harm], "c": [RIGHT]}.items():
        page = {**EMPTY, "metadata": {"minltx": {"assignment": "A1"}}, "cells": [cell(x) for x in cells]}
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.ipynb").write_text(json.dumps(page))
    done = subprocess.run([sys.executable, "-m", "minltx.course", "grade", "in"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path / 'minltx' / 'flow.py'} changed while in/b.ipynb was graded: " in done.stderr
    stored = json.loads((tmp_path / "grades" / "grades.json").read_text())
    assert [(Path(r["file"]).name, r["points"]) for r in stored] == [("a.ipynb", 1)]
