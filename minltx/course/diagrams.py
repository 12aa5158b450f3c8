"""Diagrams for lessons and slides, each drawn from the package's own configs and functions.

    python -m minltx.course.diagrams --out figures            # all of them, as PNG and SVG

In a notebook: `from minltx.course import diagrams`, then `diagrams.block()` as the last line of a cell.
"""

import math
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Line

from minltx.command import Parser, new_folder, one_line
from minltx.dit import DiT, DiTConfig
from minltx.files import put_in_place
from minltx.flow import interpolate
from minltx.layers import modulate
from minltx.rope import latent_coordinates, rope_tables
from minltx.sampler import Condition, Sampling, classifier_free_guidance, euler, layout_tokens, token_times
from minltx.training.settings import TOY
from minltx.vae import VAEConfig, VideoVAE
from minltx.video.plots import Picture

BLUE, ORANGE, GREEN, INK, GREY = "#1763b6", "#b8470b", "#2e7d4f", "#222222", "#6b7480"
PALE, SOFT = "#eef1f5", "#f7e8dd"


class Page:
    """Text, boxes, frames and arrows on a page of width x height units, ten to an inch."""

    def __init__(self, width, height, dpi=90):
        self.figure, self.arrows = Picture(figsize=(width / 10, height / 10), dpi=dpi), []
        FigureCanvasAgg(self.figure)
        self.ax = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.ax.axis("off")

    def lines(self, x, y, *rows, **how):
        """Rows of (text, colour), centred at x, from y downwards."""
        for i, (text, colour) in enumerate(rows):
            how = {"size": 11, "ha": "center", "va": "center", **how}
            self.ax.text(x, y - 2.3 * i, text, color=colour, **how)

    def box(self, x, y, width, height, title, *rows, face=PALE):
        """A rounded box with its title and rows in the middle."""
        style = "round, pad=0, rounding_size=1"
        self.ax.add_patch(FancyBboxPatch((x, y), width, height, style, fc=face, ec="#8893a2"))
        top = y + height / 2 + 1.15 * len(rows)
        self.lines(x + width / 2, top, (title, INK), size=12.5, weight="bold")
        self.lines(x + width / 2, top - 2.5, *rows)

    def cell(self, x, y, width, height, face, text="", **how):
        """A square-cornered cell with a text in its middle."""
        self.ax.add_patch(Rectangle((x, y), width, height, fc=face, ec="white", lw=1.5))
        self.lines(x + width / 2, y + height / 2, (text, INK), **{"size": 9, **how})

    def frames(self, x, y, side, frames, right=1.1, up=0.9):
        """Cards, the first frame in front, each later one further to the right and up."""
        for i, frame in reversed(list(enumerate(frames))):
            left, low = x + right * i, y + up * i
            self.ax.imshow(frame, extent=(left, left + side, low, low + side), zorder=3, aspect="equal")
            self.ax.add_patch(Rectangle((left, low), side, side, fill=False, ec="#666666", zorder=3))

    def arrow(self, *points, colour="#4a5462"):
        """From the first point along straight lines to the last."""
        self.arrows.append(points)
        how = {"mutation_scale": 14, "lw": 1.6, "color": colour, "joinstyle": "round", "zorder": 2}
        self.ax.add_patch(FancyArrowPatch(path=Line(points), arrowstyle="-|>", **how))


def panels(count, width, height):
    """A figure with `count` plots next to each other, of that size in inches each -> (figure, axes)."""
    figure = Picture(figsize=(count * width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def cross(*numbers):
    """Sizes as text: 3 × 17 × 32 × 32."""
    return " × ".join(f"{n:,}" for n in numbers)


# --- The system -------------------------------------------------------------------------------------------

def system(config=TOY.model):
    """From a caption and noise to a video, with the shapes of one `ModelConfig`."""
    with torch.device("meta"):
        vae = VideoVAE(config.vae)
    clip, d = config.data.clip_shape, config.dit
    latent, page = vae.latent_shape(*clip), Page(96, 33)
    page.box(1, 22, 17, 8, "caption", ("“a red 7 …”", GREY), face="white")
    page.box(23, 22, 17, 8, "text encoder", ("words to vectors", GREY))
    page.box(1, 6, 17, 8, "noise, t = 1", (cross(*latent), BLUE), face="white")
    page.box(23, 6, 17, 8, "latent at t", (f"{math.prod(latent[1:]):,} tokens", BLUE))
    page.box(47, 13, 19, 11, "transformer", (f"{d.depth} blocks, width {d.width:,}", BLUE),
             ("velocity at t", GREY))
    page.box(47, 2, 19, 7, "Euler step", ("to the next, smaller t", GREY))
    page.box(73, 6, 20, 8, "latent, t = 0", (cross(*latent), BLUE), face="white")
    page.box(73, 18, 20, 12, "VAE decoder", (f"to {cross(3, *clip)}", BLUE), ("pixels", GREY))
    for line in (((18, 26), (23, 26)), ((40, 26), (43.5, 26), (43.5, 20), (47, 20)), ((18, 10), (23, 10)),
                 ((40, 12), (43.5, 12), (43.5, 17), (47, 17)), ((56.5, 13), (56.5, 9)),
                 ((47, 4), (31.5, 4), (31.5, 6)), ((66, 3.5), (83, 3.5), (83, 6)), ((83, 14), (83, 18))):
        page.arrow(*line)
    page.lines(39, 2.2, ("until t = 0", INK), size=10)
    return page.figure


# --- Flow -------------------------------------------------------------------------------------------------

def mean_velocity(z, t):
    """E[noise - x0 | z] where x0 is -1 or 1, exactly: z (B, 1), t (B,) -> (B, 1)."""
    t, data = t[:, None].clamp_min(1e-4), torch.tensor([-1.0, 1.0])
    noise = (z - (1 - t) * data) / t                                                      # (B, 2)
    likely = (-noise.square() / 2).softmax(-1)
    return (likely * (noise - data)).sum(-1, keepdim=True)


def crossing_paths():
    """Training paths are straight and cross; sampled paths follow the mean velocity and never cross."""
    figure, axes = panels(2, 4.4, 2.8)
    t = torch.linspace(1, 0, 101)
    noise = torch.linspace(-1.8, 1.8, 11)[:, None]
    for x0, colour in ((1.0, BLUE), (-1.0, ORANGE)):
        axes[0].plot(t, interpolate(torch.tensor(x0), noise, t).T, color=colour, lw=0.8)
    path = [noise]
    for i in range(100):
        path.append(euler(mean_velocity, path[-1], t[i:i + 2]))
    path = torch.stack(path)[..., 0]                                                      # (101, 11)
    for line in path.T:
        axes[1].plot(t, line, color=BLUE if line[-1] > 0.5 else ORANGE if line[-1] < -0.5 else GREY, lw=1.2)
    for ax, title in zip(axes, ("training: each noise with each data point", "sampling: the mean velocity")):
        ax.set(title=title, xlabel="t  (1 = noise, 0 = data)", ylabel="z", xlim=(1, 0))
    return figure


def guidance(scale=3.0):
    """Classifier-free guidance as vectors: from the null caption's velocity past the caption's."""
    figure, (ax,) = panels(1, 5.4, 2.6)
    v_null, v_text = torch.tensor([2.0, 0.4]), torch.tensor([2.2, 0.9])
    for v, name, colour in ((v_null, "null caption", GREY), (v_text, "caption: scale 1", BLUE),
                            (classifier_free_guidance(v_null, v_text, scale), f"scale {scale:g}", ORANGE)):
        ax.annotate("", v.tolist(), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        ax.text(v[0] + 0.05, v[1], name, color=colour, va="center")
    ends = torch.stack([v_null, classifier_free_guidance(v_null, v_text, scale)])
    ax.plot(*ends.T, "--", color=INK, lw=1)
    ax.set(xlim=(0, 3.8), ylim=(-0.1, 2.1), title="v = v_null + s (v_text − v_null)")
    ax.set_xticks([]), ax.set_yticks([])
    return figure


# --- The VAE ----------------------------------------------------------------------------------------------

def causal_padding(frames=5):
    """The encoder's convolution in time: two copies of the first frame in front, none at the end."""
    page, left, side = Page(84, 25), 19, 8
    page.lines(9, 18, ("input", INK))
    page.lines(9, 5, ("output", INK))
    for i in range(-2, frames):
        page.cell(left + side * (i + 2), 14, side - 1, side - 1, SOFT if i < 0 else PALE,
                  f"frame {max(i, 0)}" + ("\n(copy)" if i < 0 else ""))
    for i in range(frames):
        page.cell(left + side * (i + 2), 2, side - 1, side - 1, PALE, f"frame {i}")
    for output, colour in ((0, ORANGE), (frames - 2, BLUE)):
        end = left + side * (output + 2) + 3.5
        for i in range(output, output + 3):
            page.arrow((left + side * i + 3.5, 14), (end, 9), colour=colour)
    page.lines(42, 23, ("each output sees its own frame and the two before it, never a later one", GREY))
    return page.figure


def vae_training():
    """One training step of the VAE: what is sampled, what is noised, what is compared."""
    page, y = Page(100, 31), 17
    boxes = ((1, 12, "clip", "(B, 3, F, H, W)"), (17, 14, "encoder", "causal"),
             (36, 19, "posterior", "means, one variance"), (60, 14, "decoder", "conditioned on t"),
             (79, 20, "reconstruction", "(B, 3, F, H, W)"))
    for x, width, title, row in boxes:
        page.box(x, y, width, 9, title, (row, GREY), face=PALE if title[-5:] == "coder" else "white")
    for (x, width, *_), (to, *_) in zip(boxes, boxes[1:]):
        page.arrow((x + width, y + 4.5), (to, y + 4.5))
    page.lines(45.5, 12.6, ("KL: keeps it near a normal distribution", ORANGE), size=10)
    page.arrow((45.5, 13.8), (45.5, y), colour=ORANGE)
    page.lines(61, 29, ("noise to the degree t, 0 to 0.2", BLUE))
    page.arrow((57.5, 27.5), (57.5, 22.5), colour=BLUE)
    page.arrow((7, y), (7, 5), (27, 5), colour=GREEN)
    page.arrow((89, y), (89, 5), (75, 5), colour=GREEN)
    page.box(27, 1, 48, 8, "compared", ("pixel, wavelet (DWT), motion, perceptual, GAN", GREEN), face="white")
    return page.figure


def last_step():
    """Who removes which part of the noise, as the paper draws it and as the releases do it."""
    page, right = Page(96, 30), 88
    t, noise = Sampling.decode_t, Sampling.decode_noise

    def at(time):
        return right - (right - 26) * time ** 0.5          # stretched near t = 0

    for y, name in ((20, "paper"), (8, "releases")):
        page.lines(10, y + 2, (name, INK), size=12.5, weight="bold")
    page.cell(at(1), 20, at(t) - at(1), 4, "#cfe0f3", "transformer: Euler steps in latent space")
    page.cell(at(t), 20, at(0) - at(t), 4, "#f3d3bd", "decoder")
    page.cell(at(1), 8, at(0) - at(1), 4, "#cfe0f3", "transformer: Euler steps down to t = 0")
    page.arrow((right - 0.5, 7.5), (right - 0.5, 5.2), (at(noise), 5.2), (at(noise), 2.2), colour=ORANGE)
    page.lines((right + at(noise)) / 2, 6.4, (f"+ noise {noise}", ORANGE), size=9)
    page.cell(at(noise), 0.3, at(0) - at(noise), 3.6, "#f3d3bd", "decoder")
    page.lines(at(noise) - 12, 2, (f"conditioned on t = {t}", GREY), size=9)
    for time in (1, 0.5, 0.2, t, 0):
        page.lines(at(time), 17.5, (f"{time:g}", GREY), size=9)
        page.ax.plot([at(time)] * 2, [18.5, 20], color=GREY, lw=1)
    page.lines(10, 17.5, ("t", GREY), size=9)
    page.lines(48, 28, ("the decoder turns a slightly noisy latent into clean pixels", GREY))
    return page.figure


# --- The transformer --------------------------------------------------------------------------------------

def rotation(heads=4, tokens=6, pixels=8.0):
    """The first band of frequencies of each head: how far neighbouring tokens are rotated, as points. For the
    released RoPE in a transformer of width 128."""
    c = DiTConfig(width=128, heads=heads)
    where = torch.zeros(3, tokens)
    where[2] = torch.arange(tokens) * pixels
    cos, sin = rope_tables(where, c.width, c.max_position, c.theta)                       # (tokens, D)
    figure, axes = panels(heads, 2.2, 3.0)
    for head, ax in enumerate(axes):
        frequency = -(-(head * c.width // heads - c.width % 6) // 6)      # the first that is all in this head
        channel = c.width % 6 + 6 * frequency + 4                                         # its column axis
        points = torch.complex(cos[:, channel], sin[:, channel])
        points = points / points[0]
        step = (2 * pixels / c.max_position[2]) * c.theta ** (frequency / (c.width // 6 - 1)) * math.pi / 2
        ax.add_patch(Circle((0, 0), 1, fill=False, ec="0.8"))
        labels = range(tokens) if abs(points[1] - 1) > 0.1 else [*[""] * (tokens - 1), f"0 to {tokens - 1}"]
        for i, (p, label) in enumerate(zip(points, labels)):
            ax.plot([0, p.real], [0, p.imag], color=BLUE, lw=1, alpha=1 - i / (tokens + 1))
            ax.text(1.33 * p.real, 1.33 * p.imag, label, ha="center", va="center", fontsize=7)
        ax.set(title=f"head {head}\n{step / (2 * math.pi):.3g} turns a token", xlim=(-1.4, 1.4),
               ylim=(-1.4, 1.4), aspect="equal")
        ax.axis("off")
    return figure


def attention_patterns(frames=3, places=4):
    """Which tokens a token attends to: all, those of its frame, those of its place."""
    frame, place = torch.arange(frames * places) // places, torch.arange(frames * places) % places
    masks = {"full": torch.ones(len(frame), len(frame), dtype=torch.bool),
             "in space: own frame": frame[:, None] == frame, "in time: own place": place[:, None] == place}
    figure, axes = panels(3, 2.8, 3.7)
    for ax, (title, mask) in zip(axes, masks.items()):
        ax.imshow(mask.numpy(), cmap="Blues", vmax=1.6, vmin=-0.05)
        ax.set(title=f"{title}\n{mask.sum()} pairs", xlabel="key", ylabel="query")
        for edge in range(places, len(frame), places):
            ax.axhline(edge - 0.5, color="white", lw=2), ax.axvline(edge - 0.5, color="white", lw=2)
        ax.set_xticks([]), ax.set_yticks([])
    return figure


def block():
    """One transformer block: three additions to the tokens, two of them modulated by t."""
    page = Page(98, 47)
    page.arrow((66, 2), (66, 46.5))
    page.lines(70, 3, ("tokens h", INK), ha="left")
    rows = ((6, "self-attention", "RoPE on q and k", True), (33, "feed-forward", "D to 4 D to D", True),
            (20, "cross-attention", "no norm, gate or t", False))
    for y, name, note, modulated in rows:
        page.box(34, y, 18, 9, name, (note, GREY))
        page.arrow((66, y + 1), (52, y + 1))
        page.lines(66, y + 10.5, ("+", INK), size=15, weight="bold",
                   bbox={"boxstyle": "circle", "fc": "white", "ec": INK, "pad": 0.15})
        page.arrow((43, y + 9), (43, y + 10.5), (64.3, y + 10.5))
        if modulated:
            page.lines(59, y + 4.6, ("norm, then", BLUE), ("scale, shift", BLUE), size=8.5)
            page.lines(56, y + 12, ("× gate", BLUE), size=9)
            page.arrow((25, 24.5), (29, 24.5), (29, y + 4.5), (34, y + 4.5), colour=BLUE)
    page.box(1, 33, 24, 9, "time t", ("sinusoids, two layers", GREY), face="white")
    page.box(1, 20, 24, 9, "6 vectors", ("one shared linear layer,", BLUE), ("+ the block's own table", BLUE))
    page.arrow((13, 33), (13, 29))
    page.box(74, 20, 22, 9, "caption", ("vectors, one a word", GREY), face="white")
    page.arrow((74, 27.5), (52, 27.5))
    return page.figure


def modulation(points=200):
    """What scale and shift do to normalised numbers: the histogram widens and moves."""
    figure, axes = panels(3, 2.8, 2.2)
    x = torch.randn(points * 50, generator=torch.Generator().manual_seed(0))
    for ax, (shift, scale) in zip(axes, ((0.0, 0.0), (0.0, 0.8), (1.5, -0.5))):
        ax.hist(modulate(x, shift, scale).numpy(), 60, range=(-5, 5), color=BLUE, alpha=0.7)
        ax.set(title=f"shift {shift:g}, scale {scale:g}")
        ax.set_yticks([])
    return figure


def times_of_tokens(t=0.8):
    """The time of every token while the sampler is at t: text-to-video, a first frame, soft, a keyframe."""
    config = TOY.model
    with torch.device("meta"):
        shape = VideoVAE(config.vae).latent_shape(*config.data.clip_shape)
    like, picture = torch.zeros(1, *shape), torch.zeros(1, shape[0], 1, *shape[2:])
    cases = {"caption only": [], "first frame given": [Condition(picture)],
             "given, strength 0.4": [Condition(picture, 0, 0.4)],
             "keyframe at frame 9": [Condition(picture, 9)]}
    page, space = Page(90, 31), shape[2] * shape[3]
    for row, (name, conditions) in enumerate(cases.items()):
        _, strength, where = layout_tokens(conditions, like, config.dit.stride, config.data.fps, True)
        times, y = token_times(t, strength)[0][0], 22 - 6.5 * row
        page.lines(12, y + 2, (name, INK))
        extra = len(times) - shape[1] * space
        for i in range(len(times) // space):
            value, second = times[i * space].item(), where[0, i * space].item()
            x = 78 if extra and i == 0 else 25 + 10 * (i - (extra > 0))
            shade = 1 - 0.45 * value / t
            face = (shade, shade + (1 - shade) / 2, 1) if value else SOFT
            page.cell(x, y, 9, 4.5, face, f"t = {value:.1f}\n{second:.2f} s")
    page.lines(50, 29.5, (f"the sampler is at t = {t}; one cell is one latent frame of {space} tokens", GREY))
    page.lines(82, 8.5, ("extra tokens", GREY), size=9)
    return page.figure


# --- Evidence and scale -----------------------------------------------------------------------------------

def intervals(quantile=2.776):
    """Three words for a paired difference of five seeds: its 95 % interval decides. `quantile` is that of
    Student's t with 4 degrees of freedom."""
    seeds = {"holds": (4.1, 5.9, 5.2, 3.2, 6.4), "cannot be told": (-2.1, 3.9, 1.2, 4.8, -0.4),
             "does not hold": (-3.0, -2.1, -4.4, -3.6, -1.8)}
    figure, (ax,) = panels(1, 7.5, 2.3)
    for y, (word, values) in enumerate(reversed(seeds.items())):
        values = torch.tensor(values)
        half = quantile * values.std() / len(values) ** 0.5
        ax.plot(values, [y] * len(values), "o", color=GREY, ms=4)
        ax.errorbar(values.mean(), y + 0.22, xerr=half, fmt="s", color=BLUE, capsize=4)
    ax.axvline(0, color=INK, lw=1)
    ax.set_yticks(range(3), list(seeds)[::-1])
    ax.set(xlabel="difference, one dot a seed; blue: mean and 95 % interval",
           ylim=(-0.5, 2.7))
    return figure


def shards(processes=4, layers=3, gathered=1):
    """FSDP: every process stores a part of each layer, and gathers one whole layer at a time."""
    page, colours = Page(92, 34), ("#cfe0f3", "#f3d3bd", "#cfe8d8", "#e6d8ee", "#f2e8c4", "#d9dde3")
    for p in range(processes):
        y = 24 - 7 * p
        page.lines(9, y + 2.5, (f"process {p}", INK))
        for layer in range(layers):
            x = 20 + 24 * layer
            for part in range(processes):
                own, whole = part == p, layer == gathered
                face = colours[part % len(colours)] if own or whole else "white"
                page.cell(x + 5.5 * part, y, 5.5, 5, face, "own" if own else "")
                page.ax.add_patch(Rectangle((x + 5.5 * part, y), 5.5, 5, fill=False, ec="#8893a2"))
    for layer in range(layers):
        now = ": gathered, computing" if layer == gathered else ""
        page.lines(31 + 24 * layer, 31.5, (f"layer {layer}{now}", BLUE if now else GREY), size=10)
    return page.figure


def file_contents():
    """What an official file holds, in billions of parameters, counted on the meta device."""
    with torch.device("meta"):
        vae, dit = VideoVAE(VAEConfig()), DiT(DiTConfig())
    parts = {"28 blocks": dit.blocks, "rest of the\ntransformer": dit, "encoder": vae.encoder,
             "decoder": vae.decoder}
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e9 for name, part in parts.items()}
    sizes["rest of the\ntransformer"] -= sizes["28 blocks"]
    figure, (ax,) = panels(1, 7, 2.1)
    ax.barh(list(sizes)[::-1], list(sizes.values())[::-1], color=[GREEN, GREEN, BLUE, BLUE])
    for y, size in enumerate(list(sizes.values())[::-1]):
        ax.text(size + 0.02, y, f"{size:.2f} B", va="center", fontsize=9)
    ax.set(xlabel="parameters, billions", xlim=(0, 2.2))
    return figure


def coordinates(frames=4):
    """When each latent frame begins, for two frame rates: seconds, not indices."""
    c, page = DiTConfig(), Page(90, 20)
    for row, fps in enumerate((24.0, 12.0)):
        starts = latent_coordinates((frames, 1, 1), c.stride, fps, c.causal_time)[0].tolist()
        y = 12 - 8 * row
        page.lines(8, y + 2, (f"{fps:g} fps", INK))
        length = c.stride[0] / fps
        for i, start in enumerate(starts):
            width = 1 / fps if i == 0 else length
            page.cell(18 + 34 * start, y, 34 * width, 4.5, SOFT if i == 0 else PALE, f"{i}" if i else "")
            page.ax.plot([18 + 34 * start] * 2, [y - 1, y], color=INK, lw=1)
            page.lines(18 + 34 * start + (1.5 if i else -1), y - 2, (f"{start:.2f}", GREY), size=8.5)
    page.lines(50, 18.6, ("seconds at which latent frames begin; frame 0 stands for one pixel frame", GREY))
    return page.figure


DIAGRAMS = (system, crossing_paths, guidance, causal_padding, vae_training, last_step, coordinates, rotation,
            attention_patterns, block, modulation, times_of_tokens, intervals, shards, file_contents)


def write_all(folder):
    """Every diagram as PNG, for slides at twice the resolution, and as SVG -> the paths written. Raises
    ValueError, before anything is written, if a folder has the name of one."""
    folder, paths = Path(folder), []
    for draw in DIAGRAMS:
        for taken in (folder / f"{draw.__name__}.png", folder / f"{draw.__name__}.svg"):
            if taken.is_dir():
                raise ValueError(f"{taken} is a folder: name another one with --out")
    folder.mkdir(parents=True, exist_ok=True)
    for draw in DIAGRAMS:
        figure = draw()
        for ending in ("png", "svg"):
            paths.append(folder / f"{draw.__name__}.{ending}")
            put_in_place(paths[-1], lambda part: figure.savefig(part, format=ending, dpi=200))
    return paths


def main(argv=None):
    parser = Parser(prog="python -m minltx.course.diagrams", description=__doc__)
    parser.add_argument("--out", type=new_folder, default="figures",
                        help="folder for the pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    with one_line(parser):
        paths = write_all(args.out)
    print(f"{args.out}: {len(paths)} files of {len(DIAGRAMS)} diagrams")


if __name__ == "__main__":
    main()
