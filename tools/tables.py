"""The tables of README.md and docs/*.md, made from the reports in docs/results and from the files themselves.

    python -m tools.tables            print them
    python -m tools.tables --write    put them into the pages, and draw the plots
    python -m tools.tables --keep runs/toy/report.json toy      keep a report in docs/results
"""

import ast
import json
import re
from pathlib import Path

from minltx.bench import __main__ as bench
from minltx.bench import headline
from minltx.command import Parser, one_line
from minltx.video.plots import save_curves
from tools import shapes
from tools.count import ROOT, chapter_lines
from tools.markdown import table

DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
RUNS = {"toy": "**the default**", "toy1": "the default, seed 1", "toy2": "the default, seed 2",
        "third": "a third of the steps, one thread", "mnist": "the default on real MNIST, one thread",
        "long": "the shipped model: three times the steps, Euler's method",
        "large": "64x64, two digits, from the shipped model",
        "release03": "the default, 0.3's recipe", "release03_1": "the same, seed 1, one thread",
        "release03_2": "the same, seed 2, one thread", "release03_third": "0.3's recipe, a third of it",
        "release03_long": "three times the steps, 0.3's recipe",
        "release03_large": "64x64, two digits, 0.3's recipe",
        "before": "the default, 0.2's recipe", "before2": "twice the steps, 0.2's recipe"}
BUDGETS = {"recipe of today": ("third", "toy", "long"),
           "recipe of 0.3": ("release03_third", "release03", "release03_long"),
           "recipe of 0.2": ("before", "before2")}
DECODERS = {"timestep-conditioned": "before", "without t": "plain"}
# Chapter -> the lessons that show it, and the assignments that let the learner write it.
TAUGHT = {"patchify": ("02", "A2"), "flow": ("01", "A1"), "layers": ("06 07", "A3"),
          "vae": ("02 04", "A2"), "losses": ("03", "A2"), "rope": ("05", "A3"), "dit": ("07", "A3"),
          "sampler": ("09", "A1 A4"), "objectives": ("03 04 08", "")}
CONDITIONS = {"given_psnr": "PSNR of given frames, dB", "given_off": "error in given frames, px",
              "given_off_without": "the same without the condition", "rest_off": "error in other frames, px",
              "rest_off_without": "the same without the condition", "off": "distance from the old path, px",
              "digit": "digit, %", "colour": "colour, %", "direction": "direction, %"}


def report(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def number(*path, form=".1f", unit=1):
    """Path of keys -> a function that shows this number of a report, in multiples of `unit`; "-" where a
    report has none."""
    def show(row):
        for key in path:
            row = row.get(key)
            if row is None:
                return "-"
        return format(row / unit, form)
    return show


def found(*values):
    """The different ones, as words."""
    return " or ".join(str(value) for value in sorted(set(values)))


# --- Trainings --------------------------------------------------------------------------------------------

def minutes(run):
    """Both stages and the measurements, all starts of a resumed run together."""
    return sum(run["seconds"].values()) / 60


READ = {"every frame": "every_frame", "colour": "colour", "direction": "direction"}


def first_frame(run):
    """PSNR of the first frame of image-to-video, relative to the VAE's own reconstruction of it."""
    image = run["dit"]["image_to_video"]
    return f"{image['first_frame_psnr'] - image['vae_first_frame_psnr']:+.2f}"


COLUMNS = {
    "command": lambda run: f"`{run['command']}`", "minutes": lambda run: f"{minutes(run):.1f}",
    **{f"{label}, %": number("dit", "text_to_video", key, unit=0.01) for label, key in READ.items()},
    "every frame, reconstructed, %": number("dit", "reconstructed", "every_frame", unit=0.01),
    "every frame, real, %": number("dit", "real", "every_frame", unit=0.01),
    "with a fault, %": number("dit", "text_to_video", "faulty", unit=0.01),
    "speed": number("dit", "text_to_video", "speed", form=".2f"),
    "spread of speed, px/s": number("dit", "text_to_video", "speed_spread", form=".2f"),
    "image-to-video: every frame, %": number("dit", "image_to_video", "every_frame", unit=0.01),
    "image-to-video: direction, %": number("dit", "image_to_video", "direction", unit=0.01),
    "first frame, dB": first_frame, "PSNR, dB": number("vae", "psnr", form=".2f"),
    "motion": number("vae", "motion_ratio", form=".3f"),
    "sampling": lambda run: "noise" if run["dit"].get("stochastic") else "Euler"}


def results_table(names, columns):
    """What a training gives, one row a report, and what it was measured on."""
    runs = [report(name) for name in names]
    rows = [[RUNS[name], *(COLUMNS[c](run) for c in columns)] for name, run in zip(names, runs)]
    prompts, steps, guidance = (found(*(run["dit"][key] for run in runs))
                                for key in ("prompts", "steps", "guidance"))
    return table(["run", *columns], *rows) + (
        f"\n\nSeed {found(*(run['seed'] for run in runs))}; {prompts} held-out prompts, {steps} sampling "
        f"steps, guidance {guidance}. Hardware: {found(*(run['hardware'] for run in runs))}.")


def decoder_table():
    """PSNR over added noise for the decoder with and without t."""
    curves = {label: report(name)["vae"]["psnr_over_noise"] for label, name in DECODERS.items()}
    rows = [[f"{label}, dB", *(f"{x:.2f}" for x in curve.values())] for label, curve in curves.items()]
    return table(["noise added, t", *curves["without t"]], *rows)


def sideways(title, columns):
    """Conditions across, their figures down."""
    def show(key, value):
        return f"{100 * value:.0f}" if CONDITIONS[key].endswith("%") else f"{value:.1f}"

    keys = [key for key in CONDITIONS if key in next(iter(columns.values()))]
    rows = [[CONDITIONS[key], *(show(key, row[key]) for row in columns.values())] for key in keys]
    return table([title, *columns], *rows)


def conditions_tables():
    """What keyframes, extension, strength and video-to-video do on the toy."""
    stored = report("conditions")
    rows = stored["rows"]
    psnr, strength, change = (rows.pop(key) for key in ("reconstruction_psnr", "strength", "video_to_video"))
    return "\n\n".join([
        sideways("given", rows), sideways("strength of a first frame", strength),
        sideways("video-to-video, change", change),
        f"{stored['clips']} held-out clips, seed {stored['seed']}, the shipped model. "
        f"The PSNR of the clips' own reconstructions is {psnr:.1f} dB."])


ABLATIONS = ("claims", "texture", "decoders", "coordinates")


def claims_text(name):
    """The ablations' verdicts in a folder of docs/results, and what they took. The first one says what the
    columns mean."""
    folder = RESULTS / name
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/seed*/report.json"))]
    asked = json.loads((folder / "asked.json").read_text())
    spent = {stage: [minutes(run) for run in runs if run["stage"] == stage]
             for stage in dict.fromkeys(run["stage"] for run in runs)}
    means = ", ".join(f"{stage} {sum(m) / len(m):.1f}" for stage, m in spent.items())
    shown = (folder / "table.md").read_text().split("\n\n")[: 2 if name == ABLATIONS[0] else 1]
    return "\n\n".join(shown) + (
        f"\n\n`{asked['command']}`: {len(runs)} runs, seeds 0 to {max(run['seed'] for run in runs)}, minutes "
        f"of training each: {means}. Hardware: {found(*(run['hardware'] for run in runs))}.")


# --- Benchmarks -------------------------------------------------------------------------------------------

def bench_text():
    """Every report of `minltx.bench` as the command itself prints it."""
    stored = [json.loads(path.read_text()) for path in sorted((RESULTS / "bench").glob("*.json"))]
    return "\n\n".join(f"`{run['command']}`\n\n```text\n{bench.table(run)}\n```" for run in stored)


def gpu_text():
    """What was measured of the headline, as its summary says it."""
    return headline.summary(RESULTS / "gpu").split("\nNot done yet")[0].replace("```", "```text", 1).strip()


# --- Chapters -------------------------------------------------------------------------------------------

def notebooks(folder, names):
    """"02 03" -> links to the notebooks of a folder whose names begin so."""
    paths = [next((ROOT / folder).glob(f"{name}_*.ipynb")) for name in names.split()]
    return " ".join(f"[{path.name[:2]}]({folder}/{path.name})" for path in paths)


def chapters_table():
    """The reading order: file, idea (first sentence of its docstring), code lines, lessons, assignments."""
    counts, rows = chapter_lines(), []
    for name, (lessons, assignments) in TAUGHT.items():
        docstring = ast.get_docstring(ast.parse((ROOT / "minltx" / f"{name}.py").read_text()))
        idea = re.split(r" \(|\.", " ".join(docstring.split()))[0]
        rows.append([f"[{name}](minltx/{name}.py)", idea, counts[name], notebooks("notebooks", lessons),
                     notebooks("notebooks/assignments", assignments)])
    return table(["file", "the idea", "code lines", "lesson", "assignment"], *rows,
                 ["", "together", sum(counts.values()), "", ""])


# --- Pages ------------------------------------------------------------------------------------------------

def tables():
    """Marker in README.md or a page of docs -> Markdown."""
    few = results_table(["toy", "long", "large"], list(COLUMNS)[:5])
    commands = [f"- {label}: `{report(name)['command']}`" for name, label in RUNS.items()]
    return {"expect": re.sub(" --out [^`]+", "", few), "chapters": chapters_table(),
            "results": results_table(RUNS, list(COLUMNS)[1:]) + "\n\n" + "\n".join(commands),
            "conditions": conditions_tables(), "decoder": decoder_table(),
            **{name: claims_text(name) for name in ABLATIONS},
            "bench": bench_text(), "gpu": gpu_text(), "shapes": shapes.text(report("shapes"))}


def with_tables(page, made):
    """A page with the tables between its markers replaced by new ones."""
    def replaced(match):
        return f"<!-- {match[1]} -->\n{made[match[1]]}\n<!-- /{match[1]} -->"

    return re.sub(rf"<!-- ({'|'.join(made)}) -->\n.*?<!-- /\1 -->", replaced, page, flags=re.S)


def plots():
    """docs/decoder.png and docs/frontier.png, from the same reports."""
    curves = {label: tuple(zip(*((float(t), y) for t, y in report(name)["vae"]["psnr_over_noise"].items())))
              for label, name in DECODERS.items()}
    save_curves(DOCS / "decoder.png",
                [("Held-out clips", "noise mixed into the latents, t", "PSNR in dB", curves, "linear")])
    shapes.draw(DOCS / "shapes.png", report("shapes"))
    runs = {label: [report(name) for name in names] for label, names in BUDGETS.items()}

    def over_minutes(number):
        return {label: ([minutes(run) for run in some], [number(run) for run in some])
                for label, some in runs.items()}

    right = over_minutes(lambda run: 100 * run["dit"]["text_to_video"]["every_frame"])
    quality = over_minutes(lambda run: run["vae"]["psnr"])
    save_curves(DOCS / "frontier.png", [
        ("Held-out prompts", "minutes", "% right in every frame", right, "linear"),
        ("Held-out clips", "minutes", "PSNR in dB", quality, "linear")])


def main():
    parser = Parser(prog="python -m tools.tables", description=__doc__)
    parser.add_argument("--keep", nargs=2, metavar=("FILE", "NAME"), help="keep a report under this name")
    parser.add_argument("--write", action="store_true", help="write the pages and figures")
    args = parser.parse_args()
    with one_line(parser):
        run(args)


def run(args):
    """Keep a report, or make all tables."""
    if args.keep:
        report = json.loads(Path(args.keep[0]).read_text())
        (RESULTS / f"{args.keep[1]}.json").write_text(json.dumps(report) + "\n")
        return
    made = tables()
    print("\n\n".join(made.values()))
    if args.write:
        for page in (ROOT / "README.md", *DOCS.glob("*.md")):
            page.write_text(with_tables(page.read_text(), made))
        plots()


if __name__ == "__main__":
    main()
