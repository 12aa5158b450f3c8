"""One submission: its cells run in a Jupyter kernel, its functions are called there and judged here.

After each cell the grader asks the kernel which functions are new, draws inputs for them from its own seed,
sends these, and compares what comes back. The kernel never holds a correct value, so nothing that a
submission patches in it earns a point. A submission that calls the package's function gets none either; cells
that look like an attempt are flagged for a reader.
"""

import ast
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import nbformat
import torch
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from minltx.course.checks import CHECKS, OWN_FUNCTION, calls_of, verdict
from minltx.course.worker import LARGEST, MIME, pack_calls, unpack

PACKAGE = Path(__file__).parents[1]
SHOW = "skip-when-grading"              # tag of cells that earn nothing and take long


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


# --- Calling its functions --------------------------------------------------------------------------------

def ask(client, function, arguments, seconds):
    """Call a function of `minltx.course.worker` in the kernel -> its reply.

    Raises DeadKernelError if there is none, or if it cannot be read.
    """
    call = f"__import__('minltx.course.worker', fromlist=['worker']).{function}(globals(), *{arguments!r})"
    for output in run_cell(client, call, seconds):
        text = output.get("data", {}).get(MIME)
        if isinstance(text, str) and len(text) <= LARGEST:
            try:
                return unpack(text)
            except Exception:                           # torch's reader fails in many ways
                break
    raise DeadKernelError("the kernel does not answer")


def judge_new(client, tasks, seeds, seconds):
    """Judge the functions that are new since the last cell -> {task: the hint, or None if it is correct}.

    seeds: an iterator; no two judgements see the same inputs.
    """
    found = {}
    new = ask(client, "new", ({task: CHECKS[task].name for task in tasks},), seconds)
    for task in tasks:
        state = new.get(task) if isinstance(new, dict) else None
        if state == "new":
            calls = calls_of(task, next(seeds))
            outcomes = ask(client, "call", (task, CHECKS[task].name, pack_calls(calls)), seconds)
            found[task] = judge(task, calls, outcomes)
        elif state == "own":
            found[task] = OWN_FUNCTION
        elif state:
            found[task] = f"{CHECKS[task].name} must be a function"
    return found


def judge(task, calls, outcomes):
    """None if all outcomes, which may be anything, are correct, else the hint."""
    try:
        if any(outcome["own"] for outcome in outcomes):
            return OWN_FUNCTION
        finished = len(outcomes) == len(calls) or outcomes[-1]["error"][0] == "TimeoutError"
        hint = verdict(task, calls, outcomes)
        return hint if finished else hint or "it returned too few results"
    except Exception as error:
        return f"its results cannot be compared ({type(error).__name__})"


def seeds_from(seed):
    """Endless seeds for inputs, drawn from the teacher's."""
    g = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(2**62, (1,), generator=g).item()


# --- Running its cells ------------------------------------------------------------------------------------

def start(folder):
    """A client for a new kernel that works in a folder, and the environment of its process."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell()])       # the client stores cells here
    client = NotebookClient(page, kernel_name="python3", kernel_manager_class=Kernel, allow_errors=True,
                            interrupt_on_timeout=True, shutdown_kernel="immediate",
                            resources={"metadata": {"path": folder}})
    client.log.disabled = True                                         # timeouts are reported in the notes
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return client, {"OMP_NUM_THREADS": "1", **os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": paths,
                    "PYTHONDONTWRITEBYTECODE": "1"}                    # the package's files are watched


def run_submission(notebook, tasks, limits, skip, seed):
    """Run a submission's code cells, but those in `skip`, in a new kernel.

    limits: seconds for a cell and for all. Returns the hints by task, notes on errors, and the number of the
    cell that ended the kernel or could not be interrupted, or None.
    """
    hints, notes, seeds = {}, [], seeds_from(seed)
    with tempfile.TemporaryDirectory() as folder:
        client, environment = start(folder)
        with client.setup_kernel(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            ask(client, "prepare", (), 120)                            # imports torch
            end = time.monotonic() + limits[1]
            for number, cell in enumerate(notebook.cells):
                if cell.cell_type != "code" or number in skip or SHOW in (cell.metadata.get("tags") or ()):
                    continue
                seconds = min(limits[0], end - time.monotonic())
                try:
                    outputs = run_cell(client, cell.source, seconds)
                    late = client.km.interrupted
                    hints.update(judge_new(client, tasks, seeds, limits[0]))
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


# --- What a reader should look at -------------------------------------------------------------------------

# Names and attributes that an answer need not use: other frames, the judge, code as text, other processes.
NAMES = {"exec", "eval", "__import__", "atexit", "runpy", "ctypes", "subprocess", "importlib", "gc", "CHECKS"}
ATTRIBUTES = {"_getframe", "currentframe", "f_locals", "f_globals", "f_back", "tb_frame", "settrace",
              "setprofile", "get_objects", "get_referrers", "reference", "CHECKS", "CORRECT", "judge",
              "verdict", "run_call", "run_calls", "calls_of", "questions", "worker", "submission", "__code__",
              "getsource", "import_module", "reload", "FunctionType", "fork", "system", "popen", "kill",
              "_exit"}
FREE = {"plt", "matplotlib"}            # modules whose attributes a notebook may set


def flags_of(notebook, tasks, known):
    """Notes on code that a reader should look at -> list of strings. known: sources of cells that belong to
    the assignment; they are not looked at."""
    names, found = {CHECKS[task].name for task in tasks}, []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source not in known:
            found += [f"cell {number} {what}" for what in sorted(suspicions(cell.source, names))]
    return found


def suspicions(source, names):
    """What a cell does that an answer need not do: a set of strings."""
    lines = [line for line in source.split("\n") if not line.lstrip().startswith(("%", "!"))]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return {f"mentions {word}" for word in re.findall(r"\w+", source) if word in NAMES | ATTRIBUTES}
    found, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minltx"):
            taken = {alias.name for alias in node.names} & names
            found |= {f"imports {name} from {node.module}" for name in taken}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        found |= {f"mentions {word}" for word in words_of(node)}
    for node in ast.walk(tree):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found |= {f"sets {ast.unparse(t)}" for t in targets
                  if isinstance(t, ast.Attribute) and root_of(t) in (imported | {"torch"}) - FREE}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "vars", "getattr"):
            found.add(f"calls {ast.unparse(node.func)}")
    return found


def words_of(node):
    """Those names and attributes that a node of a syntax tree mentions; of strings, modules of the course."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {"minltx.course"} if "minltx.course" in node.value else set()
    if isinstance(node, ast.Name):
        return {node.id} & NAMES
    if isinstance(node, ast.Attribute):
        return {node.attr} & ATTRIBUTES
    words = {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
    words.add(getattr(node, "module", None) or "")
    return {part for word in words for part in word.split(".")} & (NAMES | ATTRIBUTES)


def root_of(node):
    """The name at the beginning of a.b.c, or None."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", None)
