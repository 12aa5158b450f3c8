"""Assignments: built without solutions, graded fairly whatever is handed in."""

import ast
import csv
import json
from pathlib import Path

import pytest

from minltx.workshop import assignments
from minltx.workshop.checks import CHECKS, Wrong

SOURCES = sorted((Path(__file__).parents[1] / "notebooks" / "assignments").glob("A*.ipynb"))
IDS = [p.stem for p in SOURCES]


def cells_of(path):
    return [("".join(c["source"]), c) for c in assignments.read_notebook(path)["cells"]
            if c["cell_type"] == "code"]


def hand_in(path, *sources, assignment="A1"):
    """A notebook with these code cells."""
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": s}
             for s in sources]
    path.write_text(json.dumps({"cells": cells, "metadata": {"minltx": {"assignment": assignment}},
                                "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    assignments.build(SOURCES[0].parent, out)
    return out


def test_the_sources_are_in_nbgraders_format():
    assert IDS == ["A1_flow", "A2_vae", "A3_rope_attention", "A4_sampling", "A5_ablation"]
    for path in SOURCES:
        ids, points = [], {}
        for source, cell in cells_of(path):
            mark = cell["metadata"].get("nbgrader")
            if mark and mark["solution"]:
                assert source.count(assignments.BEGIN) == source.count(assignments.END) == 1
                solution = source.split(assignments.BEGIN)[1].split(assignments.END)[0]
                assert len([line for line in solution.split("\n") if line.strip()]) <= 10
                ids.append(mark["grade_id"])
            elif mark and mark["grade"]:
                points[mark["grade_id"].removesuffix("-check")] = mark["points"]
                assert "raises-exception" in cell["metadata"]["tags"]
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert ids == assignments.tasks_of(assignments.read_notebook(path), path) == list(points)
        assert points == {task: CHECKS[task].points for task in ids}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_student_notebook_parses_holds_no_solution_and_fails_loudly(path, students):
    space, failed = {}, []
    solutions = [line.strip() for source, _ in cells_of(path) if assignments.BEGIN in source
                 for line in source.split(assignments.BEGIN)[1].split(assignments.END)[0].split("\n")]
    text = (students / path.name).read_text()
    stubs = 0
    for source, cell in cells_of(students / path.name):
        ast.parse(assignments.without_magics(source))
        task = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
        if cell["metadata"].get("nbgrader", {}).get("solution"):
            assert f'raise NotImplementedError("{task}")' in source
            stubs += 1
            exec(source, space)
        elif source.startswith(("import", "check(")):
            try:
                exec(assignments.without_magics(source), space)
            except Wrong as error:
                failed.append(str(error))
    assert stubs == len(failed) > 0 and all("not written yet" in f for f in failed)
    assert "BEGIN SOLUTION" not in text
    assert [line for line in solutions if len(line) > 25 and json.dumps(line)[1:-1] in text] == []


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_solutions_get_all_points_and_stubs_none(path, students):
    whole = assignments.grade(path)
    assert whole["points"] == whole["of"] > 0 and whole["notes"] == []
    empty = assignments.grade(students / path.name)
    assert empty["points"] == 0 and empty["of"] == whole["of"]
    assert {x["hint"] for x in empty["tasks"].values()} == {"not written yet"}


RIGHT = "import torch\ndef velocity(x0, noise):\n    return noise - x0"
WRONG = "def predict_x0(z, v, t):\n    return z + t.reshape(-1, *[1] * (z.ndim - 1)) * v"


def test_half_done_work_earns_its_half_and_gets_a_hint(tmp_path):
    result = assignments.grade(hand_in(tmp_path / "x.ipynb", RIGHT, WRONG, "%matplotlib inline\n!ls"))
    assert result["points"] == 1 and result["of"] == 10 and result["tasks"]["A1.2"]["points"] == 1
    assert "walk back" in result["tasks"]["A1.3"]["hint"]
    assert "not found" in result["tasks"]["A1.6"]["hint"]


@pytest.mark.parametrize("accident, note", [
    ("while True: pass", "TimeoutError"), ("import os; os._exit(3)", "ended the process"),
    ("raise SystemExit(0)", "SystemExit"), ("print('x' * 2_000_000)", None), ("1 / 0", "ZeroDivisionError"),
    ("def f(: pass", "SyntaxError"), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended the"),
    ("def f(): f()\nf()", "RecursionError"),
    ("import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass", "took too long")])
def test_accidents_cost_nothing_that_was_earned(tmp_path, accident, note):
    later = ("def interpolate(x0, noise, t):\n    t = t.reshape(-1, *[1] * (x0.ndim - 1))\n"
             "    return (1 - t) * x0 + t * noise")
    result = assignments.grade(hand_in(tmp_path / "x.ipynb", RIGHT, accident, later), limit=1.0, total=15.0)
    assert result["points"] == 1 + 2
    assert (result["notes"] == []) if note is None else any(note in text for text in result["notes"])


def test_hand_ins_that_are_none(tmp_path):
    (tmp_path / "A1.ipynb").write_text("{")
    hand_in(tmp_path / "A2.ipynb", assignment="Z9")
    hand_in(tmp_path / "A3.ipynb", "def rms_norm(x):\n    return torch.nn.functional.normalize(x)",
            assignment="A3")
    hand_in(tmp_path / "A4.ipynb", "from minltx.sampler import guide as g\nguide = g", "token_times = None",
            assignment="A4")
    results = assignments.grade_all(tmp_path, tmp_path / "out", 5.0, 30.0)
    assert [r["points"] for r in results] == [0, 0, 0, 0]
    assert "not a Jupyter notebook" in results[0]["notes"][0]
    assert "does not say which" in results[1]["notes"][0]
    assert "NameError" in results[2]["tasks"]["A3.4"]["hint"]                    # it imported nothing
    assert "package's own" in results[3]["tasks"]["A4.1"]["hint"]
    assert "must be a function" in results[3]["tasks"]["A4.2"]["hint"]


def test_a_folder_becomes_a_table_for_the_course(tmp_path, capsys):
    (tmp_path / "in" / "ada").mkdir(parents=True)
    hand_in(tmp_path / "in" / "ada" / "A1.ipynb", RIGHT)
    hand_in(tmp_path / "in" / "bob.ipynb", "", assignment="A5")
    assignments.main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "1/10" in capsys.readouterr().out
    with open(tmp_path / "out" / "grades.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["file"]).name, r["assignment"], r["points"], r["of"]) for r in rows] == [
        ("A1.ipynb", "A1", "1", "10"), ("bob.ipynb", "A5", "0", "2")]
    assert rows[0]["A1.2"] == "1" and rows[0]["A5.1"] == "" and rows[1]["A5.1"] == "0"
    stored = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert stored[0]["tasks"]["A1.2"]["points"] == 1
    for arguments in (["grade", str(tmp_path / "nowhere")], ["build", "--source", str(tmp_path)]):
        with pytest.raises(SystemExit) as stop:
            assignments.main(arguments)
        assert stop.value.code == 2 and "assignments: there" in capsys.readouterr().err


def test_points_are_listed(students):
    with open(students / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["task"]: int(r["points"]) for r in rows} == {t: c.points for t, c in CHECKS.items()}
