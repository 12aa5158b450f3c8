"""Moving digits: deterministic, inside the frame, and moving as the caption says; digits from files."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace

import pytest
import torch

from minltx.evaluation.digits import brightness, centres, judge_clips, train_classifier
from minltx.toy import mnist
from minltx.toy.data import (ALL_DIGITS, COLOURS, DIRECTIONS, DataConfig, MovingDigit, MovingDigits, describe,
                             draw_digits, render, rng)


@pytest.fixture(scope="module")
def digits():
    return draw_digits(300, seed=0)


def test_same_seed_same_clips_other_seed_others(digits):
    data = MovingDigits(*digits, DataConfig())
    (a, scenes), (b, same), (c, _) = (data.batch(4, torch.Generator().manual_seed(seed))
                                      for seed in (1, 1, 2))
    assert torch.equal(a, b) and scenes == same and not torch.equal(a, c)
    assert a.shape == (4, 3, 17, 32, 32) and a.min() == -1 and 0.5 < a.max() <= 1
    assert torch.equal(draw_digits(20, 3)[0], draw_digits(20, 3)[0])


def test_every_step_of_every_stage_has_random_numbers_of_its_own():
    drawn = {tuple(torch.rand(4, generator=rng(seed, stage, step)).tolist())
             for seed in range(3) for stage in range(4) for step in (0, 1, 2, 1000)}
    assert len(drawn) == 3 * 4 * 4
    assert torch.equal(torch.rand(4, generator=rng(1, 2, 3)), torch.rand(4, generator=rng(1, 2, 3)))


def test_captions_and_shapes():
    scene = [MovingDigit(7, "red", "left"), MovingDigit(3, "blue", "up")]
    assert describe(scene) == "a red 7 moving left and a blue 3 moving up"
    assert describe(scene, still=True) == "a red 7 and a blue 3"
    assert describe("a lighthouse in a storm", still=True) == "a lighthouse in a storm"    # of a user's clip
    assert DataConfig().clip_shape == (17, 32, 32)
    assert DataConfig(frames=9, size=(48, 64)).clip_shape == (9, 48, 64)


def test_training_and_held_out_never_overlap():
    train, held_out = draw_digits(6000, 0)[0].flatten(1), draw_digits(1000, 1)[0].flatten(1)
    assert torch.cdist(held_out, train).min() > 0.05
    held = [x for x in ALL_DIGITS if x.held_out]
    assert len(ALL_DIGITS) == 240 and len(held) == 40
    for words in (range(10), COLOURS, DIRECTIONS):         # every word occurs in training and held out
        field = {0: "digit", "red": "colour", "left": "direction"}[next(iter(words))]
        shown = {getattr(x, field) for x in set(ALL_DIGITS) - set(held)}
        assert {getattr(x, field) for x in held} == shown == set(words)


def test_training_clips_show_no_held_out_combination(digits):
    data = MovingDigits(*digits, DataConfig(digits=2, size=64))
    generator = torch.Generator().manual_seed(0)
    for held_out in (False, True):
        scenes = data.choose(200, generator, held_out)
        assert all(x.held_out == held_out for scene in scenes for x in scene)
        assert all(scene[0].colour != scene[1].colour for scene in scenes)


def test_two_digits_never_cover_each_other(digits, monkeypatch):
    """Their light is apart in every frame: the clip is the sum of the two digits, each painted alone."""
    data, kept = MovingDigits(*digits, DataConfig(digits=2, size=64)), []
    monkeypatch.setattr("minltx.toy.data.render", lambda *args: kept.append(args) or render(*args))
    scenes = data.choose(50, torch.Generator().manual_seed(0))
    video = data.clips(scenes, torch.Generator().manual_seed(1))
    sprites, colours, centres, size = kept[0]
    alone = [render(sprites[:, [k]], colours[:, [k]], centres[:, [k]], size) for k in (0, 1)]
    torch.testing.assert_close(video + 1, alone[0] + alone[1] + 2, rtol=0, atol=1e-5)
    assert not ((alone[0] > -0.99).any(1) & (alone[1] > -0.99).any(1)).any()
    places = centres[:, :, 0].flatten(0, 1)                       # nor are they driven into the corners
    assert places.min() < 20 and places.max() > 44 and (places.std(0) > 8).all()


@pytest.mark.parametrize("count, digit_size, still", [(2, 22, False), (2, 22, True), (3, 12, False)])
def test_digits_are_named_from_the_upper_left(digits, count, digit_size, still):
    """In the first frame x + y of the centres of the light of each colour are in the order of the caption."""
    data = MovingDigits(*digits, DataConfig(digits=count, size=64, digit_size=digit_size))
    scenes = data.choose(400, torch.Generator().manual_seed(0))
    scenes = [s for s in scenes if {x.colour for x in s} <= {"red", "green", "blue"}]    # a channel each
    assert len(scenes) > 5
    video = data.clips(scenes, torch.Generator().manual_seed(1), still=still)[:, :, 0] + 1     # (B, 3, H, W)
    sums = torch.arange(64.0)[:, None] + torch.arange(64.0)
    places = (video * sums).sum((2, 3)) / video.sum((2, 3)).clamp(min=1e-6)                    # (B, 3)
    for scene, place in zip(scenes, places.tolist()):
        order = [place[("red", "green", "blue").index(x.colour)] for x in scene]
        assert all(a < b + 6 for a, b in zip(order, order[1:]))     # the light's centre is not the square's


def test_digits_without_room_for_each_other_are_refused(digits):
    data = MovingDigits(*digits, DataConfig(digits=2))
    with pytest.raises(ValueError, match="2 digits of 22 pixels do not find room in a frame of 32"):
        data.batch(4, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_digits_move_as_captioned_and_stay_inside(digits, direction):
    config = DataConfig()
    data = MovingDigits(*digits, config)
    scenes = [[MovingDigit(d, "red", direction)] for d in range(10)]
    video = data.clips(scenes, torch.Generator().manual_seed(0))
    track, mass = centres(brightness(video))
    moved = track[:, -1] - track[:, 0]
    dx, dy = DIRECTIONS[direction]
    along, across = moved @ torch.tensor([dx, dy]).float(), moved @ torch.tensor([dy, dx]).float()
    seconds = (config.frames - 1) / config.fps
    assert (along > config.speed[0] * seconds - 0.3).all() and (along < config.speed[1] * seconds + 0.3).all()
    assert across.abs().max() < 0.3
    assert (mass.amax(1) / mass.amin(1) < 1.05).all()               # nothing leaves the frame
    assert (video[:, 1:] == -1).all()                               # red is red


def test_render_puts_a_sprite_at_its_centre():
    sprite = torch.rand(4, 4)
    video = render(sprite[None, None], torch.tensor([[[1.0, 0.0, 1.0]]]), torch.tensor([[[[5.0, 3.0]]]]), 8)
    expected = torch.full((3, 8, 8), -1.0)
    expected[0, 1:5, 3:7] = expected[2, 1:5, 3:7] = sprite * 2 - 1
    torch.testing.assert_close(video[0, :, 0], expected, rtol=0, atol=1e-5)


def test_the_brighter_digit_wins_whole():
    sprites = torch.stack([torch.full((4, 4), 0.9), torch.full((4, 4), 0.5)])[None]
    colours = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    video = render(sprites, colours, torch.full((1, 2, 1, 2), 4.0), 8)
    torch.testing.assert_close(video[0, :, 0, 4, 4], torch.tensor([0.8, -1.0, -1.0]))   # red, not yellow


def test_a_set_without_all_ten_digits_is_refused(digits):
    images, labels = digits
    rest = (labels != 3) & (labels != 7)
    with pytest.raises(ValueError, match="no picture of 3, 7"):
        MovingDigits(images[rest], labels[rest], DataConfig())


def test_digits_that_would_leave_the_frame_are_refused(digits):
    with pytest.raises(ValueError, match="lower speed"):
        MovingDigits(*digits, replace(DataConfig(), speed=(10.0, 30.0)))


def write_idx(path, array, zipped=False):
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + bytes(array.flatten().tolist())
    path.write_bytes(gzip.compress(raw) if zipped else raw)


def test_idx_folders(tmp_path):
    images, labels = torch.randint(256, (10, 28, 28)).byte(), torch.arange(10).byte()
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images, zipped=True)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    (train, train_labels), (held, held_labels) = mnist.read_folder(tmp_path)
    assert torch.equal(torch.cat([train, held]), images / 255)      # one set: cut in two, nothing shared
    assert train_labels.tolist() == list(range(8)) and held_labels.tolist() == [8, 9]
    write_idx(tmp_path / "train-images-idx3-ubyte", images.flip(0))
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels.flip(0))
    (train, train_labels), (held, _) = mnist.read_folder(tmp_path)
    assert train_labels[0] == 9 and torch.equal(held, images / 255)


def test_broken_digit_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no digits in"):
        mnist.read_folder(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.zeros(5).byte())
    images.write_bytes(b"not a gzip file")
    with pytest.raises(ValueError, match="train-images.*not an intact IDX"):
        mnist.read_folder(tmp_path)
    write_idx(images, torch.zeros(5, 28, 28).byte(), zipped=True)
    images.write_bytes(images.read_bytes()[:-12])
    with pytest.raises(ValueError, match="train-images.*not an intact IDX"):
        mnist.read_folder(tmp_path)
    write_idx(images, torch.zeros(4, 28, 28).byte(), zipped=True)
    with pytest.raises(ValueError, match="train-labels.* of 4 unsigned bytes .its header says 5"):
        mnist.read_folder(tmp_path)


def test_download_keeps_only_what_has_the_right_checksum(tmp_path, monkeypatch):
    source = tmp_path / "mirror"
    source.mkdir()
    (source / "good.gz").write_bytes(b"digits")
    (source / "bad.gz").write_bytes(b"something else")
    monkeypatch.setattr(mnist, "MIRRORS", (f"file://{tmp_path}/absent/", f"file://{source}/"))
    monkeypatch.setattr(mnist, "FILES", {"good.gz": hashlib.md5(b"digits").hexdigest()})
    folder = mnist.download(tmp_path / "cache")
    assert [p.name for p in folder.iterdir()] == ["good.gz"]
    (source / "good.gz").unlink()
    assert mnist.download(tmp_path / "cache") == folder             # from the cache
    monkeypatch.setattr(mnist, "FILES", {"bad.gz": "0" * 32})
    with pytest.raises(ConnectionError, match="--digits FOLDER"):
        mnist.download(tmp_path / "cache")
    assert [p.name for p in folder.iterdir()] == ["good.gz"]


@pytest.mark.skipif(not os.environ.get("MINLTX_MNIST"),
                    reason="set MINLTX_MNIST to a folder of MNIST's IDX files")
def test_real_digits_are_read_and_recognised():
    train, held_out = mnist.read_folder(os.environ["MINLTX_MNIST"])
    data, held_out = (MovingDigits(*digits, DataConfig()) for digits in (train, held_out))
    video, scenes = held_out.batch(100, torch.Generator().manual_seed(0))
    score = judge_clips(video, scenes, data, train_classifier(data, steps=200))
    assert score["digit"] > 0.9 and score["colour"] == 1.0 and score["direction"] > 0.98
