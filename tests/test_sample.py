"""sample.py as a user runs it: files of every kind, the same video from the same seed, one clear line for
every mistake."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from minltx.bench import forecast
from minltx.bench.timing import peak_memory
from minltx.evaluation import digits, metrics
from minltx.files import put_in_place
from minltx.toy import load_toy
from minltx.toy.data import COLOURS, DataConfig, MovingDigit, MovingDigits, draw_digits
from minltx.toy.model import SHIPPED, ToyModel, save_checkpoint
from minltx.video.files import load_clip, save_video, to_uint8

ROOT = Path(__file__).parents[1]


PICTURE = str(ROOT / "docs" / "decoder.png")


def frames_of(path):
    with np.load(path, allow_pickle=False) as file:
        return file["frames"], list(file["prompts"])


def direction_of(track):
    """track (F, 2) -> the direction of the straight line fitted to it, or None."""
    return digits.read_direction(digits.velocity_of(track, seconds=1.0)[0])


def test_a_fresh_clone_makes_a_gif(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "sample.py"), "a red 7 moving left"], cwd=tmp_path,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sample.gif") as gif:
        assert gif.n_frames == 17 and gif.info["loop"] == 0


@pytest.mark.parametrize("own, spins", [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
@pytest.mark.parametrize("command", ["sample", "train_tiny", "minltx.training.__main__",
                                     "minltx.ablation.__main__"])
def test_waiting_threads_sleep_unless_the_user_decides_otherwise(command, own, spins):
    """OpenMP reads the variable once, when torch is imported."""
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Finder())
import {command}
"""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | own
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [spins]


def test_several_prompts_in_one_call_and_every_kind_of_file(tmp_path):
    prompts = ["a red 7 moving left", "a blue 3 moving up", "a green 0 moving down"]
    for name in ("a.npz", "a.png", "a.gif"):
        assert sample.main([*prompts, "--out", str(tmp_path / name), "--steps", "3"]) == 0
    frames, stored = frames_of(tmp_path / "a.npz")
    assert frames.shape == (3, 17, 32, 32, 3) and frames.dtype == np.uint8 and stored == prompts
    # no partial file is left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.npz", "a.png"]


def test_same_seed_same_video_alone_or_in_a_batch(tmp_path):
    def run(name, *args):
        sample.main([*args, "--steps", "4", "--out", str(tmp_path / name)])
        return frames_of(tmp_path / name)[0]

    both = run("both.npz", "a red 7 moving left", "a blue 3 moving up", "--seed", "5")
    again = run("again.npz", "a red 7 moving left", "a blue 3 moving up", "--seed", "5")
    alone = run("alone.npz", "a blue 3 moving up", "--seed", "6")
    other = run("other.npz", "a blue 3 moving up", "--seed", "7")
    assert np.array_equal(both, again)
    assert np.abs(both[1].astype(int) - alone[0]).max() <= 1                     # other batch, other rounding
    assert np.abs(both[1].astype(int) - other[0]).max() > 50


def test_image_to_video_starts_with_the_picture_and_follows_the_caption(tmp_path):
    data = MovingDigits(*draw_digits(300, 1), DataConfig())
    video = data.clips([[MovingDigit(7, "red", "left")]], torch.Generator().manual_seed(2))
    picture = tmp_path / "seven.png"
    Image.fromarray(to_uint8(video)[0, 0]).save(picture)
    out = tmp_path / "a.npz"
    assert sample.main(["a red 7 moving left", "--image", str(picture), "--out", str(out)]) == 0
    made = torch.from_numpy(frames_of(out)[0]).permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert metrics.psnr(made[:, :, :1], video[:, :, :1]).item() > 20
    track, _ = digits.centres(digits.brightness(made))
    assert direction_of(track[0]) == "left"


def test_clips_are_extended_held_to_a_keyframe_and_changed(tmp_path):
    """Files that sample.py wrote can be given to it: the digit is where the original's is, in pixels."""
    def run(name, *options, seed="3"):
        path = tmp_path / name
        assert sample.main(["a red 7 moving left", "--seed", seed, "--out", str(path), *options]) == 0
        frames = frames_of(path)[0]
        video = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1
        return frames[0], digits.centres(digits.brightness(video))[0][0]               # (F, 2)

    frames, path = run("whole.npz")
    np.savez(tmp_path / "half.npz", frames=frames[None, :9], prompts=["half"])
    Image.fromarray(frames[16]).save(tmp_path / "last.png")
    off = lambda other: (other - path).norm(dim=1)
    assert (off(run("other.npz", seed="5")[1]) > 1.5).all()                          # without: elsewhere
    extended = off(run("extended.npz", "--given", str(tmp_path / "half.npz"), "0", seed="5")[1])
    assert extended[:9].max() < 0.7 and extended.max() < 1.5
    held = off(run("held.npz", "--given", str(tmp_path / "last.png"), "16", seed="5")[1])
    assert held[16] < 1
    start = str(tmp_path / "whole.npz")
    changed = off(run("changed.npz", "--start", start, "--change", "0.5", seed="5")[1])
    assert changed.max() < 1


@pytest.mark.parametrize("options, shape", [(["--frames", "9"], (9, 32, 32)),
                                            (["--frames", "1"], (1, 32, 32)),
                                            (["--size", "32x48", "--frames", "25"], (25, 32, 48))])
def test_any_legal_size_and_length(tmp_path, options, shape):
    out = tmp_path / "a.npz"
    assert sample.main(["a red 7 moving left", *options, "--steps", "2", "--out", str(out)]) == 0
    assert frames_of(out)[0].shape == (1, *shape, 3)


@pytest.mark.parametrize("options, says", [
    (["a red 7 moving left", "--size", "64"], "17x64x64 (frames x height x width) was not in training"),
    (["a red 7 moving left", "--frames", "65"], "65x32x32"),
    (["a red 7 moving left", "--fps", "30"], "30 frames per second"),
    (["red blue 7"], "'red blue 7' is not of the form of the captions in training"),
    (["a red 7"], "such as 'a red 7 moving left'"), (["a red 7 moving left", "--frames", "1"], "'a red 7'"),
    (["A red 7, moving left."], None), (["a red 7", "--frames", "1"], None), ([""], None)])
def test_what_was_not_in_training_gives_a_warning_line(tmp_path, monkeypatch, capsys, options, says):
    monkeypatch.setattr(ToyModel, "generate", lambda *args, **how: torch.zeros(1, 3, 1, 32, 32))
    assert sample.main([*options, "--out", str(tmp_path / "x.npz")]) == 0
    lines = capsys.readouterr().err.splitlines()
    if says is None:
        assert lines == []
    else:
        assert len(lines) == 1 and lines[0].startswith("sample.py: warning: ") and says in lines[0]


def test_a_model_of_several_shapes_knows_them_all():
    model = load_toy()
    model.config = replace(model.config, shapes=((17, 32, 32), (9, 48, 32)))
    for size, known in (((9, 48, 32), True), ((1, 48, 32), True), ((17, 48, 32), False)):
        assert (model.warnings(["a red 7" + " moving up" * (size[0] > 1)], size) == []) == known


@pytest.mark.parametrize("ending", ["mp4", "gif", "npz", "png"])
def test_a_plain_file_is_the_video_alone_and_is_read_back(tmp_path, monkeypatch, ending):
    if ending == "mp4":
        pytest.importorskip("av")
    frames, path = 1 if ending == "png" else 17, tmp_path / f"x.{ending}"
    data = MovingDigits(*draw_digits(300, 1), DataConfig())
    video = data.clips([[MovingDigit(7, "red", "left")]], torch.Generator().manual_seed(2))[:, :, :frames]
    monkeypatch.setattr(ToyModel, "generate", lambda *args, **how: video)
    assert sample.main(["a red 7", "--frames", str(frames), "--plain", "--out", str(path)]) == 0
    again = load_clip(path, 32, 32)
    assert again.shape == video.shape
    assert metrics.psnr(again, video).min() > (20 if ending == "mp4" else 28)   # mp4 halves the colours' size
    (track, _), (same, _) = (digits.centres(digits.brightness(x)) for x in (again, video))
    assert (track - same).norm(dim=-1).max() < 0.7                              # pixels


def test_the_words_of_the_shipped_model_are_printed(capsys):
    assert sample.main(["--words"]) == 0
    words = capsys.readouterr().out.split()
    assert len(words) == 23 and {"a", "red", "7", "left"} <= set(words)


def broken_checkpoint(tmp_path, kind):
    path = tmp_path / f"{kind}.pt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        path.write_bytes(SHIPPED.read_bytes()[:100_000])
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    elif kind == "misshapen":
        model = load_toy()
        model.text.positions = torch.nn.Parameter(torch.zeros(2, 2))
        save_checkpoint(path, model)
    elif kind == "code":
        torch.save(Path, path)                                                 # a pickled object, not tensors
    return str(path)


@pytest.mark.parametrize("options, says", [
    (["a purple 7 moving left"], "unknown word 'purple': the toy knows only: a, and, moving, red"),
    (["a red 7 moving left and a blue 3 moving up"], "more than 1 digit"),
    (["a <pad> 7"], "unknown word '<pad>'"),
    (["a red 7 moving left", "--frames", "10"], "9 or 13"),
    (["a red 7 moving left", "--frames", "0"], "use 1 to 1000000"),
    (["a red 7 moving left", "--size", "30"], "24 or 32"),
    (["a red 7 moving left", "--size", "big"], "'big' is not understood"),
    (["a red 7 moving left", "--steps", "0"], "use 1 to 1000"),
    (["a red 7 moving left", "--seed", "99999999999999999999999"], "out of range"),
    (["a red 7 moving left", "--size", "0", "--image", PICTURE], "'0' is not understood"),
    (["a red 7 moving left", "a red 7 moving up", "--plain"], "--plain writes a single video"),
    (["a red 7 moving left", "--words"], "--words: not allowed with argument PROMPT"),
    (["a red 7 moving left", "--out", "x.avi"], ".gif, .png, .npz, .mp4"),
    (["a red 7 moving left", "--image", "absent.png"], "cannot read absent.png"),
    (["a red 7 moving left", "--image", str(ROOT / "README.md")], "as a picture"),
    (["a red 7 moving left", "--given", "absent.npz", "4"], "cannot read absent.npz"),
    (["a red 7 moving left", "--given", PICTURE], "write FILE FRAME"),
    (["a red 7 moving left", "--given", PICTURE, "two"], "write FILE FRAME"),
    (["a red 7 moving left", "--given", PICTURE, "17"], "place it at 0 to 16"),
    (["a red 7 moving left", "--given", PICTURE, "4", "2"], "use 0 to 1"),
    (["a red 7 moving left", "--start", "absent.npz"], "cannot read absent.npz"),
    (["a red 7 moving left", "--start", PICTURE, "--frames", "17"], "has 1 frames, not 17"),
    (["a red 7 moving left", "--change", "1.5"], "use 0 to 1"),
    (["a red 7 moving left", "--stg", "1"], "--stg is for released weights"),
    (["a red 7 moving left", "--given", PICTURE, "1", "1", "1"], "write FILE FRAME"),
    (["a red 7 moving left", "--weights", "absent.safetensors", "--text", "absent.safetensors"],
     "no file absent"),
    (["a red 7 moving left", "--checkpoint", "absent.pt"], "no checkpoint absent.pt"),
    (["a red 7 moving left", "--checkpoint", "text"], "not a checkpoint"),
    (["a red 7 moving left", "--checkpoint", "truncated"], "not a checkpoint"),
    (["a red 7 moving left", "--checkpoint", "foreign"], "not a checkpoint"),
    (["a red 7 moving left", "--checkpoint", "code"], "not a checkpoint"),
    (["a red 7 moving left", "--checkpoint", "misshapen"], "do not fit"),
    (["a red 7 moving left", "--fps", "-3"], "out of range"),
    (["a red 7 moving left", "--device", "cuda:99"], "cuda:99"),
    ([], "PROMPT"),
])
def test_every_mistake_gets_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    if "--checkpoint" in options and options[-1] in ("text", "truncated", "foreign", "code", "misshapen"):
        options = [*options[:-1], broken_checkpoint(tmp_path, options[-1])]
    before = set(tmp_path.iterdir())
    try:
        code = sample.main(options)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and says in error and "\n" not in error
    assert set(tmp_path.iterdir()) == before


def test_large_videos_are_refused_or_announced_without_making_them(monkeypatch, capsys):
    """In seconds of one core and little memory, on a device with 24 GiB and 100 GFLOP/s."""
    monkeypatch.setattr(forecast, "device_memory", lambda device: 24 * 2**30)
    monkeypatch.setattr(forecast, "matmul_peak", lambda *how: 1e11)
    config, cpu, began = load_toy().config, torch.device("cpu"), time.process_time()

    def ask():
        with pytest.raises(ValueError, match="^1 video of 17x4096x4096: this needs 3. GiB of memory, and the "
                                             "device has 24 GiB: use less at once$"):
            forecast.check_memory(config.dit, config.vae, (17, 4096, 4096), 1, cpu)
        forecast.check_memory(config.dit, config.vae, (4001, 32, 32), 1, cpu)
        forecast.announce_time(config.dit, (4001, 32, 32), 1, 40, cpu, torch.float32)

    before = peak_memory(lambda: None, cpu)
    after = peak_memory(ask, cpu)
    assert "1 video of 4001x32x32: the transformer alone needs at least " in capsys.readouterr().out
    assert time.process_time() - began < 10
    assert before is None or after - before < 2**28


def test_mp4_without_its_package_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit) as stop:
        sample.main(["a red 7 moving left", "--out", str(tmp_path / "a.mp4")])
    assert stop.value.code == 2
    assert "pip install av" in capsys.readouterr().err


def test_mp4_plays(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    save_video(path, torch.zeros(1, 3, 9, 32, 32), ["grey"], fps=16)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 9


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        put_in_place(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_shipped_checkpoint_is_small_and_paints_digits():
    assert SHIPPED.stat().st_size <= 8_000_000
    model = load_toy()
    captions = [f"a {c} {d} moving {m}" for d, (c, m) in enumerate(zip(
        ("red", "green", "blue", "yellow", "cyan") * 2, ("left", "right", "up", "down") * 3))]
    video = model.generate(captions, list(range(10)))
    light = digits.brightness(video).sum((2, 3))
    assert (light > 10).all()
    seen = [max(range(6), key=lambda k: m[k]) for m in
            (digits.brightness(video)[:, None] * digits.colour_masks(video)).sum((2, 3, 4)).tolist()]
    wanted = [list(COLOURS).index(c.split()[1]) for c in captions]
    directions = [direction_of(track) for track in digits.centres(digits.brightness(video))[0]]
    assert seen == wanted
    assert sum(a == b.split()[-1] for a, b in zip(directions, captions)) >= 9
