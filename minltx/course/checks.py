"""Is a learner's answer correct, and if not, which common mistake is it? For learner, grader and tests alike.

    from minltx.course.checks import check, own
    check("A1.1", interpolate)
    interpolate = own("A1.1")           # the learner's if it is correct, the package's otherwise

An answer is called (`run_call`) with random inputs of several shapes, twice each, in float32 and float64, and
with gradients. `verdict` compares the outcomes with those of the correct function. These are two steps
because the grader takes them in two processes: it calls an answer over a pipe (`minltx.course.worker`) and
compares outside, where a submission cannot reach. The questions are in `minltx.course.questions`.
"""

import math
import signal
import sys
import threading
import _thread
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from minltx.course.questions import CHECKS

PACKAGE = Path(__file__).parents[1]
SECONDS = 10.0                                      # for one call of an answer


class Wrong(AssertionError):
    """The answer is not correct; the message is the hint."""


# --- What is called ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Call:
    """One call of an answer. case: its number among the inputs, for messages; gradients: also take those of
    these arguments."""

    arguments: tuple
    case: int
    gradients: tuple = ()


def calls_of(task, seed=0):
    """All calls that test an answer: every input, other values of the same shapes, the first input again;
    with gradients; in float64."""
    c, g = CHECKS[task], torch.Generator().manual_seed(seed)
    first, second = c.inputs(g), c.inputs(g)
    calls = [Call(arguments, i) for i, arguments in enumerate(first)]
    calls += [Call(arguments, i) for i, arguments in enumerate(second)] + calls[:1]
    if c.gradients:
        calls += [Call(arguments, i, c.gradients) for i, arguments in enumerate(first)]
    if any(is_float(a) for a in first[0]):
        double = [tuple(a.double() if is_float(a) else a for a in arguments) for arguments in first]
        calls += [Call(arguments, i) for i, arguments in enumerate(double)]
    return calls


def is_float(x):
    return torch.is_tensor(x) and x.is_floating_point()


def copies(arguments):
    """The same arguments with copies of tensors and lists, so that no function can change another's."""
    return tuple(a.clone() if torch.is_tensor(a) else a[:] if isinstance(a, list) else a for a in arguments)


# --- Calling an answer, in the learner's process ----------------------------------------------------------

def run_call(answer, call, task=None):
    """Call an answer -> what happened, as a dictionary of plain values.

    value; error: None or (type, message); changed: numbers of the arguments that it changed; gradients: a
    list, or None if the result has none; own: whether the package's own function for `task` was called;
    away: whether a new tensor would be on another device than the inputs.
    """
    arguments = copies(call.arguments)
    outcome = {"value": None, "error": None, "changed": [], "gradients": None, "own": False, "away": False}
    for i in call.gradients:
        arguments[i].requires_grad_()
    try:
        with time_limit(SECONDS), Devices(arguments) as devices, package_calls(task) as own:
            value = answer(*arguments)
            if call.gradients:
                outcome["gradients"] = gradients_of(value, [arguments[i] for i in call.gradients])
        outcome["value"], outcome["away"] = plain(value), devices.away(value)
    except TimeoutError:
        outcome["error"] = ("TimeoutError", f"it took longer than {SECONDS:g} s")
    except KeyboardInterrupt:                       # the learner's, or the grader's time limit
        raise
    except BaseException as error:                  # SystemExit too
        outcome["error"] = (type(error).__name__, str(error)[:300])
    outcome["own"] = bool(own)
    outcome["changed"] = [i for i, a in enumerate(arguments) if not same(a, call.arguments[i])]
    return outcome


def run_calls(answer, calls, task=None):
    """The outcomes of all calls, up to one that took too long."""
    outcomes = []
    for call in calls:
        outcomes.append(run_call(answer, call, task))
        if outcomes[-1]["error"] and outcomes[-1]["error"][0] == "TimeoutError":
            break
    return outcomes


def same(a, b):
    return torch.equal(a, b) if torch.is_tensor(b) else a is b or a == b


def gradients_of(value, arguments):
    """The gradients of the cosine-weighted sum of a result; zeros where it does not depend on an argument.
    None if the result has no gradient."""
    results = [x for x in (value if isinstance(value, (tuple, list)) else [value]) if is_float(x)]
    total = sum((x * torch.arange(x.numel(), device=x.device).reshape(x.shape).cos()).sum() for x in results)
    if not (torch.is_tensor(total) and total.requires_grad):
        return None
    found = torch.autograd.grad(total, arguments, allow_unused=True)
    return [torch.zeros_like(a) if f is None else f for a, f in zip(arguments, found)]


def plain(value):
    """A result in values that a pipe can carry; anything else becomes {"type": its name}."""
    if torch.is_tensor(value):
        return value.detach().cpu().clone()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(x) for x in value]
    for kind in (int, float):
        if isinstance(value, kind):                 # subclasses, such as numpy's float64
            return kind(value)
    return {"type": type(value).__name__}


@contextmanager
def time_limit(seconds):
    """Raise TimeoutError in the body after so many seconds; in other threads than the main one, never."""
    late = threading.Event()

    def stop():
        late.set()
        _thread.interrupt_main()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(seconds, stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # it may be ignored, as after nohup
    timer.start()
    try:
        yield
        timer.cancel()
        if late.is_set():                           # the interrupt is on its way
            threading.Event().wait(1)
    except KeyboardInterrupt:
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


FACTORIES = {getattr(torch, name) for name in (
    "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "tensor", "rand", "randn",
    "tril_indices", "triu_indices", "as_tensor")}
MOVES = {torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.__getitem__, torch.Tensor.__setitem__,
         torch.Tensor.copy_, torch.Tensor.expand_as, torch.Tensor.reshape_as, torch.Tensor.view_as}


class Devices(TorchFunctionMode):
    """Would a function work on a GPU? Without one, this mode follows tensors that are made without a device.
    They would be on the CPU: they must not be combined with the inputs, nor returned. Numbers may."""

    def __init__(self, arguments):
        super().__init__()
        self.there = any(is_float(a) for a in arguments)
        self.here, self.mixed = {}, False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [x for x in flat([args, kwargs or {}]) if torch.is_tensor(x) and x.ndim]
        ours = [x for x in given if id(x) in self.here]
        made = function in FACTORIES and not given and "device" not in (kwargs or {})
        if ours and function not in MOVES:
            self.mixed |= len(ours) < len(given)
        for x in flat(out):
            if function is torch.Tensor.to:
                self.here.pop(id(x), None)          # it may return the tensor itself
            elif torch.is_tensor(x) and x.ndim and (made or ours and len(ours) == len(given)):
                self.here[id(x)] = x                # kept alive, so that its id stays its own
        return out

    def away(self, value):
        return self.there and (self.mixed or any(id(x) in self.here for x in flat(value)))


def flat(value):
    """The leaves of nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for x in value for leaf in flat(x)] if isinstance(value, (tuple, list)) else [value]


@cache
def is_own(task, file, name):
    """Is a function of this name in this file the package's own for a task, or one of the course's?"""
    path = Path(file)
    if PACKAGE not in path.parents or path.name in ("checks.py", "worker.py"):
        return False
    if name in (CHECKS[task].name, CHECKS[task].reference.__code__.co_name):
        return True
    if task.startswith("A5.") and path.parent.name == "ablation":
        return True
    return path.name == "questions.py" and name not in (
        "field", "first_time", "per_token", "per_token_strictly")


@contextmanager
def package_calls(task):
    """The list of calls of the package's own function for a task, filled while the body runs. Any code of the
    course counts too, but not the functions that an answer is given as an argument."""
    called, before = [], sys.getprofile()
    if task is None:
        yield called
        return
    def see(frame, event, argument):
        if event == "call" and is_own(task, frame.f_code.co_filename, frame.f_code.co_name):
            called.append(frame.f_code.co_name)

    sys.setprofile(see)
    threading.setprofile(see)
    try:
        yield called
        if sys.getprofile() is not see:
            called.append("sys.setprofile")
    finally:
        sys.setprofile(before if callable(before) else None)
        threading.setprofile(None)


# --- Comparing what happened ------------------------------------------------------------------------------

def verdict(task, calls, outcomes):
    """None if all outcomes of an answer are those of the correct function, else the hint."""
    c, before = CHECKS[task], len(CHECKS[task].inputs(torch.Generator()))
    rights = [run_call(c.reference, call) for call in calls]
    for number, (call, outcome, right) in enumerate(zip(calls, outcomes, rights)):
        problem = problem_of(c, call, outcome, right)
        if problem is None:
            continue
        if problem == "not written yet":
            return problem
        where = describe(c, call)
        if number < before:
            known = hint(c, calls[:before], outcomes[:before])
            return known or f"{in_common(c, outcomes[:before], rights)}{problem}, {where}"
        if number <= 2 * before and not outcome["error"]:
            return (f"the first calls were correct, and then: {problem}, {where}. Does it keep old values, "
                    "or is it wrong for some values only?")
        return f"{problem}, {where}"
    if any(outcome["away"] for outcome in outcomes):
        return ("the values are correct, but not on a GPU: a new tensor is made on the CPU. Give it the "
                "inputs' device, such as device=x.device")
    return None


def problem_of(c, call, outcome, right):
    """What is wrong with one outcome, in words, or None."""
    names, changed = list(signature(c.reference).parameters), outcome.get("changed")
    changes = f"it changes its argument {names[changed[0]]} in place" if changed else ""
    if outcome["error"]:
        kind, text = outcome["error"]
        known = {"NotImplementedError": "not written yet", "TimeoutError": text,
                 "SystemExit": "it ends the program"}
        return known.get(kind, f"it raises {kind}: {text}{changes and f'; {changes}'}")
    if changed:
        return f"{changes}: make a new one instead"
    if not close(outcome["value"], right["value"], c.tolerance):
        return difference(outcome["value"], right["value"], c.tolerance)
    if call.gradients and outcome["gradients"] is None:
        return ("the values are correct, but no gradient reaches the inputs: leave out detach, no_grad, item "
                "and numpy")
    if call.gradients and not close(outcome["gradients"], right["gradients"], 1e-4):
        return "the values are correct, but the gradient is not: is a part of it detached?"
    return None


def hint(c, calls, outcomes):
    """The hint of the mistake that does the same as the answer for every input, or None."""
    for text, mistakes in c.mistakes.items():
        for mistake in mistakes if isinstance(mistakes, tuple) else [mistakes]:
            if all(alike(o, run_call(mistake, call), c.tolerance) for call, o in zip(calls, outcomes)):
                return text
    return None


def in_common(c, outcomes, rights):
    """What all wrong results of an answer have in common, in words, if no known mistake fits; or ""."""
    pairs = [(outcome.get("value"), right["value"]) for outcome, right in zip(outcomes, rights)]
    if not any(value is not None or outcome["error"] for (value, _), outcome in zip(pairs, outcomes)):
        return "the function returns None: is the return missing? "
    found = [relation(*pair, c.tolerance) for pair in pairs if not close(*pair, c.tolerance)]
    return found[0] if len(found) > 1 and len(set(found)) == 1 else ""


def relation(answer, expected, tolerance):
    """A wrong result in terms of the correct one: a factor, another order, shape or dtype; or ""."""
    if isinstance(expected, list) and {type(x) for x in flat([answer, expected])} == {float}:
        answer, expected = torch.tensor(answer), torch.tensor(expected)
    if not is_float(answer) or not is_float(expected) or answer.numel() != expected.numel():
        return ""
    a, e = answer.double().flatten(), expected.double().flatten()
    factor = (a @ e / (e @ e)).item()
    if close(a.sort()[0], e.sort()[0], tolerance):
        return "the right values in another order, shape or dtype: "
    known = 1e-6 < abs(factor) < 1e6 and close(a, factor * e, tolerance)
    return f"every value is {factor:.4g} times the correct one: " if known else ""


def alike(a, b, tolerance):
    """Did two functions do the same? Errors are the same if their types and messages are."""
    if a["error"] or b["error"]:
        return a["error"] == b["error"]
    return close(a["value"], b["value"], tolerance)


def close(answer, expected, tolerance):
    """Equal up to the tolerance, of one shape and dtype? Tensors or numbers, alone or in tuples and lists."""
    if isinstance(expected, (tuple, list)):
        return (isinstance(answer, (tuple, list)) and len(answer) == len(expected)
                and all(close(a, b, tolerance) for a, b in zip(answer, expected)))
    if torch.is_tensor(expected):
        return (torch.is_tensor(answer) and answer.shape == expected.shape and answer.dtype == expected.dtype
                and torch.allclose(answer.double(), expected.double(), tolerance, tolerance, equal_nan=True))
    if torch.is_tensor(answer) and answer.ndim == 0:
        answer = answer.item()
    if isinstance(expected, (bool, int)) or not isinstance(expected, float):
        return type(answer) is type(expected) and answer == expected
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return False
    return math.isclose(answer, expected, rel_tol=tolerance, abs_tol=tolerance)


def difference(answer, expected, tolerance):
    """How a wrong answer differs, for answers that equal no known mistake."""
    if isinstance(expected, (tuple, list)):
        count = len(answer) if isinstance(answer, (tuple, list)) else kind_of(answer)
        if count != len(expected):
            return f"expected {len(expected)} values, got {count}"
        i = next(i for i, (a, b) in enumerate(zip(answer, expected)) if not close(a, b, tolerance))
        return f"result {i + 1} of {len(expected)}: {difference(answer[i], expected[i], tolerance)}"
    if not torch.is_tensor(expected):
        shown = "" if isinstance(answer, dict) else f" {answer!r}"
        kinds = [kind_of(x) for x in (expected, answer)]
        if kinds[0] == kinds[1]:
            return f"expected {expected!r}, got{shown}"
        return f"expected {expected!r} ({kinds[0]}), got{shown} ({kinds[1]})"
    if not torch.is_tensor(answer):
        return f"expected a tensor, got {kind_of(answer)}"
    if answer.shape != expected.shape:
        return f"expected the shape {tuple(expected.shape) or '() of one number'}, got {tuple(answer.shape)}"
    if answer.dtype != expected.dtype:
        return f"expected {expected.dtype}, got {answer.dtype}"
    off = ~torch.isclose(answer.double(), expected.double(), tolerance, tolerance, equal_nan=True)
    index = tuple(off.nonzero()[0].tolist())
    pair = expected[index].item(), answer[index].item()
    shown = next((s for s in ([f"{x:.{n}g}" for x in pair] for n in (4, 7)) if s[0] != s[1]), pair)
    if expected.dtype == torch.bool:
        shown = pair
    if not expected.ndim:
        return f"expected {shown[0]}, got {shown[1]}"
    return (f"{off.sum()} of {off.numel()} values are wrong; at index {index} expected {shown[0]}, "
            f"got {shown[1]}")


def kind_of(value):
    return value["type"] if isinstance(value, dict) else type(value).__name__


def describe(c, call):
    """The inputs of a call in words: "for x0 (3, 2), t (3,) [0.5, 0, 1], fps 24.0"."""
    shown = []
    for name, a in zip(signature(c.reference).parameters, call.arguments):
        if callable(a):
            continue
        if torch.is_tensor(a):
            name += f" {tuple(a.shape)}" + (" float64" if a.dtype == torch.float64 else "")
        elif not isinstance(a, list):
            name += f" {a!r}"[:60]
        if isinstance(a, list) or torch.is_tensor(a) and a.ndim == 1:
            name += f" [{', '.join([*(f'{x:.4g}' for x in a[:6]), *['...'] * (len(a) > 6)])}]"
        shown.append(name)
    return f"for {', '.join(shown)}"


# --- For the learner --------------------------------------------------------------------------------------

OWN_FUNCTION = "it calls the package's own function: write yours"
CORRECT = {}                                        # {task: the learner's function}


def judge(task, answer, seed=0):
    """None if the answer's values are correct, else the hint. An answer that raises an exception is wrong."""
    if not callable(answer):
        return f"{CHECKS[task].name} must be a function"
    calls = calls_of(task, seed)
    return verdict(task, calls, run_calls(answer, calls, task))


def check(task, answer):
    """Print that an answer is correct, or raise `Wrong` with a hint. Raises KeyError for an unknown task."""
    CORRECT.pop(task, None)
    problem = judge(task, answer)
    if problem is None and run_call(answer, calls_of(task)[0], task)["own"]:
        problem = OWN_FUNCTION
    if problem:
        raise Wrong(f"{task} {CHECKS[task].name}: {problem}")
    CORRECT[task] = answer
    points = CHECKS[task].points
    print(f"{task} {CHECKS[task].name}: correct, {points} point{'s' * (points > 1)}")


def own(task):
    """The learner's function if its check passed, otherwise the package's, so that the notebook goes on."""
    if task not in CORRECT:
        print(f"{CHECKS[task].name}: the package's function, because the check of {task} has not passed")
    return CORRECT.get(task, CHECKS[task].reference)
