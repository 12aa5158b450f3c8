"""What a run shows while it trains: index.html, a page to leave open in a browser, and log.jsonl.

The page loads itself again every few seconds. It needs no network and no other file: curves are SVG, and the
samples are GIFs inside the page. They are also files in the folder samples. A line of log.jsonl holds the
numbers of one step.
"""

import base64
import json
import math
import textwrap
import time
from contextlib import contextmanager
from html import escape

import torch
import torch.nn.functional as F

from minltx.evaluation.report import clips_at_once, reconstruct, table
from minltx.files import clear_leftovers, put_in_place
from minltx.toy.data import EVALUATION, describe, rng
from minltx.video.files import draw_grid, few_colours, save_gif, to_uint8

SAMPLES, STEPS = 4, 10      # prompts, and steps of the sampler: few, but enough to watch
PARTS = 10                  # samples are drawn after each tenth of a stage
REFRESH = 5.0               # seconds
WIDEST, LONGEST = 128, 33   # pixels and frames of a sample on the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 66em; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
.bar { background: #ddd; border-radius: 4px; height: 8px } .bar div { background: #36c; height: 8px;
       border-radius: 4px }
.row { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0 }
figcaption { font-size: 13px; color: #666 } img { max-width: 100%; image-rendering: pixelated }
pre { overflow-x: auto; font-size: 13px } svg text { font: 11px system-ui, sans-serif; fill: #666 }
"""
COLOURS = ("#36c", "#d62", "#393", "#a3a", "#c33", "#088", "#770")


class Page:
    """The page and the log of a Run, which calls `step` after each step of its loops.

    Samples have captions, seeds and clips of their own, so the training's random numbers stay as they are.
    """

    def __init__(self, run, held_out):
        self.run, self.fps = run, held_out.config.fps
        self.clips, scenes = held_out.batch(clips_at_once(SAMPLES, held_out), rng(run.seed, EVALUATION, 5),
                                            held_out=True)
        self.captions = [describe(scene) for scene in scenes]
        self.samples, self.log = run.out / "samples", run.out / "log.jsonl"
        self.written, self.began = 0.0, (None, 0, 0.0)          # stage, step and time of the first one seen
        self.whole = True
        clear_leftovers(self.samples)
        self.forget_later_steps()

    # --- What the run calls -------------------------------------------------------------------------------

    @contextmanager
    def optional(self):
        """Inside, a file that cannot be written, on a full disk for instance, is reported once and does not
        stop the training. Checkpoints matter, and raise OSError themselves."""
        try:
            yield
        except OSError as error:
            if self.whole:
                print(f"the page of this run is not complete: {error}", flush=True)
            self.whole = False

    def step(self):
        """After a step: its line in the log, and every tenth of the stage, samples."""
        run, now = self.run, time.perf_counter()
        if self.began[0] != run.stage_name:
            self.began = run.stage_name, run.step, now
        with self.optional():
            self.append({"stage": run.stage_name, "step": run.step, **self.numbers(),
                         "seconds": round(run.seconds.get(run.stage_name, 0.0), 1)})
            drawn = run.step % max(1, run.total // PARTS) == 0 or run.step == run.total
            if drawn and run.stage.model is run.model:      # not where parameters are cut into shards
                self.draw()
            if drawn or now - self.written > REFRESH:
                _, first, began = self.began
                left = (run.total - run.step) * (now - began) / max(1, run.step - first)
                self.write(f"{run.stage_name}: step {run.step} of {run.total}, "
                           f"{minutes(left)} left in this stage")

    def say(self, status, live=True):
        """Show what the run does now; with live=False the page does not load itself again."""
        with self.optional():
            self.write(status, live=live)

    def finish(self, report):
        """The run is over: the report's table becomes part of the page."""
        with self.optional():
            self.append({"stage": "report", "vae": report["vae"], "dit": report["dit"]})
            self.write("finished", table(report), live=False)

    # --- Numbers and samples ------------------------------------------------------------------------------

    def numbers(self):
        """What the step has logged, by name."""
        mark = self.run.stage_name + " "
        return {name.removeprefix(mark): rows[-1][1] for name, rows in self.run.history.items()
                if name.startswith(mark) and rows[-1][0] == self.run.step}

    def append(self, line):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_later_steps(self):
        """A run goes on from its checkpoint: what a stopped one had logged and drawn after it is removed."""
        def kept(stage, step):
            done = stage in self.run.stages_done
            return done or stage == self.run.stage_name and step <= self.run.step

        rows = read_rows(self.log)
        rows = [row for row in rows if kept(row.get("stage"), row.get("step", 0))]
        if self.log.exists():
            put_in_place(self.log, lambda part: part.write_text("".join(json.dumps(x) + "\n" for x in rows)))
        for path in self.drawn():
            if not kept(*stage_and_step(path)):
                path.unlink()

    def drawn(self):
        """The files with samples, in the order in which they were drawn."""
        return sorted(self.samples.glob("[!.]*-*.gif"), key=lambda p: (stage_and_step(p)[0] != "vae", p.name))

    @torch.no_grad()
    def draw(self):
        """Samples of this step as a GIF: stage 1 reconstructs clips, stage 2 samples their captions."""
        run, model = self.run, self.run.model
        with torch.random.fork_rng():
            if run.stage_name == "vae":
                video = torch.cat([self.clips, reconstruct(model.vae, self.clips.to(run.device)).cpu()])
                captions = ["held-out clip"] * len(self.clips) + ["reconstruction"] * len(self.clips)
            else:
                run.stage.swap_average()
                video = model.generate(self.captions, list(range(len(self.captions))),
                                       tuple(self.clips.shape[2:]), steps=STEPS)
                run.stage.swap_average()
                captions = [textwrap.fill(text, 20, max_lines=3) for text in self.captions]
        video = small(video[:, :, :LONGEST])
        pages = draw_grid(to_uint8(video), captions, len(self.clips), max(1, WIDEST // 2 // video.shape[-1]))
        put_in_place(self.samples / f"{run.stage_name}-{run.step:07}.gif",
                     lambda part: save_gif(part, few_colours(pages), self.fps))

    # --- The page -----------------------------------------------------------------------------------------

    def write(self, status, figures="", live=True):
        """Put the whole page in place."""
        self.written, run = time.perf_counter(), self.run
        parts = [f"<h1>{escape(run.out.name)}</h1><p>{escape(status)}</p>"]
        if run.total:
            share = f"{100 * run.step / run.total:.1f}%"
            parts.append(f'<div class="bar"><div style="width: {share}"></div></div>')
        if figures:
            parts.append(f"<h2>Result</h2><pre>{escape(figures)}</pre>")
        parts.append(f'<h2>Curves</h2><div class="row">{"".join(curves(run.history))}</div>')
        parts.append(f'<h2>Samples, the newest first</h2><div class="row">{self.pictures()}</div>')
        settings = json.dumps(run.identity, indent=1)
        parts.append(f"<h2>Settings</h2><details><summary>seed, data, model, recipe</summary>"
                     f"<pre>{escape(settings)}</pre></details>")
        again = f'<meta http-equiv="refresh" content="{REFRESH:g}">' if live else ""
        page = (f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
                f"<title>{escape(run.out.name)}: {escape(status)}</title><style>{STYLE}</style></head>"
                f"<body>{''.join(parts)}"
                f"<p>Written at {time.strftime('%H:%M:%S')}. The numbers are in log.jsonl.</p></body></html>")
        put_in_place(run.out / "index.html", lambda part: part.write_text(page, encoding="utf-8"))

    def pictures(self):
        """All samples as figures in HTML."""
        figures = []
        for path in reversed(self.drawn()):
            stage, step = stage_and_step(path)
            data = base64.b64encode(path.read_bytes()).decode()
            figures.append(f'<figure><img alt="samples" src="data:image/gif;base64,{data}">'
                           f"<figcaption>{escape(stage)}, step {step}</figcaption></figure>")
        return "".join(figures)


def read_rows(path):
    """The lines of a file as dictionaries, without those that are cut off; [] if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def stage_and_step(path):
    """samples/dit-0000110.gif -> ("dit", 110)."""
    stage, step = path.stem.split("-")
    return stage, int(step)


def small(video):
    """Videos (B, 3, F, H, W), made smaller if they are wider than WIDEST."""
    factor = WIDEST / video.shape[-1]
    return F.interpolate(video, scale_factor=(1, factor, factor), mode="area") if factor < 1 else video


def minutes(seconds):
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


# --- Curves as SVG ----------------------------------------------------------------------------------------

def curves(history):
    """history: {"stage name": [[step, value], ...]} -> SVG pictures: per stage the losses, and PSNR."""
    panels = {}
    for key, rows in history.items():
        stage, name = key.split(" ", 1)
        title = f"{stage}: PSNR in dB, held-out clips" if name == "psnr" else f"{stage}: losses"
        panels.setdefault(title, {})[name] = thin(rows)
    return [curve(title, lines, log=title == "vae: losses") for title, lines in panels.items()]


def thin(rows, most=200):
    """At most about `most` points: the mean of each group of neighbours."""
    group = -(-len(rows) // most)
    parts = [rows[i : i + group] for i in range(0, len(rows), group)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def curve(title, lines, log, width=380, height=210):
    """A line plot: lines is {name: [(step, value), ...]}; with log, only positive values are drawn."""
    scale = math.log10 if log else float
    points = {name: [(x, scale(y)) for x, y in rows if not log or y > 0] for name, rows in lines.items()}
    values = [y for rows in points.values() for _, y in rows] or [0.0]
    low, high, last = min(values), max(values), max([x for rows in points.values() for x, _ in rows] or [1])
    span, left, top = max(high - low, 1e-9), 52, 24
    paths = [f'<text x="{left}" y="14">{escape(title)}</text>',
             f'<rect x="{left}" y="{top}" width="{width - left}" height="{height - top - 20}" fill="none" '
             'stroke="#ccc"/>']
    for share in (0, 0.5, 1):
        y, value = height - 20 - share * (height - top - 20), low + share * span
        paths.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end">'
                     f"{10**value if log else value:.2g}</text>")
    paths.append(f'<text x="{width}" y="{height - 4}" text-anchor="end">step {last}</text>')
    for i, (name, rows) in enumerate(points.items()):
        colour = COLOURS[i % len(COLOURS)]
        at = [(left + x / last * (width - left), height - 20 - (y - low) / span * (height - top - 20))
              for x, y in rows]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        paths.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        paths += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in at if len(at) < 20]
        paths.append(f'<text x="{width - 6}" y="{top + 14 + 13 * i}" text-anchor="end" '
                     f'style="fill: {colour}">{escape(name)}</text>')
    return f'<svg width="{width}" height="{height}" role="img">{"".join(paths)}</svg>'
