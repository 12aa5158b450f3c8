"""Build student notebooks from the assignments with solutions, and grade submissions.

    python -m minltx.course build --out student
    python -m minltx.course grade submissions --out grades      # a folder, or one notebook

A submission runs in a Jupyter kernel of its own, cell by cell, each with a time limit. A function is called
there as soon as it is defined, so a later crash costs nothing that was earned; its results are judged here.
All submissions are read before the first one runs, and after each one its processes are ended and the grades
so far are written. Submissions are untrusted code: grade them in a container.
"""

import compileall
import copy
import csv
import importlib
import json
import secrets
import sys
import warnings
from pathlib import Path

try:
    import nbformat

    from minltx.course.submission import flags_of, run_submission
except ImportError as error:
    raise SystemExit(f"python -m minltx.course needs Jupyter ({error}): pip install jupyter") from None

from minltx.command import SEED, Parser, new_folder, number, one_line, printable
from minltx.course.alone import run_alone, states
from minltx.course.checks import CHECKS, OWN_FUNCTION, PACKAGE
from minltx.files import put_in_place

INSTALLED = Path(__file__).with_name("assignments")                    # after pip install
SOURCES = INSTALLED if INSTALLED.is_dir() else \
    Path(__file__).parents[2] / "notebooks" / "assignments"   # in a clone
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WRITE_HERE = "*Write your answer here.*"
ATTEMPTS = 5                    # how often a submission is run, each time without one more cell
LARGEST = 50 * 2**20            # bytes of a submission


def read_notebook(path, content=None):
    """path, or the file's content in bytes -> a notebook of format 4. Raises ValueError if it is not one."""
    try:
        content = Path(path).read_bytes() if content is None else content
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                            # cells without an id
            notebook = nbformat.reads(content.decode("utf-8"), as_version=4)
        if all(isinstance(cell.source, str) and cell.cell_type for cell in notebook.cells):
            return notebook
    except Exception:           # the reader fails in many ways on other files
        pass
    raise ValueError(f"{path} is not a Jupyter notebook")


def tasks_of(notebook, path):
    """The tasks of the assignment that a notebook is: from its metadata, or else from its file's name."""
    own = notebook.metadata.get("minltx")
    name = isinstance(own, dict) and own.get("assignment") or Path(path).name[:2]
    return [task for task in CHECKS if task.startswith(f"{name}.")]


# --- Building ---------------------------------------------------------------------------------------------

def task_of(cell):
    """The task of a cell that nbgrader knows: "A1.1" of the id "A1-1" or "A1-1-check"; "" of others."""
    return ".".join(cell.metadata.get("nbgrader", {}).get("grade_id", "").split("-")[:2])


def stub(source, task):
    """A cell's source with the solution replaced by an error that names the task; other cells stay."""
    kept, inside = [], False
    for line in source.split("\n"):
        if line.strip() == BEGIN:
            indent = line[: len(line) - len(line.lstrip())]
            kept += [f"{indent}# your code here", f'{indent}raise NotImplementedError("{task}")']
        if line.strip() in (BEGIN, END):
            inside = line.strip() == BEGIN
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def student_version(notebook):
    """The same notebook without solutions, outputs and execution counts."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        mark = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code":
            cell.source = stub(cell.source, task_of(cell))
            cell.outputs, cell.execution_count = [], None
        elif mark.get("solution"):
            cell.source = WRITE_HERE
    return notebook


def write_table(path, rows):
    """Rows of values -> a CSV file."""
    def write(part):
        with open(part, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    put_in_place(path, write)


def build(sources, out):
    """Student versions of all assignments, and points.csv -> rows (assignment, task, function, points); the
    function is empty where a reader gives the points.

    Raises ValueError if there are no assignments in the folder, if one is damaged or has a task without
    points, and if they would be replaced by their student versions. Then nothing is written.
    """
    paths, rows = sorted(Path(sources).glob("A*.ipynb")), []
    if not paths:
        raise ValueError(f"there are no assignments in {sources}: name their folder with --source")
    if Path(out).resolve() == Path(sources).resolve():
        raise ValueError(f"the student versions would replace the assignments in {sources}: "
                         "name another folder with --out")
    notebooks = {path: read_notebook(path) for path in paths}
    for path, notebook in notebooks.items():
        for cell in notebook.cells:
            mark, task = cell.metadata.get("nbgrader", {}), task_of(cell)
            if mark.get("grade") and not isinstance(mark.get("points"), (int, float)):
                raise ValueError(f"{path}: the task {task} has no points: add them to its cell's metadata")
            if mark.get("grade"):
                rows.append((path.stem, task, CHECKS[task].name if task in CHECKS else "", mark["points"]))
    for path, notebook in notebooks.items():
        text = nbformat.writes(student_version(notebook)) + "\n"
        put_in_place(Path(out) / path.name, lambda part: part.write_text(text, encoding="utf-8"))
    write_table(Path(out) / "points.csv", [("assignment", "task", "function", "points"), *rows])
    return rows


# --- One submission ---------------------------------------------------------------------------------------

def read_submission(path, content=None):
    """path, or its content as of `read_bytes` -> a notebook, its tasks. Raises ValueError if it has none."""
    if isinstance(content, str):
        raise ValueError(content)
    notebook = read_notebook(path, content)
    tasks = tasks_of(notebook, path)
    if not tasks:
        raise ValueError(f"{path} is not named after an assignment: name it A1..., A2..., ...")
    return notebook, tasks


def empty_result(path, note):
    """The result of a submission that cannot be graded, with the reason."""
    return {"file": str(path), "assignment": "", "points": 0, "of": 0, "tasks": {}, "notes": [note],
            "flags": []}


def grade(path, limits=(20.0, 120.0), content=None, seed=0):
    """One submission -> {"file", "assignment", "points", "of", "tasks", "notes", "flags"}.

    limits as in `run_submission`; content: the file's bytes, if it was read before; seed: the inputs'; tasks:
    {task: {"points", "of", "hint"}}; notes: errors, and cells that were interrupted or skipped; flags: what a
    reader should look at before the points count.
    """
    try:
        notebook, tasks = read_submission(path, content)
    except ValueError as error:
        return empty_result(path, str(error))
    hints, notes, skip, marks = {}, [], [], {}
    while len(skip) < ATTEMPTS:
        found, new, stopped = run_submission(notebook, tasks, limits, skip, seed + len(skip))
        hints.update(found)
        notes += [note for note in new if note not in notes]
        if stopped is None:
            break
        skip.append(stopped)
    flags = flags_of(notebook, tasks, known_cells(tasks[0][:2]))
    for task in tasks:
        of, hint = CHECKS[task].points, hints.get(task, "not found: no cell defines it")
        marks[task] = {"points": 0 if hint else of, "of": of, "hint": hint or ""}
        flags += [f"{task} {hint}"] if hint == OWN_FUNCTION else []
    return {"file": str(path), "assignment": tasks[0][:2], "points": sum(x["points"] for x in marks.values()),
            "of": sum(x["of"] for x in marks.values()), "tasks": marks, "notes": notes, "flags": flags}


def known_cells(assignment):
    """The sources of all cells of an assignment, with solutions and without."""
    pages = [read_notebook(path) for path in Path(SOURCES).glob(f"{assignment}*.ipynb")]
    return {cell.source for page in pages for cell in (*page.cells, *student_version(page).cells)}


# --- Many submissions -------------------------------------------------------------------------------------

def submissions(path):
    """A notebook, or all notebooks in a folder -> {file: its bytes, or the reason why it is not read}.

    Raises ValueError if there is no notebook, or if a single file cannot be graded.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else sorted(
        p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not files:
        raise ValueError(f"there is no notebook in {path}")
    contents = {file: read_bytes(file) for file in files}
    if path.is_file():
        read_submission(path, contents[path])
    return contents


def read_bytes(file):
    """The content of a file, or the reason why it cannot be a submission."""
    try:
        if not file.is_file():                                         # reading a pipe may never end
            return f"{file} is not a file"
        if file.stat().st_size > LARGEST:
            return f"{file} is larger than {LARGEST // 2**20} MiB"
        return file.read_bytes()
    except OSError as error:
        return f"cannot read {file}: {error.strerror}"


def grade_alone(path, limits, content, seed):
    """`grade` in a process of its own; a submission that breaks the grader gets a note and no points."""
    longest = ATTEMPTS * (120 + limits[1] + 4 * limits[0])
    try:
        return run_alone(grade, (path, limits, content, seed), longest)
    except RuntimeError as error:
        return empty_result(path, f"{path} cannot be graded: {error}")


def grade_all(path, out, limits, seed=None):
    """A notebook, or all notebooks in a folder -> results; writes grades.json and grades.csv to `out`, anew
    after each submission. seed: the inputs'; None draws one, which is printed.

    Raises ValueError if there is no notebook, and if a submission changed the package, the assignments or the
    grades while it ran: later ones could profit. Raises OSError if the grades cannot be written.
    """
    results, contents = [], submissions(path)      # read before the first one runs: none changes another
    seed = secrets.randbits(32) if seed is None else seed
    print(f"inputs from --seed {seed}")
    compileall.compile_dir(PACKAGE, quiet=2)       # so that no import writes a file there
    watched = PACKAGE, Path(SOURCES), Path(out) / "grades.json", Path(out) / "grades.csv"
    for file, content in contents.items():
        before = states(watched).items()
        result = grade_alone(file, limits, content, seed)
        changed = sorted(str(path) for path, _ in before ^ states(watched).items())
        results += [] if changed else [result]
        write_grades(results, Path(out))
        if changed:
            raise ValueError(f"{changed[0]} changed while {file} was graded: restore it, then grade the rest")
        print_grade(result)
    return results


def write_grades(results, out):
    text = json.dumps(results, indent=1) + "\n"
    put_in_place(out / "grades.json", lambda part: part.write_text(text))
    tasks = [task for task in CHECKS if any(task in r["tasks"] for r in results)]
    rows = [[printable(r["file"]), r["assignment"], r["points"], r["of"]] +
            [r["tasks"].get(task, {}).get("points", "") for task in tasks] +
            [printable("; ".join(r["flags"]))] for r in results]
    write_table(out / "grades.csv", [["file", "assignment", "points", "of", *tasks, "flags"], *rows])


def print_grade(result):
    lines = [f"{result['points']:3}/{result['of']:<3} {printable(result['file'])}"]
    lines += [f"        {task} {CHECKS[task].name:24} {x['points']}/{x['of']}  {printable(x['hint'])}"
              for task, x in result["tasks"].items()]
    lines += [f"        note: {printable(note)}" for note in result["notes"]]
    lines += [f"        look: {printable(flag)}" for flag in result["flags"]]
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def options():
    parser = Parser(prog="python -m minltx.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="write student versions and a table of points")
    one.add_argument("--source", default=str(SOURCES),
                     help="folder of the assignments (default: minltx's own)")
    one.add_argument("--out", type=new_folder, default="student", help="default: %(default)s")
    two = commands.add_parser("grade", help="grade a submission, or a folder of submissions")
    two.add_argument("path", help="a notebook or a folder")
    two.add_argument("--out", type=new_folder, default="grades", help="default: %(default)s")
    two.add_argument("--cell-seconds", type=number(0.1, 86400), default=20.0,
                     help="for a cell (default: %(default)s)")
    two.add_argument("--seconds", type=number(0.1, 86400), default=120.0,
                     help="for a notebook; if it takes longer, it is run again without the cell that was "
                          "running (default: %(default)s)")
    two.add_argument("--seed", type=SEED, help="of the functions' inputs (default: drawn, and printed)")
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser, "stopped; the grades so far are written"):
        if args.command == "build":
            rows = build(args.source, args.out)
            for assignment, task, name, points in rows:
                print(f"{assignment:24} {task}  {name:24} {points}")
            print(f"{sum(points for *_, points in rows)} points; the notebooks are in {args.out}")
        else:
            grade_all(args.path, args.out, (args.cell_seconds, args.seconds), args.seed)


if __name__ == "__main__":          # by its own name, by which the processes of submissions find `grade`
    importlib.import_module("minltx.course.__main__").main()
