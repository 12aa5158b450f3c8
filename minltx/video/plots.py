"""Plots: curves side by side, dots per seed, videos as rows of frames."""

import io

from itertools import zip_longest

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from minltx.files import put_in_place


class Picture(Figure):
    """A figure that a notebook shows, in few colours, also before pyplot is set up."""

    def _repr_png_(self):
        file, small = io.BytesIO(), io.BytesIO()
        self.savefig(file, format="png")
        Image.open(file).convert("RGB").quantize(128).save(small, format="PNG", optimize=True)
        return small.getvalue()


def new_figure(rows, columns, width, height):
    """A figure of rows x columns panels of that size in inches -> (figure, axes), drawn without a screen."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)


def save_figure(path, figure):
    """Write a figure as a picture and close it."""
    from matplotlib import pyplot as plt

    figure.tight_layout()
    put_in_place(path, lambda part: figure.savefig(part, dpi=110))
    plt.close(figure)


def save_curves(path, panels):
    """Line plots side by side: panels is a list of (title, x label, y label, {name: (xs, ys)}, y scale)."""
    figure, axes = new_figure(1, len(panels), 5, 3.6)
    for ax, (title, x_label, y_label, lines, scale) in zip(axes[0], panels, strict=True):
        for name, (xs, ys) in lines.items():
            ax.plot(xs, ys, label=name, linewidth=1.5, marker="o" if len(xs) < 20 else None, markersize=4)
        ax.set(title=title, xlabel=x_label, ylabel=y_label, yscale=scale)
        ax.grid(alpha=0.3)
        if lines:
            ax.legend(fontsize=8)
    save_figure(path, figure)


def save_dots(path, panels):
    """One small plot per switch: panels is a list of (title, y label, {level: values by seed}).

    A dot is a seed, grey lines join the same seed, bars are means.
    """
    columns = min(4, len(panels))
    figure, axes = new_figure(-(-len(panels) // columns), columns, 4.2, 2.9)
    for ax in axes.flat[len(panels):]:
        ax.axis("off")
    for ax, (title, label, levels) in zip(axes.flat, panels):
        for seed in zip_longest(*levels.values(), fillvalue=float("nan")):
            ax.plot(seed, color="0.75", linewidth=1, marker="o", markersize=4, markerfacecolor="C0",
                    markeredgewidth=0)
        for x, values in enumerate(levels.values()):
            ax.plot([x - 0.25, x + 0.25], [sum(values) / len(values)] * 2, color="C1", linewidth=2)
        ax.set_xticks(range(len(levels)), [name.replace(" ", "\n") for name in levels], fontsize=8)
        ax.set(title=title, ylabel=label, xlim=(-0.5, len(levels) - 0.5))
        ax.grid(alpha=0.3, axis="y")
    save_figure(path, figure)


def strips(rows, frames, titles=None):
    """Videos as rows of separate frames, for a notebook -> Picture. A column has its frame's number above it,
    or one of `titles`.

    rows is {label: video (3, F, H, W) in [-1, 1]}; frames: the numbers of those to show.
    """
    figure = Picture((1.3 + 0.9 * len(frames), 0.3 + 0.9 * len(rows)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(frames), squeeze=False)
    for own, (label, video) in zip(axes, rows.items()):
        own[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        for ax, frame in zip(own, frames):
            ax.imshow((video[:, frame].detach().clamp(-1, 1).permute(1, 2, 0) / 2 + 0.5).numpy(),
                      interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, title in zip(axes[0], titles or [f"frame {frame}" for frame in frames]):
        ax.set_title(title, fontsize=9)
    return figure
