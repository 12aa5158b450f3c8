"""The picture of the architecture: its shapes follow from the configs, and its words do not touch."""

import itertools

import pytest
import torch
from PIL import Image

from minltx.dit import DiT, DiTConfig
from minltx.vae import VAEConfig, VideoVAE
from tools import architecture
from tools.count import ROOT


@pytest.fixture(scope="module")
def drawing():
    return architecture.draw()


@pytest.fixture(scope="module")
def words(drawing):
    """Every text of the picture -> its box in pixels."""
    return [(text, text.get_window_extent()) for text in drawing.ax.texts if text.get_text()]


def test_shapes_of_the_released_model():
    """By hand: 121 frames are 1 + 120/8 latent frames; 512/32 = 16 rows, 768/32 = 24 columns."""
    with torch.device("meta"):
        full = architecture.shapes(VideoVAE(VAEConfig()), DiT(DiTConfig()), (121, 512, 768), 256, 40)
    assert full["latent"] == "128×16×16×24" and full["given"] == "128×1×16×24"
    assert full["tokens"] == "6,144×128" and full["text"] == "256×4,096" and full["steps"] == "40 steps"
    assert full["video"] == "3×121×512×768" and full["dit"] == "28 blocks, width 2,048, 1.9 B"
    assert (full["encoder"], full["decoder"]) == ("694 M", "553 M")                  # SPEC 1.11


def test_both_models_are_in_the_picture(words):
    said = {text.get_text() for text, _ in words}
    assert {"4×5×4×4", "80×4", "3×17×32×32", "128×16×16×24", "6,144×128", "3×121×512×768"} <= said
    assert {text.get_color() for text, _ in words} == {
        architecture.TOY, architecture.FULL, architecture.INK, architecture.GREY}


def test_no_words_touch_each_other_or_the_edge(drawing, words):
    width, height = drawing.figure.canvas.get_width_height()
    assert len(words) > 40
    assert all(b.x0 > 4 and b.y0 > 4 and b.x1 < width - 4 and b.y1 < height - 4 for _, b in words)
    assert [(a.get_text(), b.get_text()) for (a, box), (b, other) in itertools.combinations(words, 2)
            if box.overlaps(other)] == []


def test_no_arrow_crosses_words(drawing, words):
    """Sampled along its path, an arrow stays out of every box of words."""
    assert len(drawing.arrows) > 10
    along = torch.linspace(0, 1, 101)[:, None]
    for points in drawing.arrows:
        for start, end in itertools.pairwise(torch.tensor(points, dtype=torch.float64)):
            path = drawing.ax.transData.transform((start + (end - start) * along).numpy())
            assert [text.get_text() for text, box in words if any(box.contains(x, y) for x, y in path)] == []


def test_the_committed_picture_is_small_and_of_this_size(drawing):
    path = ROOT / "docs" / "architecture.png"
    assert path.stat().st_size < 150_000
    assert Image.open(path).size == drawing.figure.canvas.get_width_height()
