"""The benchmark: its arithmetic, and that it measures what it says. No test depends on how long it takes."""

import json
import sys
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minltx.bench import __main__ as bench
from minltx.bench import diffusers, headline, report, timing
from minltx.bench.parts import PARTS, PRESETS, Setup, build, operations, swaps, twin
from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate
from minltx.vae import VideoVAE

CPU = torch.device("cpu")
NAMES = {"text": "text", "dit": "dit step", "sample": "sampling", "encode": "encode", "decode": "decode",
         "save": "saving", "train": "training step"}
INFERENCE = ("text", "dit", "sample", "encode", "decode")


def toy(device=CPU, **more):
    return Setup(PRESETS["toy"], device, torch.float32, steps=2, **more)


def networks(setup):
    return build(DiT, setup.preset.dit, setup), build(VideoVAE, setup.preset.vae, setup)


# --- Operations and traffic -------------------------------------------------------------------------------

def counted(part):
    """What torch counts while the part works; attention as the products that it is made of, since the counter
    does not know all its kernels."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.set_grad_enabled(part.training):
            part.work(part.network)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [*INFERENCE, "train"])
def test_operations_are_those_of_the_real_work(name):
    setup = toy(guidance=3.0)
    assert operations(name, setup) == counted(PARTS[name](setup)) > 0
    assert operations("save", setup) == 0


def test_operations_of_the_released_model_are_counted_without_its_memory():
    preset = replace(PRESETS["2b"], dit_size=(17, 128, 160), vae_size=(9, 64, 96), words=24)
    setup = Setup(preset, CPU, torch.bfloat16, compiled=True)
    assert operations("dit", setup) > 1e11 and operations("encode", setup) > 1e11


def test_operations_of_t5_are_those_of_the_real_work():
    pytest.importorskip("transformers")
    t5 = {"d_model": 48, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "vocab_size": 64}
    preset = replace(PRESETS["toy"], t5=t5, dit=DiTConfig(4, 48, 1, 2, 48, (4, 8, 8)))
    setup = replace(toy(), preset=preset)
    part = PARTS["text"](setup)
    assert counted(part) == operations("text", setup)
    assert part.work(part.network).shape == (1, preset.words, 48)


def test_operations_that_checkpointing_does_twice_count_once():
    setup = toy(checkpointing=True)
    assert operations("train", setup) == operations("train", toy()) < counted(PARTS["train"](setup))


def test_traffic_is_weights_inputs_and_outputs_once():
    part, p = PARTS["dit"](toy()), PRESETS["toy"].dit
    weights = sum(x.numel() for x in networks(toy())[0].parameters())
    tokens, words = part.tokens, PRESETS["toy"].words
    inputs = tokens * p.latent_channels + 1 + 3 * tokens + words * p.text_width + words
    assert part.traffic == 4 * (weights + inputs + tokens * p.latent_channels)
    half = PARTS["dit"](replace(toy(), dtype=torch.bfloat16))
    assert part.traffic / 2 <= half.traffic < 0.51 * part.traffic       # t, coordinates and mask stay float32
    once, twice = (PARTS["sample"](replace(toy(), steps=steps)).traffic for steps in (2, 4))
    assert twice > 1.5 * once


# --- Networks ---------------------------------------------------------------------------------------------

def test_no_weight_is_trivially_zero():
    for network in networks(toy()):
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            assert x.isfinite().all() and (x.numel() == 1 or x.std() > 1e-3), name


def test_weights_are_made_once_where_they_stay_and_in_their_dtype():
    made = []

    def layer(width):
        made.append(torch.nn.Linear(width, 4))
        return made[-1]

    network = build(layer, 4, replace(toy(), dtype=torch.bfloat16))
    assert len(made) == 1 and network.weight.dtype == torch.bfloat16 and network.weight.device.type == "cpu"


def test_twins_share_their_weights():
    for network in networks(toy()):
        copied = twin(network)
        assert copied is not network and type(copied) is type(network)
        assert [x.data_ptr() for x in copied.parameters()] == [x.data_ptr() for x in network.parameters()]
        accelerate(copied)
        assert any(type(a) is not type(b) for a, b in zip(network.modules(), copied.modules()))
        assert not any(type(module).__name__.startswith("Fast") for module in network.modules())


def test_each_class_of_fast_cpu_is_compared_alone():
    dit, vae = networks(toy())
    assert set(swaps(vae)) == {"FastCausalConv3d", "FastLinear"} and len(swaps(dit)) >= 2
    for name, network in swaps(dit).items():
        assert {type(m).__name__ for m in network.modules() if type(m).__name__.startswith("Fast")} == {name}


# --- Time -------------------------------------------------------------------------------------------------

def test_the_warm_up_is_not_timed():
    calls = count()
    times = timing.in_turn({"work": lambda: next(calls)}, lambda work: 10.0 * work(), 3, warm_up=2)
    assert times == {"work": [20.0, 30.0, 40.0]}


def test_works_take_turns_and_each_is_first_equally_often():
    order = []

    def seconds_of(work):
        work()
        return float(len(order))

    works = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.in_turn(works, seconds_of, 4, warm_up=1)
    assert "".join(order[3:]) == "abc" "bca" "cab" "abc"
    assert times == {"a": [4.0, 9.0, 11.0, 13.0], "b": [5.0, 7.0, 12.0, 14.0], "c": [6.0, 8.0, 10.0, 15.0]}


@pytest.mark.parametrize("numbers, middle, quartiles", [
    ([3.0], 3.0, [3.0, 3.0]), ([5.0, 1.0, 3.0, 2.0, 4.0], 3.0, [2.0, 4.0]), ([1.0, 2.0], 1.5, [1.25, 1.75])])
def test_spread(numbers, middle, quartiles):
    assert timing.spread(numbers) == (middle, quartiles)


def test_a_slow_moment_does_not_move_the_median_of_ratios(monkeypatch):
    """Plain takes half of diffusers' time, while the machine gets ten times slower."""
    pace = iter([1.0, 1.0, 3.0, 3.0, 10.0, 10.0])
    monkeypatch.setattr(timing, "timer", lambda device: lambda work: next(pace) * work()[0].item())
    works = {"plain": lambda: torch.tensor([1.0, 4.0]), "diffusers": lambda: torch.tensor([2.0, 4.0])}
    found = report.columns_of(works, "diffusers", toy(), 3)
    assert found["plain"]["ratio"] == 0.5 and found["plain"]["ratio_quartiles"] == [0.5, 0.5]
    assert found["plain"]["seconds"] == 3.0 and found["diffusers"]["seconds"] == 6.0
    assert found["plain"]["largest_difference"] == 1.0 and "ratio" not in found["diffusers"]


def test_difference():
    a, b = torch.tensor([0.0, 1.0, 2.5]), torch.tensor([0.0, 1.0, 2.0])
    assert report.difference(a, b) == {"largest_difference": 0.5, "relative_difference": 0.5}


# --- The machine ------------------------------------------------------------------------------------------

LIMITS = {"peak_flops": 1e12, "bandwidth": 1e9}


def test_utilisation_and_floor(monkeypatch):
    monkeypatch.setattr(timing, "timer", lambda device: lambda work: 2.0)
    monkeypatch.setattr(report, "operations", lambda name, setup: 1e12)
    _, row = report.figures("dit", toy(), LIMITS, 1)
    assert row["mfu"] == 0.5 and row["floor"] == 1.0                    # bound by arithmetic
    part, slow = PARTS["dit"](toy()), {"peak_flops": 1e15, "bandwidth": 1e6}
    _, row = report.figures("dit", toy(), slow, 1)
    assert row["floor"] == part.traffic / 1e6 > 1                       # bound by memory
    assert row["tokens_per_second"] == part.tokens / 2


def test_peak_and_bandwidth_count_what_is_done(monkeypatch):
    monkeypatch.setattr(timing, "timer", lambda device: lambda work: work() is None or 0.5)
    assert timing.matmul_peak(CPU, torch.float32, (8, 16), 1) == 2 * 16**3 / 0.5
    assert timing.copy_bandwidth(CPU, 1, 1) == 2 * 2**20 / 0.5


def test_memory_counts_what_is_allocated_meanwhile_and_not_before():
    if timing.peak_memory(lambda: None, CPU) is None:
        pytest.skip("this system does not tell how much memory a process has")
    large = torch.ones(2**27)                                           # 512 MiB, freed before
    del large
    before = timing.peak_memory(lambda: None, CPU)
    most = timing.peak_memory(lambda: torch.ones(2**25).square().sum(), CPU)
    assert before + 2**27 < most < before + 2**29


def test_memory_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "PROCESS", tmp_path / "missing")
    assert timing.peak_memory(lambda: None, CPU) is None


@pytest.mark.parametrize("name, mark", [("math", "attention_math"), ("flash", "flash"), ("auto", "flash")])
def test_the_attention_that_was_asked_for(name, mark):
    part = PARTS["dit"](toy())
    with torch.inference_mode(), timing.attention_by(name):
        used = timing.attention_used(lambda: part.work(part.network))
    assert sum(n for kernel, n in used.items() if mark in kernel) == 2 * PRESETS["toy"].dit.depth, used


# --- Next to diffusers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", diffusers.COMPARED)
@pytest.mark.parametrize("fast", [False, True])
def test_outputs_are_those_of_diffusers(name, fast):
    pytest.importorskip("diffusers")
    setup = toy()
    if name == "dit":       # another shape than the toy's, too
        setup = replace(setup, preset=replace(setup.preset, dit=DiTConfig(4, 96, 2, 4, 24, (4, 8, 8))))
    part = PARTS[name](setup)
    with torch.inference_mode():
        theirs = diffusers.theirs(name, part)()
        ours = part.work(accelerate(part.network) if fast else part.network)
    assert ours.shape == theirs.shape and theirs.std() > 0.05
    assert report.difference(ours, theirs)["largest_difference"] <= 1e-5


def test_weights_are_shared_with_diffusers_not_doubled():
    pytest.importorskip("diffusers")
    for network, build_theirs in zip(networks(toy()), (diffusers.theirs_of_dit, diffusers.theirs_of_vae)):
        ours = {x.data_ptr() for x in network.state_dict().values()}
        assert ours == {x.data_ptr() for x in build_theirs(network).state_dict().values()}


# --- The command ------------------------------------------------------------------------------------------

@pytest.fixture
def quick(monkeypatch):
    """The machine's limits without measuring them."""
    monkeypatch.setattr(timing, "matmul_peak", lambda *_: 1e11)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda *_: 1e10)


def test_a_report_of_all_parts(quick, tmp_path, capsys):
    out = tmp_path / "toy.json"
    found = bench.main(["--device", "cpu", "--repeats", "1", "--steps", "2", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert list(found["parts"]) == list(NAMES.values()) and not found["left_out"]
    for name, row in found["parts"].items():
        both = name in [NAMES[key] for key in INFERENCE]
        assert list(row["columns"]) == (["plain", "accelerated"] if both else ["plain"])
        assert all(column["seconds"] > 0 for column in row["columns"].values()) and row["floor"] > 0
        if both:
            fast = row["columns"]["accelerated"]
            assert fast["ratio"] > 0 and fast["largest_difference"] <= 1e-4
        assert (row["mfu"] is None) == (name == "saving")
        assert (row["tokens_per_second"] or row["frames_per_second"]) > 0
    for key in ("command", "hardware", "config", "size", "seed", "dtype", "threads", "versions"):
        assert found[key] is not None, key
    shown = capsys.readouterr().out
    assert all(name in shown for name in found["parts"]) and "without the text encoder" in shown


def test_a_report_next_to_diffusers(quick, tmp_path, capsys):
    pytest.importorskip("diffusers")
    out = tmp_path / "compared.json"
    found = bench.main(["--device", "cpu", "--repeats", "2", "--against", "diffusers", "--out", str(out)])
    assert list(found["parts"]) == ["dit step", "encode", "decode"]
    for row in found["parts"].values():
        assert list(row["columns"]) == ["plain", "accelerated", "diffusers"]
        for name in ("plain", "accelerated"):
            assert row["columns"][name]["ratio"] > 0 and row["columns"][name]["largest_difference"] <= 1e-5
    assert "ratio" in capsys.readouterr().out


def test_a_report_of_each_accelerated_class(quick):
    found = bench.main(["--device", "cpu", "--repeats", "1", "--against", "plain", "--parts", "dit,encode"])
    columns = found["parts"]["encode"]["columns"]
    assert set(columns) == {"plain", "FastCausalConv3d", "FastLinear", "accelerated"}
    columns = found["parts"]["dit step"]["columns"]
    assert len(columns) > 3 and all("ratio" in c for name, c in columns.items() if name != "plain")


def test_compiled_networks_are_not_accelerated():
    part = PARTS["dit"](toy())
    assert list(report.works_of("dit", part, toy(compiled=True), None)) == ["plain"]
    assert list(report.works_of("dit", part, toy(), None)) == ["plain", "accelerated"]


def test_a_part_that_is_not_possible_is_left_out_with_a_note(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    monkeypatch.setitem(PRESETS, "toy", replace(PRESETS["toy"], t5={"d_model": 8}))
    found = bench.main(["--device", "cpu", "--parts", "text,save", "--repeats", "1"])
    assert "pip install transformers" in found["left_out"]["text"] and list(found["parts"]) == ["saving"]


def test_without_diffusers_the_comparison_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit) as stop:
        bench.main(["--against", "diffusers"])
    assert stop.value.code == 2 and "pip install diffusers" in capsys.readouterr().err


@pytest.mark.parametrize("words, sentence", [
    (["--size", "17x32"], "such as 41x512x512"),
    (["--size", "18x32x32"], "18 frames cannot be encoded: use 4k+1, such as 17 or 21"),
    (["--parts", "dit,dream"], "use some of text,dit"), (["--repeats", "0"], "use 1 to 1000"),
    (["--out", "bench.txt"], "ends in .json"),
    (["--device", "abacus"], "is not a device: use cpu, cuda or mps"),
    (["--against", "diffusers", "--parts", "save"], "use some of dit,encode,decode"),
    (["--headline", "runs/none", "--items", "gold"], "use some of bench,")])
def test_options_that_are_not_possible_are_refused_in_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(words)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


# --- The headline -----------------------------------------------------------------------------------------

def headline_args(tmp_path, items):
    return bench.options().parse_args(["--device", "cpu", "--repeats", "1", "--headline", str(tmp_path),
                                       "--items", items])


def run_headline(tmp_path, items, execute):
    return headline.run(headline_args(tmp_path, items), items.split(","), execute)


REPORT = {
    "parts": {"dit step": {"columns": {"plain": {"seconds": 1.0, "quartiles": [1.0, 1.0]}}, "floor": 0.5,
                           "operations": 10**9, "mfu": 0.5, "peak_memory": 2**30, "tokens_per_second": 8.0,
                           "frames_per_second": None, "attention": {"attention_math": 12}, "note": ""}},
    "left_out": {"text": "no package"}, "peak_flops": 1e12, "bandwidth": 1e9, "config": "toy", "seed": 0,
    "dtype": "float32", "hardware": "a machine", "size": {"dit": [17, 32, 32]}}


def test_a_headline_goes_on_where_it_stopped_and_survives_a_failure(tmp_path):
    ran = []

    def execute(command, log):
        ran.append(command)
        log.write_text("some words\nRuntimeError: no kernel\n")
        if "flash" in command:
            return 1
        if "cudnn" in command:
            raise OSError("no process")
        (tmp_path / "dit_math.json").write_text(json.dumps(REPORT))
        return 0

    items = "dit_flash,dit_cudnn,dit_math"
    text = run_headline(tmp_path, items, execute)
    assert "no kernel" in json.loads((tmp_path / "dit_flash.json").read_text())["error"]
    assert json.loads((tmp_path / "dit_cudnn.json").read_text())["error"] == "OSError: no process"
    row = next(line.split() for line in text.splitlines() if line.startswith("dit_math: dit step  500"))
    assert row[3:6] == ["500.000", "1.000", "50.0%"] and row[-2:] == ["attention_math", "x12"]
    assert "dit_math: text is left out: no package" in text
    assert "dit_flash: failed: exit code 1: RuntimeError: no kernel" in text
    assert "Not done yet: bench," in text
    assert (tmp_path / "summary.md").read_text() == text
    assert run_headline(tmp_path, items, execute) == text
    assert len(ran) == 3                                                # none is repeated
    (tmp_path / "dit_flash.json").unlink()
    run_headline(tmp_path, items, execute)
    assert len(ran) == 4


def test_every_item_is_a_command_that_is_understood(tmp_path):
    args = headline_args(tmp_path, "vae")
    for name in headline.ITEMS:
        words = headline.command_of(name, args, tmp_path)
        assert words[1:3] == ["-m", "minltx.bench"]
        parsed = bench.options().parse_args(words[3:])
        assert parsed.out == str(tmp_path / f"{name}.json") and (parsed.config, parsed.repeats) == ("toy", 1)
        assert bench.setup_from(parsed).device == CPU
        assert not parsed.parts or bench.chosen(parsed.parts, PARTS, "--parts")
    assert {"sample20_guided_compiled", "dit_cudnn_compiled", "train_checkpointed"} <= set(headline.ITEMS)


def test_the_toy_of_the_headline_is_resumed(tmp_path):
    from minltx.training.__main__ import arguments

    args = headline_args(tmp_path, "toy")
    words = headline.command_of("toy", args, tmp_path)
    parsed = arguments().parse_args(words[3:])
    assert words[1:3] == ["-m", "minltx.training"] and not parsed.resume
    assert (parsed.out, parsed.device, parsed.budget) == (str(tmp_path / "toy"), "cpu", 1.0)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "checkpoint.pt").touch()
    assert arguments().parse_args(headline.command_of("toy", args, tmp_path)[3:]).resume


def test_what_the_toy_and_the_tests_report(tmp_path):
    def execute(command, log):
        log.write_text("...\n3 passed in 1 s\n")
        return 0

    assert "gpu_tests" in headline.ALL                                  # in a clone
    text = run_headline(tmp_path, "toy,gpu_tests", execute)
    assert "toy: 3 passed in 1 s" in text and "gpu_tests: 3 passed in 1 s" in text


@pytest.mark.slow
def test_a_real_item(tmp_path):
    text = run_headline(tmp_path, "vae", headline.execute)
    assert "vae: encode" in text and "vae: decode" in text
