"""Build student notebooks from the assignments with solutions; grade what is handed in.

    python -m minltx.workshop.assignments build --out student
    python -m minltx.workshop.assignments grade handed_in --out grades      # a folder, or one notebook

A hand-in runs in a process of its own, cell by cell, each with a time limit; what it defines is checked as
soon as it is defined, so a later crash costs nothing that was earned. It is a program: run those of strangers
in a container.
"""

import argparse
import ast
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from minltx.workshop.checks import CHECKS, judge
from minltx.workshop.pictures import put_in_place

SOURCES = Path("notebooks/assignments")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


# --- Building ---------------------------------------------------------------------------------------------

def read_notebook(path):
    """A notebook's dictionary. ValueError for what is none."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        assert isinstance(notebook["cells"], list)
        for cell in notebook["cells"]:
            assert isinstance("".join(cell["source"]), str) and cell["cell_type"]
        return notebook
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise ValueError(f"{path} is not a Jupyter notebook") from None


def stub(source, task):
    """A solution cell's source with the solution taken out; what is in its place is loud, and parses."""
    lines, kept, inside = source.split("\n"), [], False
    for line in lines:
        if line.strip() == BEGIN:
            indent = line[: len(line) - len(line.lstrip())]
            kept += [f"{indent}# your code here", f"{indent}raise NotImplementedError(\"{task}\")"]
            inside = True
        elif line.strip() == END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def student_version(notebook):
    """The same notebook without solutions, outputs and counts."""
    cells = []
    for cell in notebook["cells"]:
        cell = {**cell}
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            task = cell["metadata"].get("nbgrader", {}).get("grade_id", "")
            cell.update(outputs=[], execution_count=None)
            if BEGIN in source:
                source = stub(source, task)
        cell["source"] = source.splitlines(True)
        cells.append(cell)
    return {**notebook, "cells": cells}


def build(sources, out):
    """Student versions of all assignments, and points.csv -> rows (assignment, task, function, points)."""
    paths = sorted(Path(sources).glob("A*.ipynb"))
    if not paths:
        raise ValueError(f"there are no assignments in {sources}: run this in the repository, "
                         "or use --source")
    rows = []
    for path in paths:
        student = student_version(read_notebook(path))
        put_in_place(Path(out) / path.name, lambda p: p.write_text(json.dumps(student, indent=1) + "\n"))
        rows += [(path.stem, task, CHECKS[task].name, CHECKS[task].points)
                 for task in tasks_of(student, path)]
    with open(Path(out) / "points.csv", "w", newline="") as file:
        csv.writer(file).writerows([("assignment", "task", "function", "points"), *rows])
    return rows


# --- One hand-in, in its own process ----------------------------------------------------------------------

@contextmanager
def time_limit(seconds):
    """TimeoutError in the main thread after some seconds, where the system has alarms."""
    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def defined_in(source):
    """The names of functions that a cell defines itself: def, or name = lambda."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def run_cells(path, log, tasks, limit, skip):
    """Run a notebook's code cells and check what they define, line by line into a log."""
    def write(**line):
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")

    space = {"__name__": "__main__"}
    by_name = {CHECKS[task].name: task for task in tasks}
    for number, cell in enumerate(read_notebook(path)["cells"]):
        if cell["cell_type"] != "code" or number in skip:
            continue
        source = without_magics("".join(cell["source"]))
        write(begin=number)
        names = []
        try:
            names = defined_in(source)
            with time_limit(limit):
                exec(compile(source, f"cell {number}", "exec"), space)
        except BaseException as error:            # SystemExit and KeyboardInterrupt of a hand-in, too
            write(note=f"cell {number}: {type(error).__name__}: {str(error)[:200]}")
        for name in names:
            if name in by_name and name in space:
                write(task=by_name[name], hint=judge_within(by_name[name], space[name], limit))
        write(end=number)


def without_magics(source):
    """A cell's source with `pass` for the lines that only Jupyter understands."""
    return "\n".join(line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip().startswith(("%", "!"))
                     else line for line in source.split("\n"))


def judge_within(task, answer, limit):
    """`judge` with a time limit; the package's own function is no answer."""
    if (getattr(answer, "__module__", None) or "").startswith("minltx"):
        return "that is the package's own function: write yours"
    try:
        with time_limit(limit):
            return judge(task, answer)
    except BaseException as error:
        return f"it raises {type(error).__name__}: {str(error)[:200]}"


def tasks_of(notebook, path):
    """The tasks of the assignment that a notebook is: from its metadata, or else from its file's name."""
    name = notebook.get("metadata", {}).get("minltx", {}).get("assignment") or Path(path).name[:2]
    return [task for task in CHECKS if task.startswith(f"{name}.")]


def grade(path, limit=20.0, total=120.0):
    """One hand-in -> {"file", "assignment", "points", "of", "tasks": {task: {points, of, hint}}, "notes"}."""
    result = {"file": str(path), "assignment": "", "points": 0, "of": 0, "tasks": {}, "notes": []}
    try:
        notebook = read_notebook(path)
    except ValueError as error:
        return {**result, "notes": [str(error)]}
    tasks = tasks_of(notebook, path)
    if not tasks:
        return {**result, "notes": [f"{path} does not say which assignment it is: name it A1..., A2..., ..."]}
    hints = {task: "not found: no cell defines it" for task in tasks}
    notes, skip = [], []
    while len(skip) < 4:            # a cell that ends or stops the process is left out the next time
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            command = [sys.executable, "-m", "minltx.workshop.assignments", "worker",
                       str(Path(path).resolve()), str(log), json.dumps([tasks, limit, skip])]
            ending = "ended the process"
            try:
                subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, timeout=total,
                               env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(
                                   [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])})
            except subprocess.TimeoutExpired:
                ending = "took too long"
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        for line in lines:
            if "task" in line:
                hints[line["task"]] = line["hint"]
        notes += [line["note"] for line in lines if "note" in line and line["note"] not in notes]
        begun = [line["begin"] for line in lines if "begin" in line]
        unfinished = set(begun) - {line["end"] for line in lines if "end" in line}
        if not unfinished:
            break
        notes.append(f"cell {begun[-1]} {ending} and was left out")
        skip.append(begun[-1])
    for task in tasks:
        of = CHECKS[task].points
        earned = of if hints[task] is None else 0
        result["tasks"][task] = {"points": earned, "of": of, "hint": hints[task] or ""}
    return {**result, "assignment": tasks[0][:2], "notes": notes,
            "points": sum(x["points"] for x in result["tasks"].values()),
            "of": sum(x["of"] for x in result["tasks"].values())}


# --- Many hand-ins ----------------------------------------------------------------------------------------

def grade_all(path, out, limit, total):
    """A notebook, or all notebooks in a folder -> results; grades.json and grades.csv in out."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else sorted(
        p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not files:
        raise ValueError(f"there is no notebook in {path}")
    results = []
    for file in files:
        results.append(grade(file, limit, total))
        r = results[-1]
        print(f"{r['points']:3}/{r['of']:<3} {file}")
        for task, x in r["tasks"].items():
            print(f"        {task} {CHECKS[task].name:18} {x['points']}/{x['of']}  {x['hint']}")
        for note in r["notes"]:
            print(f"        note: {note}")
    put_in_place(Path(out) / "grades.json", lambda p: p.write_text(json.dumps(results, indent=1) + "\n"))

    def table(target):
        with open(target, "w", newline="") as file:
            columns = [task for task in CHECKS if any(task in r["tasks"] for r in results)]
            writer = csv.writer(file)
            writer.writerow(["file", "assignment", "points", "of", *columns])
            for r in results:
                writer.writerow([r["file"], r["assignment"], r["points"], r["of"],
                                 *(r["tasks"].get(task, {}).get("points", "") for task in columns)])

    put_in_place(Path(out) / "grades.csv", table)
    return results


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="student versions and a points table")
    one.add_argument("--source", default=SOURCES)
    one.add_argument("--out", default="student")
    two = commands.add_parser("grade", help="a notebook, or a folder of them")
    two.add_argument("path")
    two.add_argument("--out", default="grades")
    two.add_argument("--cell-seconds", type=float, default=20.0)
    two.add_argument("--seconds", type=float, default=120.0,
                     help="for a whole notebook; if it takes longer, it is run again without the cell "
                          "where it was (default: %(default)s)")
    three = commands.add_parser("worker")
    for name in ("path", "log", "rest"):
        three.add_argument(name)
    args = parser.parse_args(argv)
    try:
        if args.command == "worker":
            tasks, limit, skip = json.loads(args.rest)
            run_cells(args.path, args.log, tasks, limit, skip)
        elif args.command == "build":
            rows = build(args.source, args.out)
            for assignment, task, name, points in rows:
                print(f"{assignment:24} {task}  {name:18} {points}")
            print(f"{'together':24} {'':23} {sum(points for *_, points in rows)}\nthey are in {args.out}")
        else:
            grade_all(args.path, args.out, args.cell_seconds, args.seconds)
    except (ValueError, OSError) as error:
        parser.exit(2, f"assignments: {error}\n")


if __name__ == "__main__":
    main()
