"""How a training ends: a number that is not finite stops it, and each ending is one line and an exit code."""

import os
import re
import signal

import pytest
from several_processes import spoiled_at
from test_training import SMALL, check_equal, run, small, whole  # noqa: F401: small and whole are fixtures

from minltx.toy.data import MovingDigits, draw_digits
from minltx.toy.model import ToyModel, read_checkpoint
from minltx.training import loops
from minltx.training.endings import Diverged
from minltx.training.run import Run


@pytest.mark.parametrize("name, step, says", [
    ("short_clips", 5, r"stage vae, step 6: .*pixel is nan.*gradient norm is nan"),
    ("batch_of_latents", 4, r"stage dit, step 5: loss is nan")])
def test_a_step_that_is_not_finite_stops_the_run(whole, small, tmp_path, monkeypatch, capsys,  # noqa: F811
                                                 name, step, says):
    """The line names stage, step and terms. The last checkpoint is as it was; resumed, it goes on, says what
    had happened, and is the run that nothing spoiled."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(loops, name, spoiled_at(step, getattr(loops, name)))
        run(tmp_path)
    line, = [line for line in capsys.readouterr().err.splitlines() if "diverged" in line]
    assert stop.value.code == 3 and line.startswith("train_tiny.py: ")
    assert re.search(says, line), line
    left = {p.name for p in tmp_path.iterdir()} - {"index.html", "log.jsonl", "samples"}    # to watch
    assert left == {"checkpoint.pt", "diverged.txt"}
    stored = read_checkpoint(tmp_path / "checkpoint.pt")
    assert stored["run"]["step"] == step // 2 * 2
    assert all(x.isfinite().all() for x in stored["model"].values())
    check_equal(tmp_path, run(tmp_path, "--resume"), whole)
    assert f"the training diverged: {line.split('diverged: ')[1].split(';')[0]}" in capsys.readouterr().out
    assert not (tmp_path / "diverged.txt").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """A step can be finite and leave infinite weights: the next save notices, also at the end of a stage."""
    model, data = ToyModel(SMALL.model), MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    training = Run(tmp_path, model, SMALL, 0, "drawn")
    training.save_every, save = 2, training.save

    def spoil_and_save(done):
        if done == 4:
            model.vae.decoder.conv_out.conv.bias.data[0] = float("inf")
        save(done)

    training.save = spoil_and_save
    with pytest.raises(Diverged, match="stage vae, step 4: a weight is nan"):
        loops.train_vae(training, model, [data], data)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["run"]["step"] == 2


def test_sigterm_is_ctrl_c(small, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Clusters send it. The former handler is back afterwards."""
    before, short_clips = signal.getsignal(signal.SIGTERM), loops.short_clips

    def terminated(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return short_clips(*args)

    monkeypatch.setattr(loops, "short_clips", terminated)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    assert stop.value.code == 130 and "--resume goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
