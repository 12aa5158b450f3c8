"""sample.py runs every release's own recipe, from tiny random files in that release's layout and under its
published name; what is in a file; how much memory it needs; given pictures as released."""

import io
import json
import math
import subprocess
import sys
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minltx.bench import forecast
from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate

safetensors = pytest.importorskip("safetensors.torch")
import sample                                                                             # noqa: E402
from minltx.pretrained import RELEASES, LTXVideo, load_pretrained, plan                   # noqa: E402
from minltx.pretrained import save_pretrained, store                                      # noqa: E402
from minltx.pretrained.__main__ import main as which                                      # noqa: E402
from minltx.pretrained.passes import at_work                                              # noqa: E402
from minltx.pretrained.pictures import as_released, blur, compress, crop                  # noqa: E402
from minltx.pretrained.releases import NAMES, NEGATIVE, ReleaseConfig                     # noqa: E402
from minltx.pretrained.t5 import save_embeddings                                          # noqa: E402
from test_two_passes import random_upsampler                                              # noqa: E402
from tiny_releases import VAES, randomise                                                 # noqa: E402

FILES = {release: name for name, release in NAMES.items() if not name.startswith("LTX")}
UPSAMPLER = {"_class_name": "LatentUpsampler", "in_channels": 8, "mid_channels": 32,
             "num_blocks_per_stage": 1, "dims": 3, "spatial_upsample": True, "temporal_upsample": False}
# How many captions a recipe predicts for, all steps together: 1 each, 2 with guidance or STG, 3 with both.
# Of the 13 B dev recipe: 3 + 11 * 3 + 13 * 2 in the first pass, 13 * 2 in the second.
CAPTIONS = {"dev": 120, "0.9.6-distilled": 8, "twice": 10, "13b-dev": 88}
DISTILLED = [1.0, .9937, .9875, .9812, .975, .9094, .725]


def tiny(name):
    """A model of a release's depth and kinds of block, 12 channels wide."""
    version = name if name in ("0.9.0", "0.9.1") else "0.9.5"
    config, vae = RELEASES[name], VAES[version]
    dit = DiTConfig(8, 12, config.dit.depth, 2, 32, vae.stride, causal_time=config.dit.causal_time)
    return randomise(LTXVideo(ReleaseConfig(dit, vae, config.sampling)))


def publish(name, folder, model=None):
    """Write a release's single file as published: no entry of minltx in its header -> its path."""
    path = folder / f"{FILES[name]}.safetensors"
    save_pretrained(model or tiny(name), folder / "own.safetensors")
    config = json.loads(store.metadata(folder / "own.safetensors")["config"])
    safetensors.save_file(safetensors.load_file(folder / "own.safetensors"), path,
                          {"config": json.dumps(config)})
    safetensors.save_file(random_upsampler().state_dict(), folder / "up.safetensors",
                          {"config": json.dumps(UPSAMPLER)})
    sampling = RELEASES[name].sampling
    text = torch.randn(2, sampling.text_tokens, 32, generator=torch.Generator().manual_seed(1))
    save_embeddings(folder / "words.safetensors", ["a storm", NEGATIVE], text, torch.ones(text.shape[:2]),
                    lowercase=sampling.lowercase)
    return path


def code_of(arguments):
    """The exit code of sample.py."""
    try:
        return sample.main(arguments)
    except SystemExit as stop:
        return stop.code


def run_sample(folder, path, *options):
    """sample.py on the published file -> its video (F, H, W, 3), and what it printed."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = code_of(["a storm", "--weights", str(path), "--text", str(folder / "words.safetensors"),
                            "--frames", "9", "--size", "64x96", "--out", str(folder / "a.npz"), "--device",
                            "cpu", *options])
    assert code == 0
    with np.load(folder / "a.npz") as file:
        return file["frames"][0], said.getvalue()


@pytest.fixture
def calls(monkeypatch):
    """Every call of a transformer: (captions, tokens, time)."""
    seen, forward = [], DiT.forward_tokens

    def counted(self, tokens, t, *rest):
        seen.append((len(tokens), tokens.shape[1], t.flatten()[0].item()))
        return forward(self, tokens, t, *rest)

    monkeypatch.setattr(DiT, "forward_tokens", counted)
    monkeypatch.setattr("sample.accelerate", lambda model: model)
    for place, name in ((plan, "live_bytes"), (forecast, "announce_time")):   # their calls are not sampling
        monkeypatch.setattr(place, name, lambda *args, **how: 0)
    return seen


FAST = ("0.9.6-distilled", "0.9.8-13b-dev", "0.9.8-13b-distilled")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
                                  for name in RELEASES])
def test_sample_runs_the_recipe_of_every_release(tmp_path, calls, name):
    path, two = publish(name, tmp_path), RELEASES[name].sampling.second is not None
    frames, said = run_sample(tmp_path, path, *(["--upsampler", str(tmp_path / "up.safetensors")] * two))
    assert frames.shape == (9, 64, 96, 3) and frames.std() > 1 and said.startswith("memory for 9x64x96:")
    assert f"sampling as release {name}" in said
    distilled = "distilled" in name
    kind = (name if name in CAPTIONS else "twice" if two and distilled else "13b-dev" if two else "dev")
    assert sum(captions for captions, _, _ in calls) == CAPTIONS[kind]
    tokens = [n for n, _ in groupby(n for _, n, _ in calls)]
    assert tokens == ([2, 8] if two else [12])             # 32x32, then 64x64 pixels, or 64x96 at once
    times = [t for t, _ in groupby(t for _, _, t in calls)]
    if kind == "twice":
        assert times == pytest.approx([*DISTILLED, .9094, .725, .4219], abs=1e-6)
    elif kind == "0.9.6-distilled":
        assert times == pytest.approx([1, .99375, .9875, .98125, .975, .909375, .725, .421875], abs=1e-6)
    else:
        second = 13 if two else 0
        assert len(times) == (27 + second if two else 40) and times[0] == 1.0
        if two:
            turns = [times[26], times[27], times[-1]]
            assert turns == pytest.approx([.44578, .95478, .12411], abs=1e-5)


def test_one_pass_and_what_two_passes_need(tmp_path, calls, capsys):
    path = publish("0.9.8-2b-distilled", tmp_path)
    frames, _ = run_sample(tmp_path, path, "--one-pass")
    assert frames.shape == (9, 64, 96, 3) and {n for _, n, _ in calls} == {12} and len(calls) == 8
    words, up = str(tmp_path / "words.safetensors"), str(tmp_path / "up.safetensors")
    for options, says in (
            ([], "load its latent upsampler too (--upsampler), or ask for one pass"),
            (["--upsampler", up, "--one-pass"], "--upsampler and --one-pass contradict"),
            (["--upsampler", str(path)], "is a whole model, not a latent upsampler"),
            (["--upsampler", up, "--release", "0.9.6-distilled"], "in one pass: leave out --upsampler"),
            (["--release", "0.9.8-13b-dev"], "0.9.8-13b-dev: its transformer has 48 blocks"),
            (["--release", "1.0"], "unknown release '1.0'")):
        capsys.readouterr()
        assert code_of(["a storm", "--weights", str(path), "--text", words, "--frames", "9", "--size",
                            "64x96", "--out", str(tmp_path / "b.npz"), *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert says in error, error


def test_memory_and_time_are_told_before_weights_are_loaded(tmp_path, monkeypatch, capsys):
    """A device without memory, then one that takes for ever: neither gets as far as the weights."""
    path = publish("0.9.6-distilled", tmp_path)
    how = ["a storm", "--weights", str(path), "--text", str(tmp_path / "words.safetensors"), "--frames", "9",
           "--size", "64x96", "--out", str(tmp_path / "a.npz"), "--device", "cpu"]

    def load(*args, **more):
        raise ValueError("loaded")

    monkeypatch.setattr("minltx.pretrained.prompts.load_pretrained", load)
    monkeypatch.setattr(forecast, "matmul_peak", lambda *args: 1.0)
    assert code_of(how) == 2
    shown = capsys.readouterr()
    assert "1 video of 9x64x96: the transformer alone needs at least " in shown.out and "loaded" in shown.err
    for place in ("minltx.pretrained.plan", "minltx.pretrained.options"):
        monkeypatch.setattr(f"{place}.device_memory", lambda device: 2**20)
    assert code_of(how) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("sample.py: a video of 9x64x96: the ") and line.endswith(
        "GiB of memory, and the device has 0.0 GiB: use --offload or a smaller --size, or --tiles")


# --- Float8 -----------------------------------------------------------------------------------------------

def test_plain_float8_loads_and_scaled_float8_is_refused(tmp_path):
    path = publish("0.9.6-distilled", tmp_path)
    header, tensors = store.metadata(path), safetensors.load_file(path)
    small = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 and "transformer_blocks" in k else v
             for k, v in tensors.items()}
    safetensors.save_file(small, path, header)
    model = load_pretrained(path, torch.bfloat16)
    weight = model.dit.blocks[0].attn1.to_q.weight
    stored = small["model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"]
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, stored.to(torch.bfloat16))
    small["model.diffusion_model.transformer_blocks.0.attn1.to_q.weight_scale"] = torch.ones(1)
    safetensors.save_file(small, path, header)
    with pytest.raises(ValueError, match="float8 weights with scales of their own"):
        load_pretrained(path)


# --- What is in a file ------------------------------------------------------------------------------------

def told(capsys, *arguments):
    code = which(list(map(str, arguments)))
    return code, capsys.readouterr().out


def test_a_file_says_what_it_is_without_reading_a_tensor(tmp_path, capsys, monkeypatch):
    path = publish("0.9.8-13b-dev", tmp_path)
    count = sum(v.numel() for k, v in safetensors.load_file(path).items() if "diffusion_model" in k)
    monkeypatch.setattr(plan, "live_bytes", lambda *args, **how: 2**30)
    monkeypatch.setattr(store, "fill", None)                           # reading the tensors would call it
    code, said = told(capsys, path, "--device", "cpu")
    assert code == 0 and "release: 0.9.8-13b-dev" in said and "refused: nothing, it loads" in said
    assert f"transformer: {count:,} numbers in F32" in said
    assert "first pass: 30 steps, linear-quadratic, the last 3 left out; guidance/STG over time 1/0" in said
    assert "second pass, after the upsampler: 30 steps, linear-quadratic, the first 17 left out" in said
    assert "121 frames of 704x1216 at 30 per second" in said and "with --offload: 1." in said
    assert f"{path.stat().st_size / 2**30:.3f} GiB on disk" in said
    code, said = told(capsys, tmp_path / "up.safetensors", "--device", "cpu")
    assert code == 0 and "latent upsampler for 0.9.7 and 0.9.8: 8 channels" in said


def test_a_file_that_would_be_refused_says_why(tmp_path, capsys):
    path = publish("0.9.6-distilled", tmp_path)
    tensors = safetensors.load_file(path)
    del tensors["vae.decoder.conv_in.conv.bias"]
    safetensors.save_file(tensors, path, store.metadata(path))
    code, said = told(capsys, path, "--device", "cpu")
    assert code == 1 and "release: 0.9.6-distilled" in said
    assert said.splitlines()[-1].endswith("lacks vae.decoder.conv_in.conv.bias")


# --- Memory -----------------------------------------------------------------------------------------------

PEAK = """
import re, sys, threading, time, torch
sys.path[:0] = {paths!r}
from pathlib import Path
from test_recipes import memory_model
def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
model = memory_model()
text = torch.randn(1, 256, 32), torch.ones(1, 256)
model.generate(text, text, [0], (1, 32, 32), steps=1)                          # imports what torch needs
weights = sum(v.numel() * v.itemsize for v in model.state_dict().values())
before, peak, done = private(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], private())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
model.generate(text, text, [0], {size}, steps=1)
done.append(1)
watcher.join()
print(peak[0] - before + weights)
"""


def memory_model():
    """A model whose decoder needs much more than its weights, as `sample.py` runs it on a CPU."""
    config = ReleaseConfig(DiTConfig(8, 96, 2, 4, 32, (8, 32, 32)), VAES["0.9.5"],
                           RELEASES["0.9.6-distilled"].sampling)
    return accelerate(LTXVideo(config)).eval()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_the_estimate_is_near_the_measured_peak():
    """In a new process, on the CPU: 0.85 to 0.96 of what oneDNN's code for several processors needs."""
    size = (33, 256, 384)
    code = PEAK.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])], size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = plan.estimate(memory_model().config, size)
    measured, estimated = float(done.stdout.split()[-1]), max(found.values())
    assert max(found, key=found.get) == "decoder"
    assert 0.7 * measured <= estimated <= 1.3 * measured, (measured, estimated)


def test_less_memory_by_offloading_and_by_tiles():
    config, size = memory_model().config, (121, 704, 1216)
    whole = plan.estimate(config, size)
    apart = plan.estimate(config, size, offload=True)
    weights = {"transformer": plan.numbers(memory_model().vae), "decoder": plan.numbers(memory_model().dit)}
    for phase, absent in weights.items():                                # what is not on the device then
        assert whole[phase] - apart[phase] == 4 * absent
    assert plan.fitting_tiles(config, size, torch.float32, None, False, 10**12, 1) is None
    tiles = plan.fitting_tiles(config, size, torch.float32, None, False, whole["decoder"] - 1, 1)
    cut = plan.estimate(config, size, tiles=tiles, halo=1)
    assert tiles in plan.TILES and cut["decoder"] < whole["decoder"]
    assert "use --offload or a smaller --size" in "\n".join(plan.lines({"decoder": 10**16}, size, "cpu"))


def test_a_network_at_work_is_on_the_device_and_returns():
    moves = []

    class Network(torch.nn.Module):
        def to(self, place):
            moves.append(place)

    with at_work(Network(), "device"):
        assert moves == ["device"]
    assert moves == ["device", "cpu"]
    with at_work(Network(), None):
        pass
    assert len(moves) == 2


def test_offloading_changes_no_video(tmp_path):
    path = publish("0.9.6-distilled", tmp_path)
    plain, offloaded = (run_sample(tmp_path, path, *options)[0] for options in ([], ["--offload"]))
    assert np.array_equal(plain, offloaded)


# --- Given pictures ---------------------------------------------------------------------------------------

def photograph(width, height):
    """A PIL image with coarse and fine structure."""
    generator = np.random.default_rng(0)
    smooth = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray((smooth * 0.7 + generator.integers(0, 76, (height, width, 3))).astype(np.uint8))


@pytest.mark.parametrize("width, height, expected", [(100, 60, (90, 60)), (60, 100, (60, 40)),
                                                     (30, 20, (30, 20))])
def test_pictures_are_cut_to_the_aspect_at_their_own_size(width, height, expected):
    image = photograph(width, height)
    cut = crop(image, 64, 96)
    assert cut.size == expected
    left, top = (width - expected[0]) // 2, (height - expected[1]) // 2
    whole = np.array(image)
    assert np.array_equal(np.array(cut), whole[top : top + expected[1], left : left + expected[0]])


def test_blur_is_gaussian_with_reflected_edges():
    picture = torch.rand(3, 5, 6)
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1), mode="reflect")
    expected, total = torch.zeros(3, 5, 6), 0
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            weight = math.exp(-(dx**2 + dy**2) / 2)
            expected += weight * padded[:, 1 + dy : 6 + dy, 1 + dx : 7 + dx]
            total += weight
    torch.testing.assert_close(blur(picture), expected / total)


def test_compression_loses_fine_structure_and_little_else():
    pytest.importorskip("av")
    picture = torch.from_numpy(np.array(photograph(65, 48))).movedim(2, 0) / 255
    squeezed = compress(picture)
    assert squeezed.shape == (3, 48, 64)                                              # 4:2:0 needs even sides
    error = (squeezed - picture[:, :, :64]).abs().mean()
    assert 0.005 < error < 0.12 and (compress(picture, crf=45) - picture[:, :, :64]).abs().mean() > error
    released = as_released(photograph(120, 60), 64, 96)
    assert released.shape == (3, 60, 90) and released.min() >= -1 and released.max() <= 1
    assert as_released(photograph(120, 60), 64, 96, resize=True).shape == (3, 64, 96)


def test_sample_prepares_pictures_unless_they_are_clean(tmp_path, calls, monkeypatch, capsys):
    pytest.importorskip("av")
    path = publish("0.9.6-distilled", tmp_path)
    photograph(200, 100).save(tmp_path / "a.png")
    given = ["--image", str(tmp_path / "a.png"), "--steps", "1"]
    released, clean = (run_sample(tmp_path, path, *given, *more)[0] for more in ([], ["--clean"]))
    assert (released != clean).any()
    monkeypatch.setitem(sys.modules, "av", None)
    assert code_of(["a storm", "--weights", str(path), "--text", str(tmp_path / "words.safetensors"),
                        "--frames", "9", "--size", "64x96", "--out", str(tmp_path / "a.npz"), *given]) == 2
    assert "pip install av, or use them as they are with --clean" in capsys.readouterr().err
    run_sample(tmp_path, path, *given, "--clean")
