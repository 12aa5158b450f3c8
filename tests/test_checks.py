"""Every check passes the package's own function and catches each mistake with the hint that fits."""

import functools
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minltx import flow, layers, losses, objectives, patchify, rope, sampler, vae
from minltx.ablation import paired
from minltx.course import checks
from minltx.course.checks import CHECKS, Wrong, calls_of, check, judge, own, run_calls, time_limit
from minltx.course.questions import T975
from right_answers import RIGHT
from wrong_answers import WRONG, function_of

DESCRIBED = r"(result \d of \d: )?(\d+ of \d+ values are wrong|expected )"      # what differs, not why


def test_every_question_knows_at_least_four_mistakes():
    assert all(len(c.mistakes) >= 4 and c.points > 0 for c in CHECKS.values())
    assert sum(len(c.mistakes) for c in CHECKS.values()) >= 255
    assert {task[:2] for task in CHECKS} == {"A1", "A2", "A3", "A4", "A5"}


@pytest.mark.parametrize("task", CHECKS)
def test_the_packages_function_is_correct_and_a_stub_is_not(task, capsys):
    c = CHECKS[task]
    assert judge(task, c.reference) is None and judge(task, c.reference, seed=12) is None
    with pytest.raises(Wrong, match="package's own function"):
        check(task, lambda *arguments: c.reference(*arguments))

    def in_a_thread(*arguments):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(c.reference, *arguments).result()

    with pytest.raises(Wrong, match="package's own function"):
        check(task, in_a_thread)

    def stub(*arguments):
        raise NotImplementedError(task)

    with pytest.raises(Wrong, match="not written yet"):
        check(task, stub)
    with pytest.raises(Wrong):
        check(task, lambda *arguments: None)
    assert "must be a function" in judge(task, 3)


@pytest.mark.parametrize("task", CHECKS)
def test_each_mistake_gets_its_own_hint(task):
    for text, mistakes in CHECKS[task].mistakes.items():
        for mistake in mistakes if isinstance(mistakes, tuple) else [mistakes]:
            assert judge(task, mistake) == text


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_wrong_answers_are_refused_and_get_the_hint_that_fits():
    """A hint names the cause, or it only describes what differs; it never names another cause."""
    answers = [(task, source, fragment) for task, rows in WRONG.items() for source, fragment in rows]
    found = [judge(task, function_of(source)) for task, source, _ in answers]
    assert WRONG.keys() == CHECKS.keys() and len(answers) >= 360 and min(map(len, WRONG.values())) >= 7
    assert [answer for answer, hint in zip(answers, found) if hint is None] == []
    wrong = [(answer, hint) for answer, hint in zip(answers, found)
             if not (answer[2] in hint if answer[2] else re.match(DESCRIBED, hint))]
    assert wrong == []
    assert sum(fragment is None for *_, fragment in answers) <= 0.18 * len(answers)


@pytest.mark.parametrize("task", CHECKS)
def test_correct_answers_count_however_they_are_written(task):
    for source in RIGHT[task]:
        assert judge(task, function_of(source), seed=3) is None, source
    assert len(RIGHT[task]) >= 1


def with_times(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


class Path:
    def __call__(self, x0, noise, t):
        return x0 + with_times(t, x0) * (noise - x0)


class Module(torch.nn.Module):
    def forward(self, x0, noise, t):
        return torch.lerp(x0, noise, with_times(t, x0))


def test_correct_answers_in_odd_clothes_count():
    given = sys.version_info > (3,)
    if given:
        def conditional(x0, noise, t):
            return (1 - with_times(t, x0)) * x0 + with_times(t, x0) * noise
    annotated: object = lambda x0, noise, t: x0 - with_times(t, x0) * (x0 - noise)
    for answer in (conditional, annotated, Path(), Module(), functools.partial(conditional), Path().__call__):
        assert judge("A1.1", answer) is None
    assert judge("A2.2", lambda frames: int((frames + 7) / 8)) is None
    assert judge("A2.3", lambda x: torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 0), mode="replicate")) is None
    assert judge("A1.5", lambda t, n: torch.sigmoid(torch.logit(t) + flow.shift_mu(n))) is None
    assert judge("A1.4", lambda v, x, w: (v - x).square()[w.expand_as(v) > 0].mean()) is None
    assert judge("A4.2", lambda t, s: [(1 - s).minimum(torch.full_like(s, t)).squeeze(-1),
                                       1 - s >= t - 1e-6]) is None
    assert judge("A3.2", lambda p, n, theta: (2 * p - 1).outer(
        torch.logspace(0, math.log10(theta), n, device=p.device) * torch.pi / 2)) is None
    assert judge("A3.5", lambda q, k, v, h: torch.cat([torch.nn.functional.scaled_dot_product_attention(
        *(x.chunk(h, -1)[i] for x in (q, k, v))) for i in range(h)], -1)) is None


def test_unexpected_answers_are_described_with_input_and_index():
    assert judge("A1.1", lambda x0, noise, t: x0[0]) == (
        "expected the shape (3, 3, 2, 3, 3), got (3, 2, 3, 3), "
        "for x0 (3, 3, 2, 3, 3), noise (3, 3, 2, 3, 3), t (3,) [0.3301, 0.7438, 0.1508]")
    assert "10 of 10 values are wrong; at index (0, 0) expected" in judge(
        "A1.1", lambda x0, noise, t: x0 * 7 if x0.ndim == 2 else CHECKS["A1.1"].reference(x0, noise, t))
    assert judge("A2.2", lambda frames: frames) == "expected 2, got 9, for frames 9"
    assert "expected a tensor, got int" in judge("A1.2", lambda x0, noise: 3)
    assert "is the return missing" in judge("A1.2", lambda x0, noise: None)
    assert "result 2 of 2: expected torch.bool, got torch.float32" in judge(
        "A4.2", lambda t, s: (sampler.token_times(t, s)[0], s))
    assert judge("A2.2", lambda frames: frames * 1.0) == "expected 1 (int), got 1.0 (float), for frames 1"


@pytest.mark.parametrize("answer, text", [
    (lambda x0, noise: noise.sub_(x0), "changes its argument noise in place"),
    (lambda x0, noise: (noise - x0).detach(), "no gradient reaches the inputs"),
    (lambda x0, noise: noise - x0.detach(), "the gradient is not"),
    (lambda x0, noise: (noise - x0).float(), "expected torch.float64, got torch.float32"),
    (lambda x0, noise: torch.zeros(noise.shape, dtype=x0.dtype) + noise - x0, "not on a GPU"),
    (lambda x0, noise: 1 / 0, "it raises ZeroDivisionError: division by zero, for x0 (3, 4, 2)"),
    (lambda x0, noise: exit(), "it ends the program, for x0"),
    (lambda x0, noise: (noise - x0) / (len(x0) > 1), "for x0 (1, 2)")])
def test_checks_look_at_more_than_values(answer, text):
    assert text in judge("A1.2", answer)


def test_answers_that_remember_are_found():
    first = {}

    def remembers(x0, noise):
        return first.setdefault(x0.shape, noise - x0)

    assert "the first calls were correct" in judge("A1.2", remembers)


def test_new_tensors_on_the_inputs_device_are_fine():
    """What would work on a GPU: numbers, moved tensors, copies into a new tensor on the right device."""
    answers = [lambda x0, noise: noise - x0 + torch.tensor(0.0, dtype=x0.dtype),
               lambda x0, noise: noise - x0 + torch.zeros(x0.shape, dtype=x0.dtype).to(x0.device),
               lambda x0, noise: noise - x0 + torch.zeros(x0.shape, dtype=x0.dtype, device=x0.device),
               lambda x0, noise: (noise - x0)[torch.arange(len(x0))],
               lambda x0, noise: noise - x0 + x0.new_zeros(x0.shape)]
    assert [judge("A1.2", answer) for answer in answers] == [None] * 5
    assert "not on a GPU" in judge("A4.5", lambda s, t: torch.cat(
        [torch.tensor([t], dtype=s.dtype), s[s < t - 1e-6]]))


def test_every_call_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 0.3)

    def hangs(x0, noise):
        while True:
            time.sleep(0.01)

    begin = time.monotonic()
    assert "took longer than 0.3 s, for x0 (3, 4, 2)" in judge("A1.2", hangs)
    assert time.monotonic() - begin < 60
    with pytest.raises(KeyboardInterrupt), time_limit(60):      # the learner's own is passed on
        raise KeyboardInterrupt


def test_a_notebook_goes_on_with_the_learners_function_if_it_is_correct(capsys):
    def mine(x0, noise):
        return noise - x0

    check("A1.2", mine)
    assert own("A1.2") is mine and "correct, 1 point" in capsys.readouterr().out
    with pytest.raises(Wrong, match="the sign"):
        check("A1.2", lambda x0, noise: x0 - noise)
    assert own("A1.2") is flow.velocity and "has not passed" in capsys.readouterr().out


def test_functions_that_the_package_has_are_its_own():
    """A question's name means the same in the assignment and in the chapters."""
    chapters = {name: f for m in (flow, layers, losses, patchify, rope, sampler, vae)
                for name, f in vars(m).items() if callable(f)}
    of = {task for task, c in CHECKS.items() if c.name not in chapters}
    assert of == {"A1.7", "A2.2", "A2.3", "A2.6", "A3.1", "A3.2", "A3.5", "A3.6", "A3.7", "A4.3", "A4.6",
                  "A5.1", "A5.2", "A5.3", "A5.4"}
    for task in CHECKS.keys() - of:
        assert CHECKS[task].reference is chapters[CHECKS[task].name], task


def test_the_loss_of_image_to_video_is_the_one_that_trains():
    """`objectives.flow_objective` with a condition of strength 1 compares the same numbers."""
    assert "flow_loss" in objectives.flow_objective.__code__.co_names
    for call in calls_of("A4.6")[:3]:
        network, x0, noise, t, given = call.arguments
        own_times = sampler.token_times(1.0, given)[0].minimum(t[:, None])
        z = flow.interpolate(x0, noise, own_times[..., None])
        expected = ((network(z, own_times) - noise + x0).square().mean(-1, keepdim=True) * (1 - given)).sum()
        assert CHECKS["A4.6"].reference(*call.arguments) == pytest.approx(
            (expected / (1 - given).sum()).item(), rel=1e-5)


def test_the_quantiles_are_students():
    """The density of t with n degrees of freedom, integrated from -q to q, is 0.95."""
    for n, q in T975.items():
        scale = math.gamma((n + 1) / 2) / math.gamma(n / 2) / math.sqrt(n * math.pi)
        x = torch.linspace(-q, q, 20001, dtype=torch.float64)
        share = torch.trapezoid(scale * (1 + x**2 / n) ** (-(n + 1) / 2), x).item()
        assert share == pytest.approx(0.95, abs=5e-5)               # they have three decimals


def test_intervals_and_holm_keep_their_promises():
    """With no difference 5 % of intervals miss 0, and 5 % of families contain a corrected p below 0.05."""
    g = torch.Generator().manual_seed(0)
    interval, holm = CHECKS["A5.1"].reference, CHECKS["A5.2"].reference
    d = torch.randn(4000, 3, generator=g).tolist()
    missed = [not low <= 0 <= high for _, low, high in (interval(x, [0.0] * 3) for x in d)]
    found = [min(holm(p)) < 0.05 for p in torch.rand(4000, 6, generator=g).tolist()]
    assert 0.04 < sum(missed) / 4000 < 0.06 and 0.04 < sum(found) / 4000 < 0.06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_statistics_are_those_of_the_ablations():
    assert T975 == {n: pytest.approx(paired.quantile(0.95, n), abs=5e-4) for n in T975}
    for call in calls_of("A5.1"):
        values, reference = call.arguments
        differences = [a - b for a, b in zip(values, reference)]
        assert CHECKS["A5.1"].reference(values, reference)[1:] == pytest.approx(
            paired.interval(differences), rel=1e-3, abs=1e-2)
    for call in calls_of("A5.2"):
        assert CHECKS["A5.2"].reference(*call.arguments) == pytest.approx(paired.holm(*call.arguments))


def test_outcomes_hold_plain_values_only():
    class Strange:
        pass

    outcome = run_calls(lambda x0, noise: [Strange(), (True, "a", None)], calls_of("A1.2")[:1])[0]
    assert outcome["value"] == [{"type": "Strange"}, [True, "a", None]] and outcome["error"] is None
