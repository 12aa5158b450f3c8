"""Videos in and out: GIF, PNG sheet, npz and mp4. A picture is a video of one frame."""

import base64
import io
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from minltx import require
from minltx.caption_files import VIDEOS
from minltx.files import put_in_place, reason

ENDINGS = (".gif", ".png", ".npz", ".mp4")
FORMATS = ("GIF", "PNG", "JPEG")    # of pictures that are read
MOST = 2**30                        # bytes of an npz that is read, unpacked: 900 frames of 512x768


def to_uint8(video):
    """video (B, 3, F, H, W) in [-1, 1] -> numpy (B, F, H, W, 3), uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def import_av():
    """The optional package for mp4, mov, webm and others. Raises ValueError if it is not installed."""
    try:
        import av
    except ImportError:
        raise ValueError("mp4, mov, webm and other videos need the optional package av: pip install av, "
                         "or use GIF") from None
    return av


# --- Out --------------------------------------------------------------------------------------------------

def check_ending(path):
    """Raises ValueError, with what to do, if `save_video` cannot write this file."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"cannot write {path}: use a name that ends in {', '.join(ENDINGS)}")
    if ending == ".mp4":
        import_av()


def save_video(path, video, captions, fps=16.0, columns=None):
    """Write videos (B, 3, F, H, W) in [-1, 1]; the ending of `path` decides the format. With captions None,
    B is 1, and the frames alone are written, in their own size: such a file can be read back.

    .gif and .mp4: a grid of all videos with captions (a single video of 256 or more pixels: without); .png: a
    sheet with one video per row; .npz: `frames` (B, F, H, W, 3) uint8 and `prompts`. Raises ValueError for
    another ending, other shapes, another number of captions, fps that is not positive, or if the package for
    mp4 is not installed.
    """
    check_ending(path)
    require.shape("video", video, "B", 3, "F", "H", "W")
    require.number("fps", fps, 0.001, 1000)
    if captions is not None:
        require.require(len(captions) == len(video), "the number of captions", len(captions), f"{len(video)}")
    frames, ending = to_uint8(video), Path(path).suffix.lower()
    zoom = max(1, 128 // frames.shape[3])
    if captions is None and len(frames) > 1:
        raise ValueError(f"{path} would hold {len(frames)} videos: without captions, write one")
    alone = captions is None or len(frames) == 1 and frames.shape[3] >= 256
    if ending == ".npz":
        captions = captions or [""]
        put_in_place(path, lambda part: np.savez_compressed(part, frames=frames, prompts=np.array(captions)))
    elif ending == ".png":
        step = max(1, (frames.shape[1] - 1) // 8)
        strip = np.concatenate(list(frames[:, ::step].swapaxes(0, 1)), axis=2)         # (B, H, W * shown, 3)
        page = (Image.fromarray(strip[0]) if captions is None else
                draw_grid(strip[:, None], captions, 1, max(1, zoom // 2))[0])
        put_in_place(path, page.save)
    else:
        if alone:
            pages = [Image.fromarray(frame) for frame in frames[0]]
        else:
            pages = draw_grid(frames, captions, columns or min(len(frames), 4), zoom)
        write = save_mp4 if ending == ".mp4" else save_gif
        put_in_place(path, lambda part: write(part, pages, fps))


def draw_grid(frames, captions, columns, zoom):
    """frames (B, F, H, W, 3) uint8 -> F PIL pages with all B videos in a grid, captions below."""
    from matplotlib import get_data_path    # for its fonts

    B, F, H, W, _ = frames.shape
    rows, size = -(-B // columns), 13
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
    widest = max([W * zoom] + [font.getlength(line) for text in captions for line in text.split("\n")])
    cell_w, lines = int(widest) + 10, max(text.count("\n") + 1 for text in captions)
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


def save_gif(target, pages, fps):
    """PIL pages -> a GIF in an endless loop; target is a path or an open file."""
    pages = [page if page.mode == "P" else page.quantize(256, dither=Image.Dither.NONE) for page in pages]
    pages[0].save(target, format="GIF", save_all=True, append_images=pages[1:], loop=0, disposal=1,
                  duration=max(20, round(1000 / fps)))


def few_colours(pages, count=64):
    """PIL pages with one palette for all of them, which makes a GIF small."""
    samples = np.concatenate([np.asarray(page) for page in pages[:: max(1, len(pages) // 4)]])
    palette = Image.fromarray(samples).quantize(count, dither=Image.Dither.NONE)
    return [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]


def save_mp4(path, pages, fps):
    """PIL pages -> H.264 in mp4, which every browser plays (even sides, 4:2:0)."""
    with import_av().open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = pages[0].width // 2 * 2, pages[0].height // 2 * 2
        stream.pix_fmt = "yuv420p"
        for page in pages:
            frame = import_av().VideoFrame.from_image(page.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def inline(video, captions, fps=16.0, columns=None):
    """Videos (B, 3, F, H, W), numbered from 1, as a GIF in a notebook, if this is the last line of a cell. It
    is stored in the notebook, so it is small: twice the pixels, 64 colours."""
    from IPython.display import HTML

    if len(captions) > 1:
        captions = [f"{i}. {text}" for i, text in enumerate(captions, 1)]
    pages = draw_grid(to_uint8(video), captions, columns or min(len(video), 4), 2)
    file = io.BytesIO()
    save_gif(file, few_colours(pages), fps)
    words, data = "; ".join(captions), base64.b64encode(file.getvalue()).decode()
    return HTML(f'<img alt="{words}" src="data:image/gif;base64,{data}">')


# --- In ---------------------------------------------------------------------------------------------------

def fit(image, height, width):
    """A PIL image, resized to cover height x width and cut to the middle -> (3, height, width) in [-1, 1]."""
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        image = image.resize((max(width, round(image.width * scale)),
                              max(height, round(image.height * scale))))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def read_frames(path):
    """Yield (RGB PIL image, seconds it is shown) for each frame of a video (.mp4, .mov ...), a picture of
    FORMATS, or the first video of an npz of `save_video`.

    Raises ValueError, which does not repeat the path, if the file is broken, truncated, foreign or empty, or
    a video while av is not installed.
    """
    ending, frame = Path(path).suffix.lower(), None
    if not Path(path).is_file():                        # a pipe, for example, would be waited for
        raise ValueError("is not a file: name a picture or a video")
    if ending in VIDEOS:
        import_av()
    readers = {**dict.fromkeys(VIDEOS, frames_of_video), ".npz": frames_of_npz}
    frames_of = readers.get(ending, frames_of_picture)
    try:
        for frame in frames_of(path):
            yield frame
    except Exception as error:    # the readers fail in many ways on a broken file
        why = reason(error, "it is damaged, or not what its name says")
        raise ValueError(f"cannot be read to its end ({why}): make or copy it again, as mp4, GIF, PNG, "
                         "JPEG with 8 bits per colour, or with sample.py --out x.npz") from None
    if frame is None:
        raise ValueError("has no frames: make or copy it again")


def frames_of_video(path):
    """Yield (PIL image, seconds it is shown), with PyAV. Raises ValueError if the file should be longer: mp4
    and its relatives store the number of packets, webm and mkv the seconds."""
    with import_av().open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it has no video")
        stream = container.streams.video[0]
        last, packets, one = None, 0, float(1 / (stream.average_rate or stream.guessed_rate))
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                # A phone held upright stores its video lying on its side, and how to rotate it.
                upright = frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)
                time = last[1] + one if frame.time is None and last else frame.time or 0.0
                if last:
                    yield last[0], time - last[1]
                last = upright, time
        if packets < stream.frames:
            raise ValueError(f"it ends after {packets} of {stream.frames} frames")
        hours, minutes, seconds = map(float, stream.metadata.get("DURATION", "0:0:0").split(":"))
        if last and last[1] + one < 3600 * hours + 60 * minutes + seconds - 0.9 * one:
            raise ValueError(f"it ends after {last[1] + one:.2f} of its {60 * minutes + seconds:.2f} seconds")
        if last:
            yield last[0], one


def frames_of_picture(path):
    """Yield (PIL image, seconds it is shown) for the frames of a GIF, or for the one of another picture.
    Raises ValueError for more than 8 bits per colour, and for a GIF that is cut off."""
    with Image.open(path, formats=FORMATS) as image:
        if image.format != "GIF":
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per colour")
            yield on_black(ImageOps.exif_transpose(image)), 1.0
            return
        # Pillow takes the end of a truncated file for the end of the clip, so look for the byte that ends it.
        if not Path(path).read_bytes().rstrip(b"\0").endswith(b";"):
            raise ValueError("it ends before its last frame")
        for page in ImageSequence.Iterator(image):
            milliseconds = page.info.get("duration", 0)
            # Browsers show a frame without a duration, or with one of 10 ms, for a tenth of a second.
            yield on_black(page), (milliseconds if milliseconds >= 20 else 100) / 1000


def frames_of_npz(path):
    """Yield (PIL image, seconds it is shown): the file does not store how long. Raises ValueError if it has
    no frames as `save_video` writes them, and for more than MOST bytes."""
    with zipfile.ZipFile(path) as file:
        sizes = {entry.filename: entry.file_size for entry in file.infolist()}
    if "frames.npy" not in sizes:
        raise ValueError("it has no array named frames, which sample.py --out x.npz writes")
    if max(sizes.values()) > MOST:
        raise ValueError(f"it unpacks to more than {MOST / 2**30:g} GiB")
    with np.load(path, allow_pickle=False) as stored:
        frames = stored["frames"]
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[4] != 3 or frames.size == 0:
        raise ValueError(f"its frames are {frames.dtype} of shape {frames.shape}, not uint8 (B, F, H, W, 3)")
    for frame in frames[0]:
        yield Image.fromarray(frame), 1.0


def on_black(image):
    """A PIL image of any kind as RGB; transparent pixels become black."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def load_clip(path, height, width, prepare=None):
    """A file that `read_frames` reads -> (1, 3, F, height, width) in [-1, 1].

    Each frame is resized to cover that size and cut to the middle; prepare(PIL image, height, width), if it
    is given, makes its tensor (3, H, W) instead. Raises ValueError as `read_frames` does.
    """
    try:
        frames = [(prepare or fit)(image, height, width) for image, _ in read_frames(path)]   # (3, H, W)
    except ValueError as error:
        raise ValueError(f"cannot read {path} as a picture or clip: {error}") from None
    return torch.stack(frames, dim=1)[None]


def load_given(given, height, width, prepare=None):
    """A list of [file, frame] or [file, frame, strength], as words -> for each of them (video (1, 3, F, H,
    W), frame, strength). prepare is that of `load_clip`. Raises ValueError for words that are not numbers,
    and as `load_clip` does."""
    clips = []
    for path, *where in given:
        try:
            frame, strength = int(where[0]), float(*where[1:] or (1,))
        except (IndexError, TypeError, ValueError):
            raise ValueError(f"--given {path} {' '.join(where)} is not understood: write FILE FRAME or "
                             "FILE FRAME STRENGTH, such as last.png 16 1") from None
        clips.append((load_clip(path, height, width, prepare), frame, strength))
    frames = [frame for _, frame, _ in clips]
    twice = [frame for frame in frames if frames.count(frame) > 1]
    if twice:
        raise ValueError(f"two pictures or clips are given at frame {twice[0]}: give one")
    return clips
