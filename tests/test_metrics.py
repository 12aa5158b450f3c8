"""Metrics on clips whose right answer is known, and on wrong clips that they must reject."""

import pytest
import torch

from minltx.evaluation import metrics
from minltx.evaluation.report import reconstruct
from minltx.losses import haar_dwt
from minltx.toy import load_toy
from minltx.toy.data import COLOURS, DIRECTIONS, DataConfig, MovingDigit, MovingDigits, draw_digits


@pytest.fixture(scope="module")
def world():
    """Data, held-out data and a classifier trained on the first."""
    data = MovingDigits(*draw_digits(2000, 0), DataConfig())
    held_out = MovingDigits(*draw_digits(300, 1), DataConfig())
    return held_out, metrics.train_classifier(data, steps=150)


def read(video, world, digits=1, size=22):
    return metrics.read_clips(video, digits, world[1], size)


def test_psnr_and_motion_of_known_errors():
    video = torch.rand(2, 3, 4, 8, 8) - 0.5
    noisy = video.clone()
    noisy[:, :, 1] += 0.2
    second = metrics.psnr(noisy, video)[:, 1].tolist()
    assert second == pytest.approx([20.0, 20.0], abs=1e-3)  # 10 log10(4 / 0.04)
    assert metrics.psnr(noisy, video)[0, 0] > 90
    assert metrics.motion_ratio(video, video) == 1
    assert metrics.motion_ratio(video[:, :, :1].expand_as(video), video) == 0          # a frozen clip
    assert metrics.motion_ratio(0.5 * video, video) == pytest.approx(0.25)


def test_held_out_clips_are_read_as_their_captions_say(world):
    video, scenes = world[0].batch(100, torch.Generator().manual_seed(5))
    score = metrics.adherence(read(video, world), scenes)
    assert score["digit"] >= 0.95 and score["colour"] == score["direction"] == 1.0


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_survive_dimming_and_noise(world, colour):
    video = world[0].clips([[MovingDigit(4, colour, "up")]], torch.Generator().manual_seed(0))
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    worse = ((video + 1) * 0.6 - 1 + 0.05 * noise)
    assert read(worse, world)[0][0].colour == colour


@pytest.mark.parametrize("direction, mirrored",
                         [("left", "right"), ("right", "left"), ("up", "up"), ("down", "down")])
def test_direction_follows_the_picture_not_the_caption(world, direction, mirrored):
    video = world[0].clips([[MovingDigit(8, "cyan", direction)]], torch.Generator().manual_seed(0))
    opposite = dict(zip(DIRECTIONS, ("right", "left", "down", "up")))[direction]
    assert read(video, world)[0][0].direction == direction
    assert read(video.flip(2), world)[0][0].direction == opposite                      # played backwards
    assert read(video.flip(4), world)[0][0].direction == mirrored


def test_wrong_clips_are_rejected(world):
    scene = [MovingDigit(3, "red", "left")]
    video = world[0].clips([scene], torch.Generator().manual_seed(0))
    nothing = metrics.UNKNOWN
    assert read(-torch.ones_like(video), world)[0] == [nothing]                        # black
    gone = torch.cat([video[:, :, :12], -torch.ones_like(video[:, :, 12:])], 2)
    assert read(gone, world)[0] == [nothing]                                           # it vanishes
    still = video[:, :, :1].expand_as(video)
    assert read(still, world)[0][0].direction is None                                  # frozen
    diagonal = torch.stack([torch.roll(still[:, :, f], (f // 2 - 4, f // 2 - 4), (2, 3))
                            for f in range(17)], 2)
    assert read(diagonal, world)[0][0].direction is None
    score = metrics.adherence([[MovingDigit(3, "blue", "left")]], [scene])
    assert score == {"digit": 1, "colour": 0, "direction": 1, "all": 0}
    with pytest.raises(ValueError):
        metrics.adherence([], [scene])


def test_a_wrong_digit_is_a_wrong_digit(world):
    scenes = [[MovingDigit(d, "red", "left")] for d in range(10)]
    found = read(world[0].clips(scenes, torch.Generator().manual_seed(4)), world)
    wrong = [[MovingDigit((scene[0].digit + 1) % 10, "red", "left")] for scene in scenes]
    assert metrics.adherence(found, scenes)["digit"] >= 0.9
    assert metrics.adherence(found, wrong)["digit"] <= 0.1


def test_two_digits_are_distinguished_by_colour(world):
    config = DataConfig(size=64, digits=2)
    data = MovingDigits(*draw_digits(300, 1), config)
    scenes = [[MovingDigit(7, "red", "left"), MovingDigit(1, "cyan", "down")],
              [MovingDigit(2, "green", "up"), MovingDigit(5, "magenta", "right")]]
    video = data.clips(scenes, torch.Generator().manual_seed(3))
    found = read(video, world, digits=2)
    assert metrics.adherence(found, scenes)["direction"] == metrics.adherence(found, scenes)["colour"] == 1.0
    swapped = [[MovingDigit(7, "red", "down"), MovingDigit(1, "cyan", "left")], scenes[1]]
    assert metrics.adherence(found, swapped)["direction"] == 0.5


def test_an_autoencoder_that_freezes_its_frames_is_caught(world):
    """The shipped autoencoder, broken: its decoder gets the mean of all latent frames, or half of it. Every
    frame still shows the right digit in the right colour; only the motion ratio reveals the error."""
    model = load_toy()
    video, scenes = world[0].batch(24, torch.Generator().manual_seed(0))
    decode, share = model.vae.decode, 0.0
    model.vae.decode = lambda latent, t: decode(latent.lerp(latent.mean(2, keepdim=True), share), t)
    for share, least, most in ((0.0, 0.9, 1.1), (0.5, 0.0, 0.6), (1.0, 0.0, 0.05)):
        output = reconstruct(model.vae, video)
        assert least <= metrics.motion_ratio(output, video) <= most
        assert metrics.adherence(read(output, world), scenes)["colour"] == 1.0
        assert metrics.psnr(output, video).mean() > metrics.psnr(-torch.ones_like(video), video).mean()


def test_detail_is_the_energy_of_the_high_bands():
    video = torch.rand(2, 3, 4, 8, 8) - 0.5
    smooth = torch.nn.functional.avg_pool3d(video, 2).repeat_interleave(2, 2).repeat_interleave(
        2, 3).repeat_interleave(2, 4)
    assert metrics.detail_ratio(video, video) == 1
    assert metrics.detail_ratio(smooth, video) < 1e-9
    assert metrics.detail_ratio(smooth.lerp(video, 0.5), video) == pytest.approx(0.25, rel=1e-4)
    assert haar_dwt(smooth).shape == (2, 24, 2, 4, 4)
