"""Assignments are built without solutions, and submissions are graded fairly whatever they contain."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

matplotlib.use("Agg")
pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from minltx.course import __main__ as course    # noqa: E402
from minltx.course.checks import CHECKS, Wrong    # noqa: E402
from minltx.course.questions import T975    # noqa: E402
from minltx.course.submission import SHOW, suspicions    # noqa: E402

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


RIGHT = "import torch\ndef velocity(x0, noise):\n    return noise - x0"


# --- The sources, and what is built from them -------------------------------------------------------------

def test_the_sources_are_in_nbgraders_format():
    """nbgrader's ids are unique within a notebook, of letters, digits, _ and -."""
    assert IDS == ["A1_flow", "A2_vae", "A3_rope_attention", "A4_sampling", "A5_ablation"]
    for path in SOURCES:
        tasks, points, written, ids = [], {}, 0, []
        for cell in course.read_notebook(path).cells:
            mark, task = cell.metadata.get("nbgrader"), course.task_of(cell)
            if mark:
                ids.append(mark["grade_id"])
                assert set(mark) - {"points"} == {"grade", "grade_id", "locked", "schema_version", "solution",
                                                  "task"}
            if mark and mark["solution"] and not mark["grade"]:
                assert cell.source.count(course.BEGIN) == cell.source.count(course.END) == 1
                assert 1 <= len(solution_in(cell.source)) <= 10
                assert f"def {CHECKS[task].name}(" in cell.source
                tasks.append(task)
            elif mark and mark["solution"]:
                assert cell.cell_type == "markdown" and mark["points"] >= 3 and len(cell.source.split()) > 30
                written += 1
            elif mark and mark["grade"]:
                assert cell.source == f'check("{task}", {CHECKS[task].name})'
                points[task] = mark["points"]
                assert "raises-exception" in cell.metadata["tags"]
            if cell.cell_type == "code":
                assert cell.outputs == [] and cell.execution_count is None
        assert len(set(ids)) == len(ids) and all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in ids)
        assert tasks == course.tasks_of(course.read_notebook(path), path) == list(points)
        assert points == {task: CHECKS[task].points for task in tasks} and written >= 1


def run_cells(path, monkeypatch, folder):
    """Run a notebook's code cells in this process, in an empty folder, but not those that take long.

    Returns its names and the messages of the checks that failed.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    space, failed = {}, []
    for cell in code_cells(path):
        if SHOW not in (cell.metadata.get("tags") or ()):
            try:
                exec(compile(cell.source, path.stem, "exec"), space)
            except Wrong as error:
                failed.append(str(error))
    plt.close("all")
    return space, failed


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_student_notebook_runs_without_solutions_and_fails_loudly(path, students, monkeypatch, tmp_path):
    """Every check fails, everything else works: the notebook goes on with the package's functions."""
    text = (students / path.name).read_text()
    tasks = course.tasks_of(course.read_notebook(path), path)
    for cell in course.read_notebook(students / path.name).cells:
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("solution") and cell.cell_type == "code":
            assert f'raise NotImplementedError("{course.task_of(cell)}")' in cell.source
        elif mark.get("solution"):
            assert cell.source == course.WRITE_HERE
    space, failed = run_cells(students / path.name, monkeypatch, tmp_path)
    assert [f"{task} {CHECKS[task].name}: not written yet" for task in tasks] == failed
    assert all(space[CHECKS[task].name] is CHECKS[task].reference for task in tasks)
    assert "BEGIN SOLUTION" not in text
    solutions = [line for cell in code_cells(path) for line in solution_in(cell.source)]
    written = [cell.source for cell in course.read_notebook(path).cells
               if cell.cell_type == "markdown" and "nbgrader" in cell.metadata]
    hidden = [line for line in solutions if len(line) > 25] + [t.split("\n")[0] for t in written]
    allowed = {line.strip() for cell in code_cells(path) if course.BEGIN not in cell.source
               for line in cell.source.split("\n")}                        # the broken functions share lines
    assert [line for line in hidden if json.dumps(line)[1:-1] in text and line not in allowed] == []


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_a_solved_notebook_goes_on_with_its_own_functions(path, monkeypatch, tmp_path):
    space, failed = run_cells(path, monkeypatch, tmp_path)
    tasks = course.tasks_of(course.read_notebook(path), path)
    assert failed == [] and len(tasks) >= 4 and space.get("T975", T975) == T975
    assert all(space[CHECKS[task].name].__code__.co_filename == path.stem for task in tasks)


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=IDS)
@pytest.mark.parametrize("kind", ["built", "solved"])
def test_notebooks_run_whole_in_a_kernel_outside_the_repository(kind, path, students, monkeypatch, tmp_path):
    """With minltx importable, as after pip install; also the cells that train and sample."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = course.read_notebook(path if kind == "solved" else students / path.name)
    nbclient.NotebookClient(page, timeout=1200, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in page.cells for output in cell.get("outputs", [])]
    errors = [output.ename for output in outputs if output.output_type == "error"]
    tasks = course.tasks_of(page, path)
    assert errors == ([] if kind == "solved" else ["Wrong"] * len(tasks))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any("Warning" in output.get("text", "") for output in outputs)


def test_points_are_listed(students):
    with open(students / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert {r["task"]: int(r["points"]) for r in rows if r["function"]} == {
        t: c.points for t, c in CHECKS.items()}
    assert {r["task"]: r["function"] for r in rows if r["function"]} == {t: c.name for t, c in CHECKS.items()}
    read = {r["task"]: int(r["points"]) for r in rows if not r["function"]}
    assert read == {"A1.8": 3, "A2.8": 3, "A3.8": 3, "A4.7": 3, "A5.5": 3, "A5.6": 15}


def test_the_command_builds_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    course.main(["build", "--out", "mine"])
    assert {p.name for p in (tmp_path / "mine").glob("*.ipynb")} == {p.name for p in SOURCES}
    assert "96 points" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["grade", "nowhere"], "there is no file or folder nowhere"),
    (["grade", "."], "there is no notebook in ."),
    (["build", "--source", "."], "there are no assignments in .: name their folder with --source"),
    (["build", "--sourc", "."], "unrecognized arguments"), ([], "are required: command"),
    (["mark"], "invalid choice: 'mark'"), (["grade"], "are required: path"), (["grade", ""], "it is empty"),
    (["build", "--out", ""], "it is empty"), (["build", "--source", ""], "it is empty"),
    (["grade", ".", "--seconds", ""], "it is empty"),
    *((["grade", ".", option, value], f"argument {option}: ") for option in ("--seconds", "--cell-seconds")
      for value in ("x", "nan", "inf", "0", "1e9", "1_0"))])
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        course.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, content, message", [
    ("A1.ipynb", "{", "is not a Jupyter notebook"), ("A1.py", RIGHT, "is not a Jupyter notebook"),
    ("A1.ipynb", "", "is not a Jupyter notebook"),
    ("mine.ipynb", nbformat.writes(nbformat.v4.new_notebook()), "is not named after an assignment")])
def test_a_single_file_that_cannot_be_graded_is_one_line(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stop:
        course.main(["grade", str(tmp_path / name), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and not (tmp_path / "out").exists()
    assert f"{name} {message}" in said.err and said.err.count("\n") == 1


# --- Grading ----------------------------------------------------------------------------------------------

WRONG = "def predict_x0(z, v, t):\n    return z + t.reshape(-1, *[1] * (z.ndim - 1)) * v"
LATER = ("def interpolate(x0, noise, t):\n    t = t.reshape(-1, *[1] * (x0.ndim - 1))\n"
         "    return (1 - t) * x0 + t * noise")


def test_half_of_the_work_earns_half_of_the_points_and_gets_a_hint(tmp_path):
    package = "from minltx.flow import velocity\n%matplotlib inline\n!ls"     # does not replace the answer
    result = course.grade(submission(tmp_path / "x.ipynb", RIGHT, WRONG, package))
    assert result["points"] == 1 and result["of"] == 12 and result["tasks"]["A1.2"]["points"] == 1
    assert "walk back" in result["tasks"]["A1.3"]["hint"]
    assert "not found" in result["tasks"]["A1.6"]["hint"]
    assert result["notes"] == [] and result["assignment"] == "A1"
    assert result["flags"] == ["cell 2 imports velocity from minltx.flow"]


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_solutions_get_all_points_and_stubs_none(path, students):
    whole = course.grade(path, (100.0, 600.0))
    assert whole["points"] == whole["of"] > 0 and whole["notes"] == whole["flags"] == []
    empty = course.grade(students / path.name, (100.0, 600.0))
    assert empty["points"] == 0 and empty["of"] == whole["of"] and empty["flags"] == []
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
    said = capsys.readouterr().out
    assert "1/12" in said and re.match(r"inputs from --seed \d+\n", said)
    with open(tmp_path / "out" / "grades.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["file"]).name, r["assignment"], r["points"], r["of"]) for r in rows] == [
        ("A1.ipynb", "A1", "1", "12"), ("bob.ipynb", "A5", "0", "7")]
    assert rows[0]["A1.2"] == "1" and rows[0]["A5.1"] == "" and rows[1]["A5.1"] == "0"
    stored = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert stored[0]["tasks"]["A1.2"]["points"] == 1


# --- Cheating ---------------------------------------------------------------------------------------------

SAME = "def velocity(x0, noise):\n    return x0"
CHEATS = {
    "wrapper": ["import minltx.flow as f\ndef velocity(x0, noise):\n    return f.velocity(x0, noise)"],
    "reference": ["from minltx.course.checks import CHECKS\nvelocity = CHECKS['A1.2'].reference",
                  "def predict_x0(z, v, t):\n    return CHECKS['A1.3'].reference(z, v, t)"],
    "patched judge": [SAME, "from minltx.course import checks, worker\n"
                            "checks.judge = checks.verdict = checks.problem_of = lambda *a, **k: None\n"
                            "checks.close = checks.alike = lambda *a, **k: True"],
    "patched allclose": [f"import torch\ntorch.allclose = torch.equal = lambda *a, **k: True\n{SAME}"],
    "stack frame": ["import sys\ndef velocity(x0, noise):\n    frame = sys._getframe(1)\n    while frame:\n"
                    "        for name in ('right', 'expected', 'value'):\n"
                    "            if name in frame.f_locals:\n                return frame.f_locals[name]\n"
                    "        frame = frame.f_back\n    return x0"],
    "atexit": [SAME, "import atexit, pathlib\n@atexit.register\ndef forge():\n"
                     "    for file in pathlib.Path('/').glob('**/grades.json'):\n"
                     "        file.write_text('[]')"],
    "copied answer": ["import inspect, minltx.flow\nexec(inspect.getsource(minltx.flow.velocity))"],
    "tables": ["seen = []\ndef velocity(x0, noise):\n    seen.append((x0, noise))\n    return x0",
               "from minltx import flow\ntable = [(a, flow.velocity(a, b)) for a, b in seen]\n"
               "def velocity(x0, noise):\n"
               "    return next((v for a, v in table if a.shape == x0.shape and (a == x0).all()), x0)"]}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "wrapper" else slow)
                                  for name in CHEATS])
def test_no_cheat_earns_a_point_unflagged(name, tmp_path):
    result = course.grade(submission(tmp_path / "x.ipynb", *CHEATS[name]), seed=5)
    assert result["flags"] or name == "tables"
    assert result["points"] == 0 or name == "copied answer"
    assert result["tasks"]["A1.2"]["hint"] != "not found: no cell defines it"


def test_honest_cells_are_not_flagged():
    names = {c.name for c in CHECKS.values()}
    for path in SOURCES:
        assert [s for cell in code_cells(path) for s in suspicions(cell.source, names)
                if not s.startswith("imports")] == []
    assert suspicions("import torch\nmodel = torch.nn.Linear(1, 1).eval()\nplt.rcParams = {}", names) == set()
    assert suspicions("%matplotlib inline\nx = 3", names) == set()
    assert suspicions("def f(: reference = 1", names) == {"mentions reference"}


# --- nbgrader ---------------------------------------------------------------------------------------------

def nbgrader(folder, *words, code=0):
    """Run a command of nbgrader in a course's folder -> what it said."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls alembic
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": paths}
    done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=folder, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_nbgrader_releases_validates_grades_and_exports_all_assignments(tmp_path):
    """Optional: pip install nbgrader. Ada submits the solutions, Bob the empty notebooks."""
    pytest.importorskip("nbgrader")
    (tmp_path / "nbgrader_config.py").write_text(
        "c = get_config()\nc.CourseDirectory.course_id = 'minltx'\nc.ExecutePreprocessor.timeout = 1200\n")
    for path in SOURCES:
        (tmp_path / "source" / path.stem).mkdir(parents=True)
        page = course.read_notebook(path)
        for cell in page.cells:
            if SHOW in (cell.metadata.get("tags") or ()):
                cell.source = "pass"                    # another test runs what trains and samples
        (tmp_path / "source" / path.stem / path.name).write_text(nbformat.writes(page))
    for path in SOURCES:
        name = path.stem
        nbgrader(tmp_path, "generate_assignment", name)
        released = tmp_path / "release" / name / path.name
        assert "BEGIN SOLUTION" not in released.read_text() and "NotImplementedError" in released.read_text()
        assert "Success! Your notebook passes all the tests." in nbgrader(
            tmp_path, "validate", str(tmp_path / "source" / name / path.name))
        for student, page in (("ada", tmp_path / "source" / name / path.name), ("bob", released)):
            (tmp_path / "submitted" / student / name).mkdir(parents=True)
            shutil.copy(page, tmp_path / "submitted" / student / name)
        nbgrader(tmp_path, "autograde", name)
    nbgrader(tmp_path, "export", "--to", "grades.csv")
    with open(tmp_path / "grades.csv") as file:
        rows = {(r["assignment"], r["student_id"]): r for r in csv.DictReader(file)}
    assert len(rows) == 2 * len(SOURCES)
    for path in SOURCES:
        by_program = sum(CHECKS[t].points for t in course.tasks_of(course.read_notebook(path), path))
        assert float(rows[path.stem, "ada"]["score"]) == by_program
        assert float(rows[path.stem, "bob"]["score"]) == 0
        assert float(rows[path.stem, "ada"]["max_score"]) > by_program            # a reader gives the rest
