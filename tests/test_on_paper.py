"""docs/scale.md says what the script computes, and that follows the laws of the matter."""

import json
import re

import pytest

from minltx.workshop import flops, on_paper, tables

A = on_paper.ASSUMED


@pytest.mark.parametrize("marker", on_paper.tables(A))
def test_the_page_says_what_the_script_computes(marker):
    text = on_paper.PAGE.read_text()
    assert tables.between(text, marker) == on_paper.tables(on_paper.page_rates())[marker].strip()


def test_the_links_of_the_page_are_there():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", on_paper.PAGE.read_text())
    assert targets and all((on_paper.PAGE.parent / target).exists() for target in targets)


def test_every_assumption_is_used_and_has_a_source():
    """A value twice as large changes something on the page besides its own row."""
    page = {k: v for k, v in on_paper.tables(A).items() if k != "assumptions"}
    for name, x in A.items():
        other = {**A, name: on_paper.Assumed(2 * x.value, x.shown, x.source)}
        changed = {k: v for k, v in on_paper.tables(other).items() if k != "assumptions"}
        assert x.source and changed != page, name


def test_bytes_by_hand():
    """FSDP2: 2 bytes a parameter gathered twice, 4 scattered; DDP: 4 bytes there and back."""
    P = on_paper.parameter_count()
    assert P == 1_923_385_472
    for kind in ("DDP", "FSDP2"):
        assert on_paper.received_bytes(kind, 8) == 8 * P * 7 / 8
    assert on_paper.received_bytes("HSDP", 1024) == pytest.approx(8 * P * (7 / 8 + 127 / 128 / 8))
    far = {k: A[k] for k in A} | {"hop inside": on_paper.Assumed(0, "", ""),
                                 "hop between": on_paper.Assumed(0, "", "")}
    assert sum(on_paper.communication_seconds(far, "FSDP2", 8, "NVLink")) == pytest.approx(7 * P / 450e9)
    assert sum(on_paper.communication_seconds(far, "DDP", 8, "NVLink")) == pytest.approx(7 * P / 450e9)
    assert sum(on_paper.communication_seconds(far, "FSDP2", 1024, "Ethernet")) == pytest.approx(
        8 * P * 1023 / 1024 / 12.5e9)
    assert sum(on_paper.communication_seconds(far, "HSDP", 1024, "Ethernet")) == pytest.approx(
        7 * P / 450e9 + 8 * P * 127 / 128 / 12.5e9)


def test_what_the_repository_does_otherwise():
    """Float32 gathered twice and scattered once; bf16 copies of all weights on each of 8 GPUs."""
    P, gib = on_paper.parameter_count(), 2**30
    text = on_paper.here_text()
    assert f"{12 * P * 7 / 8 / 1e9:.1f} GB instead of {8 * P * 7 / 8 / 1e9:.1f}." in text
    assert "all weights, 3.6 GiB" in text
    less = on_paper.memory_of("FSDP2", 8, on_paper.MICRO_BATCH) / gib
    more = int(re.search(r"is (\d+) GiB instead", text)[1]) - less
    assert more == pytest.approx(2 * P / gib, abs=1.5)


@pytest.mark.parametrize("kind", ["DDP", "FSDP2", "HSDP"])
def test_a_step(kind):
    """Overlap never hurts and never beats the compute; from the micro-batch named on it hides everything."""
    for network in ("InfiniBand", "Ethernet"):
        steps = [on_paper.step(A, kind, 1024, network, n) for n in range(1, 12)]
        hidden = steps[0]["hidden from"]
        for n, s in enumerate(steps, start=1):
            assert s["compute"] <= s["overlapped"] <= s["in turn"]
            assert (s["overlapped"] == pytest.approx(s["compute"])) == (n >= hidden)
    one_clip = sum(on_paper.compute_seconds(A))
    assert one_clip == pytest.approx(flops.training_flops(on_paper.DIT, 6144, 256) / (790e12 * 0.4))


def test_a_benchmark_takes_the_place_of_what_is_assumed(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"peak_flops": 800e12, "parts": {
        "dit step": {"seconds": 0.06, "mfu": 0.6}, "training step": {"seconds": 0.2, "mfu": 0.5}}}))
    a = on_paper.rates(path)
    assert (a["peak"].value, a["training MFU"].value, a["sampling MFU"].value) == (800e12, 0.5, 0.6)
    assert a["peak"].source == "measured, bench.json" and a["storage"] is A["storage"]
    on_paper.main(["--bench", str(path)])
    assert "| peak | 800 TFLOP/s | measured, bench.json |" in capsys.readouterr().out
    path.write_text(json.dumps({"parts": {"dit step": {"seconds": 0.06, "mfu": 0.6}}}))
    assert on_paper.rates(path)["peak"] is A["peak"]
    for nonsense in ("{}", "[1]", "{", '{"peak_flops": -1}', '{"peak_flops": "fast"}',
                     '{"parts": {"training step": {"mfu": 40}}}'):
        path.write_text(nonsense)
        with pytest.raises(ValueError, match="write it with the benchmark"):
            on_paper.rates(path)
    with pytest.raises(ValueError, match="no benchmark"):
        on_paper.rates(tmp_path / "missing.json")
