"""The reports of an ablation as tables, plots and verdicts: each level against the first, seed by seed."""

import csv
import json
import statistics
from pathlib import Path

from minltx.ablation.switches import STAGES
from minltx.ablation.variants import Unconditioned
from minltx.files import put_in_place
from minltx.video.plots import save_curves, save_dots

# Levels that had another name when docs/results/claims was stored; their folders keep it.
OLD_LEVELS = {"unconditioned": "not told", "conditioned without noise": "told without noise"}
LEGEND = ("mean ± standard deviation over seeds (difference from the first level; * if it has the same sign "
          "for every seed and is larger than its own standard deviation)")


def folder_of(name, level, stage, idea, seed):
    """A run's folder inside --out. The runs of the default are shared by all switches of a stage."""
    label = f"{name}={OLD_LEVELS.get(level, level)}".replace(" ", "_").replace("/", "_")
    return Path(stage) / (label if idea.classes or idea.changes else "reference") / f"seed{seed}"


def read(out, *run):
    """A run's report."""
    return json.loads((out / folder_of(*run) / "report.json").read_text())


def compare(values, reference):
    """Values and the reference's values, one per seed -> mean, spread, mean difference and its spread, and
    whether the difference is clear: larger than its spread, with the same sign for every seed. A spread is a
    standard deviation."""
    spread = statistics.stdev if len(values) > 1 else lambda x: 0.0
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean, noise = statistics.mean(differences), spread(differences)
    clear = len(values) > 1 and abs(mean) > noise and all(d * mean > 0 for d in differences)
    return {"mean": statistics.mean(values), "spread": spread(values), "difference": mean,
            "difference_spread": noise, "clear": clear}


def collect(out, rows, seeds):
    """The reports as a list of lines, one for each level and figure."""
    lines, first = [], {}
    for name, level, stage, idea in rows:
        reports = [read(out, name, level, stage, idea, seed) for seed in range(seeds)]
        for figure in STAGES[stage]:
            if all(figure in report["figures"] for report in reports):
                values = [report["figures"][figure] for report in reports]
                reference, reference_values = first.setdefault((name, figure), (level, values))
                lines.append({"switch": name, "level": level, "stage": stage, "figure": figure,
                              "reference": reference, **compare(values, reference_values), "values": values})
    return lines


def verdict(switch, name, lines):
    """Does the claim hold here? -> "holds", "does not hold" or "undecided" (for a claim that something costs
    nothing: "no cost seen"), and the numbers that decide; None if they are missing."""
    more_is_better = STAGES[switch.stage][switch.figure]
    values_of = {line["level"]: line["values"] for line in lines
                 if line["switch"] == name and line["figure"] == switch.figure}
    if len(values_of) == 1 == len(switch.levels):
        values_of["0"] = [0.0] * len(values_of[switch.better])
    if switch.better not in values_of or len(values_of) < 2:
        return None
    answers, numbers = {}, []
    for level, values in values_of.items():
        if level != switch.better:
            found = compare(values_of[switch.better], values)
            good = (found["difference"] > 0) == more_is_better
            unclear = "no cost seen" if switch.no_worse else "undecided"
            answer = ("holds" if good else "does not hold") if found["clear"] else unclear
            answers.setdefault(answer, []).append(level)
            numbers.append(f"{found['difference']:+.3g} ± {found['difference_spread']:.2g} against {level}")
    together = "; ".join(answer if len(answers) == 1 else f"{answer} against {', '.join(levels)}"
                         for answer, levels in answers.items())
    return together, f"{switch.figure} of {switch.better}: " + "; ".join(numbers)


def markdown(lines, switches):
    """The verdicts on the claims, then one table for each stage, with LEGEND."""
    text, claims = [], []
    for name, switch in switches.items():
        if switch.claim and (answer := verdict(switch, name, lines)):
            claims.append(f"| {switch.claim} | {name} | **{answer[0]}** | {answer[1]} |")
    if claims:
        text += ["| claim | switch | verdict | by |", "|---|---|---|---|", *claims, ""]
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        figures = [f for f in STAGES[stage] if any(line["figure"] == f for line in own)]
        text += ["| switch | level | " + " | ".join(figures) + " |", "|---" * (len(figures) + 2) + "|"]
        for key in dict.fromkeys((line["switch"], line["level"]) for line in own):
            cells = {line["figure"]: cell(line) for line in own if (line["switch"], line["level"]) == key}
            text.append("| " + " | ".join([*key, *(cells.get(f, "") for f in figures)]) + " |")
        text.append("")
    return "\n".join([*text, LEGEND, ""])


def cell(line):
    """One figure of one level as text."""
    digits = 1 if abs(line["mean"]) >= 20 else 2 if abs(line["mean"]) >= 2 else 3
    text = f"{line['mean']:.{digits}f} ± {line['spread']:.{digits}f}"
    if line["level"] != line["reference"]:
        text += f" ({line['difference']:+.{digits}f}{'*' if line['clear'] else ''})"
    return text


def write_tables(out, rows, seeds, switches):
    """table.md, table.csv and plot.png in the folder, from the reports alone."""
    lines = collect(out, rows, seeds)
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
        save_decoder_figure(out, decoders, seeds)


def save_decoder_figure(out, rows, seeds):
    """decoder.png: reconstruction and generation over the noise that is added, a line for each t that the
    decoder is given; means over seeds. It shows whether the step from latents to pixels is denoising."""
    panels = {"psnr": ("Held-out clips, reconstructed", "PSNR in dB", {}),
              "generated digit": ("Generated clips", "% with the right digit", {})}
    for name, level, stage, idea in rows:
        grids = [read(out, name, level, stage, idea, seed)["grid"] for seed in range(seeds)]
        conditioned = Unconditioned not in idea.classes
        for figure, (_, _, lines) in panels.items():
            for t in (0.0, 0.05, 0.1, 0.2) if conditioned else (0.0,):
                own = [[row for row in grid if row["announced"] == t] for grid in grids]
                lines[f"{level}, t = {t}" if conditioned else level] = (
                    [row["noise"] for row in own[0]],
                    [statistics.mean(row[figure] for row in same) for same in zip(*own)])
    save_curves(out / "decoder.png", [(title, "noise mixed into the latents, t", y, lines, "linear")
                                      for title, y, lines in panels.values()])
