"""What the README claims is recounted: commands, paths, line counts, tables, imports."""

import argparse
import ast
import importlib.util
import inspect
import json
import re
import shlex
from dataclasses import asdict

import pytest

import sample
import train_tiny
from minltx.data import DataConfig
from minltx.dit import DiT, DiTConfig
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop import ablate, assignments, bench, comparison, switches, tables
from minltx.workshop.checkpoint import GUIDANCE, SHIPPED, STEPS, ModelConfig, load_checkpoint
from minltx.workshop.count import CHAPTERS, PACKAGE, chapter_lines

ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("marker", ["results", "decoder", "conditions", "claims", "chapters",
                                    "full size", "bench"])
def test_tables_are_what_the_reports_and_files_say(marker):
    assert tables.between(README, marker) == tables.tables()[marker]


def test_every_link_and_path_is_there():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    paths = re.findall(r"`((?:minltx|tests|docs)/[\w./-]*)`", README)
    assert len(targets) > 12 and [p for p in targets + paths if not (ROOT / p).exists()] == []


def test_every_command_is_understood(monkeypatch):
    commands = [line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
                for line in block.strip().split("\n")]
    parsed = 0
    for command in commands:
        words = shlex.split(command.split("&&")[-1])
        if words[1:2] == ["sample.py"]:
            assert sample.options().parse_args(words[2:]).prompts
        elif "train_tiny.py" in words:                                  # with python or torchrun
            monkeypatch.setattr(train_tiny, "train", lambda args, command: args)
            assert words[0] in ("python", ".venv/bin/python") or words[:2] == ["torchrun", "--nproc-per-node"]
            args = train_tiny.main(words[words.index("train_tiny.py") + 1 :])
            assert isinstance(args, argparse.Namespace) and train_tiny.settings_of(args)
        elif words[1:2] == ["-m"] and words[2].startswith("minltx."):
            assert importlib.util.find_spec(words[2]) is not None
            if words[2].endswith("assignments"):
                for step in ("build", "grade_all"):
                    monkeypatch.setattr(assignments, step, lambda *args: [])
                assignments.main(words[3:])
            if words[2].endswith("bench"):
                args = bench.options().parse_args(words[3:])
                assert args.headline or bench.setup_from(args)
            if words[2].endswith("ablate"):
                for step in ("try_all", "run_all", "finish"):
                    monkeypatch.setattr(ablate, step, lambda *args: None)
                ablate.main(words[3:])                              # SystemExit if a switch is unknown
        else:
            assert words[1:] == ["-m", "pytest"] or words[:2] == ["hf", "download"]
        parsed += 1
    assert parsed >= 12


def test_what_the_readme_calls_public_is_there():
    """The lines of Python in the README name functions that exist, with these parameters."""
    pretrained = pytest.importorskip("minltx.pretrained")
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    ast.parse(blocks)
    for owner, name in re.findall(r"model\.(dit|vae)?\.?(\w+)\(", blocks):
        cls = {"dit": DiT, "vae": VideoVAE, "": pretrained.LTXVideo}[owner]
        assert callable(getattr(cls, name, None)) or name == "dit"
    wanted = {DiT.forward: ["latent", "t", "text", "text_mask", "fps"], VideoVAE.encode: ["video"],
              VideoVAE.decode: ["latent", "t"],
              pretrained.load_pretrained: ["path", "dtype", "device", "causal_time"],
              pretrained.save_pretrained: ["model", "path"]}
    for function, names in wanted.items():
        assert [n for n in inspect.signature(function).parameters if n != "self"][: len(names)] == names


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test command -->" in script and "README.md" in script
    assert README.count("<!-- test command -->") == 1


def test_chapters_stay_a_book():
    counts = chapter_lines()
    assert sum(counts.values()) <= 850 and max(counts.values()) <= 250
    assert set(CHAPTERS) == {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    for position, name in enumerate(CHAPTERS):            # imports only point to earlier chapters: no circles
        assert all(CHAPTERS.index(other) < position for other in tables.imports_of(name))
        lines = (PACKAGE / f"{name}.py").read_text().splitlines(True)
        assert "workshop" not in "".join(line for line in lines if line.startswith(("import", "from")))


def test_lines_are_short_enough_to_read():
    files = [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    long = [f"{p.name}:{i}" for p in files for i, line in enumerate(p.read_text().split("\n"), 1)
            if len(line) > 110]
    assert len(files) > 20 and long == []


PLAIN = train_tiny.Settings(ModelConfig(DataConfig(), VAEConfig(), DiTConfig()))


def as_stored(settings):
    """Settings as a report keeps them."""
    return json.loads(json.dumps(asdict(settings)))


def filled(stored, defaults):
    """Stored settings, and for every field that came later its default, which must change nothing
    (test_switches.py holds the reported toy's first step to that)."""
    if not isinstance(stored, dict):
        return stored
    return {key: filled(stored[key], defaults.get(key)) if key in stored else defaults[key]
            for key in [*stored, *(k for k in defaults if k not in stored)]}


@pytest.mark.parametrize("name", [*tables.ROWS, "plain"])
def test_the_rows_are_of_the_present_settings(name, monkeypatch):
    """Each report's settings are those that its command has in today's code."""
    report = json.loads((tables.RESULTS / f"{name}.json").read_text())
    monkeypatch.setattr(train_tiny, "train", lambda args, command: args)
    args = train_tiny.main(shlex.split(report["command"])[2:])
    settings = as_stored(train_tiny.settings_of(args))
    assert settings == filled(report["settings"], as_stored(PLAIN))
    assert report["seed"] == args.seed == 0 and report["dit"] is None or (
        report["dit"]["steps"], report["dit"]["guidance"]) == (STEPS, GUIDANCE)


def test_the_shipped_model_is_the_reported_one():
    model, stored = load_checkpoint(SHIPPED)
    report = tables.reports()["long"]
    assert stored["command"] == report["command"]
    assert report["parameters"]["dit"] == sum(p.numel() for p in model.dit.parameters())
    result = report["dit"]["text_to_video"]
    assert result["digit"] >= 0.97 and result["colour"] >= 0.99 and result["direction"] >= 0.99
    assert report["dit"]["prompts"] >= 400


def test_the_claims_are_recounted_from_their_reports(tmp_path):
    """The table of verdicts follows from the raw reports, which have today's settings; at least 12 switches
    with 3 seeds each."""
    folder = tables.RESULTS / "claims"
    asked = json.loads((folder / "asked.json").read_text())
    chosen = dict(map(switches.parse_switch, asked["switches"]))
    rows, runs = ablate.plan(chosen, asked["seeds"], asked["grid"])
    lines = comparison.collect(folder, rows, asked["seeds"])
    assert comparison.markdown(lines, chosen) == (folder / "table.md").read_text()
    assert len(chosen) >= 12 and asked["seeds"] >= 3
    assert len(runs) == len(list(folder.glob("*/*/seed*/report.json")))
    for where, (_, _, stage, changes, seed) in runs.items():
        report = json.loads((folder / where / "report.json").read_text())
        settings = switches.settings_for(changes, stage, report["budget"] / report["step_cost"])
        assert as_stored(settings) == filled(report["settings"], as_stored(PLAIN)) and report["seed"] == seed


def test_conditions_do_what_they_promise():
    """Of the shipped model, measured by minltx.workshop.conditions: far nearer than without,
    and no harm to the rest."""
    report = json.loads((tables.RESULTS / "conditions.json").read_text())
    rows = report["rows"]
    assert report["clips"] >= 100 and report["command"] == tables.reports()["long"]["command"]
    for name in ("first frame", "keyframe at the end", "keyframe in the middle", "extension forwards",
                 "extension backwards"):
        assert rows[name]["given_off"] < 0.25 * rows[name]["given_off_without"], name
        assert rows[name]["rest_off"] < 0.6 * rows[name]["rest_off_without"], name
        assert rows[name]["direction"] >= 0.9, name
    strength, change = list(rows["strength"].values()), list(rows["video_to_video"].values())
    assert all(a["given_psnr"] < b["given_psnr"] + 0.3 for a, b in zip(strength, strength[1:]))
    assert strength[-1]["given_off"] < 0.25 * strength[0]["given_off"]
    assert all(a["off"] < b["off"] + 0.1 for a, b in zip(change, change[1:])) and change[-2]["colour"] >= 0.9


def test_the_default_meets_its_bar():
    for name in ("toy", "mnist"):
        report = tables.reports()[name]
        text, image, vae = report["dit"]["text_to_video"], report["dit"]["image_to_video"], report["vae"]
        assert text["digit"] >= 0.90 and text["colour"] >= 0.98 and text["direction"] >= 0.95
        assert image["direction"] >= 0.95 and image["first_frame_psnr"] > image["vae_first_frame_psnr"] - 1.5
        assert vae["psnr"] >= 26 and abs(vae["motion_ratio"] - 1) <= 0.1
        assert tables.minutes(report) <= 12 and report["dit"]["prompts"] >= 200
