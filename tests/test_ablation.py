"""The ablations: switches, ideas of one's own, equal compute, paired comparisons, resuming after a kill."""

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import SMALL, Killed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minltx.ablation import __main__ as ablation
from minltx.ablation import cost, ideas, runner, switches, verdicts
from minltx.ablation.ideas import Idea, identity, identity_in
from minltx.dit import Block
from minltx.evaluation.digits import DigitClassifier
from minltx.evaluation import report as judging
from minltx.toy.data import MovingDigits, draw_digits
from minltx.toy.model import SHIPPED, save_checkpoint
from minltx.toy.texture import TexturedDigits
from minltx.training import loops
from minltx.training.latents import take_vae
from minltx.training.settings import from_stored, stored

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture()
def small(monkeypatch):
    for module in (switches, ablation):
        monkeypatch.setattr(module, "SHORT", SMALL)
    monkeypatch.setattr(runner, "load_digits", lambda source, seed: (draw_digits(300, 2 * seed),
                                                                     draw_digits(100, 2 * seed + 1)))
    monkeypatch.setattr(judging, "clips_at_once", lambda most, data: 16)


def write_classifier(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    torch.save(DigitClassifier().state_dict(), path)           # it need not know digits


def spec_of(folder, stage="vae", idea=Idea(), seed=0, **more):
    """What a run's own process is told."""
    write_classifier(folder / "frame_classifier.pt")
    return {"stage": stage, "level": "x", "classes": [ideas.reference(cls) for cls in idea.classes],
            **identity(idea), "seed": seed, "budget": 1.0, "prompts": 3, "digits": "drawn", "world": "black",
            "device": "cpu", "classifier": str(folder / "frame_classifier.pt"), **more}


def command(folder, *arguments):
    """Start `python -m minltx.ablation` in a folder, as a user does after pip install."""
    return subprocess.Popen([sys.executable, "-m", "minltx.ablation", *map(str, arguments)], cwd=folder,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


# --- Switches ---------------------------------------------------------------------------------------------

def differences(a, b, path=""):
    """The fields in which two stored configs differ, with dots."""
    if isinstance(a, dict):
        return {field for key in a.keys() | b.keys()
                for field in differences(a.get(key), b.get(key), f"{path}.{key}")}
    return set() if a == b else {path[1:]}


def test_every_level_changes_what_it_claims_and_the_first_level_is_the_reference():
    assert len(switches.SWITCHES) >= 12
    for name, switch in switches.SWITCHES.items():
        assert switch.stage in switches.STAGES and switch.claim
        assert switch.figure in switches.STAGES[switch.stage] and switch.better in switch.levels, name
        default = stored(switches.settings_for(Idea(), switch.stage, 0.5))
        names = [json.dumps(identity(idea)) for idea in switch.levels.values()]
        assert len(set(names)) == len(names)                                       # no level twice
        for level, idea in switch.levels.items():
            settings = switches.settings_for(idea, switch.stage, 0.5)
            follows = {"model.dit.latent_channels"} if "model.vae.latent_channels" in idea.changes else set()
            assert differences(stored(settings), default) == {*idea.changes} | follows, (name, level)
            torch.manual_seed(0)
            model = idea.build(settings.model)
            assert model.dit.config.stride == model.vae.config.stride == (4, 8, 8)      # as many tokens
            for cls in idea.classes:
                assert identity(ideas.load([ideas.reference(cls)], idea.changes)) == identity(idea)


def test_any_field_is_a_switch_and_wrong_ones_are_named():
    name, switch = switches.parse_switch("rope=none,exponential")
    assert list(switch.levels) == ["none", "exponential"] and switch.levels["exponential"] is switches.DEFAULT
    name, switch = switches.parse_switch("loss.dwt=0.1,0.5")
    assert (name, switch.stage) == ("loss.dwt", "vae") and identity(switch.levels["0.1"]) == identity(Idea())
    assert switches.settings_for(switch.levels["0.5"], "vae").loss.dwt == 0.5
    name, switch = switches.parse_switch("model.dit.depth=4,2")
    assert switch.stage == "dit" and switches.settings_for(switch.levels["2"], "dit").model.dit.depth == 2
    for field, stage in (("vae_lr", "vae"), ("discriminator_lr", "vae"), ("clean", "vae"), ("dit_lr", "dit"),
                         ("conditioned", "dit"), ("model.data.digits", "both")):
        values = "0.5,1" if field in ("clean", "conditioned") else "1,2"
        assert switches.parse_switch(f"{field}={values}")[1].stage == stage
    for text, message in (("rope=none,round", "no level 'round': use exponential"),
                          ("ropes", "is not a switch"),
                          ("loss.dwd=0,1", "'dwd' is not a setting: LossConfig has pixel"),
                          ("loss.dwt=0.1", "has nothing to compare"),
                          ("dit_lr=fast,slow", "dit_lr is 'fast': use a value like the default")):
        with pytest.raises(ValueError, match=message):
            switches.parse_switch(text)


def test_references_are_shared_and_a_grid_is_a_product():
    both = dict(map(switches.parse_switch, ("rope=exponential,none", "qk-norm=rms,none")))
    rows, runs = ablation.plan(both, 2, grid=False)
    assert len(rows) == 4 and len(runs) == 2 * 3                      # both references are one run
    rows, runs = ablation.plan(both, 2, grid=True)
    assert len(rows) == 4 and len(runs) == 2 * 4
    assert rows[-1][1:3] == ("none x none", "dit")
    assert identity(rows[-1][3]) == {"idea": ["UnrotatedDiT", "NoQKNorm"], "changes": {}}
    stages = dict(map(switches.parse_switch, ("dwt=0.1,0", "dit_batch=32,16")))
    assert ablation.plan(stages, 1, grid=True)[0][-1][2] == "both"


@pytest.mark.parametrize("name, at_least", [("claims", 10), ("texture", 6), ("decoders", 2),
                                            ("coordinates", 1)])
def test_the_stored_claims_count_as_done_and_their_table_is_recounted(name, at_least):
    """The verdicts follow from the reports."""
    folder = RESULTS / name
    asked = json.loads((folder / "asked.json").read_text())
    args = asked_for(*shlex.split(asked["command"])[3:])
    chosen = dict(map(switches.parse_switch, asked["switches"]))
    rows, runs = ablation.plan(chosen, asked["seeds"], asked["grid"])
    assert len(chosen) >= at_least and asked["seeds"] >= 5 and args.switches == asked["switches"]
    found = verdicts.read(folder, rows)                            # of some rows more seeds than asked for
    kept = {verdicts.folder_of(*row, seed) for row in rows for seed in range(len(found[row[:2]]))}
    assert kept >= {*runs} and len(kept) == len(list(folder.glob("*/*/seed*/report.json")))
    for where, (_, _, stage, idea, seed) in runs.items():
        budget = (args.budget or 1.0) * switches.LENGTH[stage]
        assert ablation.is_done(folder / where, idea, budget, args.digits, args.world)
        report = json.loads((folder / where / "report.json").read_text())
        settings = switches.settings_for(idea, stage, report["budget"] / report["step_cost"])
        assert stored(settings) == from_stored(report["settings"])[0] and report["seed"] == seed
    lines = verdicts.collect(folder, rows)
    assert verdicts.markdown(lines, chosen) == (folder / "table.md").read_text()
    with open(folder / "table.csv") as file:
        assert [line["values"] for line in csv.DictReader(file)] == \
            [" ".join(map(repr, line["values"])) for line in lines]


# --- Compute ----------------------------------------------------------------------------------------------

def test_equal_compute_means_fewer_of_the_expensive_steps(small):
    digits = draw_digits(50, 0)
    kinds = {"one": ("vae", {}), "two": ("vae", {"vae_phases": ((1, 8, 3), (9, 4, 4))}),
             "frozen": ("decoder", {}), "dit": ("dit", {}), "deep": ("dit", {"model.dit.depth": 4}),
             "both": ("both", {})}
    cost = {name: runner.flops(Idea(changes), stage, digits) for name, (stage, changes) in kinds.items()}
    assert cost["two"] == pytest.approx(2 * cost["one"], rel=1e-6)
    assert cost["frozen"] < 0.9 * cost["one"] and 1.4 < cost["deep"] / cost["dit"] < 2.0
    assert cost["both"] == pytest.approx(cost["one"] + cost["dit"], rel=0.01)


def test_the_compute_of_an_idea_is_that_of_its_own_modules(small):
    class Twice(Block):
        def forward(self, h, *how):
            return super().forward(super().forward(h, *how), *how)

    digits = draw_digits(50, 0)
    usual, twice = (runner.flops(idea, "dit", digits) for idea in (Idea(), ideas.idea_of(Twice)))
    assert twice > 1.4 * usual
    assert twice == pytest.approx(runner.flops(Idea({"model.dit.depth": 4}), "dit", digits))


def counted_as_torch_does(work):
    """Without the fused attention of a CPU."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def counted_as_plain_products(work):
    """With attention as the products that it is made of."""
    with sdpa_kernel(SDPBackend.MATH):
        return counted_as_torch_does(work)


def test_attention_is_counted_as_its_products(small):
    settings = switches.settings_for(Idea(), "dit")
    steps = runner.dit_steps(Idea(), settings, MovingDigits(*draw_digits(50, 0), settings.model.data))
    assert sum(count for count, _ in steps) == settings.dit_steps and len(steps) == len(set(settings.layouts))
    for _, step in steps:
        assert runner.counted(step) == counted_as_plain_products(step) > 1.01 * counted_as_torch_does(step)


def test_only_pairs_that_attend_are_charged(small):
    """Attention in space, then time, as if each frame and each place were attended alone; a caption's padding
    and a causal mask."""
    q, k, v = (torch.randn(2, 4, 24, 12, requires_grad=True) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention

    def charged(count, *tensors, **how):
        return count(lambda: attend(*tensors, **how).sum().backward())

    for group in (torch.arange(24) // 8, torch.arange(24) % 8):
        alone = sum(charged(counted_as_plain_products, *(x[:, :, group == g] for x in (q, k, v)))
                    for g in group.unique())
        assert charged(runner.counted, q, k, v, attn_mask=(group[:, None] == group)[None, None]) == alone > 0
    dense = charged(counted_as_plain_products, q, k, v)
    assert charged(runner.counted, q, k, v, attn_mask=torch.full((2, 1, 1, 24), -10000.0)) == dense
    assert charged(runner.counted, q, k, v, is_causal=True) == dense * 25 / 48
    full, both = (runner.flops(idea, "dit", draw_digits(50, 0))
                  for idea in (Idea(), switches.SWITCHES["attention"].levels["space-time"]))
    assert 0.7 * full < both < full


@pytest.mark.slow
@pytest.mark.parametrize("where", ["texture/vae/gan=reconstruction", "texture/vae/gan=ordinary",
                                   "decoders/decoder/decoder=plain", "claims/dit/attention=space-time",
                                   "claims/dit/token-drop=0.2"])
def test_steps_cost_what_they_cost_in_the_stored_claims(where):
    report = json.loads((RESULTS / where / "seed0" / "report.json").read_text())
    stage, name, level = re.fullmatch(r"\w+/(\w+)/(.+)=(.+)", where).groups()
    digits, idea = draw_digits(200, 0), switches.SWITCHES[name].levels[level]
    costs = [runner.flops(some, stage, digits) for some in (idea, Idea())]
    assert costs[0] / costs[1] == pytest.approx(report["step_cost"], rel=2e-3)


def test_minutes_are_timed_once_and_kept(small, tmp_path, monkeypatch):
    """A training that takes 30 s here gets twice its steps in a minute, and the same after a restart."""
    args = argparse.Namespace(minutes=1.0, budget=1.0, digits="drawn", jobs=2)
    assert runner.seconds(Idea(), "vae", draw_digits(50, 0)) > 0
    monkeypatch.setattr(ablation, "seconds", lambda idea, stage, digits: 30.0)
    assert ablation.calibrate(args, tmp_path, {"vae"}) == {"vae": 2.0}
    monkeypatch.setattr(ablation, "seconds", lambda idea, stage, digits: 10.0)
    assert ablation.calibrate(args, tmp_path, {"vae", "dit"}) == {"vae": 2.0, "dit": 6.0}
    args.minutes = None
    assert ablation.calibrate(args, tmp_path, {"vae"}) == {"vae": switches.LENGTH["vae"]}


# --- The cost, before it starts ---------------------------------------------------------------------------

def asked_for(*words):
    return ablation.options().parse_args(words)


def test_the_whole_cost_is_said_before_anything_is_trained(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "load_digits", lambda source, seed: (draw_digits(50, 0), None))
    monkeypatch.setattr(cost, "seconds", lambda idea, stage, digits: {"dit": 600.0, "both": 1200.0}[stage])
    monkeypatch.setattr(cost, "seconds_of_the_rest", lambda stage, digits, prompts: (120.0, 60.0))
    monkeypatch.setattr(cost, "IMPORTS", 0.0)

    def trained(*args):
        raise OSError("now it starts")

    monkeypatch.setattr(ablation, "prepare", trained)
    for more, toy in (((), 0), (("--model", "short", "--shared-budget", "0.5"), 10)):
        with pytest.raises(SystemExit):
            ablation.main(["rope=exponential,none", "--seeds", "3", "--budget", "0.5", "--jobs", "2", *more,
                           "--out", str(tmp_path)])
        shown = capsys.readouterr()
        assert "now it starts" in shown.err
        first, *parts, power = shown.out.splitlines()[1:]
        minutes = toy + 6 * 0.3 * 10 + 6 * 1 + 3 * 2      # latents are encoded once for each seed
        assert first == f"about {minutes / 2:.0f} min in all, 2 at a time:"
        assert sum(float(part.split(" min ")[0]) for part in parts) == pytest.approx(minutes, abs=0.2)
        assert any("6 runs of stage dit" in part for part in parts) and "3.3 standard deviations" in power
        assert any("short toy" in part for part in parts) == bool(toy)
    assert "corrected for 4 comparisons" in cost.announce({"x": 60.0}, 1, 5, 4)
    assert "no verdicts" in cost.announce({"x": 60.0}, 1, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "decoder", "dit", "both"])
def test_the_rest_of_a_run_is_measured(small, stage):
    encoding, judging = cost.seconds_of_the_rest(stage, draw_digits(50, 0), 4)
    assert judging > 0 and (encoding > 0) == (stage in ("dit", "both"))
    assert cost.classifier_seconds(draw_digits(50, 0)) > 0


def test_transformers_share_the_shipped_vae_and_nothing_is_trained_for_them(tmp_path):
    config = switches.settings_for(Idea(), "dit").model
    take_vae(Idea().build(config), SHIPPED)                                # raises if it does not fit
    here = asked_for("--out", str(tmp_path))
    assert ablation.shared_model(here, tmp_path, "dit") == SHIPPED
    assert ablation.missing(here, tmp_path, {"dit", "vae"}) == (False, False)
    assert ablation.missing(here, tmp_path, {"decoder"}) == (False, True)
    assert ablation.missing(asked_for("--digits", "mnist"), tmp_path, {"vae"}) == (True, False)
    short = tmp_path / "shared" / "model.pt"
    texture = asked_for("--world", "texture")
    assert ablation.shared_model(texture, tmp_path, "dit") == tmp_path / "shared-texture" / "model.pt"
    assert ablation.missing(texture, tmp_path, {"dit"})[1]
    for args in (asked_for("--model", "short"), asked_for("--digits", "mnist")):
        assert ablation.shared_model(args, tmp_path, "dit") == short
        assert ablation.missing(args, tmp_path, {"dit"})[1]
        assert not ablation.missing(args, tmp_path, {"vae"})[1]
    short.parent.mkdir()
    short.touch()
    own = asked_for("--model", str(short))
    assert {ablation.shared_model(own, tmp_path, stage) for stage in ("dit", "decoder")} == {short}
    assert not ablation.missing(asked_for("--model", "short"), tmp_path, {"dit", "decoder"})[1]
    with pytest.raises(ValueError, match="absent.pt is not a file"):
        ablation.shared_model(asked_for("--model", str(tmp_path / "absent.pt")), tmp_path, "dit")


# --- Verdicts ---------------------------------------------------------------------------------------------

def test_comparisons_are_paired_by_seed():
    far = verdicts.compare([11.0, 21.0, 31.2], [10.0, 20.0, 30.0])      # seeds differ more than levels do
    assert far["difference"] == pytest.approx(1.0667, abs=1e-3) and far["spread"] > 10
    assert 0.9 > far["low"] > 0.7 and far["high"] < 1.4 and far["p"] < 0.01
    assert verdicts.compare([11.0, 19.0, 31.0], [10.0, 20.0, 30.0])["low"] < 0          # not of one sign
    alone = verdicts.compare([11.0], [10.0])                                        # one seed has no spread
    assert alone["low"] is alone["high"] is alone["p"] is None and alone["difference"] == 1
    more = verdicts.compare([11.0, 21.0, 31.2, 9.0], [10.0, 20.0, 30.0])         # a seed without a partner
    assert more["seeds"] == 3 and more["difference"] == far["difference"] and more["mean"] == 18.05


def lines(levels, figure="validation"):
    """{level: values by seed} as a table's lines of the switch "s"."""
    return [{"switch": "s", "level": level, "figure": figure, "values": values}
            for level, values in levels.items()]


def words(switch, levels):
    """Level -> the verdict against it."""
    return {found["other"]: found["verdict"]
            for found in verdicts.verdicts(lines(levels, switch.figure), {"s": switch})}


LOW, HIGH, WIDE = [1.0, 1.1, 0.9, 1.2], [2.0, 2.2, 1.9, 2.1], [1.5, 0.5, 1.6, 0.9]


def test_verdicts_say_what_the_numbers_say():
    switch = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a beats b", "validation", "a")
    assert words(switch, {"a": LOW, "b": HIGH}) == {"b": "holds"}                 # less of a loss is better
    assert words(switch, {"a": HIGH, "b": LOW}) == {"b": "does not hold"}
    assert words(switch, {"a": WIDE, "b": LOW}) == {"b": "cannot be told"}
    assert words(switch, {"a": LOW, "b": HIGH, "c": [0.5, 0.4, 0.2, 0.4], "d": WIDE}) == {
        "b": "holds", "c": "does not hold", "d": "cannot be told"}
    alone = replace(switch, levels={"a": Idea()}, figure="first frame")            # a difference itself
    for values, answer in (([0.2, 0.3, 0.2], "holds"), ([-0.2, -0.3, -0.3], "does not hold"),
                           ([0.2, -0.3, 0.1], "cannot be told"), ([0.0, 0.0, 0.0], "cannot be told")):
        assert words(alone, {"a": values}) == {"0": answer}
    assert words(replace(switch, better="c"), {"a": LOW, "b": HIGH}) == {}


def test_a_claim_that_something_is_free_allows_a_small_cost():
    free = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a is free", "digit", "a", allowed=5.0)
    other = [50.0, 60.0, 55.0, 40.0]
    for cost, answer in (((1, 1.5, 2, 1), "holds"), ((20, 21, 22, 20), "does not hold"),
                         ((6, 1, 9, -2), "cannot be told"), ((-9, -8, -10, -9), "holds")):
        assert words(free, {"a": [x - c for x, c in zip(other, cost)], "b": other}) == {"b": answer}
    assert words(replace(free, allowed=0.0), {"a": [x - 1 - i / 9 for i, x in enumerate(other)],
                                              "b": other}) == {"b": "does not hold"}


def test_every_claim_of_the_table_makes_the_others_harder():
    switch = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a beats b", "validation", "a")
    close = {"a": [1.0, 1.1, 0.9, 1.05], "b": [1.3, 1.25, 1.3, 1.2]}
    assert words(switch, close) == {"b": "holds"}
    assert words(switch, {**close, **{f"none {i}": [1.02, 1.08, 0.9, 1.05] for i in range(9)}})["b"] == \
        "cannot be told"


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_give_no_verdict_however_far_apart(seeds):
    switch = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a beats b", "validation", "a")
    levels = {"a": LOW[:seeds], "b": [1000.0, 1000.1][:seeds]}
    assert words(switch, levels) == {"b": "no verdict with fewer than 3 seeds"}
    table = [{**line, "stage": "dit", "reference": "a", "corrected": None,
              **verdicts.compare(line["values"], levels["a"])} for line in lines(levels)]
    verdicts.correct(table[1:])
    assert "*" not in verdicts.cell(table[1]) and "no verdict" in verdicts.markdown(table, {"s": switch})


def test_effects_have_units_and_are_positive_in_favour_of_the_claim():
    assert {figure for figures in switches.STAGES.values() for figure in figures} == set(switches.UNITS)
    loss = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a beats b", "validation", "a")
    found, = verdicts.verdicts(lines({"a": [0.5, 0.7, 0.6], "b": [1.0, 1.1, 0.9]}), {"s": loss})
    assert found["effect"] == pytest.approx(40) and found["unit"] == "% of the loss"
    share = replace(loss, stage="vae", figure="motion")
    found, = verdicts.verdicts(lines({"a": [0.9, 0.8, 0.8], "b": [0.7, 0.7, 0.8]}, "motion"), {"s": share})
    assert found["effect"] == pytest.approx(10) and found["unit"] == "% of the clips' motion"
    assert found["low"] < 10 < found["high"] and found["visible"] > 10


def test_the_tables_explain_their_signs(tmp_path):
    """Plus-minus, the star, p, the words, and what could have been seen; with the numbers that decide."""
    rows = [("s", "a", "dit", Idea()), ("s", "b", "dit", Idea({"dit_lr": 0.1}))]
    for row, values in zip(rows, (LOW, HIGH)):
        for seed, value in enumerate(values[:3] if row[1] == "b" else values):
            path = tmp_path / verdicts.folder_of(*row, seed) / "report.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({**identity(row[3]), "budget": 1.0, "figures": {"validation": value}}))
    switch = switches.Switch("dit", {"a": Idea(), "b": Idea()}, "a beats b", "validation", "a")
    found = verdicts.collect(tmp_path, rows)
    assert [line["seeds"] for line in found] == [4, 3] and found[0]["corrected"] is None
    claims, signs, table, legend = verdicts.markdown(found, {"s": switch}).split("\n\n")
    row = [text.strip() for text in claims.splitlines()[2].split("|")[1:-1]]
    assert row[:4] == ["a beats b", "s", "a against b", "3"] and row[7] == "**holds**"
    assert row[4] == "+51 % of the loss" and re.fullmatch(r"\+\d+ to \+\d+", row[5])
    for text in ("Better by", "95 % interval", "Holm", "all 1 comparisons", "Holds", "does not hold",
                 "Cannot be told", "Visible from"):
        assert text in " ".join(signs.split())
    assert "| s | b | 3 | 2.03 ± 0.15 (+1.03 ± 0.14*) |" in table
    assert "standard deviation over seeds" in legend and "`*`" in legend and "fewer than 3" in legend
    other = json.loads(path.read_text())
    path.write_text(json.dumps({**other, "budget": 2.0}))             # another budget is not the next seed
    assert [line["seeds"] for line in verdicts.collect(tmp_path, rows)] == [4, 2]


@pytest.mark.slow
# --- Runs -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage, changes, at", [
    ("vae", {"loss.adversarial": 0.1, "loss.perceptual": 0.1}, 5), ("both", {"token_drop": 0.2}, 12)])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(small, tmp_path, monkeypatch, stage, changes, at):
    """Discriminator, its optimiser and all: the figures are the same to the last bit."""
    classifier = DigitClassifier()
    monkeypatch.setattr(loops, "train_classifier", lambda data, steps, seed: classifier)
    monkeypatch.setattr(runner, "flops", lambda idea, stage, digits: 1.0)
    monkeypatch.setattr(runner.Run, "save_every", 2)
    spec = spec_of(tmp_path, stage, Idea(changes), seed=1)
    with torch.random.fork_rng():
        whole = runner.train_and_judge(spec, tmp_path / "whole")
        log, calls = runner.Run.log, []

        def until_killed(self, step, **numbers):
            calls.append(1) if "validation" not in numbers and "psnr" not in numbers else None
            if len(calls) > at:
                raise Killed
            return log(self, step, **numbers)

        monkeypatch.setattr(runner.Run, "log", until_killed)
        with pytest.raises(Killed):
            runner.train_and_judge(spec, tmp_path / "cut")
        monkeypatch.setattr(runner.Run, "log", log)
        assert (tmp_path / "cut" / "checkpoint.pt").exists()
        cut = runner.train_and_judge(spec, tmp_path / "cut")
    assert cut["figures"] == whole["figures"] and cut["changes"] == whole["changes"] == changes
    assert cut["judge"] == runner.JUDGE


@pytest.mark.slow
def test_a_new_decoder_is_trained_for_the_shared_encoder(small, tmp_path, monkeypatch):
    """Also an unconditioned one; all levels decode the same latents, and everything else stays as it is."""
    monkeypatch.setattr(runner, "flops", lambda idea, stage, digits: 1.0)
    torch.manual_seed(5)
    shared = Idea().build(SMALL.model)
    save_checkpoint(tmp_path / "model.pt", shared)
    for level in ("conditioned", "plain"):
        idea, folder = switches.SWITCHES["decoder"].levels[level], tmp_path / level
        spec = spec_of(tmp_path, "decoder", idea, model=str(tmp_path / "model.pt"))
        run, _ = runner.train(idea, switches.settings_for(idea, "decoder"), spec, folder)
        weights = run.model.state_dict()
        kept = {k: v for k, v in shared.state_dict().items() if not k.startswith("vae.decoder.")}
        assert all(torch.equal(weights[k], v) for k, v in kept.items())
        report = runner.train_and_judge(spec, folder)                    # the stage is done: judged only
        assert len(report["grid"]) == 25 and report["figures"].keys() >= {"psnr", "generated digit"}
        by_noise = {row["psnr"] for row in report["grid"] if row["noise"] == 0}
        assert len(by_noise) == (5 if level == "conditioned" else 1)     # only one of them depends on t


def test_runs_of_the_textured_world_have_its_clips(small, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "train_vae", lambda run, model, sources, *more: seen.extend(sources))
    spec = spec_of(tmp_path, "vae")
    for world in ("black", "texture"):
        _, held_out = runner.train(Idea(), SMALL, {**spec, "world": world}, tmp_path / world)
        for data in (seen.pop(), held_out):
            corners = data.batch(8, torch.Generator().manual_seed(0))[0][..., :2, :2]
            assert (corners.max() > -0.9) == (world == "texture")
    assert isinstance(held_out, TexturedDigits)


def test_runs_with_other_clips_are_not_taken_for_these(tmp_path):
    idea, done = Idea(), {**identity(Idea()), "budget": 1.0}
    for clips, digits, world in (({}, "drawn", "black"), ({"digits": "mnist"}, "mnist", "black"),
                                 ({"digits": "drawn", "world": "texture"}, "drawn", "texture")):
        (tmp_path / "report.json").write_text(json.dumps({**done, **clips}))
        assert ablation.is_done(tmp_path, idea, 1.0, digits, world)
        with pytest.raises(ValueError, match="other clips: name another folder with --out"):
            ablation.is_done(tmp_path, idea, 1.0, digits, "black" if world == "texture" else "texture")
    with pytest.raises(ValueError, match="other clips"):
        ablation.is_done(tmp_path, idea, 1.0, "mnist", "texture")


def test_a_level_of_another_frame_rate_is_judged_by_its_speeds(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "flops", lambda idea, stage, digits: 1.0)
    save_checkpoint(tmp_path / "model.pt", Idea().build(SMALL.model))
    idea = switches.SWITCHES["coordinates"].levels["frames"]
    spec = spec_of(tmp_path, "dit", idea, model=str(tmp_path / "model.pt"), latents=str(tmp_path))
    report = runner.train_and_judge({**spec, "prompts": 4}, tmp_path / "run")
    assert list(report["speeds"]) == ["16.0", "20.0", "24.0", "28.0", "32.0"]
    assert report["figures"]["speed error"] > 0 and report["idea"] == ["FramesNotSeconds"]
    for fps, speed in report["speeds"].items():          # one clip for all rates, shown faster or more slowly
        assert speed == pytest.approx(report["speeds"]["16.0"] * float(fps) / 16, rel=1e-6)
    assert (tmp_path / "0-9x32x16_9x32x24_9x32x32.pt").exists()


@pytest.mark.slow
def test_killing_the_runner_and_starting_it_again_gives_the_same_table(tmp_path):
    def start(name):
        return command(tmp_path, "dwt=0.1,0", "--seeds", 1, "--budget", 0.01, "--jobs", 2, "--out", name,
                       "--device", "cpu")

    for name in ("whole", "cut"):
        write_classifier(tmp_path / name / "frame_classifier.pt")
    process = start("cut")
    while not list((tmp_path / "cut").rglob("log.txt")):              # both workers have begun
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "table.csv").exists()
    time.sleep(1)                                                       # workers end with their runner
    for name in ("whole", "cut"):
        process = start(name)
        assert process.wait() == 0, process.stdout.read()
    tables = [{p: (tmp_path / name / p).read_bytes() for p in ("table.md", "table.csv")}
              for name in ("whole", "cut")]
    assert tables[0] == tables[1]
    with open(tmp_path / "cut" / "table.csv") as file:
        lines = list(csv.DictReader(file))
    assert {(line["level"], line["figure"]) for line in lines} >= {("0.1", "psnr"), ("0", "motion")}
    report = json.loads((tmp_path / "cut/vae/dwt=0/seed0/report.json").read_text())
    assert float(lines[-1]["values"]) == report["figures"][lines[-1]["figure"]]
    assert report["settings"]["loss"]["dwt"] == 0 and (tmp_path / "cut" / "plot.png").stat().st_size > 5000
    done = start("cut")
    assert done.wait() == 0 and "2 runs, 2 of them done" in done.stdout.read()


def test_mistakes_are_reported_before_anything_is_trained(tmp_path, capsys):
    for options, message in (([], "name a switch"), (["rope", "--seeds", "0"], "use 1 to 1000"),
                             (["nothing"], "is not a switch"),
                             (["times=uniform,logit-normal", "coordinates", "--grid", "--prompts", "1"],
                              "1 is out of range: use 2 to 100000"),
                             (["model.dit.heads=4,7"], "heads is 7: use a number that divides the width 96")):
        with pytest.raises(SystemExit) as stop:
            ablation.main([*options, "--out", str(tmp_path / "out")])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- An idea of one's own ---------------------------------------------------------------------------------

def documented():
    """The file and the command of docs/ablations.md."""
    page = (ROOT / "docs" / "ablations.md").read_text()
    section = page.split("## An idea of your own\n")[1].split("\n## ")[0]
    (file,), (line,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "bash"))
    words = line.split()
    assert words[:3] == ["python", "-m", "minltx.ablation"] and words[3].startswith("mine.py:")
    return file, words[3:]


OTHERS = '''
import torch

from minltx.ablation.ideas import Idea
from minltx.dit import DiT
from minltx.vae import Decoder


class Slow(Idea):
    changes = {"dit_lr": 0.002}

    def flow_objective(self, model, batch, recipe, generator):
        open("objective.txt", "a").write("x")
        return super().flow_objective(model, batch, recipe, generator)

    def draw_t(self, count, tokens, generator=None):
        return torch.full((count,), 0.5)


class Grey(Decoder):
    def forward(self, latent, t, generator=None):
        return super().forward(latent, t, generator).mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)


class Wrong(DiT):
    def rotation(self, coordinates):
        return coordinates.no_such_thing


class NotAnIdea:
    pass
'''


def test_the_documented_idea_is_a_switch(tmp_path, monkeypatch):
    file, (text, *_) = documented()
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(file)
    name, switch = switches.parse_switch(text)
    assert (name, switch.stage, list(switch.levels)) == ("mine", "dit", ["default", "NoGates"])
    model = switch.levels["NoGates"].build(SMALL.model)
    assert {type(block).__name__ for block in model.dit.blocks} == {"NoGates"}
    latent, text, t = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 2, 16), torch.tensor([0.3])
    torch.nn.init.normal_(model.dit.proj_out.weight)
    before = model.dit(latent, t, text)
    for block in model.dit.blocks:                                     # rows 2 and 5 are the gates
        block.scale_shift_table.data[[2, 5]] += 1
    assert torch.equal(model.dit(latent, t, text), before)
    block.scale_shift_table.data[0] += 1
    assert not torch.equal(model.dit(latent, t, text), before)


def test_ideas_of_a_file_are_trained_with_their_own_hooks(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("others.py").write_text(OTHERS)
    save_checkpoint(tmp_path / "model.pt", Idea().build(SMALL.model))
    monkeypatch.setattr(runner, "flops", lambda idea, stage, digits: 1.0)
    slow = switches.parse_switch("others.py:Slow")[1].levels["Slow"]
    spec = spec_of(tmp_path, "dit", slow, model=str(tmp_path / "model.pt"), latents=str(tmp_path))
    report = runner.train_and_judge(spec, tmp_path / "slow")
    assert Path("objective.txt").read_text() == "x" * SMALL.dit_steps       # not in the validation
    assert report["settings"]["dit_lr"] == 0.002 and report["changes"] == {"dit_lr": 0.002}
    assert re.fullmatch(r"others.py:Slow \w{12}", report["idea"][0])
    assert [i for i, loss in enumerate(report["loss_by_t"]) if loss] == [5]      # all times are 0.5
    grey = switches.parse_switch("others.py:Grey")[1]
    run, _ = runner.train(grey.levels["Grey"], SMALL, spec_of(tmp_path), tmp_path / "grey")
    output = run.model.vae.decode(torch.randn(1, 4, 1, 4, 4), torch.zeros(1))
    assert grey.stage == "vae" and torch.equal(output[:, 0], output[:, 2])


def test_a_file_that_changed_is_another_idea(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("others.py").write_text(OTHERS)
    idea, folder = switches.parse_switch("others.py:Slow")[1].levels["Slow"], tmp_path / "run"
    spec = spec_of(tmp_path, "dit", idea)
    assert not ablation.is_done(folder, idea, 1.0)
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    assert not ablation.is_done(folder, idea, 1.0)                          # begun, to be resumed
    (folder / "report.json").write_text(json.dumps({**identity(idea), "budget": 1.0}))
    assert ablation.is_done(folder, idea, 1.0)
    with pytest.raises(ValueError, match="another idea or budget: name another folder with --out"):
        ablation.is_done(folder, idea, 2.0)
    Path("others.py").write_text(OTHERS + "# edited")
    with pytest.raises(ValueError, match="another idea or budget"):
        ablation.is_done(folder, idea, 1.0)
    (folder / "report.json").unlink()
    with pytest.raises(ValueError, match="another idea or budget"):
        ablation.is_done(folder, idea, 1.0)
    with pytest.raises(ValueError, match="has changed since the start"):
        runner.train_and_judge(spec, folder)


def test_reports_of_another_judge_are_shown_but_get_no_new_seeds(tmp_path):
    old, new = tmp_path / "seed0", tmp_path / "seed1"
    ablation.check_judge([old, new])                                        # nothing is there yet
    for folder, more in ((old, {}), (new, {"judge": runner.JUDGE})):
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(more))
    ablation.check_judge([new])
    with pytest.raises(ValueError, match="earlier judge.*name another folder with --out"):
        ablation.check_judge([new, old])


def test_mistakes_in_a_file_are_one_line(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("others.py").write_text(OTHERS)
    Path("broken.py").write_text("import torch\nclass Broken(torch.nn.Module:\n    pass\n")
    for text, message in (
            ("absent.py:Idea", "does not exist: name FILE.py:CLASS"),
            ("others.py:", "has no class '': it has Slow, Grey, Wrong"),
            ("others.py:Fast", "has no class 'Fast': it has Slow, Grey, Wrong, NotAnIdea"),
            ("others.py:NotAnIdea", "NotAnIdea is not an idea: it must be a subclass of Idea"),
            ("others.py:Slow,Grey", "the ideas must have one stage"),
            ("broken.py:Broken", "broken.py cannot be imported: SyntaxError: "),
            ("others.py:Wrong", "others = Wrong cannot be trained: AttributeError: 'Tensor' object has no "
                                "attribute 'no_such_thing' (others.py, line 27)")):
        with pytest.raises(SystemExit) as stop:
            ablation.main([text, "--out", "out"])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1, error
    assert not Path("out").exists()


@pytest.mark.slow
def test_the_documented_idea_is_trained_and_compared_by_the_documented_command(tmp_path):
    """As a user does it: in an empty folder outside the repository, with the package installed. Only the
    numbers are smaller, and a line in the file leaves a trace of the forward pass."""
    file, words = documented()
    for option, value in (("--seeds", "1"), ("--minutes", "0.03")):
        words[words.index(option) + 1] = value
    head, call = re.search(r"(.*def forward\([^\n]*\n)(.*)", file, re.S).groups()
    (tmp_path / "mine.py").write_text(f'{head}        open("{tmp_path}/trace.txt", "a").write("x")\n{call}')
    process = command(tmp_path, *words, "--prompts", 4)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    runs = tmp_path / "runs" / "ablation"
    table = (runs / "table.md").read_text()
    assert table in output and (runs / "plot.png").exists()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| mine |")]
    assert [row[1] for row in rows] == ["default", "NoGates"] and rows[0][3] != rows[1][3]
    assert "(" in rows[1][3] and "(" not in rows[0][3]                      # the difference from the default
    assert "no verdicts" in output and "short toy" not in output
    reports = [json.loads((runs / "dit" / name / "seed0" / "report.json").read_text())
               for name in ("reference", "mine=NoGates")]
    assert reports[0]["settings"] == reports[1]["settings"] and reports[0]["idea"] == []
    assert reports[1]["idea"][0].startswith("mine.py:NoGates ") and reports[1]["step_cost"] == 1.0
    assert [identity_in(report)["changes"] for report in reports] == [{}, {}]
    assert len((tmp_path / "trace.txt").read_text()) > 4 * reports[1]["settings"]["dit_steps"]    # 4 blocks
