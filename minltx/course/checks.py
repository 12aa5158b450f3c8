"""Is a learner's answer correct, and if not, which common mistake is it? For learner, grader and tests alike.

    from minltx.course.checks import check
    check("A1.1", interpolate)

A check calls the answer with seeded random inputs and compares values with the package's own function, to
float32 accuracy. It also computes what each common mistake would return: an answer that equals a mistake gets
its hint. The questions are in `minltx.course.questions`.
"""

import math

import torch

from minltx.course.questions import CHECKS


class Wrong(AssertionError):
    """The answer is not correct; the message is the hint."""


def check(task, answer):
    """Print that an answer is correct, or raise `Wrong` with a hint. Raises KeyError for an unknown task."""
    problem = judge(task, answer)
    if problem:
        raise Wrong(f"{task} {CHECKS[task].name}: {problem}")
    points = CHECKS[task].points
    print(f"{task} {CHECKS[task].name}: correct, {points} point{'s' * (points > 1)}")


def judge(task, answer):
    """None if the answer is correct, else the hint. An answer that raises an exception is wrong."""
    c = CHECKS[task]
    if not callable(answer):
        return f"{c.name} must be a function"
    cases = c.inputs(torch.Generator().manual_seed(0))
    for arguments in cases:
        own = copies(arguments)
        expected, got = c.reference(*copies(arguments)), outcome(answer, own)
        if isinstance(got, NotImplementedError):
            return "not written yet"
        if isinstance(got, Exception):
            return hint(c, answer, cases) or f"it raises {type(got).__name__}: {str(got)[:200]}"
        if any(torch.is_tensor(a) and not torch.equal(a, b) for a, b in zip(own, arguments)):
            return "it changes its argument in place: make a new tensor instead"
        if not close(got, expected, c.tolerance):
            return hint(c, answer, cases) or difference(got, expected)
    return None


def hint(check, answer, cases):
    """The hint of the mistake that computes the same as the answer for every input, or None."""
    for text, mistake in check.mistakes.items():
        if all(close(outcome(answer, copies(case)), outcome(mistake, copies(case)), check.tolerance)
               for case in cases):
            return text
    return None


def outcome(function, arguments):
    """What a function returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def copies(arguments):
    """The same arguments with copies of the tensors, so that no function can change another's."""
    return tuple(a.clone() if torch.is_tensor(a) else a for a in arguments)


def close(answer, expected, tolerance):
    """Are they equal up to the tolerance? Both are tensors or numbers, alone or in tuples and lists; two
    exceptions are equal if they are of one kind."""
    if isinstance(expected, (tuple, list)):
        return (isinstance(answer, (tuple, list)) and len(answer) == len(expected)
                and all(close(a, b, tolerance) for a, b in zip(answer, expected)))
    if torch.is_tensor(expected):
        return (torch.is_tensor(answer) and answer.shape == expected.shape
                and torch.allclose(answer.double(), expected.double(), tolerance, tolerance, equal_nan=True))
    if expected is None or isinstance(expected, Exception):
        return type(answer) is type(expected)
    try:
        return math.isclose(float(answer), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError, RuntimeError):
        return False


def difference(answer, expected):
    """How a wrong answer differs, for answers that equal no known mistake."""
    if answer is None:
        return "the function returns None: is the return missing?"
    if isinstance(expected, (tuple, list)):
        if not isinstance(answer, (tuple, list)) or len(answer) != len(expected):
            return f"expected {len(expected)} values, got {type(answer).__name__}"
        return next(difference(a, b) for a, b in zip(answer, expected) if not close(a, b, 1e-5))
    if not torch.is_tensor(expected):
        return f"expected {expected!r}, got {answer!r}"
    if not torch.is_tensor(answer):
        return f"expected a tensor, got {type(answer).__name__}"
    if answer.shape != expected.shape:
        return f"expected the shape {tuple(expected.shape)}, got {tuple(answer.shape)}"
    if not torch.isfinite(answer).all():
        return "some values are not finite (nan or inf)"
    if expected.dtype == torch.bool or answer.dtype == torch.bool:
        return f"{(answer != expected).sum()} of {expected.numel()} booleans are wrong"
    return f"the values differ by up to {(answer - expected).abs().max():.3g}"


# --- In the kernel of a submission ------------------------------------------------------------------------

def judge_new(names, tasks, judged):
    """Judge those functions of the tasks in `names`, a dictionary, that are new.

    `judged` {task: (function, hint)} gets the results. A notebook imports the package's own function after
    each check; this does not replace an answer.
    """
    for task in tasks:
        name, (last, _) = CHECKS[task].name, judged.get(task, (None, None))
        if name not in names or (task in judged and names[name] is last):
            continue
        answer, hint = names[name], "that is the package's own function: write yours"
        if not str(getattr(answer, "__module__", "")).startswith("minltx."):
            try:
                hint = judge(task, answer)
            except KeyboardInterrupt:                           # the grader's time limit
                hint = "it took too long"
            except SystemExit:
                hint = "it ends the program"
        elif task in judged:
            continue
        judged[task] = answer, hint


JUDGED = {}


def send_hints(names, tasks):
    """The grader calls this after each cell: judge what is new, and send the hints of all tasks so far."""
    from IPython.display import display

    judge_new(names, tasks, JUDGED)
    display({"application/json": {task: hint for task, (_, hint) in JUDGED.items()}}, raw=True)
