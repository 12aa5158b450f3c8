"""Student's t, Holm and power are what printed tables, definitions and simulation say."""

import itertools
import math
import statistics

import pytest
import torch

from minltx.ablation import paired


def samples(tables, seeds, shift=0.0):
    """Differences between levels whose true mean is `shift` standard deviations, (tables, seeds)."""
    return shift + torch.randn(tables, seeds, generator=torch.Generator().manual_seed(seeds)).double()


# --- Student's t --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("level, df, t", [
    (0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 3, 3.18245), (0.95, 4, 2.77645), (0.95, 9, 2.26216),
    (0.95, 30, 2.04227), (0.99, 4, 4.60409), (0.999, 2, 31.5991), (0.5, 7, 0.71114), (0.9, 120, 1.65765)])
def test_quantiles_are_those_of_printed_tables(level, df, t):
    assert paired.quantile(level, df) == pytest.approx(t, abs=1e-4)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 13])
def test_the_distribution_is_the_integral_of_its_density(df):
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(math.pi * df)
    for t in (0.0, 0.3, 1.7, 6.0):
        x = (torch.arange(20000).double() + 0.5) * t / 20000
        slow = 2 * scale * ((1 + x.square() / df) ** (-(df + 1) / 2)).sum().item() * t / 20000
        assert paired.student(t, df) == pytest.approx(slow, abs=1e-8)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_an_interval_holds_the_truth_in_95_of_100_and_p_agrees_with_it(seeds):
    inside = 0
    for differences in samples(2000, seeds, 0.7).tolist():
        low, high = paired.interval(differences)
        inside += low < 0.7 < high
        assert (paired.p_value(differences) < 0.05) == (not low < 0 < high)
        assert (paired.p_value(differences, 0.7) < 0.05) == (not low < 0.7 < high)
    assert abs(inside / 2000 - 0.95) < 0.02


def test_one_sign_and_a_mean_above_the_spread_is_luck_in_a_fifth_of_comparisons():
    """With three seeds; the rule that these statistics replaced."""
    d = samples(100000, 3)
    old = (d.mean(1).abs() > d.std(1)) & ((d > 0).all(1) | (d < 0).all(1))
    assert old.float().mean() == pytest.approx(0.21, abs=0.01)


def test_differences_without_a_spread_decide_nothing():
    assert paired.p_value([0.0, 0.0, 0.0]) == paired.p_value([1.0, 1.0, 1.0]) == 1.0
    # Shares of 100 clips: the same differences, with the spread that other clips alone would give.
    assert paired.drawn([3.0] * 5, 100) == pytest.approx(100 * math.sqrt(0.03 * 0.97 / 100))
    draws = torch.distributions.Binomial(100, torch.tensor(0.03)).sample((100_000,))
    assert paired.drawn([3.0] * 5, 100) == pytest.approx(draws.std().item(), rel=0.02)
    least = paired.drawn([3.0] * 5, 100)
    low, high = paired.interval([3.0] * 5, clips=100)
    assert high - low == pytest.approx(2 * 2.776 * least / math.sqrt(5), rel=1e-3)
    assert 0.01 < paired.p_value([3.0] * 5, clips=100) < 0.05
    shares = [(100 * torch.tensor(clips / 100).item(), clips - 3.0) for clips in (25, 29, 31, 33, 37)]
    rounded = [more - less for more, less in shares]                   # of float32: they are not quite equal
    assert len(set(rounded)) > 1 and paired.p_value(rounded) == 1.0
    assert paired.p_value([3.0, 3.0, 3.0, 3.0, 3.001]) < 1e-9


# --- Holm ---------------------------------------------------------------------------------------------------

def test_holm_rejects_what_its_definition_rejects():
    """Go from the smallest p up, as long as the one of rank k is below level / (m - k)."""
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([]) == [] and paired.holm([0.5, 0.6]) == [1.0, 1.0]
    for ps in itertools.product((0.001, 0.012, 0.02, 0.04, 0.3), repeat=4):
        for level in (0.05, 0.1):
            rejected = set()
            for rank, i in enumerate(sorted(range(4), key=ps.__getitem__)):
                if ps[i] * (4 - rank) >= level:
                    break
                rejected.add(i)
            assert rejected == {i for i, p in enumerate(paired.holm(list(ps))) if p < level}


def test_at_most_5_tables_of_100_find_something_where_nothing_is():
    tables = samples(1000 * 12, 4).reshape(1000, 12, 4).tolist()
    found = [[paired.p_value(differences) for differences in table] for table in tables]
    assert statistics.mean(min(ps) < 0.05 for ps in found) > 0.35                      # 46 of 100 uncorrected
    assert statistics.mean(min(paired.holm(ps)) < 0.05 for ps in found) < 0.07


# --- Power --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seeds, shift, level", [(2, 5.0, 0.95), (3, 2.0, 0.95), (5, 1.68, 0.95),
                                                 (5, 3.0, 0.9975), (10, 0.0, 0.95)])
def test_power_is_how_often_it_is_found(seeds, shift, level):
    d = samples(100000, seeds, shift)
    found = d.mean(1).abs() / d.std(1) * math.sqrt(seeds) > paired.quantile(level, seeds - 1)
    assert paired.power(shift, seeds, level) == pytest.approx(found.float().mean().item(), abs=0.006)


def test_what_is_visible_is_found_in_80_of_100_and_shrinks_with_seeds():
    assert paired.visible(3) == pytest.approx(3.26, abs=0.01)          # published tables of the paired t-test
    assert paired.visible(10) == pytest.approx(1.00, abs=0.01)
    assert paired.power(paired.visible(5, 19), 5, 1 - 0.05 / 19) == pytest.approx(0.8, abs=1e-6)
    sizes = [paired.visible(seeds, 19) for seeds in (3, 4, 5, 8, 20)]
    assert sizes == sorted(sizes, reverse=True) and paired.visible(5, 19) > paired.visible(5)
