"""The reports of an ablation as tables, plots and verdicts, seed by seed against the first level of a switch.
"""

import csv
import json
import statistics
from pathlib import Path

from minltx.workshop import pictures
from minltx.workshop.switches import STAGES


def folder_of(name, level, stage, changes, seed):
    """The run's folder inside --out; the reference of a stage is shared by all its switches."""
    label = f"{name}={level}".replace(" ", "_").replace("/", "_") if changes else "reference"
    return Path(stage) / label / f"seed{seed}"


def read(out, *run):
    """A run's report."""
    return json.loads((out / folder_of(*run) / "report.json").read_text())


def compare(values, reference):
    """Values and the reference's, seed by seed -> mean, spread, paired difference and its spread, and whether
    the difference is clear: larger than its spread, and the same sign for every seed."""
    spread = statistics.stdev if len(values) > 1 else lambda x: 0.0
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    mean, noise = statistics.mean(differences), spread(differences)
    clear = len(values) > 1 and abs(mean) > noise and all(d * mean > 0 for d in differences)
    return {"mean": statistics.mean(values), "spread": spread(values), "difference": mean,
            "difference_spread": noise, "clear": clear}


def collect(out, rows, seeds):
    """The reports as a list of lines: one for every row of the table and figure."""
    lines, first = [], {}
    for name, level, stage, changes in rows:
        reports = [read(out, name, level, stage, changes, seed) for seed in range(seeds)]
        for figure in STAGES[stage]:
            if all(figure in report["figures"] for report in reports):
                values = [report["figures"][figure] for report in reports]
                against, reference = first.setdefault((name, figure), (level, values))
                lines.append({"switch": name, "level": level, "stage": stage, "figure": figure,
                              "against": against, **compare(values, reference), "values": values})
    return lines


def verdict(switch, name, lines):
    """Does the paper's claim hold here? "holds", "does not" or "cannot be told" (of something that should
    cost nothing: "no cost seen"), and the deciding numbers."""
    more = STAGES[switch.stage][switch.figure]
    of = {line["level"]: line["values"] for line in lines
          if line["switch"] == name and line["figure"] == switch.figure}
    if len(of) == 1 == len(switch.levels):
        of["0"] = [0.0] * len(of[switch.better])
    if switch.better not in of or len(of) < 2:
        return None
    answers, words = {}, []
    for level, values in of.items():
        if level != switch.better:
            against = compare(of[switch.better], values)
            good = (against["difference"] > 0) == more
            unclear = "no cost seen" if switch.no_worse else "cannot be told"
            answer = ("holds" if good else "does not") if against["clear"] else unclear
            answers.setdefault(answer, []).append(level)
            words.append(f"{against['difference']:+.3g} ± {against['difference_spread']:.2g} "
                         f"against {level}")
    together = "; ".join(answer if len(answers) == 1 else f"{answer} against {', '.join(levels)}"
                         for answer, levels in answers.items())
    return together, f"{switch.figure} of {switch.better}: " + "; ".join(words)


def markdown(lines, switches):
    """The verdicts, and a table for every stage: mean ± spread over seeds, the paired difference in
    brackets, a star where it is clear."""
    text, known = [], {k: v for k, v in switches.items() if v.claim}
    if known:
        text += ["| claim | switch | verdict | by |", "|---|---|---|---|"]
        for name, switch in known.items():
            answer = verdict(switch, name, lines)
            if answer:
                text.append(f"| {switch.claim} | {name} | **{answer[0]}** | {answer[1]} |")
        text.append("")
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        figures = [f for f in STAGES[stage] if any(line["figure"] == f for line in own)]
        text += ["| switch | level | " + " | ".join(figures) + " |", "|---" * (len(figures) + 2) + "|"]
        for key in dict.fromkeys((line["switch"], line["level"]) for line in own):
            cells = {line["figure"]: line for line in own if (line["switch"], line["level"]) == key}
            text.append("| " + " | ".join([*key, *(cell(cells.get(f)) for f in figures)]) + " |")
        text.append("")
    return "\n".join(text)


def cell(line):
    """One figure of one level as text."""
    if line is None:
        return ""
    digits = 1 if abs(line["mean"]) >= 20 else 2 if abs(line["mean"]) >= 2 else 3
    text = f"{line['mean']:.{digits}f} ± {line['spread']:.{digits}f}"
    if line["level"] != line["against"]:
        text += f" ({line['difference']:+.{digits}f}{'*' if line['clear'] else ''})"
    return text


def write_tables(out, rows, seeds, switches):
    """table.md, table.csv and plot.png in the folder, from the reports alone."""
    lines = collect(out, rows, seeds)
    pictures.put_in_place(out / "table.md", lambda p: p.write_text(markdown(lines, switches)))

    def write_csv(path):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows({**line, "values": " ".join(map(repr, line["values"]))} for line in lines)

    pictures.put_in_place(out / "table.csv", write_csv)
    panels = []
    for name in dict.fromkeys(line["switch"] for line in lines):
        own = [line for line in lines if line["switch"] == name]
        figure = switches[name].figure if name in switches and switches[name].figure else own[0]["figure"]
        panels.append((name, figure, {line["level"]: line["values"] for line in own
                                      if line["figure"] == figure}))
    pictures.save_dots(out / "plot.png", panels)
    decoders = [(name, level, changes) for name, level, stage, changes in rows if stage == "decoder"]
    if decoders:
        save_decoder_figure(out, decoders, seeds)
    return lines


def save_decoder_figure(out, levels, seeds):
    """decoder.png: is the step from latents to pixels denoising? Reconstruction and adherence over the noise
    that is added, a line for every t that is announced to a decoder that listens; means over seeds."""
    panels = {"psnr": ("Held-out clips, reconstructed", "PSNR in dB", {}),
              "generated digit": ("Generated clips", "% of digits read as asked", {})}
    for name, level, changes in levels:
        grids = [read(out, name, level, "decoder", changes, seed)["grid"] for seed in range(seeds)]
        told = changes.get("model.vae.timestep_conditioning", True)
        for figure, (_, _, lines) in panels.items():
            for announced in (0.0, 0.05, 0.1, 0.2) if told else (0.0,):
                rows = [[row for row in grid if row["announced"] == announced] for grid in grids]
                label = f"{level}, announced {announced}" if told else level
                lines[label] = ([row["noise"] for row in rows[0]],
                                [statistics.mean(values) for values in
                                 zip(*([row[figure] for row in grid] for grid in rows))])
    pictures.save_curves(out / "decoder.png", [(title, "noise mixed into the latents, t", y, lines, "linear")
                                               for title, y, lines in panels.values()])
