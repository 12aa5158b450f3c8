"""Test a claim with one command: the short toy with a switch flipped, over seeds, at equal compute.

    python -m minltx.workshop.ablate rope=exponential,inverse,none --seeds 3 --minutes 3
    python -m minltx.workshop.ablate loss.dwt=0.1,0,0.5      # any field of train_tiny.Settings is a switch
    python -m minltx.workshop.ablate rope qk-norm --grid     # all combinations, not one factor at a time
    python -m minltx.workshop.ablate --list

The first level of a switch is what the others are compared with, seed by seed. Equal compute means equal
floating-point operations, counted by torch: a variant whose step costs twice as much does half the steps.
Every run has a folder of its own and goes on where it was stopped, so the same command after a stop finishes
the same table. A new switch is added in `minltx.workshop.switches` and nowhere else.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

import train_tiny
from minltx.data import MovingDigits, draw_digits
from minltx.workshop import metrics, pictures
from minltx.workshop.comparison import folder_of, write_tables
from minltx.workshop.run import pick_device
from minltx.workshop.switches import LENGTH, SWITCHES, parse_switch, settings_for
from minltx.workshop.trial import every_kind_of_step, seconds, train_and_judge


def plan(switches, seeds, grid):
    """{name: Switch} -> the table's rows (switch, level, stage, changes) and the runs, each only once."""
    rows = []
    if grid:
        stages = {switch.stage for switch in switches.values()}
        stage = stages.pop() if len(stages) == 1 else "both"
        for combination in itertools.product(*(switch.levels.items() for switch in switches.values())):
            changes = {k: v for _, level in combination for k, v in level.items()}
            rows.append((" x ".join(switches), " x ".join(name for name, _ in combination), stage, changes))
    else:
        rows = [(name, level, switch.stage, changes) for name, switch in switches.items()
                for level, changes in switch.levels.items()]
    runs = {}
    for name, level, stage, changes in rows:
        for seed in range(seeds):
            runs.setdefault(folder_of(name, level, stage, changes, seed), (name, level, stage, changes, seed))
    return rows, runs


def try_all(rows):
    """One step of every row, so that what cannot be trained is said before hours of training, not after.
    ValueError names it."""
    data = MovingDigits(*draw_digits(200, 0), train_tiny.SHORT.model.data)
    for name, level, stage, changes in rows:
        try:
            _, step = next(every_kind_of_step(settings_for(changes, stage), stage, data))
            step()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name} = {level} cannot be trained: {str(error).splitlines()[0]}") from None


def worker(folder):
    """The body of a run's own process; ends when the runner does."""
    def follow():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    report = train_and_judge(json.loads((folder / "spec.json").read_text()), folder)
    pictures.put_in_place(folder / "report.json", lambda p: p.write_text(json.dumps(report, indent=1)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def prepare(args, out, stages):
    """The reader of digits, and the model whose autoencoder (and transformer) the other stages build on."""
    reader = out / "reader.pt"
    out.mkdir(parents=True, exist_ok=True)
    if not reader.exists():
        print("a reader of digits is trained, once", flush=True)
        images, labels = train_tiny.load_digits(args.digits, 0)[0]
        classifier = metrics.train_classifier(MovingDigits(images, labels, train_tiny.SHORT.model.data))
        pictures.put_in_place(reader, lambda p: torch.save(classifier.state_dict(), p))
    model = Path(args.model or out / "shared" / "model.pt")
    if stages & {"dit", "decoder"} and not (out / "shared" / "report.json").exists() and not args.model:
        print("a whole short toy is trained, once: the others share its autoencoder", flush=True)
        resume = ["--resume"] if (out / "shared" / "checkpoint.pt").exists() else []
        budget = ["--budget", str(args.shared_budget)] if args.shared_budget != 1 else []
        train_tiny.main(["--preset", "short", "--digits", args.digits, "--out", str(out / "shared"), *budget,
                         "--device", args.device or str(pick_device(None)), *resume])
    return str(reader.resolve()), str(model.resolve())


def calibrate(args, out, stages):
    """How many times the short toy's own steps a run of each stage may do: --budget times LENGTH. Asked in
    minutes, the reference's steps are timed here, once; the answer is kept, so that a second start trains
    the same."""
    kept = out / "budget.json"
    stored = json.loads(kept.read_text()) if kept.exists() else {}
    if args.minutes is None:
        return {stage: args.budget * LENGTH[stage] for stage in stages}
    images, labels = train_tiny.load_digits(args.digits, 0)[0]
    data = MovingDigits(images, labels, train_tiny.SHORT.model.data)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // args.jobs))
    for stage in sorted(stages - set(stored)):
        stored[stage] = round(60 * args.minutes / seconds(settings_for({}, stage), stage, data), 4)
    torch.set_num_threads(threads)
    pictures.put_in_place(kept, lambda p: p.write_text(json.dumps(stored)))
    return stored


def run_all(args, out, runs):
    """Run what is not done yet, `args.jobs` at a time, and say how long the rest will take."""
    stages = {stage for _, _, stage, _, _ in runs.values()}
    reader, model = prepare(args, out, stages)
    budget = calibrate(args, out, stages)
    waiting, active, took, failed = [], {}, [], []
    banks = (out / "latents").resolve()
    banks.mkdir(exist_ok=True)
    for where, (_, level, stage, changes, seed) in runs.items():
        folder = out / where
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"stage": stage, "level": level, "changes": changes, "seed": seed, "budget": budget[stage],
                "prompts": args.prompts, "digits": args.digits, "device": args.device, "reader": reader,
                "model": model, "banks": str(banks)}
        if (folder / "report.json").exists():
            old = json.loads((folder / "report.json").read_text())
            if [old[k] for k in ("changes", "budget")] != [json.loads(json.dumps(changes)), budget[stage]]:
                raise ValueError(f"{folder} holds a run with other settings or another budget: "
                                 "name another folder with --out")
        else:
            (folder / "spec.json").write_text(json.dumps(spec))
            waiting.append(folder)
    total = len(waiting)
    print(f"{len(runs)} runs, {len(runs) - total} of them done", flush=True)
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    try:
        while waiting or active:
            while waiting and len(active) < args.jobs:
                folder = waiting.pop(0)
                log = open(folder / "log.txt", "a")
                child = subprocess.Popen(
                    [sys.executable, "-m", "minltx.workshop.ablate", "--worker", str(folder)], stdout=log,
                    stderr=log, stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": threads})
                active[folder] = (child, time.perf_counter(), log)
            time.sleep(0.2)
            for folder, (child, began, log) in list(active.items()):
                if child.poll() is None:
                    continue
                del active[folder]
                log.close()
                took.append(time.perf_counter() - began)
                if child.returncode:
                    failed.append(folder)
                left = (len(waiting) + len(active) / 2) * sum(took) / len(took) / args.jobs / 60
                print(f"{len(took)}/{total}  {folder.relative_to(out)}  "
                      f"{'FAILED' if child.returncode else f'{took[-1]:.0f} s'}, about {left:.0f} min left",
                      flush=True)
    finally:
        for child, _, _ in active.values():
            child.kill()
    if failed:
        raise ValueError(f"{len(failed)} runs failed; the reason is in {failed[0] / 'log.txt'}")


def keep(out, folder):
    """Copy the table, the plots and every run's report: what is worth committing."""
    for path in [out / "asked.json", *out.glob("table.*"), *out.glob("*.png"),
                 *out.glob("*/*/seed*/report.json")]:
        target = folder / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def finish(args, out, rows, switches, asked):
    """What was asked for, the tables and the plots; shown, and kept where the user wants them."""
    pictures.put_in_place(out / "asked.json", lambda p: p.write_text(json.dumps(asked, indent=1)))
    write_tables(out, rows, args.seeds, switches)
    if args.keep:
        keep(out, Path(args.keep))
    print(f"\n{(out / 'table.md').read_text()}\ntable.md, table.csv and plot.png are in {out}{os.sep}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("switches", nargs="*", help="NAME, NAME=level,level or FIELD=value,value (see --list)")
    add("--list", action="store_true", help="show the switches and their levels")
    add("--all", action="store_true", help="all switches of the list")
    add("--grid", action="store_true", help="all combinations instead of one factor at a time")
    add("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: %(default)s)")
    add("--minutes", type=float, help="training time of a reference run; timed once, then kept")
    add("--budget", type=float, default=1.0, help="or: times the usual length of a run (default: 1)")
    add("--shared-budget", type=float, default=1.0, help="the same for the shared model (default: 1)")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores (default: 1)")
    add("--prompts", type=int, default=100, help="held-out prompts to judge by (default: %(default)s)")
    add("--digits", default="drawn", help="drawn, mnist or a folder of IDX files")
    add("--model", metavar="FILE", help="a short toy's model.pt to share, instead of training one")
    add("--device", help="cpu, cuda or mps")
    add("--out", default="runs/ablation", help="folder for everything (default: %(default)s)")
    add("--keep", metavar="FOLDER", help="copy table, plots and reports there in the end")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(Path(args.worker))
    if args.list:
        for name, switch in SWITCHES.items():
            print(f"{name:16} {switch.stage:8} {', '.join(switch.levels)}\n{'':25} {switch.claim}")
        return None
    out = Path(args.out)
    try:
        asked = list(SWITCHES) if args.all else args.switches
        if not asked:
            raise ValueError(f"name a switch: {', '.join(SWITCHES)}; or --all, or --list")
        if args.seeds < 1 or args.jobs < 1 or args.prompts < 2 or (args.minutes or 1) <= 0:
            raise ValueError("--seeds, --jobs and --minutes must be positive, --prompts at least 2")
        switches = dict(parse_switch(text) for text in asked)
        rows, runs = plan(switches, args.seeds, args.grid)
        try_all(rows)
        run_all(args, out, runs)
        words = ["python", "-m", "minltx.workshop.ablate", *(sys.argv[1:] if argv is None else argv)]
        finish(args, out, rows, switches, {"command": shlex.join(words), "switches": asked,
                                           "seeds": args.seeds, "grid": args.grid})
    except (ValueError, OSError) as error:
        parser.exit(2, f"ablate: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nablate: stopped; the same command goes on\n")


if __name__ == "__main__":
    main()
