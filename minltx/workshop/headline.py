"""All figures of a device in one command that can be stopped and given again.

    python -m minltx.workshop.bench --config 2b --device cuda --headline runs/gpu
    python -m minltx.workshop.bench --config 2b --device cuda --headline runs/gpu --items dit_flash,dit_cudnn

Every item is a process of its own, so that it has the memory to itself and its failure is nobody else's. Its
result is FOLDER/item.json, and an item that has one is passed over: delete the file to do it again. A failure
is written there too, as "error"; all output is in FOLDER/item.log. summary.md is new after each item.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from minltx.workshop import pictures
from minltx.workshop.run import pick_device
from minltx.workshop.tables import ROOT, minutes

# Item -> what it adds to the benchmark's command.
ITEMS = {
    "bench": "--parts dit,train",                       # the two that on_paper.py asks for, in one file
    "bench_compiled": "--parts dit,train --compile",
    "sample8": "--parts sample --steps 8",
    "sample20": "--parts sample --steps 20",
    "sample20_guided": "--parts sample --steps 20 --guidance 3",
    "vae": "--parts encode,decode",
    "diffusers": "--against diffusers",
    "sample8_compiled": "--parts sample --steps 8 --compile",
    "sample20_compiled": "--parts sample --steps 20 --compile",
    "sample20_guided_compiled": "--parts sample --steps 20 --guidance 3 --compile",
    "vae_compiled": "--parts encode,decode --compile",
    "diffusers_compiled": "--against diffusers --compile",
    "dit_flash": "--parts dit --attention flash",
    "dit_cudnn": "--parts dit --attention cudnn",
    "dit_efficient": "--parts dit --attention efficient",
    "dit_math": "--parts dit --attention math",
    "dit_flash_compiled": "--parts dit --attention flash --compile",
    "dit_cudnn_compiled": "--parts dit --attention cudnn --compile",
    "train_checkpointed": "--parts train --checkpoint-activations",
    "text_and_saving": "--parts text,save"}
TRAIN_TOY, GPU_TESTS = "toy", "gpu_tests"
ALL = (*ITEMS, TRAIN_TOY, GPU_TESTS)


# --- Commands ---------------------------------------------------------------------------------------------

def command_of(name, args, folder):
    """An item's command, as a list of words."""
    device = args.device or pick_device(None).type
    if name == GPU_TESTS:
        return [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "test_gpu.py")]
    if name == TRAIN_TOY:
        out = folder / "toy"
        again = ["--resume"] if (out / "checkpoint.pt").exists() else []
        return [sys.executable, str(ROOT / "train_tiny.py"), "--out", str(out), "--device", device,
                "--budget", str(args.toy_budget), "--seed", str(args.seed), *again]
    given = [word for option in ("size", "dtype") if (value := getattr(args, option))
             for word in (f"--{option}", value)]
    return [sys.executable, "-m", "minltx.workshop.bench", "--config", args.config, "--device", device,
            "--repeats", str(args.repeats), "--seed", str(args.seed), *given, *shlex.split(ITEMS[name]),
            "--out", str(folder / f"{name}.json")]


def execute(command, log):
    """Run a command with all its output in a file -> its exit code."""
    with open(log, "w") as file:
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode


def result_of(name, folder, code, output):
    """What goes into an item's JSON after its command, or None if the command has written it itself."""
    last = "\n".join(output.strip().splitlines()[-3:])
    if code != 0:
        return {"error": last or f"exit code {code}"}
    if name == TRAIN_TOY:
        report = json.loads((folder / "toy" / "report.json").read_text())
        return {"minutes": minutes(report), "hardware": report["hardware"], "seconds": report["seconds"],
                "text_to_video": report["dit"]["text_to_video"], "psnr": report["vae"]["psnr"]}
    return {"result": last.splitlines()[-1]} if name == GPU_TESTS else None


def run_item(name, args, folder, execute):
    """One item, from its command to its JSON; whatever goes wrong is in there."""
    path, log, begin = folder / f"{name}.json", folder / f"{name}.log", time.perf_counter()
    if name == GPU_TESTS and not (ROOT / "tests" / "test_gpu.py").exists():
        return write(path, {"result": "left out: there is no tests/test_gpu.py here"})
    command = command_of(name, args, folder)
    try:
        code = execute(command, log)
        result = result_of(name, folder, code, log.read_text() if log.exists() else "")
    except Exception as error:      # the other items' turn
        result = {"error": f"{type(error).__name__}: {error}"}
    if result is not None:
        write(path, {"command": shlex.join(command), "wall_seconds": time.perf_counter() - begin, **result})


def write(path, result):
    """A dictionary as JSON, whole or not at all."""
    pictures.put_in_place(path, lambda part: part.write_text(json.dumps(result, indent=1) + "\n"))


def run(args, execute=execute):
    """The chosen items that are not done yet, and the summary -> its text. ValueError for unknown items."""
    names, folder = args.items.split(",") if args.items else ALL, Path(args.headline).resolve()
    for name in names:
        if name not in ALL:
            raise ValueError(f"--items {name!r} is not known: use some of {','.join(ALL)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / f"{name}.json").exists():
            print(f"{name}: was done before", flush=True)
            continue
        print(f"{name} ...", flush=True)
        run_item(name, args, folder, execute)
        stored = json.loads((folder / f"{name}.json").read_text())
        print(f"  failed: {stored['error']}" if "error" in stored else "  done", flush=True)
        text = summary(folder)
        pictures.put_in_place(folder / "summary.md", lambda part: part.write_text(text))
    text = summary(folder)
    pictures.put_in_place(folder / "summary.md", lambda part: part.write_text(text))
    print(f"\n{text}")
    return text


# --- Summary ----------------------------------------------------------------------------------------------

def summary(folder):
    """The items that are done, as Markdown."""
    stored = {name: json.loads(path.read_text()) for name in ALL
              if (path := folder / f"{name}.json").exists()}
    reports = {name: report for name, report in stored.items() if "parts" in report}
    lines = ["# Figures of one device", ""]
    if reports:
        first = next(iter(reports.values()))
        peaks = [report["peak_flops"] / 1e12 for report in reports.values()]
        copies = [report["bandwidth"] / 1e9 for report in reports.values()]
        lines += [f"Config {first['config']}, {first['dtype']}, DiT at {side(first['size']['dit'])}, VAE at "
                  f"{side(first['size']['vae'])}, {first['hardware']}. Random weights, seed {first['seed']}.",
                  f"A large matrix product: {min(peaks):.3g} to {max(peaks):.3g} TFLOP/s from item to item; "
                  f"a large copy: {min(copies):.3g} to {max(copies):.3g} GB/s. Medians. Sampling contains "
                  "decoding and not the text encoder.", ""]
    lines += part_rows(reports) + pair_rows(reports)
    if TRAIN_TOY in stored and "minutes" in stored[TRAIN_TOY]:
        toy = stored[TRAIN_TOY]
        lines += [f"The toy, trained and judged on {toy['hardware']}: {toy['minutes']:.1f} minutes.", ""]
    if "result" in stored.get(GPU_TESTS, {}):
        lines += [f"tests/test_gpu.py: {stored[GPU_TESTS]['result']}", ""]
    left_out = [(name, why) for name, report in reports.items() for why in report["left_out"].values()]
    failed = [(name, report["error"]) for name, report in stored.items() if "error" in report]
    lines += [f"{name} left out: {why}" for name, why in left_out]
    lines += [f"{name} failed: {why.splitlines()[-1]}" for name, why in failed]
    waiting = [name for name in ALL if name not in stored]
    return "\n".join(lines + ([f"Not done yet: {', '.join(waiting)}."] if waiting else [])).strip() + "\n"


def side(size):
    """(41, 512, 512) -> "41x512x512"."""
    return "x".join(map(str, size))


def part_rows(reports):
    """A table with a row for every part of every item."""
    lines = []
    for name, report in reports.items():
        for part, row in report["parts"].items():
            share = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
            memory = "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**30:.2f}"
            frames = "-" if row["frames_per_second"] is None else f"{row['frames_per_second']:.1f}"
            kernels = ", ".join(f"{kernel} x{count}" for kernel, count in row["attention"].items())
            lines.append(f"| {name} | {part} | {row['seconds']:.4f} | {row['floor']:.4f} | {share} "
                         f"| {memory} | {frames} | {kernels} | {row['note']} |")
    head = ["| item | part | seconds | floor | of peak | GiB | frames/s | attention by | |",
            "|---|---|---|---|---|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []


def pair_rows(reports):
    """A table with a row for every part that was compared with diffusers."""
    lines = [f"| {name} | {part} | {row['minltx']:.4f} | {row['diffusers']:.4f} | {row['ratio']:.3f} | "
             f"{row['relative_difference']:.1e} |"
             for name, report in reports.items() for part, row in report["against"].items()]
    head = ["| item | part | minltx, s | diffusers, s | ratio | outputs differ, of their spread |",
            "|---|---|---|---|---|---|"]
    return [*head, *lines, ""] if lines else []
