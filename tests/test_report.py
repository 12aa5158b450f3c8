"""A run's report: the figures of the stored reports, of all kinds of data, with the files that show them."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from minltx.evaluation import metrics, report
from minltx.toy import load_toy
from minltx.toy.data import DataConfig, MovingDigits, draw_digits
from minltx.video.plots import save_dots

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


class Folder:
    """A held-out folder of two clips, as `video.clips.ClipFolder` gives it."""

    config = DataConfig(digits=0)

    def batch(self, count, generator, held_out=False):
        return torch.rand(count, 3, 17, 32, 32, generator=generator) * 2 - 1, ["a red 7 moving left"] * count


@pytest.fixture(scope="module")
def judged():
    """The shipped toy, judged on few clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "clips_at_once", lambda most, data: 24)
        data = MovingDigits(*draw_digits(2000, 0), DataConfig())
        held_out = MovingDigits(*draw_digits(300, 1), DataConfig())
        return report.judge(load_toy(), data, held_out, seed=0, prompts=8)


def run_in(folder):
    """A stand-in for `training.run.Run`, with everything that a report reads."""
    history = {"vae psnr": [[50, 20.0], [100, 30.0]], "vae pixel": [[1, 0.3], [2, 0.1]],
               "dit loss": [[1, 2.0], [2, 1.0]], "dit validation": [[2, 1.1]]}
    return SimpleNamespace(out=folder, model=load_toy(), device=torch.device("cpu"), seed=0, history=history,
                           identity={"digits": "drawn", "settings": {"dit_steps": 2}},
                           seconds={"vae": 60.0, "dit": 120.0}, by_t=[[3.0, 2], *[[0.0, 0]] * 9])


def test_the_shipped_toy_is_judged_as_its_stored_report_says(judged):
    """Fewer clips and prompts, so the figures are near the stored ones."""
    figures, videos = judged
    stored = json.loads((RESULTS / "long.json").read_text())
    vae, dit = figures["vae"], figures["dit"]
    assert vae["psnr"] == pytest.approx(stored["vae"]["psnr"], abs=1) and vae["read"]["colour"] == 1
    assert list(vae["psnr_over_noise"].values()) == sorted(vae["psnr_over_noise"].values(), reverse=True)
    assert dit["text_to_video"]["colour"] == 1 and dit["text_to_video"]["digit"] >= 0.75
    image = dit["image_to_video"]
    assert image["direction"] >= 0.75 and image["first_frame_psnr"] > image["vae_first_frame_psnr"] - 3
    assert videos["samples.gif"][0].shape == (8, 3, 17, 32, 32) and len(videos["samples.gif"][1]) == 8
    clips, rebuilt = videos["reconstruction.png"][0].unflatten(0, (-1, 2)).unbind(1)      # in turn
    assert metrics.psnr(rebuilt, clips).mean() == pytest.approx(vae["psnr"], abs=1.5)


def test_a_report_has_the_keys_of_the_stored_ones_and_writes_its_files(judged, tmp_path):
    written = report.write_report(run_in(tmp_path), "python train_tiny.py", *judged)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(written))
    stored = json.loads((RESULTS / "toy.json").read_text())
    assert written.keys() == stored.keys() and written["parameters"] == stored["parameters"]
    for part in ("vae", "dit", "seconds"):
        assert written[part].keys() == stored[part].keys()
    assert written["compression"] == stored["compression"] == "1:192"
    assert written["loss_by_t"] == [1.5] + [None] * 9
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "curves.png", "reconstruction.png", "samples.gif", "samples.png", "image_to_video.gif"}
    with Image.open(tmp_path / "samples.gif") as gif:
        assert gif.n_frames == 17 and gif.info["duration"] == 60
    text = report.table(written)
    for figure in ("8 held-out prompts", f"{written['vae']['psnr']:.2f} dB", "vae 1.0  dit 2.0",
                   "dit 1,765,252"):
        assert figure in text


def test_a_run_that_learned_nothing_is_warned_about(judged, tmp_path):
    """Worse than all black, or than the velocity 0. A NaN is not better than anything."""
    figures, run = judged[0], run_in(tmp_path)
    assert "warnings" not in report.build_report(run, "x", figures)
    assert "WARNING" not in report.table(report.build_report(run, "x", figures))
    bad = {**figures, "vae": {**figures["vae"], "psnr": float("nan")}}
    run.history["dit validation"][-1][1] = 2.3
    found = report.build_report(run, "x", bad)
    black, zero = found["warnings"]
    assert "worse than all black" in black and "a held-out loss of 2.3 against 2" in zero
    assert report.table(found).count("WARNING") == 2


def test_a_file_that_cannot_be_written_is_named_and_all_others_are(judged, tmp_path, monkeypatch, capsys):
    save = report.save_video

    def full_at_a_gif(path, **how):
        if path.name == "samples.gif":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, **how)

    monkeypatch.setattr(report, "save_video", full_at_a_gif)
    with pytest.raises(OSError, match=r"everything is written but samples.gif \(No space left on device\)"):
        report.write_report(run_in(tmp_path), "x", *judged)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "curves.png", "reconstruction.png", "samples.png", "image_to_video.gif"}
    assert "8 held-out prompts" in capsys.readouterr().out                  # the figures are printed


def test_only_a_vae_is_judged_with_no_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "clips_at_once", lambda most, data: 2)
    figures, videos = report.judge(load_toy(), Folder(), Folder(), seed=0, prompts=0)
    assert figures["dit"] is None and set(videos) == {"reconstruction.png"}
    assert "image-to-video" not in report.table(report.write_report(run_in(tmp_path), "x", figures, videos))


def test_a_folder_of_clips_is_judged_without_a_classifier(monkeypatch):
    monkeypatch.setattr(report, "clips_at_once", lambda most, data: 6)
    figures, videos = report.judge(load_toy(), Folder(), Folder(), seed=0, prompts=200)
    assert figures["dit"]["prompts"] == len(videos["image_to_video.gif"][0]) == 12
    assert "read" not in figures["vae"] and figures["dit"]["text_to_video"] == {}
    assert set(figures["dit"]["image_to_video"]) == {"first_frame_psnr", "vae_first_frame_psnr"}


def test_few_large_clips_or_many_small_ones_make_a_batch():
    def data(frames, size):
        return SimpleNamespace(config=DataConfig(frames=frames, size=size))

    assert report.clips_at_once(64, data(17, 32)) == 64
    assert report.clips_at_once(64, data(17, 256)) == 7
    assert report.clips_at_once(64, data(121, (512, 768))) == 1


def test_dots_are_drawn_for_any_number_of_switches(tmp_path):
    panel = ("rope", "PSNR", {"exponential": [1.0, 2.0], "no rope": [0.5, 1.5]})
    for count in (1, 5):
        save_dots(tmp_path / f"{count}.png", [panel] * count)
        with Image.open(tmp_path / f"{count}.png") as image:
            assert image.width > image.height == round(2.9 * 110 * -(-count // 4))
