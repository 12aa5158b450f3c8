"""Training on a folder of clips: bad clips are listed first, good ones train both stages; stored text and
latents are the same numbers; released weights can be trained further."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from several_processes import SMALL

import sample
from minltx.caption_files import captions_in
from minltx.evaluation import report
from minltx.evaluation.digits import DigitClassifier
from minltx.toy.data import MovingDigits, caption, draw_digits, load_digits
from minltx.toy.model import load_checkpoint
from minltx.training import __main__ as training
from minltx.training import latents, loops
from minltx.training.settings import FULL, PRESETS
from minltx.video.clips import read_clip

DIGITS = functools.cache(load_digits)       # drawn once for all tests
HERE = replace(SMALL, micro_batches=1, latents=24)


@pytest.fixture()
def folder(tmp_path):
    """Twelve GIFs and four stills of digits, and three files that cannot be used."""
    path = tmp_path / "clips"
    path.mkdir()
    data = MovingDigits(*draw_digits(60, 0), SMALL.model.data)
    video, scenes = data.batch(17, torch.Generator().manual_seed(0))
    for i, (clip, scene) in enumerate(zip(video, scenes)):
        still = i % 4 == 3
        pixels = ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0)                # (F, H, W, 3)
        frames = [Image.fromarray(x) for x in pixels.numpy()]
        name = path / f"{i:02d}.{'png' if still else 'gif'}"
        more = {"save_all": True, "append_images": frames[1 : 8 if i == 16 else 9], "duration": 60}
        frames[0].save(name, **({} if still else more))
        (path / f"{i:02d}.txt").write_text(caption(scene, still))
    (path / "05.txt").unlink()                                                          # no caption
    broken = (path / "06.gif").read_bytes()
    (path / "06.gif").write_bytes(broken[: len(broken) // 2])                           # cut off
    return path                                                                         # 16.gif has 8 frames


def run(out, *options):
    return training.main(["--out", str(out), "--prompts", "3", *map(str, options)])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(PRESETS, "toy", HERE)
    monkeypatch.setattr(report, "classifier_for", lambda data, seed: DigitClassifier().eval())
    monkeypatch.setattr(training, "load_digits", DIGITS)
    monkeypatch.setattr(report, "save_curves", lambda path, panels: path.touch())


def test_a_folder_of_gifs_and_stills_trains_the_toy(folder, tmp_path, capsys):
    result = run(tmp_path / "out", "--clips", folder, "--token-drop", "0.2")
    said = capsys.readouterr().out
    begin = said.index("vae 1/")
    for name, reason in (("05.gif", "has no caption"), ("06.gif", "ends before its last frame"),
                         ("cut to 9x32x32,1x32x32 (", "chosen from 15 files"), ("words are", "learned from")):
        assert 0 <= said.index(name) < begin and said.index(reason) < begin
    assert said.index("memory to train the transformer") < begin
    assert result["digits"] == str(folder) and result["settings"]["token_drop"] == 0.2
    losses = dict(result["history"]["dit loss"])
    assert len(losses) == HERE.dit_steps and all(0 < x < 10 for x in losses.values())
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    assert (model.config.data.frames, model.config.data.size, model.config.data.digits) == (9, (32, 32), 0)
    assert model.generate(["a red 7 moving left"], [0]).shape == (1, 3, 9, 32, 32)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"samples.gif", "reconstruction.png", "report.json"} <= written


SUBJECTS = ["A slow zoom, into a blue fractal.", "waves roll onto the beach", "a cat turns its head",
            "traffic at night (time-lapse)"]


@pytest.fixture()
def natural(tmp_path):
    """Twenty GIFs of 36 wide frames with captions of any words, and one without a caption."""
    path = tmp_path / "natural"
    path.mkdir()
    y, x = torch.meshgrid(torch.arange(36), torch.arange(64), indexing="ij")
    for i in range(21):
        light = [((x * (i + 1) + y * 3 + 5 * k) % 256).byte().numpy() for k in range(36)]
        frames = [Image.merge("RGB", [Image.fromarray(p), Image.fromarray(255 - p), Image.fromarray(p)])
                  for p in light]
        frames[0].save(path / f"{i:02d}.gif", save_all=True, append_images=frames[1:], duration=40)
        if i < 20:
            (path / f"{i:02d}.txt").write_text(f"{SUBJECTS[i % 4]} Take {'one' if i % 2 else 'two'}")
    return path


def test_clips_of_any_size_with_any_words_train_sample_and_answer_an_unknown_word(natural, tmp_path, capsys):
    run(tmp_path / "out", "--clips", natural)
    said = capsys.readouterr().out
    assert said.count("has no caption") == 1 and "clips are cut to 9x24x40 (" in said
    file = tmp_path / "out" / "model.pt"
    model, _ = load_checkpoint(file)
    known = model.words[3:]
    assert model.words == list(model.config.words)
    assert f"{len(known)} words are learned from 18 captions" in said
    assert {"a", "fractal", "time-lapse", "beach", "one"} <= set(known) and len(set(known)) == len(known)
    assert model.config.shapes == ((9, 24, 40),) and model.config.negative == "nothing"
    out = tmp_path / "fractal.gif"
    assert sample.main(["a slow zoom into a blue fractal", "--checkpoint", str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().err == "" and out.exists()
    unknown = "a slow zooom into a green fractal"
    assert sample.main([unknown, "--checkpoint", str(file), "--out", str(out)]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert "'zooom' is unknown" in first and "nearest known words: zoom" in first and "'green'" in second
    assert sample.main(["--words", "--checkpoint", str(file)]) == 0
    assert capsys.readouterr().out.split() == ["<unknown>", *known]


def test_what_is_learned_is_what_is_in_the_files(folder, tmp_path, monkeypatch):
    """Every clip of a batch of the first stage is a clip of the folder, cut to the phase's frames."""
    stored = [read_clip(p)[0].float() / 127.5 - 1 for p in sorted(folder.glob("*.gif")) if p.stem != "06"]
    stored += [read_clip(p)[0].float() / 127.5 - 1 for p in sorted(folder.glob("*.png"))]
    seen, original = [], loops.short_clips

    def spy(*args):
        video = original(*args)
        seen.extend(video)
        return video

    monkeypatch.setattr(loops, "short_clips", spy)
    run(tmp_path / "out", "--clips", folder, "--only", "vae")
    assert {clip.shape[1] for clip in seen} == {1, 9}
    for clip in seen:
        n = clip.shape[1]
        assert any(torch.equal(clip, whole[:, i : i + n]) for whole in stored
                   for i in range(whole.shape[1] - n + 1))


def test_buckets_are_trained_in_turn(folder, tmp_path):
    result = run(tmp_path / "out", "--clips", folder, "--buckets", "5x40x24,1x48x48")
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    assert model.config.data.size == (40, 24) and model.config.data.frames == 5
    assert result["vae"]["clips"] > 0


@pytest.mark.slow
def test_latents_are_kept_and_taken_again(folder, tmp_path, monkeypatch, capsys):
    """With the file nothing is encoded again, and the run is the same; another autoencoder refuses it."""
    file, calls, original = tmp_path / "latents.pt", [], latents.encode_clips

    def counted(vae, data, *args, **how):
        calls.append(data)
        return original(vae, data, *args, **how)

    monkeypatch.setattr(latents, "encode_clips", counted)
    monkeypatch.setattr(loops, "encode_clips", counted)
    plain = run(tmp_path / "plain", "--clips", folder)
    encoded = len(calls)
    first = run(tmp_path / "first", "--clips", folder, "--latents", file)
    assert len(calls) == 2 * encoded and file.exists()
    second = run(tmp_path / "second", "--clips", folder, "--latents", file)
    assert len(calls) == 2 * encoded + 1                                        # held-out clips alone
    assert first["history"] == second["history"] == plain["history"]
    with pytest.raises(SystemExit):
        run(tmp_path / "other", "--clips", folder, "--latents", file, "--seed", 1)
    assert "name another file with --latents" in capsys.readouterr().err
    run(tmp_path / "digits", "--latents", tmp_path / "digits.pt")           # scenes of digits come back too
    a = run(tmp_path / "again", "--latents", tmp_path / "digits.pt")
    assert a["history"] == json.loads((tmp_path / "digits" / "report.json").read_text())["history"]


def test_embeddings_that_were_made_before_take_the_encoders_place(folder, tmp_path, capsys):
    pytest.importorskip("safetensors")
    from minltx.pretrained.t5 import save_embeddings
    captions = ["", *captions_in(folder)]
    text = torch.randn(len(captions), 6, HERE.model.dit.text_width)
    save_embeddings(tmp_path / "all.safetensors", captions, text, torch.ones(len(captions), 6))
    result = run(tmp_path / "out", "--clips", folder, "--text", tmp_path / "all.safetensors")
    assert result["parameters"]["text"] == 0 and result["settings"]["model"]["stored_text"]
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    model.text.fill(text, torch.ones(len(captions), 6), captions)
    assert torch.equal(model.embed(captions[2:4])[0], text[2:4])
    save_embeddings(tmp_path / "few.safetensors", captions[:-1], text[:-1], torch.ones(len(captions) - 1, 6))
    run(tmp_path / "fewer", "--clips", folder, "--text", tmp_path / "few.safetensors", "--only", "vae")
    assert f"{captions[-1]!r} has no embedding" in capsys.readouterr().out        # a clip more that is named
    save_embeddings(tmp_path / "no_empty.safetensors", captions[1:], text[1:], torch.ones(len(text) - 1, 6))
    with pytest.raises(SystemExit):
        run(tmp_path / "none", "--clips", folder, "--text", tmp_path / "no_empty.safetensors")
    assert "the caption '' has no embedding" in capsys.readouterr().err


def test_released_weights_go_on_learning(folder, tmp_path, monkeypatch, capsys):
    """A tiny release in the place of the 2 B one: its autoencoder stands still, its transformer moves, and
    the result is an official file again."""
    pytest.importorskip("safetensors")
    from tiny_releases import release

    from minltx.pretrained import load_pretrained, save_pretrained
    from minltx.pretrained.t5 import save_embeddings
    model, file, words = release("0.9.5"), tmp_path / "release.safetensors", tmp_path / "words.safetensors"
    save_pretrained(model, file)
    shape = replace(FULL.model, vae=model.vae.config, dit=model.dit.config)
    monkeypatch.setitem(PRESETS, "2b", replace(
        FULL, model=shape, latents=6, dit_steps=3, dit_adam_lr=1e-2, precision="float32"))
    captions = ["", *captions_in(folder)]
    save_embeddings(words, captions, torch.randn(len(captions), 6, 32), torch.ones(len(captions), 6))
    run(tmp_path / "out", "--preset", "2b", "--clips", folder, "--text", words, "--weights", file,
        "--buckets", "9x32x64,1x32x32")
    trained = load_pretrained(tmp_path / "out" / "model.safetensors")
    assert trained.config.dit == model.config.dit and trained.config.vae == model.config.vae
    for name, value in model.vae.state_dict().items():
        assert torch.equal(trained.vae.state_dict()[name], value), name
    moved = [not torch.equal(value, trained.dit.state_dict()[name])
             for name, value in model.dit.state_dict().items()]
    assert all(moved)
    for preset, says in (("toy", "model of another shape"), ("2b", "--clips FOLDER")):
        with pytest.raises(SystemExit):
            run(tmp_path / "wrong", "--preset", preset, "--weights", file)
        assert says in capsys.readouterr().err
