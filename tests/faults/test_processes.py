"""Of two processes one is killed, or one has a NaN: both end within seconds, with one line that says which
and why, and the run goes on to the curves of one that nothing stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several_processes
import torch
from several_processes import spoiled_at
from test_training import run, small  # noqa: F401: small is a fixture

from minltx.toy.model import read_checkpoint
from minltx.training import loops
from minltx.training.shards import read_parts

torchrun = pytest.mark.skipif(not torch.distributed.is_available() or sys.platform != "linux",
                              reason="needs gloo and /proc")


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Of a run that nothing stopped, in one process."""
    return several_processes.train(tmp_path_factory.mktemp("whole"), [])["history"]


def start(script, out, *words):
    """A script in two processes -> torchrun's process; what they print is in OUT.log."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(Path(several_processes.__file__).parent / script), *map(str, words)]
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def ranks(process):
    """torchrun's children: rank -> process id."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(word[5:]): int(child) for word in words if word.startswith(b"RANK=")}
    return found


def wait_for(file, process, seconds=300):
    until = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    assert file.exists(), file


def our_lines(out):
    """What minltx itself printed about the end; torchrun prints a page of its own."""
    lines = out.with_suffix(".log").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("[rank", "terminate called")) and "gloo" in line]
    return [line for line in lines if line.startswith("python -m minltx.training: ")]


def resume(out, curves):
    """In one process, whatever wrote the checkpoint."""
    went_on = several_processes.train(out, ["--resume"])["history"]
    for name, rows in curves.items():
        assert went_on[name] == [[step, pytest.approx(x, rel=1e-5, abs=1e-6)] for step, x in rows], name


@torchrun
@pytest.mark.parametrize("rank, kind", [(0, "ddp"), (1, "ddp"), (0, "fsdp"), (1, "fsdp")])
def test_a_killed_process_ends_the_other_in_seconds(curves, tmp_path, rank, kind):
    out = tmp_path / "run"
    process = start("several_processes.py", out, "train", out, "--parallel", kind)
    wait_for(out / "run.json", process)
    alive = ranks(process)
    os.kill(alive[rank], signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(60) != 0
    seconds = time.monotonic() - began
    line, = our_lines(out)
    assert f"process {rank} of 2 died, and the others stopped" in line and seconds < 30
    assert not Path(f"/proc/{alive[1 - rank]}").exists()
    resume(out, curves)


@torchrun
def test_sigterm_to_torchrun(curves, tmp_path):
    """As a cluster sends it: one line, and the run goes on."""
    out = tmp_path / "run"
    process = start("several_processes.py", out, "train", out, "--parallel", "fsdp")
    wait_for(out / "run.json", process)
    process.terminate()
    assert process.wait(60) != 0
    line, = our_lines(out)
    assert "stopped; the same command with --resume goes on" in line
    resume(out, curves)


@torchrun
@pytest.mark.parametrize("stage, at, kind, says", [("vae", 8, "ddp", "stage vae, step 3: pixel is nan"),
                                                   ("dit", 13, "fsdp", "stage dit, step 5: loss is nan")])
def test_a_nan_in_one_of_two_processes_stops_both_at_that_step(curves, tmp_path, stage, at, kind, says):
    """Three batches a step in each process. The last checkpoint, of step 2 or 4, is whole and finite."""
    out = tmp_path / "run"
    process = start("faults/spoiled_processes.py", out, out, "--stage", stage, "--at", at, "--parallel", kind)
    assert process.wait(300) != 0
    line, = our_lines(out)
    assert says in line and "the last checkpoint is kept" in line
    parts = read_parts(out / "run.json")
    assert parts[0]["state"]["step"] == {"vae": 2, "dit": 4}[stage]
    assert all(x.isfinite().all() for part in parts for x in part["tensors"].values())
    resume(out, curves)


@pytest.mark.parametrize("name, step", [("short_clips", n) for n in (0, 1, 3, 6)]
                         + [("batch_of_latents", n) for n in (0, 1, 2, 4, 8)])
def test_a_nan_in_any_step_of_one_process(small, tmp_path, monkeypatch, capsys, name, step):  # noqa: F811
    """All layouts, the first and the last step of each stage."""
    monkeypatch.setattr(loops, name, spoiled_at(step, getattr(loops, name)))
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    stage = "vae" if name == "short_clips" else "dit"
    assert stop.value.code == 3 and f"stage {stage}, step {step + 1}: " in capsys.readouterr().err
    if (stage, step // 2) != ("vae", 0):
        stored = read_checkpoint(tmp_path / "checkpoint.pt")
        assert stored["run"]["step"] == (step // 2 * 2 or 7)
        assert all(x.isfinite().all() for x in stored["model"].values())
    assert f"stage {stage}" in (tmp_path / "diverged.txt").read_text()
