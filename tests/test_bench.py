"""The benchmark's arithmetic, and that it measures what it says. No test asks how long anything takes."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minltx.dit import DiTConfig
from minltx.workshop import against, bench, headline, stopwatch
from minltx.workshop.bench_parts import PARTS, PRESETS, Setup, build, build_dit, build_vae

META, CPU = torch.device("meta"), torch.device("cpu")
NAMES = {"text": "text", "dit": "dit step", "sample": "sampling", "encode": "encode", "decode": "decode",
         "save": "saving", "train": "training step"}


def toy(device=CPU, **more):
    return Setup(PRESETS["toy"], device, torch.float32, steps=2, **more)


# --- Operations and traffic -------------------------------------------------------------------------------

def counted(part):
    """What torch counts while the part works; attention as the products that it is made of, since the counter
    does not know all its kernels."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.inference_mode(not part.training):
            part.work()
    return counter.get_total_flops()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_operations_of_sampling_are_what_torch_counts(guidance):
    part = PARTS["sample"](toy(META, guidance=guidance))
    assert counted(part) == part.operations


@pytest.mark.parametrize("config, names", [("toy", "text dit encode decode"), ("quarter", "dit"),
                                           ("2b", "dit encode decode")])
def test_operations_are_what_torch_counts(config, names):
    """Without memory for weights and tensors, so that even the 2 B model counts in no time."""
    preset = PRESETS[config]
    if config != "toy":
        preset = replace(preset, dit_size=(17, 128, 160), vae_size=(9, 64, 96), words=24)
    for name in names.split():
        part = PARTS[name](Setup(preset, META, torch.bfloat16))
        assert counted(part) == part.operations, name


def test_operations_of_t5_are_what_torch_counts():
    pytest.importorskip("transformers")
    t5 = {"d_model": 48, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "vocab_size": 64}
    preset = replace(PRESETS["toy"], t5=tuple(t5.items()), dit=DiTConfig(4, 48, 1, 2, 48, (4, 8, 8)))
    part = PARTS["text"](replace(toy(), preset=preset))
    assert counted(part) == part.operations and part.work().shape == (1, preset.words, 48)


def test_operations_of_a_training_step_are_what_torch_counts():
    part = PARTS["train"](toy())
    assert counted(part) == part.operations
    again = PARTS["train"](toy(checkpointing=True))
    assert again.operations == part.operations < counted(again)         # what is done twice counts once


def test_traffic_is_weights_inputs_and_outputs_once():
    part, p = PARTS["dit"](toy()), PRESETS["toy"].dit
    weights = sum(x.numel() for x in build_dit(toy()).parameters())
    tokens, words = part.tokens, PRESETS["toy"].words
    inputs = tokens * p.latent_channels + 1 + 3 * tokens + words * p.text_width + words
    assert part.traffic == 4 * (weights + inputs + tokens * p.latent_channels)
    half = PARTS["dit"](replace(toy(), dtype=torch.bfloat16))
    assert part.traffic / 2 <= half.traffic < 0.51 * part.traffic       # t, coordinates and mask stay float32
    assert PARTS["sample"](toy(guidance=3.0)).traffic > 1.5 * PARTS["sample"](toy()).traffic


def test_no_weight_is_trivially_zero():
    for network in (build_dit(toy()), build_vae(toy())):
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            assert x.isfinite().all() and (x.numel() == 1 or x.std() > 1e-3), name


def test_weights_are_made_once_where_they_stay_and_in_their_dtype():
    made = []

    def make():
        layer = torch.nn.Linear(4, 4)
        made.append(layer.weight.device.type)
        return layer

    layer = build(make, replace(toy(), dtype=torch.bfloat16))
    assert made == ["meta"] and layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu"


# --- Time -------------------------------------------------------------------------------------------------

def test_the_warm_up_is_not_timed():
    calls = count()
    times = stopwatch.repeated(lambda: next(calls), lambda work: 10.0 * work(), 3, warm_up=2)
    assert times == [20.0, 30.0, 40.0]


def test_two_works_take_turns_and_the_first_place_too():
    order = []

    def seconds_of(work):
        work()
        return 10.0 * len(order) if order[-1] == "ours" else 1.0 * len(order)

    ours, theirs = stopwatch.in_turn(lambda: order.append("ours"), lambda: order.append("theirs"), seconds_of,
                                     4, warm_up=1)
    assert order[2:] == ["ours", "theirs", "theirs", "ours"] * 2
    assert ours == [30.0, 60.0, 70.0, 100.0] and theirs == [4.0, 5.0, 8.0, 9.0]


@pytest.mark.parametrize("numbers, middle, quartiles", [
    ([3.0], 3.0, [3.0, 3.0]), ([5.0, 1.0, 3.0, 2.0, 4.0], 3.0, [2.0, 4.0]), ([1.0, 2.0], 1.5, [1.25, 1.75])])
def test_spread(numbers, middle, quartiles):
    assert stopwatch.spread(numbers) == (middle, quartiles)


def test_a_slow_moment_does_not_move_the_median_of_ratios(monkeypatch):
    """Ours takes half of theirs, while the machine gets ten times slower."""
    pace = iter([1.0, 1.0, 3.0, 3.0, 10.0, 10.0])
    monkeypatch.setattr(stopwatch, "timer", lambda device: lambda work: next(pace) * work().item())
    pair = (lambda: torch.tensor([1.0, 1.0])[0], lambda: torch.tensor([2.0, 2.0])[0])
    monkeypatch.setattr(against, "difference", lambda ours, theirs: {})
    figures = against.compare(pair, toy(), 3)
    assert figures["ratio"] == 0.5 and figures["ratio_quartiles"] == [0.5, 0.5]
    assert figures["minltx"] == 3.0 and figures["diffusers"] == 6.0


# --- The machine ------------------------------------------------------------------------------------------

def test_utilisation_and_floor():
    assert bench.mfu(operations=3e12, seconds=2.0, peak=6e12) == pytest.approx(0.25)
    assert stopwatch.floor(6e12, 1e9, peak=3e12, bandwidth=1e9) == 2.0       # bound by arithmetic
    assert stopwatch.floor(6e12, 9e9, peak=3e12, bandwidth=1e9) == 9.0       # bound by memory


def test_peak_and_bandwidth_count_what_is_done(monkeypatch):
    monkeypatch.setattr(stopwatch, "timer", lambda device: lambda work: work() is None or 0.5)
    assert stopwatch.matmul_peak(CPU, torch.float32, (8, 16), 1) == 2 * 16**3 / 0.5
    assert stopwatch.copy_bandwidth(CPU, 1, 1) == 2 * 2**20 / 0.5


def test_memory_counts_what_is_held_meanwhile():
    if not stopwatch.RESIDENT.exists():
        pytest.skip("this system does not say what a process holds")
    before = stopwatch.resident_bytes()
    most, kind = stopwatch.peak_memory(lambda: torch.ones(2**25).square().sum(), CPU)
    assert most > before + 2**27 and "process" in kind


def test_memory_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(stopwatch, "RESIDENT", tmp_path / "none")
    done = []
    assert stopwatch.peak_memory(lambda: done.append(1), CPU)[0] is None and done == [1]


@pytest.mark.parametrize("name, mark", [("math", "attention_math"), ("flash", "flash"), ("auto", "flash")])
def test_the_attention_that_was_asked_for(name, mark):
    part = PARTS["dit"](toy())
    with torch.inference_mode(), stopwatch.attention_by(name):
        used = stopwatch.attention_used(part.work)
    assert sum(n for kernel, n in used.items() if mark in kernel) == 2 * PRESETS["toy"].dit.depth, used


# --- Beside diffusers -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", against.PAIRS)
def test_outputs_are_those_of_diffusers(name):
    pytest.importorskip("diffusers")
    setup = toy()
    if name == "dit":       # another shape than the toy's, too
        setup = replace(setup, preset=replace(setup.preset, dit=DiTConfig(4, 96, 2, 4, 24, (4, 8, 8))))
    ours, theirs = against.PAIRS[name][1](setup)
    with torch.inference_mode():
        found, a = against.difference(ours(), theirs()), ours()
    assert found["largest_difference"] <= 1e-5 and a.std() > 0.05
    expected = found["largest_difference"] / a.std().item()
    assert found["relative_difference"] == pytest.approx(expected, rel=0.1)


def test_weights_are_shared_not_doubled():
    pytest.importorskip("diffusers")
    for network, twin in ((build_dit(toy()), against.dit_twin), (build_vae(toy()), against.vae_twin)):
        ours = {x.data_ptr() for x in network.state_dict().values()}
        assert ours == {x.data_ptr() for x in twin(network).state_dict().values()}


def test_difference():
    a, b = torch.tensor([0.0, 1.0, 2.5]), torch.tensor([0.0, 1.0, 2.0])
    assert against.difference(a, b) == {"largest_difference": 0.5, "relative_difference": 0.5}


# --- The command ------------------------------------------------------------------------------------------

@pytest.fixture
def quick(monkeypatch):
    """The machine's limits without measuring them."""
    monkeypatch.setattr(stopwatch, "matmul_peak", lambda *_: 1e11)
    monkeypatch.setattr(stopwatch, "copy_bandwidth", lambda *_: 1e10)


def test_a_report_of_all_parts(quick, tmp_path, capsys):
    out = tmp_path / "toy.json"
    report = bench.main(["--device", "cpu", "--repeats", "1", "--steps", "2", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(report)) and out.with_suffix(".png").exists()
    assert list(report["parts"]) == [NAMES[name] for name in PARTS] and not report["left_out"]
    for name, row in report["parts"].items():
        assert row["seconds"] > 0 and row["floor"] > 0
        assert (row["mfu"] is None) == (name == "saving")
        assert (row["tokens_per_second"] or row["frames_per_second"]) > 0
    for key in ("command", "hardware", "config", "size", "seed", "dtype", "threads", "versions"):
        assert report[key] is not None, key
    shown = capsys.readouterr().out
    assert all(name in shown for name in report["parts"]) and "without the text encoder" in shown


def test_the_page_on_paper_reads_the_report(quick, tmp_path):
    on_paper = pytest.importorskip("minltx.workshop.on_paper")
    out = tmp_path / "toy.json"
    report = bench.main(["--device", "cpu", "--repeats", "1", "--parts", "dit,train", "--out", str(out)])
    rates = on_paper.rates(out)
    assert rates["peak"].value == 1e11
    assert rates["sampling MFU"].value == report["parts"]["dit step"]["mfu"]


def test_a_report_beside_diffusers(quick, tmp_path, capsys):
    pytest.importorskip("diffusers")
    out = tmp_path / "pair.json"
    report = bench.main(["--device", "cpu", "--repeats", "2", "--against", "diffusers", "--out", str(out)])
    assert list(report["against"]) == ["dit step", "encode", "decode"] and report["parts"] == {}
    assert all(row["ratio"] > 0 and row["largest_difference"] <= 1e-5 for row in report["against"].values())
    assert out.with_suffix(".png").exists() and "ratio" in capsys.readouterr().out


def test_a_part_that_cannot_be_is_left_out_with_a_note(quick, monkeypatch):
    def without(setup):
        raise ValueError("T5 needs the optional package transformers: pip install transformers")

    monkeypatch.setitem(bench.PARTS, "text", without)
    report = bench.main(["--device", "cpu", "--parts", "text,save", "--repeats", "1"])
    assert "transformers" in report["left_out"]["text"] and list(report["parts"]) == ["saving"]


@pytest.mark.parametrize("words, sentence", [
    (["--size", "17x32"], "write frames, height and width, as 41x512x512"),
    (["--size", "18x32x32"], "18 frames cannot be coded: use 4k+1, for instance 17 or 21"),
    (["--parts", "dit,dream"], "use some of text,dit"), (["--repeats", "0"], "at least 1"),
    (["--out", "bench.txt"], "ends in .json"), (["--device", "abacus"], "is not to be had here"),
    (["--against", "diffusers", "--parts", "save"], "name some in --parts"),
    (["--headline", "runs/none", "--items", "gold"], "use some of bench,")])
def test_what_cannot_be_is_said_in_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(words)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


# --- The headline -----------------------------------------------------------------------------------------

def ask(tmp_path, items):
    return bench.options().parse_args(["--device", "cpu", "--repeats", "1", "--headline", str(tmp_path),
                                       "--items", items])


def test_a_headline_goes_on_where_it_stopped_and_survives_a_failure(tmp_path, capsys):
    ran = []

    def execute(command, log):
        ran.append(command)
        log.write_text("some words\nRuntimeError: no kernel\n")
        if "flash" in command:
            return 1
        if "cudnn" in command:
            raise OSError("no process")
        report = {"parts": {"dit step": {
            "seconds": 1.0, "floor": 0.5, "mfu": 0.5, "peak_memory": 2**30, "frames_per_second": None,
            "attention": {"attention_math": 12}, "note": ""}}, "against": {}, "left_out": {},
            "peak_flops": 1e12, "bandwidth": 1e9, "config": "toy", "dtype": "float32", "seed": 0,
            "hardware": "a machine", "size": {"dit": [17, 32, 32], "vae": [17, 32, 32]}}
        (tmp_path / "dit_math.json").write_text(json.dumps(report))
        return 0

    items = "dit_flash,dit_cudnn,dit_math"
    text = headline.run(ask(tmp_path, items), execute)
    assert "no kernel" in json.loads((tmp_path / "dit_flash.json").read_text())["error"]
    assert json.loads((tmp_path / "dit_cudnn.json").read_text())["error"] == "OSError: no process"
    assert "| dit_math | dit step | 1.0000 | 0.5000 | 50.0 % | 1.00 |" in text
    assert "attention_math x12" in text
    assert "dit_flash failed: RuntimeError: no kernel" in text and "Not done yet: bench," in text
    assert (tmp_path / "summary.md").read_text() == text
    assert headline.run(ask(tmp_path, items), execute) == text and len(ran) == 3    # nothing is done again
    (tmp_path / "dit_flash.json").unlink()
    headline.run(ask(tmp_path, items), execute)
    assert len(ran) == 4


def test_every_item_is_a_command_that_is_understood(tmp_path):
    args = ask(tmp_path, "vae")
    for name in headline.ITEMS:
        words = headline.command_of(name, args, tmp_path)[3:]
        parsed = bench.options().parse_args(words)
        assert parsed.out == str(tmp_path / f"{name}.json") and parsed.config == "toy"
        bench.chosen(parsed.parts, PARTS, "--parts")
    assert "--resume" not in headline.command_of("toy", args, tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "checkpoint.pt").touch()
    assert "--resume" in headline.command_of("toy", args, tmp_path)


def test_what_the_toy_and_the_tests_leave_behind(tmp_path):
    (tmp_path / "toy").mkdir()
    report = {"seconds": {"vae": 60.0, "dit": 120.0}, "hardware": "a machine", "vae": {"psnr": 20.0},
              "dit": {"text_to_video": {"digit": 1.0}}}
    (tmp_path / "toy" / "report.json").write_text(json.dumps(report))

    def execute(command, log):
        log.write_text("...\n3 passed in 1 s\n")
        return 0

    text = headline.run(ask(tmp_path, "toy,gpu_tests"), execute)
    assert "3.0 minutes" in text and "tests/test_gpu.py: 3 passed in 1 s" in text


def test_a_true_item(tmp_path):
    text = headline.run(ask(tmp_path, "vae"))
    assert "| vae | encode |" in text and "| vae | decode |" in text
