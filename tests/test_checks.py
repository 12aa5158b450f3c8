"""Every check passes the package's own function, and catches each mistake with the hint that fits."""

import pytest
import torch

from minltx import flow, layers, losses, patchify, rope, sampler, vae
from minltx.ablation import verdicts
from minltx.course.checks import CHECKS, Wrong, check, judge


def test_every_question_knows_at_least_three_mistakes():
    assert all(len(c.mistakes) >= 3 and c.points > 0 for c in CHECKS.values())
    assert sum(len(c.mistakes) for c in CHECKS.values()) >= 128
    assert {task[:2] for task in CHECKS} == {"A1", "A2", "A3", "A4", "A5"}


@pytest.mark.parametrize("task", CHECKS)
def test_the_packages_function_is_correct_and_a_stub_is_not(task, capsys):
    c = CHECKS[task]
    check(task, c.reference)
    assert f"correct, {c.points} point" in capsys.readouterr().out

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
    assert "is the return missing" in judge("A1.2", lambda x0, noise: None)


def test_functions_that_the_package_has_are_its_own():
    """A question's name means the same in the assignment and in the chapters."""
    chapters = {name: f for m in (flow, layers, losses, patchify, rope, sampler, vae)
                for name, f in vars(m).items() if callable(f)}
    own = {task for task, c in CHECKS.items() if c.name not in chapters}
    assert own == {"A2.2", "A2.3", "A2.6", "A3.1", "A3.2", "A3.5", "A3.6", "A4.3", "A5.1"}
    for task in CHECKS.keys() - own:
        assert CHECKS[task].reference is chapters[CHECKS[task].name], task


def test_paired_differences_are_those_of_the_ablations():
    for seed in range(50):
        a, b = (torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) / 2).tolist()
        a = [x + seed % 3 for x in a]
        found = verdicts.compare(a, b)
        mean, spread, clear = CHECKS["A5.1"].reference(a, b)
        assert mean == pytest.approx(found["difference"])
        assert spread == pytest.approx(found["difference_spread"])
        assert not clear or found["p"] < 0.23        # a mean above the spread of three: t above sqrt(3)


def test_rounding_is_forgiven():
    for task, c in CHECKS.items():
        def rounded(*arguments):
            double = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in arguments]
            out = c.reference(*double)
            return out.float() if torch.is_tensor(out) and out.is_floating_point() else out
        if task in ("A1.1", "A1.2", "A1.3", "A1.4", "A2.1", "A2.3", "A2.4", "A2.5", "A3.4", "A3.6", "A4.1"):
            assert judge(task, rounded) is None, task
