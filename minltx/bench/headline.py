"""All figures of a device in one command, which can be stopped and repeated.

    python -m minltx.bench --config 2b --device cuda --headline runs/gpu
    python -m minltx.bench --config 2b --device cuda --headline runs/gpu --items dit_flash,dit_cudnn

Every item is a process of its own, with the memory to itself; if it fails, the others still run. Its result
is FOLDER/item.json, and its output FOLDER/item.log. An item that has a result is not repeated: delete the
file to measure it again. summary.md is rewritten after each item.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from minltx.bench.report import table
from minltx.files import put_in_place, read_json

# Item -> what it adds to the benchmark's command. docs/scale.ipynb reads the first.
ITEMS = {
    "bench": "--parts dit,train",
    "sample8": "--parts sample --steps 8",
    "sample20": "--parts sample --steps 20",
    "sample20_guided": "--parts sample --steps 20 --guidance 3",
    "vae": "--parts encode,decode",
    "diffusers": "--against diffusers",
    "dit_flash": "--parts dit --attention flash",
    "dit_cudnn": "--parts dit --attention cudnn"}
ITEMS |= {f"{name}_compiled": f"{words} --compile" for name, words in ITEMS.items()}
ITEMS |= {
    "diffusers_dit_compiled": "--against diffusers --parts dit --compile",
    "dit_efficient": "--parts dit --attention efficient",
    "dit_math": "--parts dit --attention math",
    "train_checkpointed": "--parts train --checkpoint-activations",
    "text_and_saving": "--parts text,save"}
GPU_TESTS = Path(__file__).parents[2] / "tests" / "test_gpu.py"      # in a clone
ALL = (*ITEMS, "toy", *(["gpu_tests"] if GPU_TESTS.exists() else []))


def command_of(name, args, folder):
    """An item's command, as a list of words."""
    if name == "gpu_tests":
        return [sys.executable, "-m", "pytest", "-q", os.path.relpath(GPU_TESTS)]

    def given(*options):
        return [word for option in options if (value := getattr(args, option)) is not None
                for word in (f"--{option}", "x".join(map(str, value)) if option == "size" else str(value))]

    if name == "toy":
        again = ["--resume"] if (folder / "toy" / "checkpoint.pt").exists() else []
        return [sys.executable, "-m", "minltx.training", *given("device", "seed"), "--budget",
                str(args.toy_budget or 1.0), "--out", str(folder / "toy"), *again]
    options = given("config", "size", "dtype", "device", "repeats", "seed")
    return [sys.executable, "-m", "minltx.bench", *options, *shlex.split(ITEMS[name]),
            "--out", str(folder / f"{name}.json")]


def execute(command, log):
    """Run a command with all its output in a file -> its exit code."""
    with open(log, "w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode


def run_item(name, args, folder, execute):
    """One item, from its command to its JSON, which says what went wrong if something did."""
    path, log, begin = folder / f"{name}.json", folder / f"{name}.log", time.perf_counter()
    command = command_of(name, args, folder)
    try:
        code = execute(command, log)
        if code == 0 and path.exists():
            return
        last = (log.read_text().strip().splitlines() or [""])[-1]
        found = {"error": f"exit code {code}: {last}"} if code else {"result": last}
    except OSError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    found |= {"command": shlex.join(["python", *command[1:]]), "wall_seconds": time.perf_counter() - begin}
    put_in_place(path, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))


def run(args, names, execute=execute):
    """The named items that have no result yet, and the summary -> its text."""
    folder = Path(args.headline)
    folder.mkdir(parents=True, exist_ok=True)
    summary(folder)                                     # raises ValueError for another kind of file
    for name in names:
        if not (folder / f"{name}.json").exists():
            print(f"{name} ...", flush=True)
            run_item(name, args, folder, execute)
        text = summary(folder)
        put_in_place(folder / "summary.md", lambda part: part.write_text(text))
    print(text)
    return text


def read_result(path):
    """What an item wrote. Raises ValueError if the file is damaged or another kind of file."""
    return read_json(path, (), "is damaged, or not a result of the headline: remove it")


def summary(folder):
    """The items that have a result, as one table and a line for each of the others."""
    stored = {name: read_result(path) for name in ALL if (path := folder / f"{name}.json").exists()}
    reports = {name: report for name, report in stored.items() if "parts" in report}
    lines = []
    if reports:
        first = next(iter(reports.values()))
        rows = {f"{name}: {part}": row for name, report in reports.items()
                for part, row in report["parts"].items()}
        left_out = {f"{name}: {part}": why for name, report in reports.items()
                    for part, why in report["left_out"].items()}
        lines = [f"Config {first['config']}, seed {first['seed']}, sizes {first['size']}. "
                 "The limits are those of the first item.", "", "```",
                 table({**first, "parts": rows, "left_out": left_out}), "```", ""]
    lines += [f"{name}: {report.get('result', 'failed: ' + report.get('error', ''))}"
              for name, report in stored.items() if name not in reports]
    waiting = [name for name in ALL if name not in stored]
    return "\n".join(lines + ([f"Not done yet: {', '.join(waiting)}."] if waiting else [])) + "\n"
