"""train_tiny.py on a folder of clips: the bad ones are named first, the good ones train every stage; text and
latents that were made before are the same numbers; released weights go on learning."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from several_processes import SMALL

import train_tiny
from minltx.data import MovingDigits, caption, draw_digits
from minltx.workshop.checkpoint import load_checkpoint
from minltx.workshop.clips import read_clip

HERE = replace(SMALL, micro_batches=1, bank=24)


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
    return train_tiny.main(["--out", str(out), "--prompts", "3", *map(str, options)])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(train_tiny.PRESETS, "toy", HERE)
    monkeypatch.setattr(train_tiny.metrics, "train_classifier",
                        lambda data, seed: train_tiny.metrics.DigitClassifier().eval())


def test_a_folder_of_gifs_and_stills_trains_the_toy(folder, tmp_path, capsys):
    report = run(tmp_path / "out", "--clips", folder, "--token-drop", "0.2")
    said = capsys.readouterr().out
    begin = said.index("vae 1/")
    for name, reason in (("05.gif", "has no caption"), ("06.gif", "ends before its last frame"),
                         ("16.gif", "8 frames cannot be coded: use 4k+1, for instance 5 or 9")):
        assert 0 <= said.index(name) < begin and said.index(reason) < begin
    assert said.index("memory to train the transformer") < begin
    assert report["digits"] == str(folder) and report["settings"]["token_drop"] == 0.2
    losses = dict(report["history"]["dit loss"])
    assert len(losses) == HERE.dit_steps and all(0 < x < 10 for x in losses.values())
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    assert (model.config.data.frames, model.config.data.size, model.config.data.digits) == (9, (32, 32), 0)
    assert model.generate(["a red 7 moving left"], [0]).shape == (1, 3, 9, 32, 32)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"samples.gif", "reconstruction.png", "report.json"} <= written


def test_what_is_learned_is_what_is_in_the_files(folder, tmp_path, monkeypatch):
    """Every clip of a batch of the first stage is a clip of the folder, cut to the phase's frames."""
    stored = [read_clip(p)[0].float() / 127.5 - 1 for p in sorted(folder.glob("*.gif")) if p.stem != "06"]
    stored += [read_clip(p)[0].float() / 127.5 - 1 for p in sorted(folder.glob("*.png"))]
    seen, original = [], train_tiny.vae_step

    def spy(vae, video, *args):
        seen.extend(video)
        return original(vae, video, *args)

    monkeypatch.setattr(train_tiny, "vae_step", spy)
    run(tmp_path / "out", "--clips", folder, "--only", "vae")
    assert {clip.shape[1] for clip in seen} == {1, 9}
    for clip in seen:
        n = clip.shape[1]
        assert any(torch.equal(clip, whole[:, i : i + n]) for whole in stored
                   for i in range(whole.shape[1] - n + 1))


def test_buckets_are_trained_in_turn(folder, tmp_path):
    report = run(tmp_path / "out", "--clips", folder, "--buckets", "5x40x24,1x48x48")
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    assert model.config.data.size == (40, 24) and model.config.data.frames == 5
    assert report["vae"]["clips"] > 0


def test_latents_are_kept_and_taken_again(folder, tmp_path, monkeypatch, capsys):
    """With the file nothing is encoded again, and the run is the same; another autoencoder refuses it."""
    file, calls, original = tmp_path / "latents.pt", [], train_tiny.encode_bank

    def counted(vae, data, *args):
        calls.append(data)
        return original(vae, data, *args)

    monkeypatch.setattr(train_tiny, "encode_bank", counted)
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
    from minltx.workshop.clips import captions_in
    captions = ["", *captions_in(folder)]
    text = torch.randn(len(captions), 6, HERE.model.dit.text_width)
    save_embeddings(tmp_path / "all.safetensors", captions, text, torch.ones(len(captions), 6))
    report = run(tmp_path / "out", "--clips", folder, "--text", tmp_path / "all.safetensors")
    assert report["parameters"]["text"] == 0 and report["settings"]["model"]["stored_text"]
    model, _ = load_checkpoint(tmp_path / "out" / "model.pt")
    model.text.read(tmp_path / "all.safetensors", HERE.model.dit.text_width)
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
    from minltx.workshop.clips import captions_in
    model, file, words = release("0.9.5"), tmp_path / "release.safetensors", tmp_path / "words.safetensors"
    save_pretrained(model, file)
    shape = replace(train_tiny.FULL.model, vae=model.vae.config, dit=model.dit.config)
    monkeypatch.setitem(train_tiny.PRESETS, "2b", replace(
        train_tiny.FULL, model=shape, bank=6, dit_steps=3, dit_adam_lr=1e-2, precision="float32"))
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
