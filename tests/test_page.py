"""What can be watched while a run trains: the page, its samples and the log change nothing in the run, need
no network, and survive Ctrl-C; a finished run is left as it is."""

import functools
import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_training import SMALL

import train_tiny
from minltx.toy.data import MovingDigits, draw_digits
from minltx.toy.model import ToyModel
from minltx.training import loops, page
from minltx.training.latents import encode_variants, measure_latents
from minltx.training.page import Page, curve, curves, thin
from minltx.training.run import Run
from minltx.training.settings import PRESETS

TINY = replace(SMALL, vae_phases=((1, 2, 2), (9, 2, 2)), latents=8, dit_steps=4, dit_batch=2)
STEPS = [("vae", 1), ("vae", 2), ("vae", 3), ("vae", 4), ("dit", 1), ("dit", 2), ("dit", 3), ("dit", 4)]
DIGITS = functools.cache(draw_digits)


def data():
    return MovingDigits(*DIGITS(50, 0), TINY.model.data)


def train(out, resume=False, watch=True):
    """Both stages, without a report -> the run."""
    torch.manual_seed(0)
    run = Run(out, ToyModel(TINY.model), TINY, 0, "drawn", resume=resume)
    run.page = Page(run, data()) if watch else None
    if "vae" not in run.stages_done:
        loops.train_vae(run, run.model, [data()], data())
    caches = encode_variants(run.model.vae, [data()], TINY.latents, 0, "cpu")
    measure_latents(run.model.vae, [cache.latents for cache in caches])
    loops.train_dit(run, run.model, caches, data())
    return run


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(page, "STEPS", 1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that nothing stopped, and its page after each time that it was written."""
    out, pages, write = tmp_path_factory.mktemp("watched"), [], Page.write

    def spy(self, *args, **how):
        write(self, *args, **how)
        pages.append((out / "index.html").read_text(encoding="utf-8"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "STEPS", 1)
        patch.setattr(page, "table", lambda report: "the report's <table>")
        patch.setattr(Page, "write", spy)
        run = train(out)
        run.page.say("judging the model")
        run.page.finish({"vae": {"psnr": 20.0}, "dit": None})
    return run, pages


def log_of(folder):
    """log.jsonl without the seconds."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def check_equal(run, other):
    """The same curves and weights, bit for bit."""
    assert run.history == other.history and run.by_t == other.by_t
    a, b = run.model.state_dict(), other.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_that_is_watched_is_the_run_that_is_not(watched, tmp_path):
    check_equal(train(tmp_path, watch=False), watched[0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_log_has_every_number_of_the_curves(watched):
    run, _ = watched
    *rows, last = log_of(run.out)
    assert last == {"stage": "report", "vae": {"psnr": 20.0}, "dit": None}
    assert [(row["stage"], row["step"]) for row in rows] == STEPS
    for key, points in run.history.items():
        stage, name = key.split(" ")
        assert [[row["step"], row[name]] for row in rows if row["stage"] == stage and name in row] == points


def test_the_page_holds_everything_and_needs_nothing(watched):
    run, pages = watched
    drawn = [f"{stage}-{step:07}.gif" for stage, step in STEPS]
    assert sorted(path.name for path in (run.out / "samples").iterdir()) == sorted(drawn)
    *running, last = pages
    assert "finished" in last and 'http-equiv="refresh"' not in last
    for text in pages:
        for address in re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s>)]{0,30})', text):
            assert address.startswith("data:image/gif;base64,")
        assert not any(x in text for x in ("://", "<script", "<link", "@import"))
    assert all('http-equiv="refresh"' in text for text in running)
    assert [len(re.findall("<img", text)) for text in running] == [*range(1, 9), 8]
    assert "vae: step 3 of 4, " in running[2] and "left in this stage" in running[2]
    assert "judging" in running[-1] and "judging" not in last
    for part in ("the report&#x27;s &lt;table&gt;", "dit, step 4", "vae, step 1<",
                 "&quot;dit_steps&quot;: 4"):
        assert part in last
    assert last.count("<svg") == 3


def test_samples_are_the_same_prompts_at_the_clips_rate(watched):
    for stage, rows in (("vae", 2), ("dit", 1)):
        with Image.open(watched[0].out / "samples" / f"{stage}-0000004.gif") as gif:
            assert gif.n_frames == 9 and gif.info["duration"] == 60
            assert rows * 64 < gif.height < (rows + 1) * 110


@pytest.mark.parametrize("name, call, number", [
    ("batch_of_latents", 3, signal.SIGINT),
    pytest.param("short_clips", 2, signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_finishes_the_step_and_saves_it(watched, tmp_path, monkeypatch, capsys, name, call, number):
    original, calls, before = getattr(loops, name), [], signal.getsignal(number)

    def function(*args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loops, name, function)
        train(tmp_path)
    assert signal.getsignal(number) is before and "saving after this step" in capsys.readouterr().err
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["run"]
    assert state["step"] == call == len(calls)                             # save_every is 100
    text = (tmp_path / "index.html").read_text()
    assert "stopped and saved" in text and 'http-equiv="refresh"' not in text
    check_equal(train(tmp_path, resume=True), watched[0])
    assert log_of(tmp_path) == log_of(watched[0].out)[:-1]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    training = Run(tmp_path, ToyModel(SMALL.model), SMALL, 0, "drawn")
    done = []
    with pytest.raises(KeyboardInterrupt):
        for step in training.interrupt.between_steps(range(9)):
            for _ in range(step):
                os.kill(os.getpid(), signal.SIGINT)
            done.append(step)
    assert done == [0, 1] and training.interrupt.noted


def test_what_came_after_the_checkpoint_is_forgotten(watched, tmp_path):
    """As after a kill: the checkpoint is of the end of stage 1, log and samples are of later steps."""
    run = Run(tmp_path, ToyModel(TINY.model), TINY, 0, "drawn")
    run.stages_done = ["vae"]
    run.write()
    (tmp_path / "samples").mkdir()
    for stage, step in STEPS[:6]:
        (tmp_path / "samples" / f"{stage}-{step:07}.gif").touch()
    lines = (watched[0].out / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join(lines[:6]) + '\n{"stage": "dit", "st')     # cut off
    Page(Run(tmp_path, ToyModel(TINY.model), TINY, 0, "drawn", resume=True), data())
    assert log_of(tmp_path) == log_of(watched[0].out)[:4]
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_a_finished_run_says_so_and_stops(watched, tmp_path, monkeypatch, capsys):
    run, _ = watched
    run.stage_name = None
    report = {"history": run.history, "figures": 1}
    (run.out / "report.json").write_text(json.dumps(report))
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    monkeypatch.setitem(PRESETS, "toy", TINY)
    monkeypatch.setattr(train_tiny, "load_digits", lambda *_: (DIGITS(50, 0), DIGITS(50, 0)))
    assert train_tiny.main(["--out", str(run.out), "--resume"]) == report
    assert "is finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    assert run.finished(["vae", "dit"]) == report and run.finished(["vae", "more"]) is None
    (run.out / "report.json").write_text(json.dumps({"history": {}}))      # of an earlier run
    assert run.finished(["vae", "dit"]) is None


def test_curves_have_a_panel_per_unit_and_escape_names():
    history = {"vae pixel": [[1, 1.0], [2, 0.1]], "vae psnr": [[2, 20.0]], "dit <b>": [[1, 1.0]]}
    panels = curves(history)
    assert len(panels) == 3 and "&lt;b&gt;" in panels[2] and "<b>" not in panels[2]
    assert "0.1<" in panels[0] and "0.32<" in panels[0]       # halfway between 0.1 and 1 on a log scale
    assert thin([[i, float(i)] for i in range(1000)], most=10)[0] == (99, 49.5)
    assert "polyline" in curve("x", {"flat": [(1, 2.0), (2, 2.0)], "none": []}, log=True)
