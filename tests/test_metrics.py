"""Metrics on clips whose right answer is known, and on wrong clips that they must reject."""

import pytest
import torch

from minltx.evaluation import metrics
from minltx.evaluation.digits import classifier_for, judge_clips
from minltx.evaluation.report import reconstruct
from minltx.losses import haar_dwt
from minltx.toy import load_toy
from minltx.toy.data import DataConfig, MovingDigits, draw_digits


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


def test_an_autoencoder_that_freezes_its_frames_is_caught():
    """The shipped autoencoder, broken: its decoder gets the mean of all latent frames, or half of it. Every
    frame still shows the right digit in the right colour; only the motion ratio reveals the error."""
    model, held_out = load_toy(), MovingDigits(*draw_digits(300, 1), DataConfig())
    classifier = classifier_for(held_out)
    video, scenes = held_out.batch(24, torch.Generator().manual_seed(0))
    decode, share = model.vae.decode, 0.0
    model.vae.decode = lambda latent, t: decode(latent.lerp(latent.mean(2, keepdim=True), share), t)
    for share, least, most in ((0.0, 0.9, 1.1), (0.5, 0.0, 0.6), (1.0, 0.0, 0.05)):
        output = reconstruct(model.vae, video)
        assert least <= metrics.motion_ratio(output, video) <= most
        assert judge_clips(output, scenes, held_out, classifier)["colour"] == 1
        assert metrics.psnr(output, video).mean() > metrics.psnr(-torch.ones_like(video), video).mean()


def test_detail_is_the_energy_of_the_high_bands():
    video = torch.rand(2, 3, 4, 8, 8) - 0.5
    smooth = torch.nn.functional.avg_pool3d(video, 2).repeat_interleave(2, 2).repeat_interleave(
        2, 3).repeat_interleave(2, 4)
    assert metrics.detail_ratio(video, video) == 1
    assert metrics.detail_ratio(smooth, video) < 1e-9
    assert metrics.detail_ratio(smooth.lerp(video, 0.5), video) == pytest.approx(0.25, rel=1e-4)
    assert haar_dwt(smooth).shape == (2, 24, 2, 4, 4)
