"""Is a learner's answer right, and if not, which typical mistake is it? For learner, grader and tests alike.

    from minltx.workshop.checks import check
    check("A1.1", interpolate)

A check calls the answer on inputs that it draws from a seed and compares values with the package's own
function, to float32's accuracy. For every typical mistake it also knows what that mistake would compute: an
answer that equals it gets its hint. The questions are in `minltx.workshop.questions`.
"""

import math

import torch

from minltx.workshop.questions import CHECKS


class Wrong(AssertionError):
    """The answer is not right; the message is the hint."""


def close(answer, expected, tolerance):
    """Are they the same, tensors and numbers, alone or in tuples and lists?"""
    if isinstance(expected, (tuple, list)):
        return (isinstance(answer, (tuple, list)) and len(answer) == len(expected)
                and all(close(a, b, tolerance) for a, b in zip(answer, expected)))
    if torch.is_tensor(expected):
        if not torch.is_tensor(answer) or answer.shape != expected.shape:
            return False
        return torch.allclose(answer.double(), expected.double(), rtol=tolerance, atol=tolerance,
                              equal_nan=True)
    if isinstance(expected, str) or expected is None:
        return answer == expected
    try:
        return math.isclose(float(answer), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError, RuntimeError):
        return False


def copies(arguments):
    """The same arguments with tensors of their own, so that nobody can change another's."""
    return tuple(a.clone() if torch.is_tensor(a) else a for a in arguments)


def difference(answer, expected):
    """What is wrong, in numbers, where no hint fits."""
    if isinstance(expected, (tuple, list)):
        if not isinstance(answer, (tuple, list)) or len(answer) != len(expected):
            return f"expected {len(expected)} values, got {type(answer).__name__}"
        return next(difference(a, b) for a, b in zip(answer, expected) if not close(a, b, 1e-5))
    if answer is None:
        return "the function returns nothing: is there a return?"
    if torch.is_tensor(expected):
        if not torch.is_tensor(answer):
            return f"expected a tensor, got {type(answer).__name__}"
        if answer.shape != expected.shape:
            return f"expected the shape {tuple(expected.shape)}, got {tuple(answer.shape)}"
        if not torch.isfinite(answer).all():
            return "there are values that are not finite (nan or inf)"
        if expected.dtype == torch.bool or answer.dtype == torch.bool:
            return f"{(answer != expected).sum()} of {expected.numel()} answers yes or no are wrong"
        return f"the values differ by up to {(answer - expected).abs().max():.3g}"
    return f"expected {expected!r}, got {answer!r}"


def judge(task, answer):
    """None if the answer is right, else the hint. An answer that raises is wrong, not an error of ours."""
    c = CHECKS[task]
    if not callable(answer):
        return f"{c.name} must be a function"
    cases = c.inputs(torch.Generator().manual_seed(0))
    for arguments in cases:
        expected, own = c.reference(*copies(arguments)), copies(arguments)
        try:
            got = answer(*own)
        except NotImplementedError:
            return "not written yet"
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            return hint(c, answer, cases) or f"it raises {type(error).__name__}: {reason}"
        if any(torch.is_tensor(a) and not torch.equal(a, b) for a, b in zip(own, arguments)):
            return "it changes its argument in place: make a new tensor instead"
        if not close(got, expected, c.tolerance):
            return hint(c, answer, cases) or difference(got, expected)
    return None


def hint(check, answer, cases):
    """The hint of the mistake that computes what the answer computes, on every input, or None."""
    for text, mistake in check.mistakes.items():
        if all(same(answer, mistake, arguments, check.tolerance) for arguments in cases):
            return text
    return None


def same(answer, mistake, arguments, tolerance):
    """Do two functions answer alike? Raising the same kind of error is alike, too."""
    results = []
    for function in (answer, mistake):
        try:
            results.append(function(*copies(arguments)))
        except Exception as error:
            results.append(type(error).__name__)
    if isinstance(results[1], str) or isinstance(results[0], str):
        return results[0] == results[1]
    return close(results[0], results[1], tolerance)


def check(task, answer):
    """Say that an answer is right, or raise `Wrong` with a hint. KeyError for an unknown task."""
    problem = judge(task, answer)
    if problem:
        raise Wrong(f"{task} {CHECKS[task].name}: {problem}")
    points = CHECKS[task].points
    print(f"{task} {CHECKS[task].name}: right, {points} point{'s' * (points > 1)}")
