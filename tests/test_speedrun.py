"""A speedrun's claim: timed as a user runs it, judged anew, refused for every figure that is missed."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from minltx.toy.model import SHIPPED
from tools import speedrun

GOOD = {"every_frame": 0.95, "colour": 1.0, "direction": 0.995, "speed": 0.93, "psnr": 30.0}


@pytest.fixture()
def started(tmp_path, monkeypatch):
    """A training stands still: it copies the shipped model. -> the commands that were started."""
    commands, real = [], subprocess.run

    def fake(words, **how):
        if "train_tiny.py" not in words:       # git, and Python itself
            return real(words, **how)
        commands.append(words[1:])
        out = tmp_path / words[words.index("--out") + 1]
        out.mkdir(parents=True)
        shutil.copy(SHIPPED, out / "model.pt")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(speedrun, "put_in_place", lambda path, write: write(tmp_path / path.name))
    return commands


@pytest.mark.slow
def test_the_shipped_model_is_verified_by_the_judge(monkeypatch):
    """On few prompts: it has every figure that the rules need, and its colours and directions are right."""
    from minltx.evaluation import report
    monkeypatch.setattr(report, "NOISE", (0.0,))
    monkeypatch.setattr(report, "clips_at_once", lambda most, data: 8)
    figures = speedrun.verify(SHIPPED, seed=0, prompts=8)
    assert figures["colour"] == figures["direction"] == 1 and figures["every_frame"] >= 0.6
    assert figures["psnr"] > speedrun.PSNR - 1 and 0.7 < figures["speed"] < 1.3
    assert isinstance(speedrun.shortfalls(figures, "every_frame"), list)
    with pytest.raises(ValueError, match="no figure best: use every_frame"):
        speedrun.shortfalls(figures, "best")


@pytest.mark.parametrize("name, value", [("every_frame", 0.899), ("colour", 0.98), ("direction", 0.98),
                                         ("speed", 1.11), ("speed", 0.89), ("speed", float("nan")),
                                         ("psnr", 28.9), ("psnr", float("nan"))])
def test_each_figure_can_fail_a_claim(name, value):
    assert speedrun.shortfalls(GOOD, "every_frame") == []
    missed, = speedrun.shortfalls({**GOOD, name: value}, "every_frame")
    assert missed.lower().startswith(name)


def test_a_claim_is_kept_and_repeated(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "verify", lambda path, seed, prompts: {**GOOD, "psnr": 29.0 + seed})
    claim = ["--name", "fast", "--change", "more heads", "--out", str(tmp_path / "runs")]
    assert speedrun.main([*claim, "--", "--budget", "0.5"]) == 0
    assert [words[1:3] for words in started] == [["--seed", "0"], ["--seed", "1"], ["--seed", "2"]]
    assert all(words[0] == "train_tiny.py" and words[-2:] == ["--budget", "0.5"] for words in started)
    record = json.loads((tmp_path / "fast.json").read_text())
    assert record["change"] == "more heads" and [run["seed"] for run in record["runs"]] == [0, 1, 2]
    for run in record["runs"]:
        assert run["minutes"] >= 0 and run["command"].startswith("python train_tiny.py --seed ")
    assert speedrun.counts(record) and not speedrun.counts({**record, "runs": record["runs"][:2]})
    text = speedrun.history([record])
    assert "| fast | 0.0 | 95.0 | 29.0 |" in text and text.endswith("| more heads |")
    first = list(started)
    again = ["--verify", str(tmp_path / "fast.json"), "--out", str(tmp_path / "again")]
    assert speedrun.main(again) == 0 and "claimed: 0.00 minutes" in capsys.readouterr().out
    assert [words[1:3] + words[5:] for words in started[3:]] == [words[1:3] + words[5:] for words in first]


def test_a_claim_that_misses_a_figure_is_not_kept(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setattr(speedrun, "verify",
                        lambda path, seed, prompts: {**GOOD, "every_frame": 0.95 - 0.1 * seed})
    assert speedrun.main(["--name", "slow", "--out", str(tmp_path / "runs")]) == 1
    assert "seed 1: 0.00 minutes, every_frame 85.0 %, not 90" in capsys.readouterr().out
    assert not (tmp_path / "slow.json").exists()
    with pytest.raises(SystemExit) as stop:
        speedrun.main(["--figure", "best", "--out", str(tmp_path / "more")])
    assert stop.value.code == 2 and "invalid choice: 'best'" in capsys.readouterr().err


def test_the_page_has_the_committed_records():
    page = speedrun.PAGE.read_text(encoding="utf-8")
    assert speedrun.with_tables(page, {"records": speedrun.history(speedrun.records())}) == page
    assert all(speedrun.counts(record) for record in speedrun.records())
