"""The reports of an ablation as tables, plots and verdicts: each level against the first, seed by seed.

A verdict is one of three words, and follows from two numbers of `minltx.ablation.paired`: the interval of the
paired difference, and its p-value, corrected for all comparisons of the table.
"""

import csv
import json
import statistics
from pathlib import Path

from minltx.ablation.ideas import identity, identity_in
from minltx.ablation.paired import FEWEST, FOUND, LEVEL, holm, interval, p_value, spread, visible
from minltx.ablation.switches import SHARES, STAGES, UNITS
from minltx.ablation.variants import Unconditioned
from minltx.files import put_in_place
from minltx.video.plots import save_curves, save_dots

PERCENT, LUCK = f"{100 * LEVEL:.0f} %", f"{1 - LEVEL:.2g}"
LEGEND = f"""`0.912 ± 0.021 (+0.036 ± 0.085*)`: mean ± standard deviation over seeds; in brackets
the difference from the first level, paired by seed, ± half of its {PERCENT} interval (Student's t).
`*`: p is below {LUCK} also after Holm's correction for all differences of the same table; never with
fewer than {FEWEST} seeds."""
CLAIMS_LEGEND = f"""*Better by*: the difference paired by seed, positive if it supports the claim, and its
{PERCENT} interval (Student's t). *p*: corrected for all {{}} comparisons of this table (Holm). **Holds**:
p below {LUCK} and the interval above 0; **does not hold**: p below {LUCK} and the interval below 0. A claim
that something is free *allows* a small cost, which takes the place of 0. **Cannot be told**:
everything else; it is not evidence of equality. *Visible from*: a true difference of
this size would be found by {100 * FOUND:.0f} % of such tables, if the seeds differ as much as these did."""


# --- Reading ------------------------------------------------------------------------------------------------

def folder_of(name, level, stage, idea, seed):
    """A run's folder inside --out. The runs of the default are shared by all switches of a stage."""
    label = f"{name}={level}".replace(" ", "_").replace("/", "_")
    return Path(stage) / (label if idea.classes or idea.changes else "reference") / f"seed{seed}"


def read(out, rows):
    """(switch, level) -> its reports of seeds 0, 1, ...: all that are there, also of more seeds than were
    asked for, if their idea and budget are the same."""
    found = {}
    for name, level, stage, idea in rows:
        reports = found[name, level] = []
        while (path := out / folder_of(name, level, stage, idea, len(reports)) / "report.json").exists():
            report = json.loads(path.read_text())
            budget = (reports or [report])[0]["budget"]
            if identity_in(report) != identity(idea) or report["budget"] != budget:
                break
            reports.append(report)
    return found


def compare(values, reference, clips=None):
    """Values and the reference's values by seed -> mean and spread; over the seeds that both have, the mean
    difference, its spread, its interval and p (None for a single seed). A spread is a standard deviation.
    clips: of how many the values are shares, see `paired.spread`."""
    differences = [a - b for a, b in zip(values, reference)]
    several = len(differences) > 1
    low, high = interval(differences, clips=clips) if several else (None, None)
    return {"seeds": len(differences), "mean": statistics.mean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
            "difference": statistics.mean(differences),
            "difference_spread": statistics.stdev(differences) if several else 0.0,
            "low": low, "high": high, "p": p_value(differences, clips=clips) if several else None}


def collect(out, rows):
    """The reports as a list of lines, one for each level and figure."""
    lines, first, found = [], {}, read(out, rows)
    for name, level, stage, _ in rows:
        reports = found[name, level]
        for figure in STAGES[stage]:
            if reports and all(figure in report["figures"] for report in reports):
                values = [report["figures"][figure] for report in reports]
                reference, reference_values = first.setdefault((name, figure), (level, values))
                # Older reports do not say how many; all of these had the default of --prompts.
                clips = min(report.get("prompts", 100) for report in reports) if figure in SHARES else None
                lines.append({"switch": name, "level": level, "stage": stage, "figure": figure,
                              "reference": reference, "clips": clips,
                              **compare(values, reference_values, clips),
                              "corrected": None, "values": values})
    for stage in {line["stage"] for line in lines}:
        correct([line for line in lines if line["stage"] == stage and line["level"] != line["reference"]])
    return lines


def correct(family):
    """Add Holm's corrected p to the comparisons of one table that have seeds enough for a verdict."""
    family = [line for line in family if line["seeds"] >= FEWEST]
    for line, corrected in zip(family, holm([line["p"] for line in family])):
        line["corrected"] = corrected


# --- Verdicts -----------------------------------------------------------------------------------------------

def comparisons(name, switch, lines):
    """The claim of a switch: its `better` level against each other one, in the figure's unit. Differences are
    positive where they support the claim."""
    unit, scale = UNITS.get(switch.figure, ("", 1))
    sign = 1 if STAGES[switch.stage].get(switch.figure) else -1
    own = [line for line in lines if line["switch"] == name and line["figure"] == switch.figure]
    values_of, clips = {line["level"]: line["values"] for line in own}, own[0].get("clips") if own else None
    if len(values_of) == 1 == len(switch.levels):
        values_of["0"] = [0.0] * len(values_of[switch.better])
    found, better = [], values_of.pop(switch.better, None)
    for level, values in values_of.items() if better else ():
        factor = sign * (scale or 100 / statistics.mean(values))
        differences = [factor * (a - b) for a, b in zip(better, values)]
        found.append({"claim": switch.claim, "switch": name, "level": switch.better, "other": level,
                      "unit": unit, "allowed": switch.allowed, "seeds": len(differences),
                      "differences": differences, "clips": clips})
    return found


def verdicts(lines, switches):
    """The comparisons of all claims, judged as one family: with effect, low, high, p, corrected, visible (the
    last five None with too few seeds) and the verdict's word."""
    family = [found for name, switch in switches.items() if switch.claim
              for found in comparisons(name, switch, lines)]
    for found in family:
        differences, found["corrected"] = found["differences"], None
        found["effect"], enough = statistics.mean(differences), found["seeds"] >= FEWEST
        found["low"], found["high"] = interval(differences, clips=found["clips"]) if enough else (None, None)
        found["p"] = p_value(differences, -found["allowed"], found["clips"]) if enough else None
    correct(family)
    count = sum(found["seeds"] >= FEWEST for found in family)
    for found in family:
        found["verdict"] = word(found["low"], found["high"], found["corrected"], found["allowed"])
        found["visible"] = None
        if found["seeds"] >= FEWEST:
            noise = spread(found["differences"], found["clips"])
            found["visible"] = visible(found["seeds"], count) * noise
    return family


def word(low, high, corrected, allowed=0.0):
    """The interval of a difference and its corrected p -> the verdict on "better, or worse by less than
    `allowed`"."""
    if corrected is None:
        return f"no verdict with fewer than {FEWEST} seeds"
    if corrected < 1 - LEVEL and low > -allowed:
        return "holds"
    if corrected < 1 - LEVEL and high < -allowed:
        return "does not hold"
    return "cannot be told"


# --- Tables -------------------------------------------------------------------------------------------------

def number(x, sign=""):
    """A difference with two or three digits."""
    return format(x, f"{sign}.{0 if abs(x) >= 10 else 1 if abs(x) >= 1 else 2}f")


def claim_row(found, first):
    """A comparison as a row; the claim is written in its first row only."""
    name = found["switch"] + (f" (allows {number(found['allowed'])})" if found["allowed"] else "")
    cells = [found["claim"] if first else "", name, f"{found['level']} against {found['other']}",
             found["seeds"], f"{number(found['effect'], '+')} {found['unit']}"]
    if found["corrected"] is None:
        cells += ["", ""]
    else:
        p = found["corrected"]
        cells += [f"{number(found['low'], '+')} to {number(found['high'], '+')}",
                  "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"]
    cells += [f"**{found['verdict']}**", number(found["visible"]) if found["visible"] else ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown(lines, switches):
    """The verdicts on the claims, then one table for each stage, each followed by what its signs mean."""
    text, family = [], verdicts(lines, switches)
    if family:
        text += ["| claim | switch | levels | seeds | better by | interval | p | verdict | visible from |",
                 "|---" * 9 + "|"]
        text += [claim_row(found, i == 0 or found["claim"] != family[i - 1]["claim"])
                 for i, found in enumerate(family)]
        text += ["", CLAIMS_LEGEND.format(sum(found["corrected"] is not None for found in family)), ""]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        figures = [f for f in STAGES[stage] if any(line["figure"] == f for line in own)]
        text += ["| switch | level | seeds | " + " | ".join(figures) + " |",
                 "|---" * (len(figures) + 3) + "|"]
        for key in dict.fromkeys((line["switch"], line["level"], str(line["seeds"])) for line in own):
            cells = {line["figure"]: cell(line) for line in own if (line["switch"], line["level"]) == key[:2]}
            text.append("| " + " | ".join([*key, *(cells.get(f, "") for f in figures)]) + " |")
        text.append("")
    return "\n".join([*text, LEGEND, ""])


def cell(line):
    """One figure of one level as text."""
    digits = 1 if abs(line["mean"]) >= 20 else 2 if abs(line["mean"]) >= 2 else 3
    if line["seeds"] == 1:
        text, half = f"{line['mean']:.{digits}f}", ""
    else:
        text = f"{line['mean']:.{digits}f} ± {line['spread']:.{digits}f}"
        half = f" ± {(line['high'] - line['low']) / 2:.{digits}f}"
    if line["level"] != line["reference"]:
        mark = "*" if line["corrected"] is not None and line["corrected"] < 1 - LEVEL else ""
        text += f" ({line['difference']:+.{digits}f}{half}{mark})"
    return text


def write_tables(out, rows, switches):
    """table.md, table.csv and plot.png in the folder, from the reports alone."""
    lines = collect(out, rows)
    put_in_place(out / "table.md", lambda part: part.write_text(markdown(lines, switches)))

    def write_csv(path):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows({**line, "values": " ".join(map(repr, line["values"]))} for line in lines)

    put_in_place(out / "table.csv", write_csv)
    panels = []
    for name in dict.fromkeys(line["switch"] for line in lines):
        own = [line for line in lines if line["switch"] == name]
        figure = switches[name].figure if name in switches and switches[name].figure else own[0]["figure"]
        panels.append((name, figure, {line["level"]: line["values"] for line in own
                                      if line["figure"] == figure}))
    save_dots(out / "plot.png", panels)
    decoders = [row for row in rows if row[2] == "decoder"]
    if decoders:
        save_decoder_figure(out, decoders)


def save_decoder_figure(out, rows):
    """decoder.png: reconstruction and generation over the noise that is added, a line for each t that the
    decoder is given; means over seeds. It shows whether the step from latents to pixels is denoising."""
    panels = {"psnr": ("Held-out clips, reconstructed", "PSNR in dB", {}),
              "generated digit": ("Generated clips", "% with the right digit", {})}
    found = read(out, rows)
    for name, level, _, idea in rows:
        grids = [report["grid"] for report in found[name, level]]
        conditioned = Unconditioned not in idea.classes
        for figure, (_, _, lines) in panels.items():
            for t in (0.0, 0.05, 0.1, 0.2) if conditioned else (0.0,):
                own = [[row for row in grid if row["announced"] == t] for grid in grids]
                lines[f"{level}, t = {t}" if conditioned else level] = (
                    [row["noise"] for row in own[0]],
                    [statistics.mean(row[figure] for row in same) for same in zip(*own)])
    save_curves(out / "decoder.png", [(title, "noise mixed into the latents, t", y, lines, "linear")
                                      for title, y, lines in panels.values()])
