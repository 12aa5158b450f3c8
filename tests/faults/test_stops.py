"""Nothing is lost: trainings that are killed, lose their disk or get SIGTERM, at random moments and inside of
every save. All are resumed and end as the run that nothing stopped, bit for bit.

Each training is a fork of this process, so that 50 of them need not import torch 50 times.
"""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from test_training import check_equal, run, small_toy

import minltx.files
import train_tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
PAGE = {"index.html", "log.jsonl", "samples"}       # what one watches: it may be incomplete


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A fork has no pool of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def unjudged():
    """Inside, a training ends with a report of one small video, and not with minutes of judging."""
    vae = {"psnr": 20.0, "psnr_of_black": 10.0, "motion_ratio": 1.0, "psnr_over_noise": {0.0: 20.0}}
    videos = {name: (torch.zeros(1, 3, 2, 32, 32), ["black"]) for name in ("samples.gif", "samples.png")}
    judge = {"vae": vae, "dit": None, "seconds": 0.0}, videos
    with small_toy(), mock.patch.object(train_tiny, "judge", lambda *args: judge):
        yield


@pytest.fixture(scope="module")
def whole(one_thread, tmp_path_factory):
    """A run that nothing stopped, as `check_equal` wants it."""
    out = tmp_path_factory.mktemp("whole")
    with unjudged():
        return out, run(out), None


@pytest.fixture()
def small():
    with unjudged():
        yield


@contextmanager
def at_write(number, act):
    """Inside, act(file) is called at the operation `number`, from 0, of all that put a file in place: in the
    middle of torch's writing, before the flush, before the rename and after it."""
    count, save, fsync, replace = [0], torch.save, os.fsync, os.replace

    def passed():
        count[0] += 1
        return count[0] == number + 1

    def half_save(values, file):
        save(values, file)
        if passed():
            file.truncate(file.tell() // 2)
            act()

    def before(function):
        def wrapped(*args):
            if passed():
                act()
            return function(*args)
        return wrapped

    def around(*args):
        if passed():
            act()
        replace(*args)
        if passed():
            act()

    with mock.patch.object(torch, "save", half_save), mock.patch.object(minltx.files.os, "replace", around), \
            mock.patch.object(minltx.files.os, "fsync", before(fsync)):
        yield


def train(out, log, within):
    """The body of a forked training, with its words in a file."""
    with open(log, "w", buffering=1) as sys.stdout, mock.patch.object(sys, "stderr", sys.stdout), within:
        run(out, *(["--resume"] if (out / "checkpoint.pt").exists() else []))


def start(out, within=None):
    """A training in a process of its own, begun or resumed."""
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(out, out.with_suffix(".log"), within or nullcontext()))
    process.start()
    return process


def report_in(out):
    """A finished run's report, with numbers as keys where JSON made them strings."""
    report = json.loads((out / "report.json").read_text())
    noise = report["vae"]["psnr_over_noise"]
    report["vae"]["psnr_over_noise"] = {float(key): value for key, value in noise.items()}
    return report


def leftovers(folder):
    return [path.name for path in folder.rglob(".*.part-*")]


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def test_fifty_kills(whole, small, tmp_path, capsys):
    """25 or so at random moments and as many inside of saves, in turn, each followed by a resumption."""
    choose, kills, runs, left = random.Random(0), [], 0, 0
    began, process = time.perf_counter(), start(tmp_path / "unharmed")
    process.join()
    seconds = time.perf_counter() - began                               # of a training, on this machine, now
    while len(kills) < 50:
        out, runs, killed = tmp_path / str(runs), runs + 1, True
        while killed:
            inside = len(kills) % 2 and len(kills) < 50
            process = start(out, at_write(choose.randrange(8), kill_self) if inside else None)
            process.join(None if inside or len(kills) >= 50 else choose.uniform(0.05, seconds))
            process.kill()
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            kills += [inside] if killed else []
            left += len(leftovers(out)) if killed and out.exists() else 0
        assert process.exitcode == 0, out.with_suffix(".log").read_text()
        assert not leftovers(out)
        check_equal(out, report_in(out), whole)
    with capsys.disabled():
        print(f"\n{len(kills)} kills, {sum(kills)} of them inside saves, in {runs} runs; {left} temporary "
              "files left and cleared; all ended bit-equal")
    assert left > 0


def our_line(capsys):
    """The one line in which a training says how it ended."""
    line, = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train_tiny.py: ")]
    return line


def fail():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_forty_errors_of_the_disk(whole, small, tmp_path, capsys):
    """Every error ends the run with one line that names the file, and exit code 2. Errors in the report's own
    files, at the end, leave a run whose other files are written."""
    choose, errors, runs = random.Random(1), 0, 0
    while errors < 40:
        out, runs, failed = tmp_path / str(runs), runs + 1, True
        while failed:
            resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
            with at_write(choose.randrange(14) if errors < 40 else 10**6, fail):
                try:
                    run(out, *resume)
                    failed = False
                except SystemExit as stop:
                    assert stop.code == 2
                    errors += 1
                    line = our_line(capsys)
                    assert "Input/output error" in line and str(out) in line
                    assert not leftovers(out)
        check_equal(out, report_in(out), whole)
    with capsys.disabled():
        print(f"\n{errors} errors in {runs} runs, all ended bit-equal")


def tmpfs(folder, size):
    """Mount a disk of so many bytes on a folder, if this machine allows it."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return sys.platform == "linux" and shutil.which("mount") and not subprocess.run(
        words, capture_output=True).returncode


def test_a_full_disk(whole, small, tmp_path, capsys):
    """There is room for a checkpoint and half of the next one. Copied to another disk, the run goes on."""
    size = (whole[0] / "checkpoint.pt").stat().st_size
    disk, out = tmp_path / "disk", tmp_path / "run"
    if not tmpfs(disk, size * 5 // 2):
        pytest.skip("no small disk can be mounted here; see the injected errors")
    try:
        with pytest.raises(SystemExit) as stop:
            run(disk / "run")
        line = our_line(capsys)
        assert stop.value.code == 2 and "No space left on device" in line and "checkpoint.pt" in line
        assert {path.name for path in (disk / "run").iterdir()} - PAGE == {"checkpoint.pt"}
        shutil.copytree(disk / "run", out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    check_equal(out, run(out, "--resume"), whole)


def test_a_full_disk_at_a_picture(whole, small, tmp_path, monkeypatch, capsys):
    """The pictures do not fit: report.json, model.pt and the checkpoint do. The missing ones are named."""
    from PIL import Image

    def full(*args, **how):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run")
    line = our_line(capsys)
    assert stop.value.code == 2 and line.count("No space left on device") == 2 and "samples.gif" in line
    assert {path.name for path in (tmp_path / "run").iterdir()} - PAGE == {
        "checkpoint.pt", "model.pt", "report.json", "curves.png"}


def test_sigterm(whole, small, tmp_path):
    """To a real process, ten times at random moments: one line, exit code 130, and the run goes on."""
    choose, out, stops = random.Random(2), tmp_path / "run", 0
    while True:
        process = start(out)
        process.join(choose.uniform(0.5, 6.0) if stops < 10 else None)
        if process.is_alive():
            process.terminate()
        process.join()
        if process.exitcode == 0:
            break
        words = out.with_suffix(".log").read_text()
        assert process.exitcode in (130, -signal.SIGTERM) and "Traceback" not in words, words
        stops += process.exitcode == 130
        assert process.exitcode != 130 or "--resume goes on" in words
    check_equal(out, report_in(out), whole)
