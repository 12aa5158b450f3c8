"""Run and verify a claim: so many minutes on two cores, from the command to the judged toy.

    python -m tools.speedrun --name mine --change "8 channels"    train and judge three seeds, keep the record
    python -m tools.speedrun --name mine --seeds 3 4 5 --out runs/speedrun -- --budget 0.5
    python -m tools.speedrun --verify docs/results/speedrun/mine.json   repeat a record's runs on this machine
    python -m tools.speedrun --write                              the table of docs/speedrun.md again

What follows -- is passed on to train_tiny.py. --figure names another headline figure of the judge than
every_frame, --prompts another number than 400. docs/speedrun.md has the rules.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

import train_tiny
from minltx.command import COUNT, SEED, Parser, hardware
from minltx.evaluation.report import judge
from minltx.files import put_in_place, read_json
from minltx.toy.data import MovingDigits, load_digits
from minltx.toy.model import load_checkpoint
from tools.count import ROOT
from tools.markdown import table
from tools.tables import with_tables

PAGE, RECORDS = ROOT / "docs" / "speedrun.md", ROOT / "docs" / "results" / "speedrun"
JUDGE = 20_000      # added to a seed: a run is verified with other digits and noise than in its own report
BARS = {"colour": 0.99, "direction": 0.99}      # next to the headline figure, which has to reach HEADLINE
FIGURES = ("every_frame", "frames", "digit", "all")         # that may be the headline
HEADLINE, SPEED, PSNR = 0.90, 0.10, 29.0


# --- Running and judging ----------------------------------------------------------------------------------

def train(seed, out, options):
    """One training as a user starts it -> its command, and the minutes from start to end. Raises ValueError
    if it fails."""
    words = ["train_tiny.py", "--seed", str(seed), "--out", str(out), *options]
    began = time.perf_counter()
    if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise ValueError(f"{shlex.join(['python', *words])} failed")
    return shlex.join(["python", *words]), (time.perf_counter() - began) / 60


def verify(path, seed, prompts):
    """Judge a trained model on digits, captions and noise that its training and its report did not use ->
    the figures of text-to-video, with the VAE's PSNR."""
    model = load_checkpoint(path)[0]
    digits, others = load_digits("drawn", seed + JUDGE)
    data, held_out = (MovingDigits(*some, model.config.data) for some in (digits, others))
    figures, _ = judge(model, data, held_out, seed + JUDGE, prompts)
    return {**figures["dit"]["text_to_video"], "psnr": figures["vae"]["psnr"]}


def shortfalls(figures, headline):
    """What keeps a run from counting, as words; [] if it counts. Raises ValueError if the judge has no such
    headline figure."""
    if headline not in figures:
        raise ValueError(f"the judge has no figure {headline}: use {', '.join(figures)}")
    found = [f"{name} {100 * figures[name]:.1f} %, not {100 * bar:g}" for name, bar in
             ({headline: HEADLINE} | BARS).items() if not figures[name] >= bar]
    if not abs(figures["speed"] - 1) <= SPEED:
        found.append(f"speed x{figures['speed']:.2f}, not within {100 * SPEED:g} % of the data's")
    if not figures["psnr"] >= PSNR:
        found.append(f"PSNR {figures['psnr']:.2f} dB, not {PSNR:g}")
    return found


def read_record(path):
    """A record's dictionary. Raises ValueError if the file holds none."""
    return read_json(path, ("name", "change", "runs", "prompts", "headline", "options", "hardware"),
                     f"is not a record: name one of {RECORDS.relative_to(ROOT).as_posix()}")


def claim(args, options):
    """Train and judge every seed -> the record, as a dictionary for JSON."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True,
                            text=True)
    record = {"name": args.name, "change": args.change, "commit": commit.stdout.strip(), "options": options,
              "hardware": hardware(torch.device("cpu")), "headline": args.figure, "prompts": args.prompts,
              "runs": []}
    for seed in args.seeds:
        out = Path(args.out) / args.name / str(seed)
        command, minutes = train(seed, out, options)
        figures = verify(out / "model.pt", seed, args.prompts)
        missed = shortfalls(figures, args.figure)
        record["runs"].append({"seed": seed, "command": command, "minutes": minutes, "missed": missed,
                               "figures": {name: figures[name] for name in
                                           (args.figure, *BARS, "speed", "psnr")}})
        print(f"seed {seed}: {minutes:.2f} minutes, {'; '.join(missed) or 'every figure is reached'}")
    return record


def counts(record):
    """Whether a record counts: at least three seeds, and none of them misses a figure."""
    return len(record["runs"]) >= 3 and not any(run["missed"] for run in record["runs"])


# --- The page ---------------------------------------------------------------------------------------------

def records():
    """The committed records, the slowest first."""
    found = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    return sorted(found, key=slowest, reverse=True)


def slowest(record):
    """The minutes of its slowest seed: what a record is worth."""
    return max(run["minutes"] for run in record["runs"])


def history(found):
    """Records as a table in Markdown."""
    if not found:
        return "No record yet."
    rows = [("record", "minutes, slowest seed", "digit right in every frame, worst seed, %", "PSNR, dB",
             "commit", "hardware", "what changed")]
    for record in found:
        worst = {name: min(run["figures"][name] for run in record["runs"])
                 for name in (record["headline"], "psnr")}
        rows.append((record["name"], f"{slowest(record):.1f}", f"{100 * worst[record['headline']]:.1f}",
                     f"{worst['psnr']:.1f}", record["commit"], record["hardware"], record["change"]))
    return table(*rows)


def arguments():
    parser = Parser(prog="python -m tools.speedrun", description=__doc__)
    add = parser.add_argument
    add("--name", default="mine", help="of the record (default: %(default)s)")
    add("--change", default="-", help="what changed since the last record, in a few words")
    add("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--out", default="runs/speedrun", help="folder for the runs (default: %(default)s)")
    add("--figure", choices=FIGURES, default="every_frame",
        help="the judge's headline figure (default: %(default)s)")
    add("--prompts", type=COUNT, default=400, help="held-out prompts (default: %(default)s)")
    add("--verify", metavar="FILE", help="repeat the runs of this record, and compare")
    add("--write", action="store_true", help="write the table of docs/speedrun.md, and do nothing else")
    return parser


def main(argv=None):
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser, options = arguments(), words[cut + 1 :]
    args = parser.parse_args(words[:cut])
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        return PAGE.write_text(with_tables(page, {"records": history(records())}), encoding="utf-8")
    try:
        if args.verify:
            claimed = read_record(args.verify)
            args.name, args.change = f"{claimed['name']} verified", claimed["change"]
            args.seeds, args.prompts = [run["seed"] for run in claimed["runs"]], claimed["prompts"]
            args.figure, options = claimed["headline"], claimed["options"]
        train_tiny.arguments().parse_args(options)                      # exits if they are wrong
        record = claim(args, options)
    except (ValueError, OSError, KeyError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"\n{history([record])}\n")
    if args.verify:
        print(f"claimed: {slowest(claimed):.2f} minutes on {claimed['hardware']}")
    elif counts(record):
        text = json.dumps(record, indent=1) + "\n"
        put_in_place(RECORDS / f"{args.name}.json", lambda part: part.write_text(text))
        print(f"kept in {RECORDS.relative_to(ROOT).as_posix()}/{args.name}.json")
    return 0 if counts(record) else 1


if __name__ == "__main__":
    sys.exit(main())
