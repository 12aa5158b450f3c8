"""Videos as GIF, PNG sheet, npz or mp4, pictures in, and loss curves out. (Pillow comes with matplotlib.)"""

import base64
import io
import os
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence

ENDINGS = (".gif", ".png", ".npz", ".mp4")


def to_uint8(video):
    """video (B, 3, F, H, W) in [-1, 1] -> numpy (B, F, H, W, 3), uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def put_in_place(path, write):
    """Call write(temporary path), flush it to the disk, then move it to `path` in one step.

    The old file stays whole until then, and no half file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def captioned(frames, captions, columns, zoom):
    """frames (B, F, H, W, 3) uint8 -> F PIL pages of all B videos in a grid, each over its caption."""
    B, F, H, W, _ = frames.shape
    rows, size = -(-B // columns), 13
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
    wide = max([W * zoom] + [font.getlength(line) for text in captions for line in text.split("\n")])
    cell_w, lines = int(wide) + 10, max(text.count("\n") + 1 for text in captions)
    cell_h = H * zoom + lines * (size + 4) + 10
    pages = []
    for f in range(F):
        page = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
        draw = ImageDraw.Draw(page)
        for b in range(B):
            x, y = b % columns * cell_w + (cell_w - W * zoom) // 2, b // columns * cell_h + 4
            page.paste(Image.fromarray(frames[b, f]).resize((W * zoom, H * zoom), Image.NEAREST), (x, y))
            draw.multiline_text((x + W * zoom / 2, y + H * zoom + 2), captions[b], "black", font, anchor="ma",
                                align="center", spacing=2)
        pages.append(page)
    return pages


def save_video(path, video, captions, fps=16.0, columns=None):
    """Write videos (B, 3, F, H, W) in [-1, 1]; the ending of `path` chooses the form.

    .gif: all of them in a grid with captions, playing (one alone of 256 pixels or more: without); .png: a
    sheet, one video a row; .npz: `frames` (B, F, H, W, 3) uint8 and `prompts`; .mp4: the grid again, with the
    optional package av. ValueError for another ending or if av is missing.
    """
    check_ending(path)
    frames, ending = to_uint8(video), Path(path).suffix.lower()
    zoom = max(1, 128 // frames.shape[3])
    columns = columns or min(len(frames), 4)

    def grid():
        if len(frames) == 1 and frames.shape[3] >= 256:
            return [Image.fromarray(frame) for frame in frames[0]]
        return captioned(frames, captions, columns, zoom)

    if ending == ".npz":
        put_in_place(path, lambda p: np.savez_compressed(p, frames=frames, prompts=np.array(captions)))
    elif ending == ".png":
        step = max(1, (frames.shape[1] - 1) // 8)
        strip = np.concatenate(list(frames[:, ::step].swapaxes(0, 1)), axis=2)          # (B, H, W * shown, 3)
        page = captioned(strip[:, None], captions, 1, max(1, zoom // 2))[0]
        put_in_place(path, page.save)
    elif ending == ".gif":
        pages = [page.quantize(256, dither=Image.Dither.NONE) for page in grid()]
        put_in_place(path, lambda p: save_gif(p, pages, fps))
    else:
        put_in_place(path, lambda p: save_mp4(p, grid(), fps))


def save_gif(target, pages, fps):
    """PIL pages -> a GIF that plays for ever; target is a path or an open file."""
    pages[0].save(target, format="GIF", save_all=True, append_images=pages[1:], loop=0, disposal=1,
                  duration=max(20, round(1000 / fps)))


def inline(video, captions, fps=16.0, columns=None):
    """Videos (B, 3, F, H, W) as a GIF that plays in a notebook: the last line of a cell. Small, because it
    stays in the notebook: twice the pixels, 64 colours."""
    from IPython.display import HTML

    pages = captioned(to_uint8(video), captions, columns or min(len(video), 4), 2)
    every = Image.fromarray(np.concatenate([np.asarray(page) for page in pages[:: max(1, len(pages) // 4)]]))
    palette = every.quantize(64, dither=Image.Dither.NONE)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    file = io.BytesIO()
    save_gif(file, pages, fps)
    words, data = "; ".join(captions), base64.b64encode(file.getvalue()).decode()
    return HTML(f'<img alt="{words}" src="data:image/gif;base64,{data}">')


def check_ending(path):
    """ValueError, with what to do, if `save_video` could not write this file."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"cannot write {path}: use a name that ends in {', '.join(ENDINGS)}")
    if ending == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError:
            raise ValueError("mp4 needs the optional package av: pip install av, or use a name that ends in "
                             ".gif") from None


def save_mp4(path, pages, fps):
    """PIL pages -> H.264 in mp4, the kind that plays in every browser (even sides, 4:2:0)."""
    import av
    from fractions import Fraction

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = pages[0].width // 2 * 2, pages[0].height // 2 * 2
        stream.pix_fmt = "yuv420p"
        for page in pages:
            frame = av.VideoFrame.from_image(page.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def fit(image, height, width):
    """A PIL image, cut to the middle and resized to fill -> (3, height, width) in [-1, 1]."""
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        image = image.resize((max(width, round(image.width * scale)),
                              max(height, round(image.height * scale))))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def load_clip(path, height, width):
    """A picture, a GIF, an mp4 (with the package av) or an npz of `save_video` -> (1, 3, F, height, width).

    In [-1, 1]; each frame is cut to the middle and resized to fill. ValueError if the file cannot be read.
    """
    ending = Path(path).suffix.lower()
    try:
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                frames = [Image.fromarray(frame) for frame in stored["frames"][0]]
        elif ending == ".mp4":
            check_ending(path)
            import av

            with av.open(str(path)) as container:
                frames = [frame.to_image() for frame in container.decode(video=0)]
        else:
            with Image.open(path) as image:
                frames = [image.copy().convert("RGB") for _ in ImageSequence.Iterator(image)]
    except Exception as error:    # the readers fail in many ways on a broken file
        if isinstance(error, ValueError) and "optional package" in str(error):
            raise
        raise ValueError(f"cannot read {path} as a picture or clip ({type(error).__name__}): "
                         "use a PNG, JPEG, GIF, mp4 or the npz of sample.py") from None
    return torch.stack([fit(frame, height, width) for frame in frames], dim=1)[None]


def save_curves(path, panels):
    """Line plots side by side: panels is a list of (title, x label, y label, {name: (xs, ys)}, y scale)."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for ax, (title, x_label, y_label, lines, scale) in zip(axes[0], panels, strict=True):
        for name, (xs, ys) in lines.items():
            ax.plot(xs, ys, label=name, linewidth=1.5, marker="o" if len(xs) < 20 else None, markersize=4)
        ax.set(title=title, xlabel=x_label, ylabel=y_label, yscale=scale)
        ax.grid(alpha=0.3)
        if lines:
            ax.legend(fontsize=8)
    figure.tight_layout()
    put_in_place(path, lambda p: figure.savefig(p, dpi=110))
    plt.close(figure)


def save_dots(path, panels):
    """One small plot a switch: panels is a list of (title, y label, {level: values by seed}); dots are seeds,
    bars their means, grey lines join the same seed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False)
    for ax in axes.flat[len(panels):]:
        ax.axis("off")
    for ax, (title, label, levels) in zip(axes.flat, panels):
        for seed in zip(*levels.values()):
            ax.plot(seed, color="0.75", linewidth=1, marker="o", markersize=4, markerfacecolor="C0",
                    markeredgewidth=0)
        for x, values in enumerate(levels.values()):
            ax.plot([x - 0.25, x + 0.25], [sum(values) / len(values)] * 2, color="C1", linewidth=2)
        ax.set_xticks(range(len(levels)), [name.replace(" ", "\n") for name in levels], fontsize=8)
        ax.set(title=title, ylabel=label, xlim=(-0.5, len(levels) - 0.5))
        ax.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    put_in_place(path, lambda p: figure.savefig(p, dpi=110))
    plt.close(figure)
