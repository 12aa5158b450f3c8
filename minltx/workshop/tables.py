"""The README's tables, made from the reports in docs/results and from the files themselves.

    python -m minltx.workshop.tables            print them
    python -m minltx.workshop.tables --write    put them into README.md

Keep a report with: python -m minltx.workshop.tables --keep runs/toy/report.json toy
"""

import ast
import json
import sys
from pathlib import Path

from minltx.workshop.count import CHAPTERS, PACKAGE, chapter_lines

ROOT = PACKAGE.parent
RESULTS = ROOT / "docs" / "results"
ROWS = {"third": "a third of the steps", "toy": "**the default**",
        "long": "the shipped model", "mnist": "the default on real MNIST", "large": "64x64, two digits"}
IDEAS = {
    "data": "videos that cost nothing and whose right answer is known",
    "patchify": "trade space and time for channels, and back",
    "flow": "rectified flow: the straight path, its velocity, training times, the schedules",
    "layers": "the few layers that more than one network uses",
    "vae": "compress 1:192, causally, and let the decoder do the last denoising step",
    "losses": "what the VAE is trained on, reconstruction GAN included, and how the terms add up",
    "rope": "rotate queries and keys by seconds, rows and columns",
    "text": "words to vectors: the toy's caption encoder",
    "dit": "a transformer in which every latent voxel sees every other, with a time per token",
    "sampler": "from noise to video: Euler, guidance, conditions, decode with a little noise left"}


# Chapter -> the lessons that show it and the assignment that has it written.
TAUGHT = {"data": ("00", ""), "patchify": ("02", "A2"), "flow": ("01", "A1"), "layers": ("05", "A3"),
          "vae": ("02 03", "A2"), "losses": ("02", "A2"), "rope": ("04", "A3"), "text": ("00", ""),
          "dit": ("05", "A3"), "sampler": ("06", "A1 A4")}


def links(names, folder):
    """"02 03" -> Markdown links to the notebooks in a folder whose names begin so."""
    paths = [next((ROOT / folder).glob(f"{name}_*.ipynb")) for name in names.split()]
    return " ".join(f"[{path.name[:2]}]({path.relative_to(ROOT)})" for path in paths)


def reports():
    """Name -> report, for those of ROWS that are there."""
    return {name: json.loads(path.read_text()) for name in ROWS
            if (path := RESULTS / f"{name}.json").exists()}


def results_table(stored):
    """What a training gives, one row a report."""
    lines = ["| run | command | minutes | digit | colour | direction | image-to-video: direction "
             "| first frame | PSNR | motion | reader |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, report in stored.items():
        vae, text, image = report["vae"], report["dit"]["text_to_video"], report["dit"]["image_to_video"]
        cells = [ROWS[name], f"`{report['command']}`", f"{minutes(report):.1f}",
                 *(f"{100 * text[key]:.1f} %" for key in ("digit", "colour", "direction")),
                 f"{100 * image['direction']:.1f} %",
                 f"{image['first_frame_psnr'] - image['vae_first_frame_psnr']:+.2f} dB",
                 f"{vae['psnr']:.2f} dB", f"{vae['motion_ratio']:.3f}",
                 f"{100 * vae['read_in_data']['digit']:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    def all_of(key, where=lambda report: report):
        return " or ".join(str(value) for value in sorted({where(report)[key] for report in stored.values()}))

    judged = {key: all_of(key, lambda report: report["dit"]) for key in ("prompts", "steps", "guidance")}
    return "\n".join([*lines, "", f"Seed {all_of('seed')}; {judged['prompts']} held-out prompts, "
                      f"{judged['steps']} steps of the sampler, guidance {judged['guidance']}. "
                      f"Hardware: {all_of('hardware')}."])


def minutes(report):
    """Both stages and the judging, all starts of a resumed run together."""
    return sum(report["seconds"].values()) / 60


def decoder_table():
    """PSNR over added noise for the decoder with and without t."""
    runs = [json.loads((RESULTS / f"{name}.json").read_text())["vae"]["psnr_over_noise"]
            for name in ("toy", "plain")]
    lines = ["| noise added, t | " + " | ".join(runs[0]) + " |", "|---" * (len(runs[0]) + 1) + "|"]
    for label, run in zip(("told t", "not told"), runs):
        lines.append(f"| {label}, dB | " + " | ".join(f"{x:.2f}" for x in run.values()) + " |")
    return "\n".join(lines)


def small_table(title, rows, lines):
    """A table with the keys of `rows` across, and in each line what a function shows of every row."""
    table = [f"| {title} | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for label, show in lines:
        table.append(f"| {label} | " + " | ".join(show(row) for row in rows.values()) + " |")
    return [*table, ""]


def percent(x):
    return f"{100 * x:.0f} %"


def conditions_table():
    """What keyframes, extension, strength and video-to-video do on the toy."""
    report = json.loads((RESULTS / "conditions.json").read_text())
    rows = dict(report["rows"])
    psnr, strength, change = (rows.pop(k) for k in ("reconstruction_psnr", "strength", "video_to_video"))
    pixels = [(label, lambda r, key=key: f"{r[key]:.1f}") for label, key in (
        ("off there, px", "given_off"), ("the same without", "given_off_without"),
        ("off elsewhere, px", "rest_off"), ("the same without", "rest_off_without"))]
    there = ("PSNR there, dB", lambda r: f"{r['given_psnr']:.1f}")
    digit = ("digit", lambda r: percent(r["digit"]))
    direction = ("direction", lambda r: percent(r["direction"]))
    lines = small_table("given", rows, [there, *pixels, digit, direction])
    lines += small_table("strength of a first frame", strength, [there, pixels[0], digit, direction])
    lines += small_table("video-to-video, change", change, [
        ("the new colour", lambda r: percent(r["colour"])), digit,
        ("off the old path, px", lambda r: f"{r['off']:.1f}")])
    return "\n".join([*lines, f"{report['clips']} held-out clips, seed {report['seed']}, the shipped model; "
                      f"the clips' own reconstructions have {psnr:.1f} dB."])


def full_size_text():
    """The full-width networks' one forward pass."""
    r = json.loads((RESULTS / "full_size.json").read_text())
    dit, vae, (f, h, w) = r["dit"], r["vae"], r["grid"]
    return (
        f"At full width, float32, random weights, {r['threads']} threads "
        "(`python -m minltx.workshop.full_size`): the\n"
        f"{dit['parameters']:,} parameters of the transformer on {f}x{h}x{w} tokens take "
        f"{dit['seconds']:.1f} s and {dit['peak_gib']:.1f} GiB;\n"
        f"the VAE's {vae['parameters']:,} encode a picture of {r['pixels']}x{r['pixels']} in "
        f"{vae['encode_seconds']:.1f} s and decode it in {vae['decode_seconds']:.1f} s.")


def claims_text():
    """The ablations' verdicts, and what they took."""
    folder = RESULTS / "claims"
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/seed*/report.json"))]
    spent = {stage: [sum(r["seconds"].values()) / 60 for r in reports if r["stage"] == stage]
             for stage in dict.fromkeys(r["stage"] for r in reports)}
    asked = json.loads((folder / "asked.json").read_text())
    return "\n".join([
        (folder / "table.md").read_text().split("\n\n")[0], "",
        f"`{asked['command']}`: {len(reports)} runs, {asked['seeds']} seeds, minutes of training each: "
        + ", ".join(f"{stage} {sum(m) / len(m):.1f}" for stage, m in spent.items())
        + f". Hardware: {' or '.join(sorted({r['hardware'] for r in reports}))}."])


def bench_text():
    """minltx beside diffusers, and each part beside its floor, from reports of `minltx.workshop.bench`."""
    stored = [json.loads(path.read_text()) for path in sorted((RESULTS / "bench").glob("*.json"))]

    def ms(seconds):
        return f"{1000 * seconds:.1f}"

    lines = ["| config, part | minltx, ms | diffusers, ms | minltx / diffusers | outputs differ by |",
             "|---|---|---|---|---|"]
    for report in stored:
        lines += [f"| {report['config']}, {part} | {ms(row['minltx'])} | {ms(row['diffusers'])} | "
                  f"**{row['ratio']:.2f}** | {row['largest_difference']:.1e} |"
                  for part, row in report["against"].items()]
    lines += ["", "| config, part | ms | floor, ms | of peak | tokens/s | frames/s |",
              "|---|---|---|---|---|---|"]
    for report in stored:
        for part, row in report["parts"].items():
            share = f"{100 * row['mfu']:.0f} %" if row["mfu"] else ""
            rates = ["" if row[key] is None else f"{row[key]:,.0f}"
                     for key in ("tokens_per_second", "frames_per_second")]
            lines.append(f"| {report['config']}, {part} | {ms(row['seconds'])} | {ms(row['floor'])} | "
                         f"{share} | {' | '.join(rates)} |")
    hardware = " ".join({report["hardware"]: None for report in stored})
    commands = "; ".join(f"`{report['command']}`" for report in stored)
    return "\n".join([*lines, "", f"float32, medians, ratios of pairs. {hardware}. {commands}."])


def imports_of(name):
    """The chapters that a chapter imports, in reading order."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return [other for other in CHAPTERS if f"minltx.{other}" in modules]


def chapters_table():
    """The reading order: idea, file, code lines, imports, lesson and assignment."""
    counts = chapter_lines()
    lines = ["| the idea | file | code lines | imports | lesson | assignment |", "|---|---|---|---|---|---|"]
    for name in CHAPTERS:
        imports = ", ".join(imports_of(name)) or "-"
        lesson, assignment = TAUGHT[name]
        lines.append(f"| {IDEAS[name]} | [{name}.py](minltx/{name}.py) | {counts[name]} | {imports} | "
                     f"{links(lesson, 'notebooks')} | {links(assignment, 'notebooks/assignments')} |")
    return "\n".join([*lines, f"| | together | {sum(counts.values())} | | | |"])


def tables():
    """Marker in the README -> Markdown."""
    return {"results": results_table(reports()), "decoder": decoder_table(), "conditions": conditions_table(),
            "chapters": chapters_table(), "full size": full_size_text(), "claims": claims_text(),
            "bench": bench_text()}


def between(text, marker, new=None):
    """What stands between a marker's two comments in `text`, or the text with `new` put there."""
    start, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    head, rest = text.split(start)
    body, tail = rest.split(end)
    return body.strip() if new is None else f"{head}{start}{new}\n{end}{tail}"


def plots():
    """docs/decoder.png and docs/frontier.png, from the same reports."""
    from minltx.workshop import pictures

    curves = {}
    for label, name in (("decoder told t", "toy"), ("decoder not told", "plain")):
        curve = json.loads((RESULTS / f"{name}.json").read_text())["vae"]["psnr_over_noise"]
        curves[label] = ([float(t) for t in curve], list(curve.values()))
    panel = ("Held-out clips", "noise mixed into the latents, t", "PSNR in dB", curves, "linear")
    budgets = [report for name, report in reports().items() if name in ("third", "toy", "long")]
    times = [minutes(report) for report in budgets]
    frontier = {key: (times, [100 * report["dit"]["text_to_video"][key] for report in budgets])
                for key in ("digit", "colour", "direction")}
    quality = {"reconstruction": (times, [report["vae"]["psnr"] for report in budgets])}
    pictures.save_curves(ROOT / "docs" / "frontier.png",
                         [("Held-out prompts", "minutes", "% right", frontier, "linear"),
                          ("Held-out clips", "minutes", "PSNR in dB", quality, "linear")])
    pictures.save_curves(ROOT / "docs" / "decoder.png", [panel])


def main(args):
    if args[:1] == ["--keep"]:
        report = json.loads(Path(args[1]).read_text())
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{args[2]}.json").write_text(json.dumps(report) + "\n")
        return
    readme = ROOT / "README.md"
    text = readme.read_text()
    for marker, table in tables().items():
        text = between(text, marker, table)
        print(table, "\n")
    if args == ["--write"]:
        readme.write_text(text)
        plots()


if __name__ == "__main__":
    main(sys.argv[1:])
