"""The ablation runner: switches, equal compute, paired comparisons, and going on after being killed."""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import SMALL, Killed

import train_tiny
from minltx.data import MovingDigits, draw_digits
from minltx.workshop import ablate, comparison, metrics, switches, trial
from minltx.workshop.checkpoint import ToyModel

ROOT = Path(__file__).parents[1]


@pytest.fixture()
def small(monkeypatch):
    monkeypatch.setattr(train_tiny, "SHORT", SMALL)


def reader(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    torch.save(metrics.DigitClassifier().state_dict(), path)           # it need not know digits


def test_every_switch_of_the_list_can_be_built_and_its_first_level_is_its_reference():
    for name, switch in switches.SWITCHES.items():
        assert switch.stage in switches.STAGES and switch.claim
        assert switch.figure in switches.STAGES[switch.stage] and switch.better in switch.levels, name
        for changes in switch.levels.values():
            settings = switches.settings_for(changes, switch.stage, 0.5)
            ToyModel(settings.model)
            assert settings.model.dit.stride == settings.model.vae.stride == (4, 8, 8)      # as many tokens
    assert len(switches.SWITCHES) >= 12


def test_any_field_is_a_switch_and_wrong_ones_are_named():
    name, switch = switches.parse_switch("rope=none,exponential")
    assert list(switch.levels) == ["none", "exponential"] and switch.levels["exponential"] == {}
    name, switch = switches.parse_switch("loss.dwt=0.1,0.5")
    assert switch.stage == "vae" and switch.levels == {"0.1": {}, "0.5": {"loss.dwt": 0.5}}
    assert switches.settings_for(switch.levels["0.5"], "vae").loss.dwt == 0.5
    name, switch = switches.parse_switch("model.dit.depth=4,2")
    assert switch.stage == "dit" and switches.settings_for(switch.levels["2"], "dit").model.dit.depth == 2
    assert switches.parse_switch("times=shifted,uniform")[1].levels["uniform"] == {"times": "uniform"}
    for text, message in (("rope=none,round", "no level 'round': use exponential"), ("ropes", "is no switch"),
                          ("loss.dwd=0,1", "'dwd' is no setting: LossConfig has pixel"),
                          ("loss.dwt=0.1", "is no switch"), ("dit_lr=fast,slow", "of another kind")):
        with pytest.raises(ValueError, match=message):
            switches.parse_switch(text)


def test_references_are_shared_and_a_grid_is_a_product():
    both = dict(map(switches.parse_switch, ("rope=exponential,none", "qk-norm=rms,none")))
    rows, runs = ablate.plan(both, 2, grid=False)
    assert len(rows) == 4 and len(runs) == 2 * 3                      # both references are one run
    rows, runs = ablate.plan(both, 2, grid=True)
    assert len(rows) == 4 and len(runs) == 2 * 4
    assert rows[-1][1:] == ("none x none", "dit", {"model.dit.rope": "none", "model.dit.qk_norm": "none"})


def test_equal_compute_means_fewer_of_the_dearer_steps(small):
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    kinds = {"one": ("vae", {}), "two": ("vae", {"vae_phases": ((1, 8, 3), (9, 4, 4))}),
             "frozen": ("decoder", {}), "dit": ("dit", {}), "deep": ("dit", {"model.dit.depth": 4})}
    cost = {name: trial.flops(switches.settings_for(changes, stage), stage, data)
            for name, (stage, changes) in kinds.items()}
    assert cost["two"] == pytest.approx(2 * cost["one"], rel=1e-6)
    assert cost["frozen"] < 0.9 * cost["one"] and 1.4 < cost["deep"] / cost["dit"] < 2.0
    assert trial.flops(SMALL, "both", data) == pytest.approx(cost["one"] + cost["dit"], rel=0.01)


def test_minutes_are_timed_once_and_kept(small, tmp_path, monkeypatch):
    """A training that takes 30 s here gets twice its steps in a minute, and the same after a restart."""
    args = argparse.Namespace(minutes=1.0, budget=1.0, digits="drawn", jobs=2)
    assert trial.seconds(SMALL, "vae", MovingDigits(*draw_digits(50, 0), SMALL.model.data)) > 0
    monkeypatch.setattr(ablate, "seconds", lambda settings, stage, data: 30.0)
    assert ablate.calibrate(args, tmp_path, {"vae"}) == {"vae": 2.0}
    monkeypatch.setattr(ablate, "seconds", lambda settings, stage, data: 10.0)
    assert ablate.calibrate(args, tmp_path, {"vae", "dit"}) == {"vae": 2.0, "dit": 6.0}
    args.minutes = None
    assert ablate.calibrate(args, tmp_path, {"vae"}) == {"vae": switches.LENGTH["vae"]}


def test_comparisons_are_paired_by_seed():
    far = comparison.compare([11.0, 21.0, 31.2], [10.0, 20.0, 30.0])      # seeds differ more than levels do
    assert far["difference"] == pytest.approx(1.0667, abs=1e-3) and far["clear"] and far["spread"] > 10
    assert not comparison.compare([11.0, 19.0, 31.0], [10.0, 20.0, 30.0])["clear"]        # not of one sign
    assert not comparison.compare([10.1, 23.0, 30.1], [10.0, 20.0, 30.0])["clear"]        # one seed alone
    assert not comparison.compare([11.0], [10.0])["clear"]                            # one seed is no spread


def test_verdicts_say_what_the_numbers_say():
    switch = switches.Switch("dit", {"a": {}, "b": {}}, "a beats b", "validation", "a")   # less is better

    def lines(a, b):
        return [{"switch": "s", "level": level, "figure": "validation", "values": values}
                for level, values in (("a", a), ("b", b))]

    assert comparison.verdict(switch, "s", lines([1.0, 1.1], [2.0, 2.2]))[0] == "holds"
    assert comparison.verdict(switch, "s", lines([2.0, 2.2], [1.0, 1.1]))[0] == "does not"
    assert comparison.verdict(switch, "s", lines([2.0, 1.0], [1.0, 2.2]))[0] == "cannot be told"
    third = [*lines([1.0, 1.1], [2.0, 2.2]), {"switch": "s", "level": "c", "figure": "validation",
                                              "values": [0.5, 0.4]}]
    assert comparison.verdict(switch, "s", third)[0] == "holds against b; does not against c"
    alone = replace(switch, levels={"a": {}}, figure="first frame")                # a difference itself
    for values, answer in (([0.2, 0.3], "holds"), ([-0.2, -0.3], "does not"),
                           ([0.2, -0.3], "cannot be told")):
        lone = [{"switch": "s", "level": "a", "figure": "first frame", "values": values}]
        assert comparison.verdict(alone, "s", lone)[0] == answer
    free = replace(switch, no_worse=True)
    assert comparison.verdict(free, "s", lines([2.0, 1.0], [1.0, 2.2]))[0] == "no cost seen"
    assert comparison.verdict(free, "s", lines([2.0, 2.2], [1.0, 1.1]))[0] == "does not"
    assert comparison.verdict(replace(switch, better="c"), "s", lines([1.0], [2.0])) is None


@pytest.mark.parametrize("stage, changes, at", [
    ("vae", {"loss.adversarial": 0.1, "loss.perceptual": 0.1}, 5), ("both", {"token_drop": 0.2}, 12)])
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(small, tmp_path, monkeypatch, stage, changes, at):
    """Discriminator, its optimiser and all: the figures are the same to the last bit."""
    reader(tmp_path / "reader.pt")
    classifier = metrics.DigitClassifier()
    monkeypatch.setattr(train_tiny.metrics, "train_classifier", lambda data, steps, seed: classifier)
    spec = {"stage": stage, "level": "x", "changes": changes, "seed": 1, "budget": 1.0, "prompts": 3,
            "digits": "drawn", "device": "cpu", "reader": str(tmp_path / "reader.pt"), "save_every": 2}
    monkeypatch.setattr(trial, "flops", lambda settings, stage, data: 1.0)
    with torch.random.fork_rng():
        whole = trial.train_and_judge(spec, tmp_path / "whole")
        update, calls = train_tiny.Run.update, []

        def until_killed(self, *args):
            calls.append(1)
            if len(calls) > at:
                raise Killed
            return update(self, *args)

        monkeypatch.setattr(train_tiny.Run, "update", until_killed)
        with pytest.raises(Killed):
            trial.train_and_judge(spec, tmp_path / "cut")
        monkeypatch.setattr(train_tiny.Run, "update", update)
        cut = trial.train_and_judge(spec, tmp_path / "cut")
    assert cut["figures"] == whole["figures"] and (tmp_path / "cut" / "checkpoint.pt").exists()


def start(out):
    command = [sys.executable, "-m", "minltx.workshop.ablate", "dwt=0.1,0", "--seeds", "1",
               "--budget", "0.01", "--jobs", "2", "--out", str(out), "--device", "cpu"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killing_the_runner_and_starting_it_again_gives_the_same_table(tmp_path):
    for name in ("whole", "cut"):
        reader(tmp_path / name / "reader.pt")
    runner = start(tmp_path / "cut")
    while not list((tmp_path / "cut").rglob("log.txt")):              # both workers have begun
        time.sleep(0.05)
        assert runner.poll() is None
    time.sleep(2)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    assert not (tmp_path / "cut" / "table.csv").exists()
    time.sleep(1)                                                       # workers end with their runner
    first = start(tmp_path / "whole")
    assert first.wait() == 0, first.stdout.read()
    again = start(tmp_path / "cut")
    assert again.wait() == 0, again.stdout.read()
    tables = [{p: (tmp_path / name / p).read_bytes() for p in ("table.md", "table.csv")}
              for name in ("whole", "cut")]
    assert tables[0] == tables[1]
    with open(tmp_path / "cut" / "table.csv") as file:
        lines = list(csv.DictReader(file))
    assert {(line["level"], line["figure"]) for line in lines} >= {("0.1", "psnr"), ("0", "motion")}
    report = json.loads((tmp_path / "cut/vae/dwt=0/seed0/report.json").read_text())
    assert float(lines[-1]["values"]) == report["figures"][lines[-1]["figure"]]
    assert report["settings"]["loss"]["dwt"] == 0 and (tmp_path / "cut" / "plot.png").stat().st_size > 5000
    done = start(tmp_path / "cut")
    assert done.wait() == 0 and "2 runs, 2 of them done" in done.stdout.read()


def test_mistakes_are_said_before_anything_is_trained(tmp_path, capsys):
    for options, message in (([], "name a switch"), (["rope", "--seeds", "0"], "must be positive"),
                             (["nothing"], "is no switch"),
                             (["model.dit.heads=4,7"], "model.dit.heads = 7 cannot be trained: ")):
        with pytest.raises(SystemExit) as stop:
            ablate.main([*options, "--out", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
