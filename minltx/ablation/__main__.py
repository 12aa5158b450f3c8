"""Test an idea with one command: train it and the default with the same compute, over seeds, and compare.

    python -m minltx.ablation rope=exponential,inverse,none --seeds 5 --minutes 3
    python -m minltx.ablation loss.dwt=0.1,0,0.5      any field of training.settings.Settings is a switch
    python -m minltx.ablation mine.py:NoGates         a class in a file of your own, see docs/ablations.md
    python -m minltx.ablation rope qk-norm --grid     all combinations, not one factor at a time
    python -m minltx.ablation --list

The first level of a switch is what the others are compared with, seed by seed. Equal compute means equal
floating-point operations, counted by torch: a variant whose step costs twice as much does half the steps.
The whole cost is printed before anything is trained. Every run has a folder of its own and resumes where it
was stopped, so the same command after a stop finishes the same table; with more --seeds it only adds runs.
Verdicts need 3 seeds, and small differences more: see `minltx.ablation.paired`. A new switch is added in
`minltx.ablation.switches` and nowhere else.
"""

import argparse
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import minltx.threads                                              # before torch: how threads wait
import torch

from minltx.ablation.cost import announce, estimate
from minltx.ablation.ideas import Idea, combine, explain, identity, identity_in, reference
from minltx.ablation.runner import JUDGE, seconds, steps_of, train, train_and_judge
from minltx.ablation.switches import LENGTH, SWITCHES, parse_switch, settings_for
from minltx.ablation.verdicts import folder_of, write_tables
from minltx.command import BUDGET, Parser, check_together, device_name, new_folder, number, one_line, whole
from minltx.evaluation.digits import classifier_for
from minltx.files import put_in_place, read_json, write_torch
from minltx.toy.data import MovingDigits, draw_digits, load_digits
from minltx.toy.model import SHIPPED, load_checkpoint, save_checkpoint
from minltx.training.latents import read_vae
from minltx.training.settings import SHORT, scaled


# --- What to run ------------------------------------------------------------------------------------------

def plan(switches, seeds, grid):
    """{name: Switch} -> rows of the table (switch, level, stage, idea), and the runs by folder, each once."""
    rows = [(name, level, switch.stage, idea) for name, switch in switches.items()
            for level, idea in switch.levels.items()]
    if grid:
        stages = {switch.stage for switch in switches.values()}
        stage = stages.pop() if len(stages) == 1 else "both"
        levels = itertools.product(*(switch.levels.items() for switch in switches.values()))
        rows = [(" x ".join(switches), " x ".join(name for name, _ in some), stage,
                 combine([idea for _, idea in some])) for some in levels]
    runs = {}
    for row in rows:
        for seed in range(seeds):
            runs.setdefault(folder_of(*row, seed), (*row, seed))
    return rows, runs


def try_all(rows):
    """Do one step of every row before hours of training. Raises ValueError if one cannot be trained."""
    digits = draw_digits(200, 0)
    for name, level, stage, idea in rows:
        try:
            steps = steps_of(idea, stage, digits)
            for _, step in (steps[0], steps[-1]):
                if not math.isfinite(step()):
                    raise ValueError("the loss of its first step is not finite")
        except Exception as error:    # a class of the user's can fail in any way
            raise ValueError(f"{name} = {level} cannot be trained: {explain(error)}") from error


# --- What the runs share ----------------------------------------------------------------------------------

def shared_model(args, out, stage):
    """The file whose VAE a transformer is trained for, or whose encoder and transformer a new decoder. The
    shipped toy has the VAE of the runs, but it was trained for drawn digits on black, and its transformer
    for longer clips: where it does not fit, a short toy is trained. Raises ValueError if --model is no
    file."""
    if args.model and args.model != "short":
        if not Path(args.model).is_file():
            raise ValueError(f"--model {args.model} is not a file")
        return Path(args.model)
    fits = stage == "dit" and (args.digits, args.world) == ("drawn", "black") and not args.model
    return SHIPPED if fits else shared_folder(args, out) / "model.pt"


def shared_folder(args, out):
    """Where the short toy of these clips is trained; another world has another one."""
    return out / ("shared" if args.world == "black" else f"shared-{args.world}")


def missing(args, out, stages):
    """Whether a digit classifier for digits of one's own, and the short toy that some stages share, must be
    trained."""
    toys = [shared_model(args, out, stage) for stage in stages & {"dit", "decoder"}]
    return (args.digits != "drawn" and not (out / "frame_classifier.pt").exists(),
            not all(toy.exists() for toy in toys))


def prepare(args, out, stages):
    """The digit classifier (the shipped one for drawn digits), and the short toy if it is needed, from the
    folder or trained -> what the specs of all runs contain."""
    no_classifier, no_toy = missing(args, out, stages)
    classifier = out / "frame_classifier.pt"
    (out / "latents").mkdir(parents=True, exist_ok=True)
    if no_classifier:
        print("training a digit classifier, once", flush=True)
    if not classifier.exists():
        digits = MovingDigits(*load_digits(args.digits, 0)[0], SHORT.model.data)
        weights = classifier_for(digits).state_dict()
        write_torch(classifier, dict(weights))
    if no_toy:
        print("training a whole short toy, once: the runs share it", flush=True)
        spec = {"stage": "both", "seed": 0, "digits": args.digits, "world": args.world,
                "device": args.device}
        folder = shared_folder(args, out)
        run, _ = train(Idea(), scaled(SHORT, args.shared_budget or 1.0), spec, folder)
        save_checkpoint(folder / "model.pt", run.model, half=True)
    return {"prompts": args.prompts, "digits": args.digits, "world": args.world, "device": args.device,
            "classifier": str(classifier.resolve()), "latents": str((out / "latents").resolve())}


@contextmanager
def threads_of_a_run(jobs):
    """Inside, torch has as many threads as each of so many runs at a time, so that times are theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def calibrate(args, out, stages):
    """How many times the short toy's own steps a run of each stage may do: --budget times LENGTH. With
    --minutes, the default's steps are timed once; the answer is stored, so that a resumed ablation trains the
    same."""
    if args.minutes is None:
        return {stage: (args.budget or 1.0) * LENGTH[stage] for stage in stages}
    path = out / "budget.json"
    budget = read_own(path) if path.exists() else {}
    digits = load_digits(args.digits, 0)[0]
    with threads_of_a_run(args.jobs):
        for stage in sorted(stages - set(budget)):
            budget[stage] = round(60 * args.minutes / seconds(Idea(), stage, digits), 4)
    put_in_place(path, lambda part: part.write_text(json.dumps(budget)))
    return budget


def read_own(path, *names):
    """A dictionary that an ablation wrote. Raises ValueError if it is damaged, or lacks one of the names."""
    return read_json(path, names, "is damaged, or not of an ablation: name another folder with --out")


# --- Running ----------------------------------------------------------------------------------------------

def is_done(folder, idea, budget, digits="drawn", world="black"):
    """Whether a folder has the report of this idea. Raises ValueError if it holds a run of something else,
    such as an earlier version of the user's file, or other clips."""
    for path in (folder / "spec.json", folder / "report.json"):
        if path.exists():
            run = read_own(path, "idea", "changes", "budget")
            if identity_in(run) != identity(idea) or run["budget"] != budget:
                raise ValueError(f"{folder} holds a run with another idea or budget: "
                                 "name another folder with --out")
            # Older reports do not say which clips, and there was no other world than the black one.
            if (run.get("digits", digits), run.get("world", "black")) != (digits, world):
                raise ValueError(f"{folder} holds a run with other clips: name another folder with --out")
    return (folder / "report.json").exists()


def check_judge(folders):
    """Raises ValueError if a report was judged in another way than new ones will be."""
    for path in (folder / "report.json" for folder in folders):
        if path.exists() and read_own(path).get("judge") != JUDGE:
            raise ValueError(f"{path} is of an earlier judge, so new runs cannot be compared with it: "
                             "name another folder with --out")


def run_all(args, out, runs, comparisons):
    """Say what the runs that are not done yet will take; do them, `args.jobs` at a time, each in a process of
    its own. comparisons: how many verdicts the table will have."""
    budget = calibrate(args, out, {stage for _, _, stage, _, _ in runs.values()})
    todo = {out / where: run for where, run in runs.items()
            if not is_done(out / where, run[3], budget[run[2]], args.digits, args.world)}
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done", flush=True)
    if not todo:
        return
    check_judge(out / where for where in runs)
    stages = {stage for _, _, stage, _, _ in todo.values()}
    with threads_of_a_run(args.jobs):
        parts = estimate(args, [(stage, seed) for _, _, stage, _, seed in todo.values()], budget,
                         *missing(args, out, stages))
    print(announce(parts, args.jobs, args.seeds, comparisons), flush=True)
    shared = prepare(args, out, stages)
    for folder, (_, level, stage, idea, seed) in todo.items():
        spec = {"stage": stage, "level": level, "classes": [reference(cls) for cls in idea.classes],
                **identity(idea), "seed": seed, "budget": budget[stage],
                "model": str(shared_model(args, out, stage).resolve()), **shared}
        put_in_place(folder / "spec.json", lambda part: part.write_text(json.dumps(spec)))
    run_workers(list(todo), args.jobs)


def run_workers(waiting, jobs):
    """Do the runs of these folders, `jobs` at a time, and print how long the rest will take.

    Raises ValueError if some fail, after the others are done.
    """
    active, took, failed, total = {}, [], [], len(waiting)
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                folder = waiting.pop(0)
                active[folder] = start_worker(folder, jobs), time.perf_counter()
            time.sleep(0.2)
            for folder in [folder for folder, (process, _) in active.items() if process.poll() is not None]:
                process, began = active.pop(folder)
                took.append(time.perf_counter() - began)
                failed += [folder] if process.returncode else []
                left = (len(waiting) + len(active) / 2) * sum(took) / len(took) / jobs / 60
                print(f"{len(took)}/{total}  {folder}  {'FAILED' if process.returncode else 'done'} after "
                      f"{took[-1]:.0f} s, about {left:.0f} min left", flush=True)
    finally:
        for process, _ in active.values():
            process.kill()
    if failed:
        raise ValueError(f"{len(failed)} runs failed; the reason is in {failed[0] / 'log.txt'}")


def start_worker(folder, jobs):
    """A process for the run in a folder, which ends with this one."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen([sys.executable, "-m", "minltx.ablation", "--worker", str(folder)],
                                stdin=subprocess.PIPE, stdout=log, stderr=log,
                                env={**os.environ, "OMP_NUM_THREADS": threads})


def worker(folder):
    """The body of that process."""
    def end_with_the_parent():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    report = train_and_judge(json.loads((folder / "spec.json").read_text()), folder)
    put_in_place(folder / "report.json", lambda part: part.write_text(json.dumps(report, indent=1)))
    (folder / "checkpoint.pt").unlink(missing_ok=True)


# --- The command ------------------------------------------------------------------------------------------

def finish(args, out, rows, switches, asked):
    """Write what was asked for, the tables and the plots; show them; copy them and the reports to --keep."""
    put_in_place(out / "asked.json", lambda part: part.write_text(json.dumps(asked, indent=1)))
    write_tables(out, rows, switches)
    if args.keep:
        for path in [out / "asked.json", *out.glob("table.*"), *out.glob("*.png"),
                     *out.glob("*/*/seed*/report.json")]:
            target = Path(args.keep) / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    print(f"\n{(out / 'table.md').read_text()}\ntable.md, table.csv and plot.png are in {out}{os.sep}")


def options():
    """The command line."""
    parser = Parser(prog="python -m minltx.ablation", description=__doc__)
    add = parser.add_argument
    add("switches", nargs="*", help="NAME, NAME=level,level, FIELD=value,value or FILE.py:CLASS (see --list)")
    add("--list", action="store_true", help="show the switches and their levels")
    add("--all", action="store_true", help="all switches of the list")
    add("--grid", action="store_true", help="all combinations instead of one factor at a time")
    add("--seeds", type=whole(1, 1000), default=5,
        help="seeds 0, 1, ... (default: %(default)s; verdicts need 3)")
    add("--minutes", type=number(0.01, 10_000),
        help="training time of a default run; measured once, then stored")
    add("--budget", type=BUDGET, help="or: times the usual length of a run (default: 1)")
    add("--shared-budget", type=BUDGET,
        help="the same for the short toy that stage decoder, digits of your own and other worlds need "
        "(default: 1)")
    add("--jobs", type=whole(1, 256), default=1, help="runs at a time; they share the cores (default: 1)")
    add("--prompts", type=whole(2, 100_000), default=100,
        help="held-out prompts to judge by (default: %(default)s)")
    add("--digits", default="drawn", help="drawn, mnist or a folder of IDX files")
    add("--world", choices=("black", "texture"), default="black",
        help="what the digits move over; texture: matplotlib's photographs")
    add("--model", metavar="FILE",
        help="a toy's model.pt whose VAE the runs use, or short, to train a short toy "
        "for that (default: the shipped toy, where it fits)")
    add("--device", type=device_name, help="cpu, cuda or mps")
    add("--out", type=new_folder, default="runs/ablation",
        help="folder for everything (default: %(default)s)")
    add("--keep", metavar="FOLDER", type=new_folder,
        help="copy tables, plots and reports to this folder in the end")
    add("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


def check_files(args, rows):
    """Raises ValueError, before hours of training, if the digits or the model cannot be read, if the model's
    autoencoder is not that of all rows, and if --keep is --out."""
    if args.keep and Path(args.keep).resolve() == Path(args.out).resolve():
        raise ValueError("--keep and --out are one folder: name another one with --keep, or leave it out")
    if args.digits != "drawn":
        load_digits(args.digits, 0)
    if args.model not in (None, "short"):
        load_checkpoint(args.model)
        for config in {settings_for(idea, stage).model.vae for *_, stage, idea in rows if stage == "dit"}:
            read_vae(args.model, config)


def ablate(args, command):
    """Check what was asked, run it, compare. Raises ValueError for options that do not fit together, and if
    something cannot be read or trained, or a run fails."""
    asked = list(SWITCHES) if args.all else args.switches
    if not asked:
        raise ValueError(f"name a switch: {', '.join(SWITCHES)}; or --all, or --list")
    if args.all and args.switches:
        raise ValueError("--all is all switches: leave out the names, or --all")
    two_ways = [("model", "shared_budget", "are two ways to a shared model")]
    check_together(args, excludes=[("minutes", "budget", "are two lengths of a run"),
                                   *(two_ways if args.model != "short" else [])])
    parsed, out = [parse_switch(text) for text in asked], Path(args.out)
    switches, names = dict(parsed), [name for name, _ in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice: give all its levels at once, such as "
                             f"{name}=LEVEL,LEVEL")
    rows, runs = plan(switches, args.seeds, args.grid)
    check_files(args, rows)
    try_all(rows)
    run_all(args, out, runs, 0 if args.grid else sum(max(1, len(switch.levels) - 1)
                                                     for switch in switches.values() if switch.claim))
    finish(args, out, rows, switches, {"command": command, "switches": asked, "seeds": args.seeds,
                                       "grid": args.grid})


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    if args.worker:
        return worker(Path(args.worker))
    if args.list:
        for name, switch in SWITCHES.items():
            print(f"{name:16} {switch.stage:8} {', '.join(switch.levels)}\n{'':25} {switch.claim}")
        return None
    words = sys.argv[1:] if argv is None else argv
    with one_line(parser, "stopped; the same command goes on"):
        return ablate(args, shlex.join(["python", "-m", "minltx.ablation", *words]))


if __name__ == "__main__":
    main()
