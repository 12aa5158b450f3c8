"""Digits over moving photographs: the digits are those of the black world and come out again exactly, the
ground moves as one picture, and no held-out clip shows what a training clip shows."""

import numpy as np
import pytest
import torch
from PIL import Image

from minltx.evaluation.digits import DigitClassifier, judge_clips
from minltx.toy.data import DataConfig, MovingDigits, draw_digits
from minltx.toy.texture import BRIGHTEST, HELD_OUT, PAN, TexturedDigits, crops, load_photographs, make_world

DIGITS = draw_digits(200, 0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def world(**how):
    return make_world("texture", None, DIGITS, DIGITS, DataConfig(**how))


@pytest.mark.parametrize("how", [{}, {"size": 64, "digits": 2, "speed": (6.0, 12.0)},
                                 {"frames": 9, "fps": 8.0}])
def test_the_digits_are_those_of_the_black_world_and_come_out_exactly(how):
    data, _ = world(**how)
    flat = MovingDigits(*DIGITS, data.config)
    (video, scenes), (plain, same) = data.batch(6, rng(1)), flat.batch(6, rng(1))
    assert scenes == same and video.shape == plain.shape and video.abs().max() <= 1
    assert (data.digits_alone(video) - plain).abs().max() < 1e-6
    assert ((video - plain).abs() > 0.1).float().mean() > 0.3                # there is a ground
    assert torch.equal(flat.digits_alone(plain), plain) and flat.on_black is flat
    assert torch.equal(data.on_black.batch(6, rng(1))[0], plain)
    still = data.clips(scenes, rng(2), still=True)
    assert still.shape[2] == 1 and torch.equal(data.batch(6, rng(1))[0], video)


def test_the_judge_reads_both_worlds_alike():
    data, _ = world()
    torch.manual_seed(0)
    classifier = DigitClassifier().eval()
    video, scenes = data.batch(12, rng())
    plain = data.on_black.batch(12, rng())[0]
    both = [judge_clips(x, scenes, kind, classifier) for x, kind in ((video, data), (plain, data.on_black))]
    for found in both:
        assert found.pop("faults").keys() >= {"wrong digit"}                            # it was never trained
    assert both[0] == pytest.approx(both[1], abs=1e-5) and both[0]["colour"] == both[0]["direction"] == 1
    assert judge_clips(video, scenes, data.on_black, classifier)["direction"] < 1


def test_the_ground_moves_as_one_picture():
    """On a picture whose brightness is linear in x and y, every frame is the first one plus one number."""
    y, x = torch.meshgrid(torch.arange(504.0), torch.arange(504.0), indexing="ij")    # 12 x 42 and 7 x 72
    data = TexturedDigits(*DIGITS, DataConfig(), [(x + 2 * y) / 1512])
    ground = data.grounds(8, 17, rng())[..., 2:-2, 2:-2]                     # without blurred edges
    change = ground - ground[:, :1]
    assert (change - change.mean((2, 3), keepdim=True)).abs().max() < 1e-3
    steps = change.mean((2, 3)).diff(dim=1)                                  # (8, F-1), all steps alike
    assert (steps - steps.mean(1, keepdim=True)).abs().max() < 1e-4 and steps.abs().max() > 1e-3


def test_a_crop_is_a_part_of_the_picture():
    picture = torch.rand(40, 50, generator=rng())
    seen = crops(picture, torch.tensor([[0.0, 0.0], [18.0, 8.0], [3.5, 2.0]]), 32)
    torch.testing.assert_close(seen[0], picture[:32, :32], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], picture[8:40, 18:50], atol=1e-5, rtol=0)
    between = (picture[2:34, 3:35] + picture[2:34, 4:36]) / 2
    torch.testing.assert_close(seen[2], between, atol=1e-5, rtol=0)


def test_held_out_clips_show_other_parts_of_the_photographs():
    training, held_out = load_photographs()
    assert len(training) == len(held_out) == 3
    for above, below in zip(training, held_out):
        height = len(above) + len(below)
        assert len(below) == pytest.approx(HELD_OUT * height, abs=1) and above.shape[1] == below.shape[1]
        assert 0 <= above.min() and above.max() == pytest.approx(BRIGHTEST) and above.std() > 0.05
    data, other = world(fps=16.0)
    assert min(min(p.shape) for p in data.scenery) >= 32 + PAN
    assert not torch.equal(data.batch(2, rng())[0], other.batch(2, rng())[0])


def test_photographs_of_your_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    training, held_out = load_photographs(tmp_path)
    assert [p.shape for p in training + held_out] == [(42, 90), (18, 90)]
    data, _ = make_world("texture", tmp_path, DIGITS, DIGITS, DataConfig())
    assert data.like(*DIGITS, DataConfig(frames=9)).batch(1, rng())[0].shape == (1, 3, 9, 32, 32)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8")
    for folder, says in ((tmp_path, "cut.jpg cannot be read"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(ValueError, match=says):
            load_photographs(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photograph"):
        load_photographs(tmp_path / "empty")
    with pytest.raises(ValueError, match="--world texture"):
        make_world("black", tmp_path, DIGITS, DIGITS, DataConfig())
