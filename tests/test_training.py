"""train_tiny.py: it learns, it can be stopped and resumed, and images and text share one batch."""

import json
from dataclasses import replace

import pytest
import torch

import train_tiny
from minltx.data import DataConfig, MovingDigits, caption, draw_digits
from minltx.dit import DiTConfig, flatten_latent
from minltx.sampler import Condition, check_condition
from minltx.vae import VAEConfig
from minltx.workshop.checkpoint import ModelConfig, ToyModel, load_checkpoint
from minltx.workshop.muon import optimizers, orthogonalize

SMALL = train_tiny.Settings(ModelConfig(
    data=DataConfig(frames=9, speed=(10.0, 20.0)),
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("down", (2, 2, 2), 16), ("res", 1)),
                  decoder_blocks=(("res", 1), ("up", (2, 2, 2), 8), ("up", (2, 2, 2), 8))),
    dit=DiTConfig(latent_channels=4, width=24, depth=2, heads=2, text_width=16, stride=(4, 8, 8))),
    vae_phases=((1, 4, 3), (9, 2, 4)), bank=32, dit_steps=9, dit_batch=4)


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
                         [("vae_step", 2), ("vae_step", 5), ("dit_step", 1), ("dit_step", 7)])
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
    assert stored["dit"] == report["dit"] and stored["seed"] == 0 and stored["settings"]["dit_steps"] == 9


def test_other_options_and_old_folders_are_refused(small, tmp_path, capsys):
    run(tmp_path, "--only", "vae")
    for options, message in (([], "go on with --resume"),
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


def spied(model, latent, captions, condition, settings, seed=0):
    """One dit_step, and what the transformer saw and answered in it."""
    seen, original = {}, model.dit.forward_tokens

    def spy(z, t, coordinates, *args):
        seen.update(z=z, t=t, coordinates=coordinates, v=original(z, t, coordinates, *args))
        seen["v"].retain_grad()
        return seen["v"]

    model.dit.forward_tokens = spy
    loss, t, _ = train_tiny.dit_step(model, latent, captions, condition, settings,
                                     torch.Generator().manual_seed(seed))
    loss.backward()
    del model.dit.forward_tokens
    return seen, t


def test_a_given_first_frame_is_clean_has_time_zero_and_is_not_in_the_loss():
    model, latent, captions = batch()
    first = flatten_latent(latent[:, :, :1])
    hard = replace(SMALL, conditioned=1.0, soft=0.0)
    seen, t = spied(model, latent, captions, Condition(latent[:, :, :1]), hard)
    assert torch.equal(seen["z"][:, :16], first) and (seen["t"][:, :16] == 0).all()
    assert torch.equal(seen["t"][:, 16:], t[:, None].expand(4, 32))
    gradient = seen["v"].grad.abs().sum(-1)
    assert (gradient[:, :16] == 0).all() and (gradient[:, 16:] > 0).all()
    seen, t = spied(model, latent, captions, Condition(latent[:, :, :1]), replace(hard, conditioned=0.0))
    assert torch.equal(seen["t"], t[:, None].expand(4, 48)) and (seen["v"].grad != 0).all()
    assert not torch.equal(seen["z"][:, :16], first)


def test_soft_conditions_train_on_what_the_sampler_shows():
    """A token of strength s has the time min(t, 1 - s), just that much noise, and counts where that is t."""
    model, latent, captions = batch()
    soft = replace(SMALL, conditioned=1.0, soft=1.0)
    picture = model.vae.normalize(model.vae.encode(torch.rand(4, 3, 1, 32, 32))[0]).detach()
    seen, t = spied(model, latent, captions, Condition(picture, frame=7), soft)
    own, rest = seen["t"][:, :16], seen["t"][:, 16:]
    assert seen["z"].shape[1] == 16 + 48 and torch.equal(rest, t[:, None].expand(4, 48))
    assert (own <= t[:, None]).all() and (own[:, :1] == own).all() and len(own.unique()) == 4
    torch.testing.assert_close(seen["coordinates"][0, :16], torch.full((16,), 7 / SMALL.model.data.fps))
    counts = seen["v"].grad.abs().sum(-1)[:, :16] > 0
    assert torch.equal(counts, own == t[:, None]) and 0 < counts[:, 0].sum() < 4
    noise = (seen["z"][:, :16] - (1 - own[..., None]) * flatten_latent(picture)) / own[..., None]
    assert abs(noise.std() - 1) < 0.2


@pytest.mark.parametrize("layout, frames", [("free", 3), ("still", 1), ("start", 3), ("keyframe", 3),
                                            ("end", 3)])
def test_layouts_of_a_batch(layout, frames):
    model, latent, _ = batch()
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    scenes = [data.choose(1, torch.Generator().manual_seed(i))[0] for i in range(4)]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        latents, some, condition = train_tiny.batch_of_latents(model, data, latent, scenes, layout, SMALL,
                                                               generator)
        assert latents.shape[2] == frames and len(some) == len(latents) and not latents.requires_grad
        if layout == "start":
            assert (torch.equal(condition.latent, latents[:, :, : condition.latent.shape[2]])
                    and condition.frame == 0)
        elif layout == "keyframe":
            assert condition.latent.shape[2] == 1 and 1 <= condition.frame <= 8
        elif layout == "end":
            assert condition.frame + 4 * (condition.latent.shape[2] - 1) == 8
        if condition is not None:
            check_condition(condition, (3, 4, 4), (4, 8, 8))


def test_caption_dropout_hides_captions():
    model, latent, captions = batch()

    def loss(texts, dropout):
        return train_tiny.dit_step(model, latent, texts, None, replace(SMALL, caption_dropout=dropout),
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
    flow, _, _ = train_tiny.dit_step(model, latent.detach(), [caption(s) for s in scenes], None, settings,
                                     torch.Generator().manual_seed(0))
    assert latent.shape == (2, 4, 5, 8, 8) and torch.isfinite(loss) and torch.isfinite(flow)
