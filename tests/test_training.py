"""train_tiny.py: it learns, it can be stopped and resumed, and images and text share one batch."""

import json
from dataclasses import replace

import pytest
import torch

import train_tiny
from minltx.data import DataConfig, MovingDigits, caption, draw_digits
from minltx.dit import DiTConfig
from minltx.vae import VAEConfig
from minltx.workshop.checkpoint import ModelConfig, ToyModel, load_checkpoint
from minltx.workshop.muon import optimizers, orthogonalize

SMALL = train_tiny.Settings(ModelConfig(
    data=DataConfig(frames=9, speed=(10.0, 20.0)),
    vae=VAEConfig(latent_channels=4, encoder_width=8, decoder_width=16, resample_kernel=1,
                  encoder_blocks=(("down", (2, 2, 2), 2), ("down", (2, 1, 1), 1), ("down", (2, 1, 1), 1),
                                  ("res", 1)),
                  decoder_blocks=(("res", 1), ("up", (2, 1, 1), 1), ("up", (2, 1, 1), 1),
                                  ("up", (2, 2, 2), 2))),
    dit=DiTConfig(latent_channels=4, width=24, depth=2, heads=2, text_width=16, stride=(8, 8, 8),
                  max_position=(2.0, 64.0, 64.0), theta=100.0)),
    vae_phases=((1, 4, 3), (9, 2, 4)), bank=32, dit_steps=7, dit_batch=4, still_every=3)


@pytest.fixture()
def small(monkeypatch):
    monkeypatch.setitem(train_tiny.PRESETS, "toy", SMALL)
    monkeypatch.setattr(train_tiny.Run, "__init__", wrap_save_every(train_tiny.Run.__init__, 2))
    torch.manual_seed(7)
    classifier, trained_on = train_tiny.metrics.DigitClassifier().eval(), []  # it need not know digits
    monkeypatch.setattr(train_tiny.metrics, "train_classifier",
                        lambda data, seed: trained_on.append(data) or classifier)
    return trained_on


def wrap_save_every(init, every):
    return lambda self, *args, **kwargs: init(self, *args, **{**kwargs, "save_every": every})


def run(out, *options):
    return train_tiny.main(["--out", str(out), "--prompts", "4", *options])


class Killed(BaseException):
    """Not an Exception: nothing in the script may catch it."""


@pytest.mark.parametrize("stage, steps_before_the_kill",
                         [("vae_step", 2), ("vae_step", 5), ("dit_step", 1), ("dit_step", 6)])
def test_resume_equals_an_uninterrupted_run_bit_for_bit(small, tmp_path, monkeypatch, stage,
                                                        steps_before_the_kill):
    whole = run(tmp_path / "whole")
    calls, original = [], getattr(train_tiny, stage)

    def step_until_killed(*args):
        calls.append(1)
        if len(calls) > steps_before_the_kill:
            raise Killed
        return original(*args)

    monkeypatch.setattr(train_tiny, stage, step_until_killed)
    with pytest.raises(Killed):
        run(tmp_path / "cut")
    monkeypatch.setattr(train_tiny, stage, original)
    begun = (tmp_path / "cut" / "checkpoint.pt").exists()
    assert begun
    cut = run(tmp_path / "cut", "--resume")
    for key in ("vae", "dit", "history", "loss_by_t"):
        assert cut[key] == whole[key]
    a, b = (load_checkpoint(tmp_path / name / "model.pt")[0].state_dict() for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_what_it_promises(small, tmp_path):
    report = run(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"samples.gif", "samples.png", "image_to_video.gif", "reconstruction.png", "curves.png",
                     "report.json", "checkpoint.pt", "model.pt"}
    stored = json.loads((tmp_path / "report.json").read_text())
    train_images, labels = train_tiny.load_digits("drawn", 0)[0]
    expected = MovingDigits(train_images, labels, SMALL.model.data)
    judge_saw, = small
    assert torch.equal(judge_saw.sprites, expected.sprites)         # and never held-out digits
    assert stored["dit"] == report["dit"] and stored["seed"] == 0 and stored["settings"]["dit_steps"] == 7


def test_other_options_and_old_folders_are_refused(small, tmp_path, capsys):
    run(tmp_path, "--only", "vae")
    for options, message in (([], "exists: go on with --resume"),
                             (["--resume", "--seed", "1"], "other settings")):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, *options)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "new", "--resume")
    assert stop.value.code == 2 and "no checkpoint" in capsys.readouterr().err


def batch():
    torch.manual_seed(0)
    model = ToyModel(SMALL.model)
    for p in model.dit.parameters():
        torch.nn.init.normal_(p, std=0.2)
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    video, scenes = data.batch(4, torch.Generator().manual_seed(0))
    return model, model.vae.encode(video)[0].detach(), [caption(s) for s in scenes]


def test_a_given_first_frame_is_clean_has_time_zero_and_is_not_in_the_loss(monkeypatch):
    model, latent, captions = batch()
    given, seen = torch.tensor([True, False, True, False]), {}
    original = model.dit.forward

    def spy(z, t, *args):
        seen.update(z=z, t=t, v=original(z, t, *args))
        seen["v"].retain_grad()
        return seen["v"]

    monkeypatch.setattr(model.dit, "forward", spy)
    loss, t, _ = train_tiny.dit_step(model, latent, captions, given, SMALL, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.equal(seen["z"][given, :, 0], latent[given, :, 0]) and (seen["t"][given, 0] == 0).all()
    assert torch.equal(seen["t"][~given, 0], t[~given, None, None].expand_as(seen["t"][~given, 0]))
    assert not torch.equal(seen["z"][~given, :, 0], latent[~given, :, 0])
    assert (seen["v"].grad[given, :, 0] == 0).all() and (seen["v"].grad[~given, :, 0] != 0).all()


def test_caption_dropout_hides_captions():
    model, latent, captions = batch()
    nobody = torch.zeros(4, dtype=torch.bool)

    def loss(texts, dropout):
        return train_tiny.dit_step(model, latent, texts, nobody, replace(SMALL, caption_dropout=dropout),
                                   torch.Generator().manual_seed(0))[0]

    assert torch.equal(loss(captions, 1.0), loss([""] * 4, 0.0))
    assert not torch.equal(loss(captions, 0.0), loss([""] * 4, 0.0))


def test_the_vae_learns_a_clip_by_heart():
    torch.manual_seed(0)
    model = ToyModel(SMALL.model)
    video = MovingDigits(*draw_digits(50, 0), SMALL.model.data).batch(2, torch.Generator().manual_seed(0))[0]
    both = optimizers([model.vae])
    losses = []
    for step in range(30):
        loss, _ = train_tiny.vae_step(model.vae, video, SMALL, 0.0, torch.Generator().manual_seed(step))
        model.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_orthogonalize_keeps_directions_and_evens_their_strengths():
    torch.manual_seed(0)
    for shape in ((20, 50), (50, 20)):
        matrix = torch.randn(shape)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        out = orthogonalize(matrix)
        strengths = torch.diagonal(u.T @ out @ vh.T)
        assert strengths.min() > 0.6 and strengths.max() < 1.3 and s.max() / s.min() > 2
        assert (u.T @ out @ vh.T - torch.diag(strengths)).abs().max() < 1e-3


def test_every_parameter_has_one_optimizer():
    model = ToyModel(SMALL.model)
    groups = [group for optimizer in optimizers([model]) for group in optimizer.param_groups]
    held = [p for group in groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_one_step_of_the_large_preset():
    torch.manual_seed(0)
    settings = train_tiny.LARGE
    model, data = ToyModel(settings.model), MovingDigits(*draw_digits(100, 0), settings.model.data)
    video, scenes = data.batch(2, torch.Generator().manual_seed(0))
    assert video.shape == (2, 3, 17, 64, 64) and caption(scenes[0]).count("moving") == 2
    loss, _ = train_tiny.vae_step(model.vae, video, settings, 1.0, torch.Generator().manual_seed(0))
    latent = model.vae.encode(video)[0]
    flow, _, _ = train_tiny.dit_step(model, latent.detach(), [caption(s) for s in scenes],
                                     torch.tensor([True, False]), settings, torch.Generator().manual_seed(0))
    assert latent.shape == (2, 8, 3, 8, 8) and torch.isfinite(loss) and torch.isfinite(flow)
