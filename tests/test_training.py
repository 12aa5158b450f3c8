"""Training: it learns, it can be stopped at any moment and resumed, and each layout gives what it says."""

import functools
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_tiny
from minltx.dit import DiTConfig, flatten_latent
from minltx.evaluation import report
from minltx.evaluation.digits import DigitClassifier
from minltx.losses import LossConfig
from minltx.objectives import Batch, flow_objective, vae_objective
from minltx.sampler import Condition, check_condition, generate
from minltx.toy.data import VAE_STAGE, DataConfig, MovingDigits, caption, draw_digits, load_digits, rng
from minltx.toy.model import ModelConfig, ToyModel, load_checkpoint, save_checkpoint
from minltx.training import loops, page
from minltx.training.latents import LatentCache, batch_of_latents, clip_variants, encode_variants
from minltx.training.loops import build_critics, train_dit, train_vae
from minltx.training.muon import optimizers, orthogonalize
from minltx.training.run import Run
from minltx.training.settings import (LARGE, PRESETS, TOY, Settings, from_stored, layout_of, learning_rate,
                                      scaled, stored)
from minltx.vae import VAEConfig

DIGITS = functools.cache(load_digits)       # drawn once for all tests
WATCHED = {"index.html", "log.jsonl", "samples"}
RESULTS = Path(__file__).parents[1] / "docs" / "results"
SMALL = Settings(model=ModelConfig(
    data=DataConfig(frames=9, speed=(10.0, 20.0)),
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("down", (2, 2, 2), 16), ("res", 1)),
                  decoder_blocks=(("res", 1), ("up", (2, 2, 2), 8), ("up", (2, 2, 2), 8))),
    dit=DiTConfig(latent_channels=4, width=24, depth=2, heads=2, text_width=16, stride=(4, 8, 8))),
    vae_phases=((1, 4, 3), (9, 2, 4)), latents=32, dit_steps=9, dit_batch=4)


@contextmanager
def small_toy():
    """Inside, the toy is SMALL and saves every second step; -> the data that classifiers were trained on."""
    torch.manual_seed(7)
    classifier, trained_on = DigitClassifier().eval(), []       # it need not know digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "toy", SMALL)
        patch.setattr(Run, "save_every", 2)
        patch.setattr(train_tiny, "load_digits", DIGITS)
        patch.setattr(report, "save_curves", lambda path, panels: path.touch())      # drawn in test_report.py
        patch.setattr(report, "NOISE", (0.0, 0.1))
        patch.setattr(report, "classifier_for", lambda data, seed: trained_on.append(data) or classifier)
        patch.setattr(page, "PARTS", 1)
        yield trained_on


@pytest.fixture()
def small():
    with small_toy() as trained_on:
        yield trained_on


def run(out, *options):
    return train_tiny.main(["--out", str(out), "--prompts", "4", *options])


class Killed(BaseException):
    """Not an Exception: nothing in the training may catch it."""


def killed_at(call, original):
    """A function like `original` that raises Killed at its call number `call`, counted from 0."""
    calls = []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) > call:
            raise Killed
        return original(*args, **kwargs)

    return function


# --- Stopping and resuming --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped: its folder, its report, and the data that its classifier was trained on."""
    out = tmp_path_factory.mktemp("whole")
    with small_toy() as trained_on:
        return out, run(out), trained_on


def check_equal(out, resumed, whole):
    """The same figures, curves and weights, bit for bit."""
    folder, expected, _ = whole
    for key in ("vae", "dit", "history", "loss_by_t"):
        assert resumed[key] == expected[key]
    a, b = (load_checkpoint(path / "model.pt")[0].state_dict() for path in (folder, out))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_curriculum_begins_with_stills_then_short_clips_and_conditions_come_last():
    settings = replace(SMALL, curriculum=((1, 0.3), (5, 0.2)), dit_steps=20)
    kinds = [layout_of(settings, step) for step in range(20)]
    assert kinds[:6] == [("still", 1)] * 6
    assert kinds[6:10] == [("free", 5), ("still", 5), ("free", 5), ("free", 5)]
    assert kinds[10:] == [(layout, None) for layout in settings.layouts]
    assert [layout_of(SMALL, step) for step in range(10)] == kinds[10:]


def test_short_clips_of_a_curriculum_are_the_beginnings_of_whole_ones_as_many_tokens():
    """The encoder is causal: the beginning of a latent is the latent of the beginning."""
    torch.manual_seed(0)
    model, data = ToyModel(SMALL.model), MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    video, scenes = data.batch(30, rng(0, 1, 0))
    cache = LatentCache(data, model.vae.encode(video)[0].detach(), scenes)
    short = model.vae.normalize(model.vae.encode(video[:, :, :5])[0].detach())
    batch = batch_of_latents(model, cache, "free", SMALL, rng(0, 2, 0), frames=5)
    assert batch.latent.shape == (6, 4, 2, 4, 4) and 6 * 2 == SMALL.dit_batch * cache.latents.shape[2]
    for latent, text in zip(batch.latent, batch.captions):
        distance = (short - latent).abs().amax((1, 2, 3, 4))
        assert distance.min() < 1e-4 and text == caption(scenes[distance.argmin()])


@pytest.mark.parametrize("name, step", [("short_clips", 5), ("batch_of_latents", 7),
                                        pytest.param("short_clips", 2, marks=pytest.mark.slow),
                                        pytest.param("batch_of_latents", 1, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, small, tmp_path, monkeypatch, name,
                                                               step):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loops, name, killed_at(step, getattr(loops, name)))
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    check_equal(tmp_path, run(tmp_path, "--resume"), whole)


@pytest.mark.parametrize("save", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))])
def test_a_run_that_is_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(whole, small, tmp_path,
                                                                                       monkeypatch, save):
    """Of all nine: the second, that at the end of the first stage, and one in the middle of the second."""
    original = torch.save

    def half(stored, file):
        original(stored, file)
        file.truncate(file.tell() // 2)
        raise Killed

    calls = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch, "save", lambda stored, file: calls.append(1) or (
            half if len(calls) > save else original)(stored, file))
        run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - WATCHED == {"checkpoint.pt"}
    check_equal(tmp_path, run(tmp_path, "--resume"), whole)


def test_a_run_starts_from_the_weights_of_another(whole, small, monkeypatch, tmp_path):
    """With a frozen encoder, as in the preset large, its latents keep their meaning: the encoder and the
    statistics stay bit for bit. Decoder, transformer and caption encoder go on from where they were."""
    folder = whole[0]
    settings = replace(SMALL, freeze_encoder=True, vae_phases=((9, 2, 1),), dit_steps=1, vae_lr=1e-4,
                       vae_adam_lr=1e-4, dit_lr=1e-4, dit_adam_lr=1e-4)
    monkeypatch.setitem(PRESETS, "toy", settings)
    run(tmp_path, "--start", str(folder / "model.pt"))
    before, after = (load_checkpoint(path / "model.pt")[0].state_dict() for path in (folder, tmp_path))
    changed = {name.rsplit(".", 2)[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(("vae.encoder", "vae.latent")) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"vae", "dit", "text"}
    far = max((before[name] - after[name]).abs().max().item() for name in before)
    assert far < 0.02


def test_the_large_preset_learns_from_one_and_two_digits_in_several_sizes():
    images = draw_digits(100, 0)
    data = clip_variants(MovingDigits(*images, LARGE.model.data), *images, LARGE)
    shown = {(some.config.clip_shape, len(some.choose(1, torch.Generator())[0])) for some in data}
    assert shown == {((17, 64, 64), 2), ((17, 72, 72), 2), ((17, 32, 32), 1)}
    assert {shape for shape, _ in shown} == set(LARGE.model.shapes) and LARGE.start == "shipped"
    assert (LARGE.model.vae, LARGE.model.dit) == (TOY.model.vae, TOY.model.dit)


def test_a_run_leaves_what_it_promises(whole):
    folder, result, trained_on = whole
    names = {p.name for p in folder.iterdir()}
    assert names == {"samples.gif", "samples.png", "image_to_video.gif", "reconstruction.png", "curves.png",
                     "report.json", "checkpoint.pt", "model.pt"} | WATCHED
    written = json.loads((folder / "report.json").read_text())
    expected = MovingDigits(*DIGITS("drawn", 0)[0], SMALL.model.data)
    judge_saw, = trained_on
    assert torch.equal(judge_saw.sprites, expected.sprites)         # and never held-out digits
    assert written["dit"] == result["dit"] and written["seed"] == 0 and written["settings"]["dit_steps"] == 9
    assert load_checkpoint(folder / "model.pt")[1]["command"] == result["command"] == written["command"]


def test_other_options_and_old_folders_are_refused(small, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loops, "short_clips", killed_at(3, loops.short_clips))
        run(tmp_path)
    model = tmp_path / "finished" / "checkpoint.pt"
    model.parent.mkdir()
    file = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({name: value for name, value in file.items() if name != "run"}, model)
    for folder, options, message in ((tmp_path, [], "go on with --resume"),
                                     (tmp_path, ["--resume", "--seed", "1"], "other settings"),
                                     (model.parent, ["--resume"], "not a run that can be resumed"),
                                     (tmp_path / "new", ["--resume"], "no checkpoint")):
        with pytest.raises(SystemExit) as stop:
            run(folder, *options)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    wider = ToyModel(replace(SMALL.model, dit=replace(SMALL.model.dit, width=36)))
    with pytest.raises(ValueError, match="a run of another model"):
        Run(tmp_path, wider, SMALL, 0, "drawn", resume=True)


@pytest.mark.parametrize("options, says", [(["--prompts", "0"], "argument --prompts: 0 is out of range"),
                                           (["--seed", "-1"], "use 0 to 4294967295"),
                                           (["--budget", "0"], "use 0.0001 to 999"),
                                           (["--clips", "FOLDER"], "unrecognized arguments: --clips FOLDER"),
                                           (["--parallel", "fsdp"], "unrecognized arguments"),
                                           (["--device", "nowhere"], "use cpu")])
def test_options_out_of_range_and_of_older_releases_are_refused_in_one_line(tmp_path, capsys, options, says):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *options)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and says in lines[0] and len(lines) == 1 and not (tmp_path / "out").exists()


def test_help_says_where_the_other_options_are(capsys):
    with pytest.raises(SystemExit):
        train_tiny.main(["--help"])
    assert "python -m minltx.training --help" in capsys.readouterr().out.splitlines()[-1]


# --- Settings ---------------------------------------------------------------------------------------------

OLD = {"bank": "latents", "views": "clip_variants"}


def as_of_old(settings):
    """Settings as the first release stored them."""
    old = {new: value for new, value in stored(settings).items() if new != "clean"}
    old |= {was: old.pop(now) for was, now in OLD.items()}
    old |= {"times": "shifted", "seconds": True}
    old["loss"]["gan"] = "reconstruction"
    old["model"]["vae"] |= {"timestep_conditioning": True, "shared_logvar": True, "fold": 1}
    old["model"]["dit"] |= {"rope": "exponential", "qk_norm": "rms", "attention": "full"}
    return old


def test_settings_of_older_files_are_read_as_todays():
    for settings in PRESETS.values():
        assert from_stored(stored(settings)) == from_stored(as_of_old(settings)) == (stored(settings), {})
    old = as_of_old(TOY)
    del old["discriminator_lr"], old["loss"]["adversarial"]             # fields that came later
    assert from_stored(old) == (stored(TOY), {})
    old["model"]["dit"]["rope"], old["seconds"], old["ema"] = "none", False, 0.5
    settings, variants = from_stored(old)
    assert variants == {"model.dit.rope": "none", "seconds": False}
    assert settings == stored(replace(TOY, ema=0.5))


def test_a_run_of_an_older_release_goes_on(whole, small, tmp_path, monkeypatch):
    """Its checkpoint has older names of settings; with a variant that is gone, it is of other settings."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loops, "batch_of_latents", killed_at(5, loops.batch_of_latents))
        run(tmp_path)
    file = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    file["run"]["identity"]["settings"] = as_of_old(SMALL)
    torch.save(file, tmp_path / "checkpoint.pt")
    check_equal(tmp_path, run(tmp_path, "--resume"), whole)
    file["run"]["identity"]["settings"]["model"]["vae"]["timestep_conditioning"] = False
    torch.save(file, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="other settings"):
        Run(tmp_path, ToyModel(SMALL.model), SMALL, 0, "drawn", resume=True)


def test_a_discriminator_is_resumed_also_from_an_older_checkpoint(tmp_path):
    """There it is its list of layers. The run goes on bit for bit: it has its weights and its moments."""
    settings = replace(SMALL, loss=LossConfig(adversarial=0.1))
    data = MovingDigits(*draw_digits(50, 0), settings.model.data)

    def train(out, resume=False, kill_at=100):
        torch.manual_seed(0)
        model = ToyModel(settings.model)
        training = Run(out, model, settings, 0, "drawn", resume=resume)
        training.save_every = 2
        critics = build_critics(settings, data, 0, "cpu")
        train_vae(training, model, [data], data, killed_at(kill_at, vae_objective), critics)
        return training.history

    history = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_at=5)
    file = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    rival = file["run"]["rival"]
    file["run"]["rival"] = {name.removeprefix("layers."): value for name, value in rival.items()}
    assert file["run"]["step"] == 4 and all(name.startswith("layers.") for name in rival)
    torch.save(file, tmp_path / "cut" / "checkpoint.pt")
    assert train(tmp_path / "cut", resume=True) == history


def test_a_budget_scales_every_phase_and_the_cache_only_upwards():
    half, double = scaled(TOY, 0.5), scaled(TOY, 2)
    assert (half.dit_steps, half.latents, double.dit_steps, double.latents) == (600, 6400, 2400, 12800)
    assert half.vae_phases == ((1, 32, 100), (9, 12, 200), (17, 8, 125)) and scaled(TOY, 1) == TOY
    assert scaled(TOY, 1e-6).dit_steps == 1
    with pytest.raises(ValueError, match="--budget -1 is out of range"):
        scaled(TOY, -1)


def test_the_learning_rate_rises_for_twenty_steps_and_falls_to_zero_from_the_middle():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20) and rates[19:501] == [1] * 482
    assert rates[750] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.002)
    assert all(a > b for a, b in zip(rates[500:], rates[501:]))
    assert max(learning_rate(step, 3) for step in range(3)) <= 3 / 20


def test_the_first_step_has_the_losses_of_the_stored_report():
    """It was made by an older release: the same seeds give the same runs."""
    expected = json.loads((RESULTS / "before.json").read_text())["history"]
    torch.manual_seed(0)
    model = ToyModel(TOY.model)
    data = MovingDigits(*DIGITS("drawn", 0)[0], TOY.model.data)
    generator = rng(0, VAE_STAGE, 0)
    video = loops.short_clips(data, 32, 1, generator)
    _, terms = vae_objective(model.vae, video, TOY, generator, 10.0)
    assert set(terms) == {"pixel", "dwt", "motion", "kl"}
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected[f"vae {name}"][0][1], rel=1e-3, abs=1e-6)


# --- Batches ----------------------------------------------------------------------------------------------

def small_batch():
    """A model whose transformer answers something, a cache of four clips, and their captions."""
    torch.manual_seed(0)
    model = ToyModel(SMALL.model)
    for p in model.dit.parameters():
        torch.nn.init.normal_(p, std=0.2)
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    video, scenes = data.batch(4, torch.Generator().manual_seed(0))
    return model, LatentCache(data, model.vae.encode(video)[0].detach(), scenes)


def spied(model, batch, settings, seed=0):
    """One step of the objective, and what the transformer got and returned in it."""
    seen, original = {}, model.dit.forward_tokens

    def spy(z, t, coordinates, *args):
        seen.update(z=z, t=t, coordinates=coordinates, v=original(z, t, coordinates, *args))
        seen["v"].retain_grad()
        return seen["v"]

    model.dit.forward_tokens = spy
    loss, t, _ = flow_objective(model, batch, settings, torch.Generator().manual_seed(seed))
    loss.backward()
    del model.dit.forward_tokens
    return seen, t


def test_soft_conditions_train_on_what_the_sampler_shows():
    """A token of strength s has the time min(t, 1 - s), just that much noise, and counts where that is t."""
    model, cache = small_batch()
    soft = replace(SMALL, conditioned=1.0, soft=1.0)
    picture = model.vae.normalize(model.vae.encode(torch.rand(4, 3, 1, 32, 32))[0]).detach()
    batch = Batch(cache.latents, ["a red 7"] * 4, SMALL.model.data.fps, Condition(picture, frame=7))
    seen, t = spied(model, batch, soft)
    own, rest = seen["t"][:, :16], seen["t"][:, 16:]
    assert seen["z"].shape[1] == 16 + 48 and torch.equal(rest, t[:, None].expand(4, 48))
    assert (own <= t[:, None]).all() and (own[:, :1] == own).all() and len(own.unique()) == 4
    torch.testing.assert_close(seen["coordinates"][0, :16], torch.full((16,), 7 / SMALL.model.data.fps))
    counts = seen["v"].grad.abs().sum(-1)[:, :16] > 0
    assert torch.equal(counts, own == t[:, None]) and 0 < counts[:, 0].sum() < 4
    noise = (seen["z"][:, :16] - (1 - own[..., None]) * flatten_latent(picture)) / own[..., None]
    assert abs(noise.std() - 1) < 0.2


def test_given_tokens_can_carry_a_little_noise():
    model, cache = small_batch()
    noisy = replace(SMALL, conditioned=1.0, soft=0.0, condition_noise=0.2)
    batch = Batch(cache.latents, ["a red 7"] * 4, 16.0, Condition(cache.latents[:, :, :1]))
    for seed in range(4):
        seen, t = spied(model, batch, noisy, seed)
        own = seen["t"][:, :16]
        assert (own <= t[:, None].clamp(max=0.2)).all() and (own > 0).all() and len(own[:, 0].unique()) == 4


@pytest.mark.parametrize("layout, frames", [("free", 3), ("still", 1), ("start", 3), ("keyframe", 3),
                                            ("end", 3)])
def test_layouts_of_a_batch(layout, frames):
    model, cache = small_batch()
    for seed in range(6):
        batch = batch_of_latents(model, cache, layout, SMALL, torch.Generator().manual_seed(seed))
        latent, condition = batch.latent, batch.condition
        assert latent.shape[2] == frames and not latent.requires_grad and batch.fps == 16.0
        assert len(latent) == len(batch.captions) == (12 if layout == "still" else 4)     # as many tokens
        assert all(("moving" in text) == (layout != "still") for text in batch.captions)
        if layout == "start":
            assert torch.equal(condition.latent, latent[:, :, : condition.latent.shape[2]])
            assert condition.frame == 0
        elif layout == "keyframe":
            assert condition.latent.shape[2] == 1 and 1 <= condition.frame <= 8
        elif layout == "end":
            assert condition.frame + 4 * (condition.latent.shape[2] - 1) == 8
        if condition is not None:
            check_condition(condition, (3, 4, 4), (4, 8, 8))
        else:
            assert layout in ("free", "still")


def test_a_clip_keeps_its_caption_in_a_batch():
    model, cache = small_batch()
    known = {caption(scene): latent for scene, latent in zip(cache.scenes, cache.latents)}
    batch = batch_of_latents(model, cache, "free", SMALL, torch.Generator().manual_seed(1))
    for text, latent in zip(batch.captions, batch.latent, strict=True):
        assert torch.equal(latent, model.vae.normalize(known[text]))


def test_some_captions_name_the_motion_alone():
    """The share that the settings say, in clips and not in stills; with 0 no random number is drawn."""
    model, cache = small_batch()
    settings = replace(SMALL, dit_batch=400, motion_captions=0.25)
    for layout in ("free", "start", "end"):
        captions = batch_of_latents(model, cache, layout, settings, torch.Generator().manual_seed(1)).captions
        alone = [text for text in captions if text.startswith("a _ _ moving")]
        assert 60 < len(alone) < 140 and all("_" not in text for text in captions if text not in alone)
    stills = batch_of_latents(model, cache, "still", settings, torch.Generator().manual_seed(1)).captions
    assert all("moving" not in text and "_" not in text for text in stills)
    after = torch.Generator().manual_seed(1)
    captions = batch_of_latents(model, cache, "free", SMALL, after).captions
    assert not any("_" in text for text in captions)
    plain = torch.Generator().manual_seed(1)
    torch.randint(len(cache.latents), (SMALL.dit_batch,), generator=plain)
    assert torch.equal(torch.rand(4, generator=after), torch.rand(4, generator=plain))


def test_the_recipes_offset_moves_the_times_unless_they_are_drawn_in_another_way():
    model, cache = small_batch()
    batch = batch_of_latents(model, cache, "free", replace(SMALL, dit_batch=64), torch.Generator())

    def times(offset, **how):
        recipe = replace(SMALL, time_offset=offset)
        return flow_objective(model, batch, recipe, torch.Generator().manual_seed(0), **how)[1]

    assert (times(-1.0) < times(0.0)).float().mean() > 0.8
    half = {"draw_t": lambda count, tokens, generator: torch.full((count,), 0.5)}
    assert torch.equal(times(-1.0, **half), times(0.0, **half))


def test_a_model_keeps_what_its_guidance_compares_with(tmp_path):
    """In its file; older files compare with the null caption. Sampling uses it."""
    torch.manual_seed(0)
    text, size = "a red 7 moving left", (5, 32, 32)
    model = ToyModel(replace(SMALL.model, negative="motion")).eval()
    torch.nn.init.normal_(model.dit.proj_out.weight)
    save_checkpoint(tmp_path / "new.pt", model)
    stored = torch.load(tmp_path / "new.pt", weights_only=True)
    del stored["config"]["negative"]
    torch.save(stored, tmp_path / "old.pt")
    videos = []
    for name, negative in (("new", "a _ _ moving left"), ("old", "")):
        model, _ = load_checkpoint(tmp_path / f"{name}.pt")
        assert model.negative([text]) == [negative]
        videos.append(model.generate([text], [0], size, steps=2))
        by_hand = generate(model, model.embed([text]), model.embed([negative]), [0], size,
                           model.sampling(size, steps=2))
        torch.testing.assert_close(videos[-1], by_hand)
    assert not torch.allclose(*videos)


def test_a_model_keeps_how_it_samples(tmp_path):
    """In its file; older files have guidance 3 and no fresh noise. A caller's own values come first."""
    torch.manual_seed(0)
    model = ToyModel(replace(SMALL.model, guidance=1.5, stochastic=True)).eval()
    torch.nn.init.normal_(model.dit.proj_out.weight)
    save_checkpoint(tmp_path / "new.pt", model)
    stored = torch.load(tmp_path / "new.pt", weights_only=True)
    for name in ("guidance", "stochastic"):
        del stored["config"][name]
    torch.save(stored, tmp_path / "old.pt")
    (new, _), (old, _) = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("new", "old"))
    assert (new.sampling().guidance.cfg, new.sampling().stochastic) == (1.5, True)
    assert (old.sampling().guidance.cfg, old.sampling().stochastic) == (3.0, False)
    call = (["a red 7 moving left"], [0], (5, 32, 32))
    own = {"steps": 3, "guidance": 3.0, "stochastic": False}
    assert torch.equal(new.generate(*call, **own), old.generate(*call, steps=3))
    assert not torch.allclose(new.generate(*call, steps=3), old.generate(*call, steps=3))
    again = old.generate(*call, steps=3, guidance=1.5, stochastic=True)
    torch.testing.assert_close(new.generate(*call, steps=3), again)


def test_equal_data_sets_get_different_clips():
    """So naming a kind twice gives it more clips, not the same ones again. A single set is as before."""
    data, vae = MovingDigits(*draw_digits(100, 0), SMALL.model.data), ToyModel(SMALL.model).vae
    first, second = encode_variants(vae, [data, data], 16, 0, "cpu")
    assert first.scenes != second.scenes and not torch.equal(first.latents, second.latents)
    alone, = encode_variants(vae, [data], 8, 0, "cpu")
    assert alone.scenes == first.scenes and torch.equal(alone.latents, first.latents)


def test_several_kinds_of_clips_in_one_training(tmp_path):
    """Sizes, lengths and frame rates in turn, about as many tokens in each batch, each with its own fps."""
    kinds = ((9, 32, 16.0), (5, 40, 16.0), (1, 56, 16.0), (9, 32, 32.0))
    settings = replace(SMALL, clip_variants=kinds, dit_steps=40, conditioned=0.0)
    images = draw_digits(100, 0)
    data = MovingDigits(*images, SMALL.model.data)
    model, seen = ToyModel(SMALL.model), []
    caches = encode_variants(model.vae, clip_variants(data, *images, settings), 32, 0, "cpu")
    grids = [tuple(cache.latents.shape[2:]) for cache in caches]
    assert grids == [(3, 4, 4), (2, 5, 5), (1, 7, 7), (3, 4, 4)] and len(caches[0].latents) == 8
    original = model.dit.forward_tokens

    def spy(z, t, coordinates, *args):
        seen.append((len(z) * z.shape[1], coordinates[0].max().item(), coordinates[2].max().item()))
        return original(z, t, coordinates, *args)

    model.dit.forward_tokens = spy
    train_dit(Run(tmp_path, model, settings, 0, "drawn"), model, caches, data)
    tokens = [n for n, _, _ in seen if n < 1000]                      # without the validation batch
    assert len(tokens) == 40 and max(tokens) <= 1.34 * 4 * 48 and min(tokens) >= 0.7 * 4 * 48
    assert {column for _, _, column in seen} == {24.0, 32.0, 48.0}
    assert {round(s, 3) for _, s, _ in seen if s} >= {round(5 / 16, 3), round(5 / 32, 3)}


# --- Learning ---------------------------------------------------------------------------------------------

def test_the_vae_learns_a_clip_by_heart():
    torch.manual_seed(0)
    model = ToyModel(SMALL.model)
    video = MovingDigits(*draw_digits(50, 0), SMALL.model.data).batch(2, torch.Generator().manual_seed(0))[0]
    both = optimizers([model.vae])
    losses = []
    for step in range(30):
        loss, _ = vae_objective(model.vae, video, SMALL, torch.Generator().manual_seed(step))
        model.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("part, frozen", [("vae.decoder.", "vae.encoder."), ("vae.", "dit.")])
def test_a_stage_changes_what_it_trains_and_nothing_else(tmp_path, part, frozen):
    torch.manual_seed(0)          # with 2 of 40 seeds, steps of the multiplier, 1000, round to nothing
    model, settings = ToyModel(SMALL.model), replace(SMALL, freeze_encoder=part == "vae.decoder.")
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_vae(Run(tmp_path, model, settings, 0, "drawn"), model, [data], data)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != name.startswith(part), name
    assert any(name.startswith(frozen) for name in before)


def test_the_transformers_result_is_the_average_of_its_weights(tmp_path):
    """Against the average computed by hand from the weights after each step."""
    model, cache = small_batch()
    settings, after = replace(SMALL, ema=0.3, dit_steps=6), []
    mean = {name: p.detach().clone() for name, p in model.dit.named_parameters()}
    training = Run(tmp_path, model, settings, 0, "drawn")
    training.save = lambda done: after.append({name: p.detach().clone()
                                               for name, p in model.dit.named_parameters()})
    train_dit(training, model, [cache], cache.data)
    for step, weights in enumerate(after):
        decay = min(0.3, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
    assert len(after) == 6
    for name, p in model.dit.named_parameters():
        torch.testing.assert_close(p, mean[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, after[-1][name])


def test_orthogonalize_keeps_directions_and_evens_their_strengths():
    torch.manual_seed(0)
    for shape in ((20, 50), (50, 20), (30, 40), (30, 30)):
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
    with pytest.raises(ValueError, match="use muon or adamw"):
        optimizers([model], kind="sgd")


def test_one_step_of_the_large_preset():
    torch.manual_seed(0)
    model, data = ToyModel(LARGE.model), MovingDigits(*draw_digits(100, 0), LARGE.model.data)
    video, scenes = data.batch(2, torch.Generator().manual_seed(0))
    assert video.shape == (2, 3, 17, 64, 64) and caption(scenes[0]).count("moving") == 2
    loss, _ = vae_objective(model.vae, video, LARGE, torch.Generator().manual_seed(0), 1.0)
    latent = model.vae.encode(video)[0].detach()
    batch = Batch(latent, [caption(scene) for scene in scenes], 16.0)
    flow, _, _ = flow_objective(model, batch, LARGE, torch.Generator().manual_seed(0))
    assert latent.shape == (2, 4, 5, 8, 8) and torch.isfinite(loss) and torch.isfinite(flow)
