"""docs/scale.md says what docs/scale.ipynb computes, and that follows the laws of the matter."""

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from minltx.bench import flops

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "scale.md", DOCS / "scale.ipynb"
CELLS = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]
         if cell["cell_type"] == "code"]
MARKERS = re.findall(r"<!-- (\w+) -->", PAGE.read_text())


@functools.cache
def paper():
    """The notebook's names, without its last cell, which prints the tables."""
    names = {}
    for cell in CELLS[:-1]:
        exec(cell, names)
    return SimpleNamespace(**names)


@functools.cache
def tables():
    """The notebook's last cell -> its tables with today's assumptions."""
    names = dict(vars(paper()))
    exec(CELLS[-1], names)
    return {marker: make(names["a"]) for marker, make in names["TABLES"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("marker", MARKERS)
def test_the_page_says_what_the_notebook_computes(marker):
    text = PAGE.read_text().split(f"<!-- {marker} -->\n")[1].split(f"\n<!-- /{marker} -->")[0]
    assert text == tables()[marker]
    assert set(MARKERS) == set(tables())


def test_the_links_of_both_lead_somewhere():
    for path in (PAGE, NOTEBOOK):
        targets = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
        assert targets and all((DOCS / target).exists() for target in targets)


def test_cells_are_short_and_write_nothing():
    assert all(len(cell.split("\n")) <= 20 for cell in CELLS)
    assert all(len(line) <= 110 for cell in CELLS for line in cell.split("\n"))
    assert CELLS[-1].startswith("WRITE, PAGE = False") and any("BENCH = None" in cell for cell in CELLS)


@pytest.mark.slow
def test_every_assumption_is_used_and_has_a_source():
    """A value twice as large changes something besides its own row."""
    p, names = paper(), dict(vars(paper()))
    exec(CELLS[-1], names)
    makers = [make for marker, make in names["TABLES"].items() if marker != "assumptions"]
    page = [make(p.ASSUMED) for make in makers]
    for name, x in p.ASSUMED.items():
        other = {**p.ASSUMED, name: p.Assumed(2 * x.value, x.shown, x.source)}
        assert x.source and [make(other) for make in makers] != page, name


def test_bytes_by_hand():
    """FSDP2: 2 bytes a parameter gathered twice, 4 scattered; DDP: 4 bytes there and back."""
    p = paper()
    P = p.P
    assert P == 1_923_385_472
    for kind in ("DDP", "FSDP2"):
        assert p.received_bytes(kind, 8) == 8 * P * 7 / 8
    assert p.received_bytes("HSDP", 1024) == pytest.approx(8 * P * (7 / 8 + 127 / 128 / 8))
    far = p.ASSUMED | {"hop inside": p.Assumed(0, "", ""), "hop between": p.Assumed(0, "", "")}
    for seconds, case in ((7 * P / 450e9, ("FSDP2", 8, "NVLink")), (7 * P / 450e9, ("DDP", 8, "NVLink")),
                          (8 * P * 1023 / 1024 / 12.5e9, ("FSDP2", 1024, "Ethernet")),
                          (7 * P / 450e9 + 8 * P * 127 / 128 / 12.5e9, ("HSDP", 1024, "Ethernet"))):
        assert sum(p.communication_seconds(far, *case)) == pytest.approx(seconds)


@pytest.mark.slow
def test_what_the_repository_does_otherwise():
    """Float32 gathered twice and scattered once; bf16 copies of all weights on each of 8 GPUs."""
    p, P, gib = paper(), paper().P, 2**30
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in tables()["here"].split("\n")}
    received = [f"{8 * P * 7 / 8 / 1e9:.1f} GB", f"{12 * P * 7 / 8 / 1e9:.1f} GB |"]
    assert rows["a GPU receives in a step"] == received
    assert rows["bf16 copies of the weights"] == ["0.0 GiB", "3.6 GiB |"]
    lean, here = (sum(p.estimate(kind, 8, p.MICRO_BATCH).values()) for kind in ("FSDP2", "parallel.py"))
    assert (here - lean) / gib == pytest.approx(2 * P / gib, abs=1.5)


@pytest.mark.parametrize("kind", ["DDP", "FSDP2", "HSDP"])
def test_a_step(kind):
    """Overlap never hurts and never beats the compute; from the micro-batch named on it hides everything."""
    p = paper()
    for network in ("InfiniBand", "Ethernet"):
        steps = [p.step(p.ASSUMED, kind, 1024, network, n) for n in range(1, 12)]
        hidden = steps[0]["hidden from"]
        for n, s in enumerate(steps, start=1):
            assert s["compute"] <= s["overlapped"] <= s["in turn"]
            assert (s["overlapped"] == pytest.approx(s["compute"])) == (n >= hidden)
    one_clip = sum(p.compute_seconds(p.ASSUMED))
    assert one_clip == pytest.approx(flops.training_flops(p.DIT, 6144, 256) / (790e12 * 0.4))


def test_a_benchmark_replaces_what_is_assumed(tmp_path):
    p, path = paper(), tmp_path / "bench.json"
    path.write_text(json.dumps({"peak_flops": 800e12, "parts": {"dit step": {"mfu": 0.6},
                                                                "training step": {"mfu": 0.5}}}))
    a = p.rates(path)
    assert (a["peak"].value, a["training MFU"].value, a["sampling MFU"].value) == (800e12, 0.5, 0.6)
    assert a["storage"] is p.ASSUMED["storage"]
    assert "| peak | 800 TFLOP/s | measured, bench.json |" in p.assumptions_table(a)
    assert "| training MFU | 50 % | measured, bench.json |" in p.assumptions_table(a)
    path.write_text(json.dumps({"parts": {"dit step": {"mfu": 0.6}}}))
    assert p.rates(path)["peak"] is p.ASSUMED["peak"]
    for wrong in ("{}", '{"peak_flops": -1}', '{"parts": {"training step": {"mfu": 40}}}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="write it with --out"):
            p.rates(path)
    for wrong in ("[1]", "{", '{"peak_flops": "fast"}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="not a benchmark's report"):
            p.rates(path)
    with pytest.raises(ValueError, match="not a benchmark's report"):
        p.rates(tmp_path / "missing.json")


def test_a_real_benchmark_is_understood(tmp_path, monkeypatch):
    from minltx.bench import __main__ as bench
    from minltx.bench import timing

    monkeypatch.setattr(timing, "matmul_peak", lambda *_: 1e13)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda *_: 1e10)
    out = tmp_path / "toy.json"
    report = bench.main(["--device", "cpu", "--repeats", "1", "--parts", "dit,train", "--out", str(out)])
    rates = paper().rates(out)
    assert rates["peak"].value == 1e13
    assert rates["sampling MFU"].value == report["parts"]["dit step"]["mfu"]
    assert rates["training MFU"].value == report["parts"]["training step"]["mfu"]
