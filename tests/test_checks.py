"""Every check passes the package's own function, and catches each mistake with the hint that fits."""

import pytest
import torch

from minltx.workshop.checks import CHECKS, Wrong, check, judge


def test_there_are_enough():
    assert all(len(c.mistakes) >= 3 and c.points > 0 for c in CHECKS.values())
    assert sum(len(c.mistakes) for c in CHECKS.values()) >= 60
    assert {task[:2] for task in CHECKS} == {"A1", "A2", "A3", "A4", "A5"}


@pytest.mark.parametrize("task", CHECKS)
def test_the_reference_is_right_and_a_stub_is_not(task, capsys):
    c = CHECKS[task]
    check(task, c.reference)
    assert f"right, {c.points} point" in capsys.readouterr().out

    def stub(*arguments):
        raise NotImplementedError(task)

    with pytest.raises(Wrong, match="not written yet"):
        check(task, stub)
    with pytest.raises(Wrong):
        check(task, lambda *arguments: None)
    assert "must be a function" in judge(task, 3)


@pytest.mark.parametrize("task, text", [(task, text) for task, c in CHECKS.items() for text in c.mistakes])
def test_each_mistake_gets_its_own_hint(task, text):
    assert judge(task, CHECKS[task].mistakes[text]) == text


def test_unexpected_answers_are_described():
    assert "expected the shape (3, 4, 2, 2, 3)" in judge("A1.1", lambda x0, noise, t: x0[0])
    assert "differ by up to" in judge("A1.1", lambda x0, noise, t: x0 * 7)
    assert "raises ZeroDivisionError" in judge("A1.1", lambda x0, noise, t: 1 / 0)
    assert "in place" in judge("A1.2", lambda x0, noise: noise.sub_(x0))
    assert "expected a tensor, got int" in judge("A1.2", lambda x0, noise: 3)
    assert "not finite" in judge("A1.2", lambda x0, noise: (noise - x0) / 0)
    assert judge("A2.2", lambda frames: frames) == "expected 2, got 9"
    assert "is there a return" in judge("A1.2", lambda x0, noise: None)


def test_rounding_is_forgiven():
    for task, c in CHECKS.items():
        def rounded(*arguments):
            double = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
            out = c.reference(*double)
            return out.float() if torch.is_tensor(out) and out.is_floating_point() else out
        if task in ("A1.1", "A1.2", "A1.3", "A1.4", "A2.1", "A2.3", "A2.4", "A2.5", "A3.4", "A3.6", "A4.1"):
            assert judge(task, rounded) is None, task
