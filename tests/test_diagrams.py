"""The diagrams of the course: their numbers follow from the package, their words do not touch, one command
writes them all."""

import io
import itertools
import subprocess
import sys

import pytest
import torch
from PIL import Image

from minltx import flow
from minltx.course import diagrams
from minltx.dit import DiTConfig
from minltx.training.settings import FULL
from minltx.vae import VAEConfig
from minltx.video import files, plots

EACH = pytest.mark.parametrize("draw", diagrams.DIAGRAMS, ids=lambda draw: draw.__name__)


def words(figure):
    """Every visible text of a figure with its box in pixels."""
    figure.canvas.draw()
    texts = [text for ax in figure.axes for text in ax.texts if text.get_text().strip(" +")]
    titles = [ax.title for ax in figure.axes if ax.title.get_text()]
    return [(text.get_text(), text.get_window_extent()) for text in texts + titles]


def said(figure):
    return " | ".join(text for text, _ in words(figure))


@EACH
def test_words_stay_on_the_page_and_do_not_touch(draw):
    figure = draw()
    width, height = figure.canvas.get_width_height()
    found = words(figure)
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for _, b in found)
    assert [(a, b) for (a, box), (b, other) in itertools.combinations(found, 2) if box.overlaps(other)] == []
    for ax in figure.axes:
        for label in (ax.xaxis.label, ax.yaxis.label):
            if label.get_text():
                box = label.get_window_extent()
                assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0


def test_the_mean_velocity_is_the_average_over_paths_that_pass_there():
    """Against the obvious version: draw a million paths and average those that are near z at t."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(2, (1_000_000,), generator=g) * 2.0 - 1
    noise = torch.randn(len(x0), generator=g)
    for t, place in ((0.4, 0.3), (0.7, -0.8), (0.9, 0.0)):
        near = (flow.interpolate(x0, noise, t) - place).abs() < 0.02
        average = flow.velocity(x0, noise)[near].mean()
        exact = diagrams.mean_velocity(torch.tensor([[place]]), torch.tensor([t]))
        assert near.sum() > 1000 and abs(exact.item() - average) < 0.1


def test_shapes_are_those_of_the_config():
    assert "4 × 5 × 4 × 4" in said(diagrams.system()) and "80 tokens" in said(diagrams.system())
    full = said(diagrams.system(FULL.model))
    assert "128 × 16 × 16 × 24" in full and "6,144 tokens" in full and "28 blocks, width 2,048" in full
    assert (VAEConfig(), DiTConfig()) == (FULL.model.vae, FULL.model.dit)


def test_times_of_tokens_by_hand():
    """At t = 0.8 a frame of strength 0.4 has the time 1 - 0.4; a given one has 0; a keyframe is extra."""
    text = said(diagrams.times_of_tokens(0.8))
    assert text.count("t = 0.0") == 2 and text.count("t = 0.6") == 1 and text.count("t = 0.8\n") == 18
    assert "t = 0.0\n0.56 s" in text                           # frame 9 of 16 a second


def test_patterns_count_their_pairs():
    text = said(diagrams.attention_patterns(3, 4))
    assert "144 pairs" in text and "48 pairs" in text and "36 pairs" in text     # 12², 3·4², 4·3²


def test_heads_turn_by_their_own_frequencies():
    """The lowest frequency turns 2 · 8/2048 · π/2 radians a token; the title says it in turns."""
    assert f"head 0\n{2 * 8 / 2048 / 4:.3g} turns a token" in said(diagrams.rotation())


def test_latent_frames_begin_at_seconds():
    text = said(diagrams.coordinates())
    assert all(f"{n / 24:.2f}" in text for n in (0, 1, 9, 17)) and f"{17 / 12:.2f}" in text


def test_contents_of_the_file_by_hand():
    """28 · 67,155,968 parameters of blocks, 1,923,385,472 in all (SPEC 3.1); the VAE's of SPEC 1.11."""
    text = said(diagrams.file_contents())
    assert f"{28 * 67_155_968 / 1e9:.2f} B" in text
    assert f"{(1_923_385_472 - 28 * 67_155_968) / 1e9:.2f} B" in text
    assert "0.69 B" in text and "0.55 B" in text


def test_strips_show_the_frames_that_their_titles_say():
    video = torch.linspace(-1, 1, 6)[None, :, None, None].expand(3, 6, 4, 4)
    figure = plots.strips({"rising": video, "falling": video.flip(1)}, (0, 3, 5))
    pictures = [ax.images[0].get_array() for ax in figure.axes]
    means = [round(float(picture.mean()), 3) for picture in pictures]
    assert means == [0.0, 0.6, 1.0, 1.0, 0.4, 0.0] and pictures[0].shape == (4, 4, 3)
    assert [ax.get_title() for ax in figure.axes] == ["frame 0", "frame 3", "frame 5", "", "", ""]
    named = plots.strips({"rising": video}, (1, 2), ["one", "two"])
    assert [ax.get_title() for ax in named.axes] == ["one", "two"]
    png = Image.open(io.BytesIO(named._repr_png_()))
    assert png.format == "PNG" and png.size == named.canvas.get_width_height()


def test_videos_in_a_notebook_are_numbered():
    pytest.importorskip("IPython")
    html = files.inline(torch.zeros(2, 3, 2, 8, 8), ["a", "b"]).data
    assert 'alt="1. a; 2. b"' in html and 'alt="a"' in files.inline(torch.zeros(1, 3, 2, 8, 8), ["a"]).data


@pytest.mark.slow
def test_one_command_writes_a_folder_for_slides(tmp_path):
    command = [sys.executable, "-m", "minltx.course.diagrams", "--out"]
    done = subprocess.run([*command, str(tmp_path / "figures")], capture_output=True, text=True)
    assert done.returncode == 0 and "30 files of 15 diagrams" in done.stdout, done.stderr
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == sorted(f"{draw.__name__}.{end}" for draw in diagrams.DIAGRAMS for end in ("png", "svg"))
    for path in (tmp_path / "figures").glob("*.png"):
        assert Image.open(path).width >= 1000
    (tmp_path / "file").touch()
    done = subprocess.run([*command, str(tmp_path / "file" / "x")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
