"""Assignments are built without solutions, and submissions are graded fairly whatever they contain."""

import ast
import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from minltx.course import __main__ as course    # noqa: E402
from minltx.course.checks import CHECKS, Wrong    # noqa: E402

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks" / "assignments").glob("A*.ipynb"))
IDS = [p.stem for p in SOURCES]


def code_cells(path):
    return [cell for cell in course.read_notebook(path).cells if cell.cell_type == "code"]


def solution_in(source):
    """The lines of a source cell's solution."""
    if course.BEGIN not in source:
        return []
    lines = source.split(course.BEGIN)[1].split(course.END)[0].split("\n")
    return [line.strip() for line in lines if line.strip()]


def submission(path, *sources, assignment="A1"):
    """A notebook with these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"minltx": {"assignment": assignment}})
    path.write_text(nbformat.writes(notebook))
    return path


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    course.build(course.SOURCES, out)
    return out


# --- The sources, and what is built from them -------------------------------------------------------------

def test_the_sources_are_in_nbgraders_format():
    assert IDS == ["A1_flow", "A2_vae", "A3_rope_attention", "A4_sampling", "A5_ablation"]
    for path in SOURCES:
        ids, points = [], {}
        for cell in code_cells(path):
            mark = cell.metadata.get("nbgrader")
            if mark and mark["solution"]:
                assert cell.source.count(course.BEGIN) == cell.source.count(course.END) == 1
                assert 1 <= len(solution_in(cell.source)) <= 10
                assert f"def {CHECKS[mark['grade_id']].name}(" in cell.source
                ids.append(mark["grade_id"])
            elif mark and mark["grade"]:
                points[mark["grade_id"].removesuffix("-check")] = mark["points"]
                assert "raises-exception" in cell.metadata["tags"]
            assert cell.outputs == [] and cell.execution_count is None
        assert ids == course.tasks_of(course.read_notebook(path), path) == list(points)
        assert points == {task: CHECKS[task].points for task in ids}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_student_notebook_parses_has_no_solution_and_fails_loudly(path, students):
    space, failed, stubs = {}, [], 0
    text = (students / path.name).read_text()
    for cell in code_cells(students / path.name):
        ast.parse(cell.source)
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("solution"):
            assert f'raise NotImplementedError("{mark["grade_id"]}")' in cell.source
            stubs += 1
            exec(cell.source, space)
        elif cell.source.startswith(("import", "check(")):
            try:
                exec(cell.source, space)
            except Wrong as error:
                failed.append(str(error))
    assert stubs == len(failed) > 0 and all("not written yet" in f for f in failed)
    assert "BEGIN SOLUTION" not in text
    solutions = [line for cell in code_cells(path) for line in solution_in(cell.source)]
    assert [line for line in solutions if len(line) > 25 and json.dumps(line)[1:-1] in text] == []


def test_points_are_listed(students):
    with open(students / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["task"]: int(r["points"]) for r in rows} == {t: c.points for t, c in CHECKS.items()}
    assert {r["task"]: r["function"] for r in rows} == {t: c.name for t, c in CHECKS.items()}


def test_the_command_builds_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    course.main(["build", "--out", "mine"])
    assert {p.name for p in (tmp_path / "mine").glob("*.ipynb")} == {p.name for p in SOURCES}
    assert "50 points" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["grade", "nowhere"], "there is no file or folder nowhere"),
    (["grade", "."], "there is no notebook in ."),
    (["build", "--source", "."], "there are no assignments in .: name their folder with --source"),
    (["build", "--sourc", "."], "unrecognized arguments")])
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        course.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- Grading ----------------------------------------------------------------------------------------------

RIGHT = "import torch\ndef velocity(x0, noise):\n    return noise - x0"
WRONG = "def predict_x0(z, v, t):\n    return z + t.reshape(-1, *[1] * (z.ndim - 1)) * v"
LATER = ("def interpolate(x0, noise, t):\n    t = t.reshape(-1, *[1] * (x0.ndim - 1))\n"
         "    return (1 - t) * x0 + t * noise")


def test_half_of_the_work_earns_half_of_the_points_and_gets_a_hint(tmp_path):
    package = "from minltx.flow import velocity\n%matplotlib inline\n!ls"     # does not replace the answer
    result = course.grade(submission(tmp_path / "x.ipynb", RIGHT, WRONG, package))
    assert result["points"] == 1 and result["of"] == 10 and result["tasks"]["A1.2"]["points"] == 1
    assert "walk back" in result["tasks"]["A1.3"]["hint"]
    assert "not found" in result["tasks"]["A1.6"]["hint"]
    assert result["notes"] == [] and result["assignment"] == "A1"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_solutions_get_all_points_and_stubs_none(path, students):
    whole = course.grade(path, (100.0, 600.0))
    assert whole["points"] == whole["of"] > 0 and whole["notes"] == []
    empty = course.grade(students / path.name, (100.0, 600.0))
    assert empty["points"] == 0 and empty["of"] == whole["of"]
    assert {x["hint"] for x in empty["tasks"].values()} == {"not written yet"}


HANG = "while True: pass"
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + HANG
slow = pytest.mark.slow


@pytest.mark.parametrize("accident, note", [
    (HANG, "took longer than 5 s"),
    pytest.param("import os; os._exit(3)", "ended its kernel", marks=slow),
    pytest.param("raise SystemExit(0)", "SystemExit", marks=slow),
    pytest.param("exit()", None, marks=slow),
    pytest.param("print('x' * 2_000_000)", None, marks=slow),
    pytest.param("while True: print('x' * 1000)", "took longer than 5 s", marks=slow),
    pytest.param("1 / 0", "ZeroDivisionError", marks=slow),
    pytest.param("def f(: pass", "SyntaxError", marks=slow),
    pytest.param("input('name')", "StdinNotImplementedError", marks=slow),
    pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended its kernel", marks=slow),
    pytest.param("def f(): f()\nf()", "cell 1", marks=slow),
    pytest.param("globals().clear()", None, marks=slow),
    pytest.param("import sys, os; sys.stdout = sys.stderr = open(os.devnull, 'w')", None, marks=slow),
    pytest.param(DEAF, "took too long", marks=slow)])
def test_an_accident_costs_nothing_that_was_earned(tmp_path, accident, note):
    result = course.grade(submission(tmp_path / "x.ipynb", RIGHT, accident, LATER), limits=(5.0, 120.0))
    assert result["points"] == 1 + 2, result
    assert (result["notes"] == []) if note is None else any(note in text for text in result["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("answer, hint", [
    (HANG, "took too long"), ("raise SystemExit", "ends the program"), ("return answers", "NameError"),
    ("import os; os._exit(0)", "not found")])
def test_a_function_that_hangs_or_ends_the_program_costs_only_its_own_points(tmp_path, answer, hint):
    path = submission(tmp_path / "x.ipynb", RIGHT, f"def predict_x0(z, v, t):\n    {answer}", LATER)
    result = course.grade(path, limits=(5.0, 120.0))
    assert result["points"] == 1 + 2 and hint in result["tasks"]["A1.3"]["hint"]


@pytest.mark.slow
def test_a_function_counts_although_its_cell_fails_afterwards(tmp_path):
    path = submission(tmp_path / "x.ipynb", f"{RIGHT}\n1 / 0", f"{LATER}\n{HANG}")
    assert course.grade(path, limits=(5.0, 120.0))["points"] == 1 + 2


@pytest.mark.slow
def test_the_time_limit_of_a_notebook_skips_the_cell_that_was_running(tmp_path):
    path = submission(tmp_path / "x.ipynb", RIGHT, "import time; time.sleep(60)", LATER)
    result = course.grade(path, limits=(30.0, 5.0))
    assert result["points"] == 1 + 2 and result["notes"] == ["cell 1 took too long and was skipped"]


@pytest.mark.slow
def test_the_last_definition_counts_and_the_packages_own_function_does_not(tmp_path):
    path = submission(tmp_path / "x.ipynb", "from minltx.flow import velocity, flow_loss", WRONG, RIGHT,
                      "predict_x0 = lambda z, v, t: z - t.reshape(-1, *[1] * (z.ndim - 1)) * v")
    result = course.grade(path)
    assert {task for task, x in result["tasks"].items() if x["points"]} == {"A1.2", "A1.3"}
    assert "package's own" in result["tasks"]["A1.4"]["hint"]


@pytest.mark.slow
def test_files_that_are_not_submissions(tmp_path):
    (tmp_path / "A1.ipynb").write_text("{")
    (tmp_path / "A0.ipynb").write_text('{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}')
    submission(tmp_path / "A2.ipynb", assignment="Z9")
    submission(tmp_path / "A3.ipynb", "def rms_norm(x):\n    return torch.nn.functional.normalize(x)",
               assignment="A3")
    own = "from minltx.sampler import classifier_free_guidance as g\nclassifier_free_guidance = g"
    submission(tmp_path / "A4.ipynb", own, "token_times = None", assignment="A4")
    results = course.grade_all(tmp_path, tmp_path / "out", (5.0, 60.0))
    assert [r["points"] for r in results] == [0, 0, 0, 0, 0]
    assert all("not a Jupyter notebook" in r["notes"][0] for r in results[:2])
    assert "not named after an assignment" in results[2]["notes"][0]
    assert "NameError" in results[3]["tasks"]["A3.4"]["hint"]                    # it imported nothing
    assert "package's own" in results[4]["tasks"]["A4.1"]["hint"]
    assert "must be a function" in results[4]["tasks"]["A4.2"]["hint"]


@pytest.mark.slow
def test_a_folder_becomes_a_table_for_the_course(tmp_path, capsys):
    (tmp_path / "in" / "ada").mkdir(parents=True)
    submission(tmp_path / "in" / "ada" / "A1.ipynb", RIGHT)
    submission(tmp_path / "in" / "bob.ipynb", "", assignment="A5")
    course.main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "1/10" in capsys.readouterr().out
    with open(tmp_path / "out" / "grades.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["file"]).name, r["assignment"], r["points"], r["of"]) for r in rows] == [
        ("A1.ipynb", "A1", "1", "10"), ("bob.ipynb", "A5", "0", "2")]
    assert rows[0]["A1.2"] == "1" and rows[0]["A5.1"] == "" and rows[1]["A5.1"] == "0"
    stored = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert stored[0]["tasks"]["A1.2"]["points"] == 1
