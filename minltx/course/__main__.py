"""Build student notebooks from the assignments with solutions, and grade submissions.

    python -m minltx.course build --out student
    python -m minltx.course grade submissions --out grades      # a folder, or one notebook

A submission runs in a Jupyter kernel of its own, cell by cell, each with a time limit. A function is checked
as soon as it is defined, so a later crash costs nothing that was earned. All submissions are read before the
first one runs, and after each one its processes are ended and the grades so far are written. Submissions are
untrusted code: grade them in a container.
"""

import copy
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

try:
    import nbformat
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError
except ImportError as error:
    raise SystemExit(f"python -m minltx.course needs Jupyter ({error}): pip install jupyter") from None

from minltx.command import Parser, new_folder, number, one_line, printable
from minltx.course.alone import run_alone
from minltx.course.checks import CHECKS
from minltx.files import put_in_place

PACKAGE = Path(__file__).parents[1]
INSTALLED = Path(__file__).with_name("assignments")                    # after pip install
SOURCES = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "notebooks" / "assignments"   # in a clone
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
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
        if cell.cell_type == "code":
            cell.source = stub(cell.source, cell.metadata.get("nbgrader", {}).get("grade_id", ""))
            cell.outputs, cell.execution_count = [], None
    return notebook


def write_table(path, rows):
    """Rows of values -> a CSV file."""
    def write(part):
        with open(part, "w", newline="") as file:
            csv.writer(file).writerows(rows)

    put_in_place(path, write)


def build(sources, out):
    """Student versions of all assignments, and points.csv -> rows (assignment, task, function, points).

    Raises ValueError if there are no assignments in the folder.
    """
    paths, rows = sorted(Path(sources).glob("A*.ipynb")), []
    if not paths:
        raise ValueError(f"there are no assignments in {sources}: name their folder with --source")
    for path in paths:
        text = nbformat.writes(student_version(read_notebook(path))) + "\n"
        put_in_place(Path(out) / path.name, lambda part: part.write_text(text, encoding="utf-8"))
        rows += [(path.stem, task, CHECKS[task].name, CHECKS[task].points)
                 for task in tasks_of(read_notebook(path), path)]
    write_table(Path(out) / "points.csv", [("assignment", "task", "function", "points"), *rows])
    return rows


# --- One submission ---------------------------------------------------------------------------------------

class Kernel(AsyncKernelManager):
    """A kernel that is interrupted once. Raises DeadKernelError if its cell goes on after that."""

    interrupted = False

    async def interrupt_kernel(self):
        if self.interrupted:
            raise DeadKernelError("the cell cannot be interrupted")
        self.interrupted = True
        await super().interrupt_kernel()


def run_cell(client, source, seconds):
    """Run a cell's source, interrupt it after so many seconds -> its outputs.

    Raises DeadKernelError if the cell ends its kernel or cannot be interrupted.
    """
    client.km.interrupted, client.timeout_func = False, lambda cell: max(seconds, 0.1)
    return client.execute_cell(nbformat.v4.new_code_cell(source), 0).outputs


def get_hints(client, tasks, seconds):
    """Judge in the kernel what the cells have defined so far -> {task: hint, or None if it is correct}."""
    call = f"__import__('minltx.course.checks', fromlist=['checks']).send_hints(globals(), {tasks})"
    for output in run_cell(client, call, seconds):
        if "application/json" in output.get("data", {}):
            return output["data"]["application/json"]
    raise DeadKernelError("the kernel does not answer")


def run_submission(notebook, tasks, limits, skip):
    """Run a submission's code cells, but those in `skip`, in a new kernel.

    limits: seconds for a cell and for all. Returns the hints by task, notes on errors, and the number of the
    cell that ended the kernel or could not be interrupted, or None.
    """
    hints, notes = {}, []
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell()])   # the client stores cells here
        client = NotebookClient(page, kernel_name="python3", kernel_manager_class=Kernel, allow_errors=True,
                                interrupt_on_timeout=True, shutdown_kernel="immediate",
                                resources={"metadata": {"path": folder}})
        client.log.disabled = True                                     # timeouts are reported in the notes
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": paths}
        with client.setup_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            get_hints(client, tasks, 120)                              # imports torch
            end = time.monotonic() + limits[1]
            for number, cell in enumerate(notebook.cells):
                if cell.cell_type != "code" or number in skip:
                    continue
                seconds = min(limits[0], end - time.monotonic())
                try:
                    outputs = run_cell(client, cell.source, seconds)
                    late = client.km.interrupted
                    hints.update(get_hints(client, tasks, limits[0]))
                except DeadKernelError:
                    what = "took too long" if client.km.interrupted else "ended its kernel"
                    return hints, [*notes, f"cell {number} {what} and was skipped"], number
                if late and time.monotonic() > end:
                    return hints, [*notes, f"cell {number} took too long and was skipped"], number
                if late:
                    notes.append(f"cell {number} took longer than {seconds:.3g} s and was interrupted")
                notes += [f"cell {number}: {x.ename}: {x.evalue[:200]}" for x in outputs
                          if x.output_type == "error" and x.ename not in ("Wrong", "KeyboardInterrupt")]
    return hints, notes, None


def empty_result(path, note):
    """The result of a submission that cannot be graded, with the reason."""
    return {"file": str(path), "assignment": "", "points": 0, "of": 0, "tasks": {}, "notes": [note]}


def grade(path, limits=(20.0, 120.0), content=None):
    """One submission -> {"file", "assignment", "points", "of", "tasks", "notes"}.

    limits as in `run_submission`; content: the file's bytes, if it was read before; tasks: {task: {"points",
    "of", "hint"}}; notes: errors, and cells that were interrupted or skipped.
    """
    try:
        notebook = read_notebook(path, content)
    except ValueError as error:
        return empty_result(path, str(error))
    tasks = tasks_of(notebook, path)
    if not tasks:
        return empty_result(path, f"{path} is not named after an assignment: name it A1..., A2..., ...")
    hints, notes, skip, marks = {}, [], [], {}
    while len(skip) < ATTEMPTS:
        found, new, stopped = run_submission(notebook, tasks, limits, skip)
        hints.update(found)
        notes += [note for note in new if note not in notes]
        if stopped is None:
            break
        skip.append(stopped)
    for task in tasks:
        of, hint = CHECKS[task].points, hints.get(task, "not found: no cell defines it")
        marks[task] = {"points": 0 if hint else of, "of": of, "hint": hint or ""}
    return {"file": str(path), "assignment": tasks[0][:2], "points": sum(x["points"] for x in marks.values()),
            "of": sum(x["of"] for x in marks.values()), "tasks": marks, "notes": notes}


# --- Many submissions -------------------------------------------------------------------------------------

def submissions(path):
    """A notebook, or all notebooks in a folder -> {file: its bytes, or the reason why it is not read}.

    Raises ValueError if there is no notebook.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else sorted(
        p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not files:
        raise ValueError(f"there is no notebook in {path}")
    return {file: read_bytes(file) for file in files}


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


def grade_alone(path, limits, content):
    """`grade` in a process of its own; a submission that breaks the grader gets a note and no points."""
    if isinstance(content, str):
        return empty_result(path, content)
    longest = ATTEMPTS * (120 + limits[1] + 4 * limits[0])
    try:
        return run_alone(grade, (path, limits, content), longest)
    except RuntimeError as error:
        return empty_result(path, f"{path} cannot be graded: {error}")


def grade_all(path, out, limits):
    """A notebook, or all notebooks in a folder -> results; writes grades.json and grades.csv to `out`, anew
    after each submission.

    Raises ValueError if there is no notebook, and OSError if the grades cannot be written.
    """
    results, contents = [], submissions(path)      # read before the first one runs: none changes another
    for file, content in contents.items():
        results.append(grade_alone(file, limits, content))
        print_grade(results[-1])
        write_grades(results, Path(out))
    return results


def write_grades(results, out):
    text = json.dumps(results, indent=1) + "\n"
    put_in_place(out / "grades.json", lambda part: part.write_text(text))
    tasks = [task for task in CHECKS if any(task in r["tasks"] for r in results)]
    rows = [[printable(r["file"]), r["assignment"], r["points"], r["of"]] +
            [r["tasks"].get(task, {}).get("points", "") for task in tasks] for r in results]
    write_table(out / "grades.csv", [["file", "assignment", "points", "of", *tasks], *rows])



def print_grade(result):
    lines = [f"{result['points']:3}/{result['of']:<3} {printable(result['file'])}"]
    lines += [f"        {task} {CHECKS[task].name:24} {x['points']}/{x['of']}  {printable(x['hint'])}"
              for task, x in result["tasks"].items()]
    lines += [f"        note: {printable(note)}" for note in result["notes"]]
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
            grade_all(args.path, args.out, (args.cell_seconds, args.seconds))


if __name__ == "__main__":
    main()
