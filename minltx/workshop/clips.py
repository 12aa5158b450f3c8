"""Folders of clips with captions: every file is checked before anything is trained.

A folder holds clips (.mp4, .gif) and pictures (.png, .jpg), each with its caption in a text file of the same
name (dance.mp4, dance.txt), or a file metadata.jsonl with lines such as {"file_name": "dance.mp4", "text":
"a dancer turns"}, where a caption counts before the one in a text file. A picture is a clip of one frame.
Other files, hidden ones and folders are ignored, unless metadata.jsonl names them.
"""

import json
import math
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image, ImageOps, ImageSequence
from tqdm import tqdm

from minltx.workshop.pictures import fit

ENDINGS = (".mp4", ".gif", ".png", ".jpg", ".jpeg")
METADATA = "metadata.jsonl"


# --- One file ---------------------------------------------------------------------------------------------

def need_av():
    """The optional package that reads mp4. ValueError if it is missing."""
    try:
        import av
    except ImportError:
        raise ValueError("reading mp4 needs the optional package av: pip install av") from None
    return av


def frames_of_mp4(path):
    """Yield (PIL image, seconds it is shown). ValueError if packets are missing that the file announces."""
    with need_av().open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        stream = container.streams.video[0]
        last, packets = None, 0
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                # A phone held upright stores its video lying down, and how to turn it.
                turned = frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)
                if last:
                    yield last[0], frame.time - last[1]
                last = turned, frame.time
        if packets < stream.frames:
            raise ValueError(f"it ends after {packets} of {stream.frames} frames")
        if last:
            yield last[0], float(1 / stream.average_rate)


def frames_of_picture(path):
    """Yield (PIL image, seconds it is shown) of a GIF's frames, or the one of a PNG or JPEG."""
    with Image.open(path, formats=("GIF", "PNG", "JPEG")) as image:
        if image.format != "GIF":
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a colour")
            yield on_black(ImageOps.exif_transpose(image)), 1.0
            return
        # Pillow takes the end of a truncated file for the end of the clip: look for the mark that closes it.
        if not Path(path).read_bytes().rstrip(b"\0").endswith(b";"):
            raise ValueError("it ends before its last frame")
        for page in ImageSequence.Iterator(image):
            milliseconds = page.info.get("duration", 0)
            # Browsers play a frame of no duration, or of one hundredth of a second, for a tenth.
            yield on_black(page), (milliseconds if milliseconds >= 20 else 100) / 1000


def on_black(image):
    """A PIL image of any kind as RGB; what is transparent becomes black."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def decode(path):
    """Yield (RGB PIL image, seconds it is shown) for every frame of a file.

    ValueError, which does not repeat the path, for a broken, truncated, foreign or empty file.
    """
    if Path(path).suffix.lower() == ".mp4":
        need_av()
        frames = frames_of_mp4(path)
    else:
        frames = frames_of_picture(path)
    empty = True
    try:
        for frame in frames:
            empty = False
            yield frame
    except Exception as error:    # the readers fail in many ways on a broken file
        raise ValueError(f"cannot be read to its end ({type(error).__name__}: {error}): make or copy it "
                         "anew, as mp4, GIF, PNG or JPEG with 8 bits a colour") from None
    if empty:
        raise ValueError("holds no frame: make or copy it anew")


def resample(durations, fps):
    """Seconds that each frame is shown -> for k = 0, 1, ... the index of the frame shown at time k / fps.

    One frame is a still, and stays one. If all durations are within 5 % of whole multiples of 1 / fps, they
    count as these: a GIF has only hundredths of a second, and 16 fps come back from it as 16.67. For the same
    reason a frame may come a tenth of 1 / fps too late.
    """
    if len(durations) == 1:
        return [0]
    lengths = [seconds * fps for seconds in durations]                  # in frames of the output
    whole = [max(1, round(length)) for length in lengths]
    if all(abs(length - n) <= 0.05 * n for length, n in zip(lengths, whole)):
        lengths = whole
    starts = [0, *accumulate(lengths)]
    count = max(1, math.ceil(starts.pop() - 0.1))
    return [bisect_right(starts, k + 0.1) - 1 for k in range(count)]


def read_clip(path, fps=None, size=None):
    """A file -> video (3, F, H, W), uint8, and its frames per second (the mean; 1.0 for a picture).

    With `fps`, frame k of the video is the frame that the file shows at time k / fps, see `resample`. With
    `size` (height, width), frames are scaled to cover it and cut to the middle. ValueError if it cannot be
    read.
    """
    frames, durations = [], []
    try:
        for image, seconds in decode(path):
            pixels = fit(image, *(size or (image.height, image.width)))                   # (3, H, W)
            frames.append(((pixels + 1) * 127.5).round().byte())
            durations.append(seconds)
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("changes its size from frame to frame: make it anew with one size")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if fps:
        frames = [frames[i] for i in resample(durations, fps)]
    return torch.stack(frames, dim=1), fps or len(durations) / sum(durations)


# --- Buckets ----------------------------------------------------------------------------------------------

@dataclass(frozen=True, order=True)
class Bucket:
    """The shape to which clips are brought, so that they fit into one batch; sizes in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self):
        return f"{self.frames}x{self.height}x{self.width}"


def parse_buckets(text):
    """"17x32x32,9x48x32" (frames x height x width) -> tuple of Buckets. ValueError for anything else."""
    buckets = []
    for part in text.split(","):
        match = re.fullmatch("([0-9]+)x([0-9]+)x([0-9]+)", part.strip())
        if not match or 0 in map(int, match.groups()):
            raise ValueError(f"{part.strip()!r} is no bucket: use FRAMESxHEIGHTxWIDTH, such as 17x32x32, "
                             "with commas between several")
        buckets.append(Bucket(*map(int, match.groups())))
    return tuple(buckets)


def check_buckets(buckets, vae):
    """ValueError if the VAE cannot code one of them; it names the nearest legal numbers."""
    for bucket in buckets:
        try:
            vae.latent_shape(bucket.frames, bucket.height, bucket.width)
        except ValueError as error:
            raise ValueError(f"the bucket {bucket}: {error}") from None


def choose_bucket(frames, height, width, buckets):
    """The bucket that loses least of a clip of this shape, or None if the clip is shorter than all of them.

    Of the buckets with no more frames than the clip, it has the most frames; of these, the nearest aspect
    ratio; of these, the nearest size. So a picture goes only where there is one frame, and a clip goes there
    only if it is too short for the others.
    """
    def loss(bucket):
        shape = math.log(bucket.width / bucket.height / (width / height))
        scale = math.log(max(bucket.height / height, bucket.width / width))
        return -bucket.frames, abs(shape), abs(scale)

    return min((bucket for bucket in buckets if bucket.frames <= frames), key=loss, default=None)


# --- A folder, checked ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Clip:
    """A file that can be trained on: frames at the folder's fps, height and width as stored, and its use."""

    path: Path
    caption: str
    frames: int
    height: int
    width: int
    bucket: Bucket


def read_metadata(folder):
    """metadata.jsonl, if it is there -> {file name: caption}, [(line, what is wrong with it)]."""
    captions, bad = {}, []
    if not (folder / METADATA).is_file():
        return captions, bad
    try:
        lines = (folder / METADATA).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return captions, [(METADATA, "is no text in UTF-8: save it as that")]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{METADATA} line {number}"
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry.get("text", entry.get("caption"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            bad.append((where, 'is not of the form {"file_name": "x.mp4", "text": "its caption"}: '
                               "write it so"))
            continue
        name = Path(os.path.normpath(name)).as_posix()
        if name in captions:
            bad.append((where, f"names {name} a second time: keep one line"))
            continue
        captions[name] = text
    return captions, bad


def caption_of(path, text):
    """The caption in `text`, or without one in the text file beside the clip, on one line.

    ValueError if there is none, or it is empty."""
    file = path.with_suffix(".txt")
    if text is None:
        if not file.is_file():
            raise ValueError(f"has no caption: write it into {file.name} or {METADATA}")
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"has a caption that is no text in UTF-8: save {file.name} as that") from None
    text = " ".join(text.split())
    if not text:
        raise ValueError("has an empty caption: write what it shows")
    return text


def check_clip(folder, name, text, vae, fps, buckets=(), words=None):
    """The Clip of this name in a folder, decoded to its end. ValueError says why it cannot be used."""
    path = folder / name
    files = [path, path.with_suffix(".txt")] if text is None else [path]
    if Path(name).is_absolute() or not all(f.resolve().is_relative_to(folder.resolve()) for f in files):
        raise ValueError("is no relative path inside the folder, or its caption is none: copy "
                         "the file into the folder")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"is none of {', '.join(ENDINGS)}: convert it, or remove its line in {METADATA}")
    if not path.is_file():
        raise ValueError(f"is not there, or is no file: add it, or remove its link or line in {METADATA}")
    text = caption_of(path, text)
    if words:
        words(text)
    durations, sizes = [], set()
    for image, seconds in decode(path):
        durations.append(seconds)
        sizes.add((image.height, image.width))
    if len(sizes) > 1:
        raise ValueError("changes its size from frame to frame: make it anew with one size")
    frames, (height, width) = len(resample(durations, fps)), sizes.pop()
    bucket = choose_bucket(frames, height, width, buckets) if buckets else Bucket(frames, height, width)
    if bucket is None:
        raise ValueError(f"is shorter than every bucket, with {frames} frames at {fps:g} fps: "
                         f"add a bucket of at most {frames} frames")
    try:
        vae.latent_shape(bucket.frames, bucket.height, bucket.width)
    except ValueError as error:
        raise ValueError(f"is {bucket} at {fps:g} fps, and {error}; or use buckets") from None
    return Clip(path, text, frames, height, width, bucket)


def check_folder(folder, vae, fps, buckets=(), words=None):
    """Open and decode every clip of a folder -> list of Clips, list of (file name, reason why it is bad).

    Both are sorted by name. Without buckets every clip is used as it stands. `vae.latent_shape` knows what is
    legal. `words` (optional) is called with each caption, and raises ValueError to refuse it. ValueError for
    what is wrong not with one file but with all: no folder, an fps that is not above 0, an illegal bucket, or
    no package to read mp4.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one with clips and captions")
    if not 0 < fps < math.inf:
        raise ValueError(f"clips cannot be read at {fps} fps: use a number above 0, such as 16")
    check_buckets(buckets, vae)
    captions, bad = read_metadata(folder)
    files, names = listed(folder, captions)
    if any(name.lower().endswith(".mp4") for name in names):
        need_av()
    clips = []
    for name in tqdm(names, desc="clips", disable=None):
        try:
            clips.append(check_clip(folder, name, captions.get(name), vae, fps, buckets, words))
        except (ValueError, OSError) as error:
            bad.append((name, str(error)))
    described = {os.path.splitext(name)[0] for name in names}
    bad += [(p.name, "is the caption of no clip: add the clip, or remove the file") for p in files
            if p.suffix.lower() == ".txt" and p.stem not in described]
    return clips, sorted(bad)


def listed(folder, captions):
    """The files of a folder that are not hidden, and the sorted names of its clips and of those that
    metadata.jsonl names."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    return files, sorted({p.name for p in files if p.suffix.lower() in ENDINGS} | set(captions))


def captions_in(folder):
    """All captions of a folder, each once, sorted; clips without one are passed over. ValueError for none."""
    folder, found = Path(folder), set()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one with clips and captions")
    captions, _ = read_metadata(folder)
    for name in listed(folder, captions)[1]:
        try:
            found.add(caption_of(folder / name, captions.get(name)))
        except ValueError:
            continue                                    # training names it, with the reason
    if not found:
        raise ValueError(f"there is no caption in {folder}: write x.txt beside x.mp4, or {METADATA}")
    return sorted(found)


def report_bad(folder, clips, bad):
    """Print each bad file of a folder with its reason. ValueError if no clip is left."""
    if bad:
        print(f"{folder}: {len(clips)} clips, and {len(bad)} files or lines that are left out:")
    for name, reason in bad:
        print(f"  {name} {reason}")
    if not clips:
        raise ValueError(f"there is no usable clip in {folder}: add {', '.join(ENDINGS)} with captions")


# --- What the training loop learns from -------------------------------------------------------------------

@dataclass(frozen=True)
class ClipConfig:
    """What the clips of one bucket look like; size is (height, width) in pixels."""

    frames: int
    size: tuple
    fps: float


class Shelf:
    """Decoded clips, kept in memory up to `limit` bytes; what no longer fits is read anew at each use."""

    def __init__(self, limit):
        self.room, self.videos = limit, {}

    def take(self, clip, fps):
        """The whole Clip in the size of its bucket -> (3, clip.frames, H, W), uint8."""
        if clip.path in self.videos:
            return self.videos[clip.path]
        video, _ = read_clip(clip.path, fps, (clip.bucket.height, clip.bucket.width))
        if video.shape[1] != clip.frames:
            raise ValueError(f"{clip.path} has changed since it was checked: start again")
        if video.numel() <= self.room:
            self.room -= video.numel()
            self.videos[clip.path] = video
        return video


class ClipFolder:
    """The clips of one bucket, all for training or all held out, with the interface of `MovingDigits`."""

    def __init__(self, clips, fps, shelf, held_out=False):
        bucket = clips[0].bucket
        self.clips, self.shelf, self.held_out = clips, shelf, held_out
        self.config = ClipConfig(bucket.frames, (bucket.height, bucket.width), fps)

    def batch(self, count, generator, held_out=False):
        """`count` clips -> (video (B, 3, F, H, W) in [-1, 1], captions).

        The generator alone decides which clips (one may come twice) and where longer ones are cut in time.
        ValueError if held-out clips are asked of those for training; those held out are always that.
        """
        if held_out and not self.held_out:
            raise ValueError("these clips are for training: ask the held-out ones of `open_folder`")
        picks = [self.clips[i] for i in torch.randint(len(self.clips), (count,), generator=generator)]
        videos = []
        for clip in picks:
            start = torch.randint(clip.frames - self.config.frames + 1, (1,), generator=generator).item()
            video = self.shelf.take(clip, self.config.fps)
            videos.append(video[:, start : start + self.config.frames])                   # (3, F, H, W)
        return torch.stack(videos).float() / 127.5 - 1, [clip.caption for clip in picks]


def open_folder(folder, vae, fps, buckets=(), words=None, limit=2 * 2**30):
    """Check a folder, print what is bad, and part the rest.

    -> (ClipFolders for training, ClipFolders held out, [(file name, reason)]), a ClipFolder for each bucket
    that has clips, the most frames first; without buckets, for each shape. Every tenth of the usable clips,
    sorted by name, is held out; of fewer than ten, the last; of one, none, and the second list is empty.
    `limit`: bytes of decoded clips to keep in memory. The rest is as in `check_folder`. ValueError as there,
    and if there is no usable clip.
    """
    clips, bad = check_folder(folder, vae, fps, buckets, words)
    report_bad(folder, clips, bad)
    held_out = clips[9::10] or clips[1:][-1:]
    apart = set(held_out)
    training = [clip for clip in clips if clip not in apart]
    shelf = Shelf(limit)

    def by_bucket(some, out):
        return [ClipFolder([clip for clip in some if clip.bucket == bucket], fps, shelf, out)
                for bucket in sorted({clip.bucket for clip in some}, reverse=True)]

    return by_bucket(training, False), by_bucket(held_out, True), bad
