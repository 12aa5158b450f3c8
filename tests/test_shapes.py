"""The comparison of RoPE with an absolute embedding on unseen shapes: its statistics, settings and page."""

import pytest
import torch

from minltx.ablation.paired import holm, interval, p_value
from minltx.dit import DiT
from minltx.rope import rope_tables
from minltx.training.settings import from_stored, stored
from tools import shapes, tables


def rows(factors):
    """Made-up rows: RoPE's loss is 1 + seed / 10, the other one's that times a factor for every shape."""
    return [{"kind": kind, "seed": seed, "shapes": {
        name: {"loss": (1 + seed / 10) * (factor[seed] if kind == "absolute" else 1)}
        for name, factor in zip(shapes.SHAPES, factors)}} for seed in range(3) for kind in shapes.KINDS]


def test_differences_are_paired_by_seed_and_relative_to_rope():
    factors = [[1 + 0.01 * (i + 1) * (3 + seed) for seed in range(3)] for i in range(len(shapes.SHAPES))]
    found = shapes.comparisons(rows(factors))
    percent = [[100 * (x - 1) for x in factor] for factor in factors]
    corrected = holm([p_value(x) for x in percent])
    for (name, one), x, p in zip(found.items(), percent, corrected):
        assert one["difference"] == pytest.approx(sum(x) / 3) and one["p"] == pytest.approx(p)
        assert one["interval"] == pytest.approx(interval(x))
    few = [row for row in rows(factors) if row["seed"] < 2]
    assert all(one["interval"] is one["p"] is None for one in shapes.comparisons(few).values())


def test_no_unseen_shape_was_in_training():
    seen = [set(values) for values in zip(*shapes.SEEN)]
    longest, widest = (max(f / fps for f, _, fps in shapes.SEEN), max(size for _, size, _ in shapes.SEEN))
    assert not set(shapes.UNSEEN.values()) & set(shapes.SEEN)
    for name in ("longer", "all three"):
        assert shapes.UNSEEN[name][0] / shapes.UNSEEN[name][2] > longest
    for name in ("larger", "all three"):
        assert shapes.UNSEEN[name][1] > widest
    for name in ("another rate", "all three"):
        assert shapes.UNSEEN[name][2] not in seen[2]


def test_the_embedding_consists_of_ropes_own_numbers():
    """Both get the same information about places; they differ in what is done with it."""
    config = shapes.settings(10).model
    torch.manual_seed(0)
    rope, absolute = (idea.build(config).dit for idea in shapes.KINDS.values())
    assert type(rope) is DiT and rope.state_dict().keys() == absolute.state_dict().keys()
    coordinates = torch.rand(3, 20) * 30
    cos, sin = rope_tables(coordinates, config.dit.width, config.dit.max_position, config.dit.theta)
    embedding = absolute.rotation(coordinates).embedding
    assert torch.equal(embedding, torch.cat([cos[:, ::2], sin[:, ::2]], dim=1))


def test_the_report_is_of_todays_settings():
    """But for the VAE's phases: these runs take the shipped model's VAE."""
    report, today = tables.report("shapes"), stored(shapes.settings(1000))
    settings, variants = from_stored(report["settings"])
    assert {**settings, "vae_phases": today["vae_phases"]} == today and variants == {}
    assert "--steps 1000" in report["command"]
    made = shapes.comparisons(report["rows"])
    assert {name: one["p"] for name, one in made.items()} == pytest.approx(
        {name: one["p"] for name, one in report["comparisons"].items()})
