"""In the process of a submission: find its functions, call them, send back what happened. Nothing is judged.

The grader runs cells that call `new` and `call` (`minltx.course.submission`). What a submission could change
here is only what it returns, and the grader compares that with values which this process never holds.
Arguments and results travel as text, in torch's format without pickled objects.
"""

import base64
import io

import torch

from minltx.course import questions
from minltx.course.checks import Call, run_calls

MIME = "application/vnd.minltx+base64"
LARGEST = 16 * 2**20                    # bytes of a reply
LAST = {}                               # {task: the function that was called last}


def pack(value):
    """Plain values as text."""
    file = io.BytesIO()
    torch.save(value, file)
    return base64.b64encode(file.getvalue()).decode()


def unpack(text):
    """The values again. Raises an exception of some kind if the text is anything else; runs no code."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


def pack_calls(calls):
    """Calls as text; functions among the arguments travel as their names in `questions`."""
    return pack([(tuple({"function": a.__name__} if callable(a) else a for a in call.arguments), call.case,
                  call.gradients) for call in calls])


def unpack_calls(text):
    return [Call(tuple(getattr(questions, a["function"]) if isinstance(a, dict) else a for a in arguments),
                 case, gradients) for arguments, case, gradients in unpack(text)]


def send(value):
    """Display a reply in the notebook's output, where the grader reads it. Raises ValueError if it is larger
    than LARGEST."""
    from IPython.display import display

    text = pack(value)
    if len(text) > LARGEST:
        raise ValueError("the results are too large")
    display({MIME: text}, raw=True)


def prepare(names):
    """The first call. `exit()` would end the kernel a moment later; from now on it does nothing."""
    from IPython import get_ipython

    get_ipython().ask_exit = lambda: None
    send({})


def new(names, tasks):
    """Send those tasks {task: function's name} whose functions have changed in the notebook's names.

    {task: "new", "own" for the package's own function, or "not a function"}. A notebook goes on with the
    package's function where a check failed; this does not replace an answer.
    """
    found = {}
    for task, name in tasks.items():
        if name not in names or task in LAST and names[name] is LAST[task]:
            continue
        own = str(getattr(names[name], "__module__", "")).startswith("minltx.")
        if not (own and task in LAST):
            found[task] = "not a function" if not callable(names[name]) else "own" if own else "new"
    send(found)


def call(names, task, name, calls):
    """Call the function of a task, and send the outcomes."""
    LAST[task], outcomes = names[name], []
    try:
        for one in unpack_calls(calls):
            outcomes += run_calls(names[name], [one], task)
            if (outcomes[-1]["error"] or [""])[0] == "TimeoutError":
                break
    except KeyboardInterrupt:                               # the grader's time limit
        outcomes.append({"error": ("TimeoutError", "it took too long"), "own": False})
    send(outcomes)
