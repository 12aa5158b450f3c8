"""Folders of clips with captions: every file is checked before anything is trained.

A folder holds clips (.mp4, .mov, .webm, .gif ...) and pictures (.png, .jpg), each with its caption in a text
file of the same name (dance.mp4, dance.txt), or a file metadata.jsonl with lines such as {"file_name":
"dance.mp4", "text": "a dancer turns"}, which take precedence. A picture is a clip of one frame. Other files,
hidden files and folders are ignored, unless metadata.jsonl names them.
"""

import math
import os
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from tqdm import tqdm

from minltx.caption_files import ENDINGS, METADATA, VIDEOS, caption_of, list_clips, read_metadata
from minltx.command import parse_sizes
from minltx.video.files import fit, import_av, read_frames

# --- One file ---------------------------------------------------------------------------------------------

MIXED_SIZES = "changes its size from frame to frame: make it again with one size"


def resample(durations, fps):
    """Seconds that each frame is shown -> for k = 0, 1, ... the index of the frame shown at time k / fps.

    A single frame is a still image and stays one. If all durations are within 5 % of whole multiples of
    1 / fps, they count as these: a GIF stores hundredths of a second, and 16 fps become 16.67. For the same
    reason a frame may come late by a tenth of 1 / fps.
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
    `size` (height, width), frames are resized to cover it and cut to the middle. Raises ValueError if the
    file cannot be read.
    """
    frames, durations = [], []
    try:
        for image, seconds in read_frames(path):
            pixels = fit(image, *(size or (image.height, image.width)))                   # (3, H, W)
            frames.append(((pixels + 1) * 127.5).round().byte())
            durations.append(seconds)
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError(MIXED_SIZES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if fps:
        frames = [frames[i] for i in resample(durations, fps)]
    return torch.stack(frames, dim=1), fps or len(durations) / sum(durations)


# --- Buckets ----------------------------------------------------------------------------------------------

@dataclass(frozen=True, order=True)
class Bucket:
    """A shape, in pixels, to which clips are brought so that they fit into one batch."""

    frames: int
    height: int
    width: int

    def __str__(self):
        return f"{self.frames}x{self.height}x{self.width}"


def parse_buckets(text):
    """"17x32x32,9x48x32" (frames x height x width) -> tuple of Buckets. Raises ValueError for other
    words."""
    return tuple(Bucket(*parse_sizes(part.strip())) for part in text.split(","))


def choose_bucket(frames, height, width, buckets):
    """The bucket that loses least of a clip of this shape, or None if the clip is shorter than all of them.

    Among buckets with no more frames than the clip: the most frames, then the nearest aspect ratio, then the
    nearest size. So a picture only goes into buckets of one frame, and a clip goes there only if it is too
    short for the others.
    """
    def loss(bucket):
        aspect = math.log(bucket.width / bucket.height / (width / height))
        scale = math.log(max(bucket.height / height, bucket.width / width))
        return -bucket.frames, abs(aspect), abs(scale)

    return min((bucket for bucket in buckets if bucket.frames <= frames), key=loss, default=None)


def suggest_buckets(shapes, vae, most):
    """Buckets for files of these (frames, height, width): one for clips, one for pictures, if there are any.

    No more frames or pixels than `most` (frames, height, width); three quarters of the clips are long enough,
    half of the files are large enough, and the sides are those of the middle file, as far as the VAE allows.
    """
    step, *units = vae.config.stride
    lengths = sorted(frames for frames, _, _ in shapes if frames > 1)
    longest = min(most[0], lengths[len(lengths) // 4]) if lengths else 1
    frames = (longest - 1) // step * step + 1
    height, width = sorted(((h, w) for _, h, w in shapes), key=lambda s: s[1] / s[0])[len(shapes) // 2]
    areas = sorted(h * w for _, h, w in shapes)
    area = min(most[1] * most[2], areas[(len(areas) - 1) // 2])

    def loss(sides):
        aspect, pixels = sides[1] / sides[0], sides[0] * sides[1]
        return abs(math.log(aspect / (width / height))) + abs(math.log(pixels / area))

    tall = round((area * height / width) ** 0.5 / units[0])
    sides = min(((h * units[0], w * units[1]) for h in range(max(1, tall - 2), tall + 3)
                 for w in range(1, 2 * round(area**0.5 * max(1, width / height) / units[1]) + 3)), key=loss)
    stills = any(f == 1 for f, _, _ in shapes)
    return tuple(Bucket(n, *sides) for n in ([frames] if lengths else []) + ([1] if stills else []))


# --- A folder, checked ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Clip:
    """A usable file: its number of frames at the folder's fps, its height and width, and its bucket."""

    path: Path
    caption: str
    frames: int
    height: int
    width: int
    bucket: Bucket


def check_buckets(buckets, vae):
    """Raises ValueError if the VAE cannot encode one of them, with the nearest legal numbers."""
    for bucket in buckets:
        try:
            vae.latent_shape(bucket.frames, bucket.height, bucket.width)
        except ValueError as error:
            raise ValueError(f"the bucket {bucket}: {error}") from None


def check_clip(folder, name, text, fps, check_caption=None):
    """The Clip of this name in a folder, decoded to its end, in a bucket of its own shape. text: its caption
    in metadata.jsonl, or None.

    Raises ValueError if it cannot be used, with the reason.
    """
    path = folder / name
    files = [path, path.with_suffix(".txt")] if text is None else [path]
    if Path(name).is_absolute() or not all(f.resolve().is_relative_to(folder.resolve()) for f in files):
        raise ValueError("must lie inside the folder, and so must its caption file: copy it there")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"does not end in {', '.join(ENDINGS)}: convert it, or remove its line from "
                         f"{METADATA}")
    if not path.is_file():
        raise ValueError("does not exist, or is not a file: add it, or remove its link or its line from "
                         f"{METADATA}")
    text = caption_of(path, text)
    if check_caption:
        check_caption(text)
    durations, sizes = [], set()
    for image, seconds in read_frames(path):
        durations.append(seconds)
        sizes.add((image.height, image.width))
    if len(sizes) > 1:
        raise ValueError(MIXED_SIZES)
    frames, (height, width) = len(resample(durations, fps)), sizes.pop()
    return Clip(path, text, frames, height, width, Bucket(frames, height, width))


def put_in_bucket(clip, vae, fps, buckets):
    """The Clip in the bucket that suits it; without buckets, as it is. Raises ValueError if it is too short
    for all of them, or if the VAE cannot encode it as it is."""
    bucket = choose_bucket(clip.frames, clip.height, clip.width, buckets) if buckets else clip.bucket
    if bucket is None:
        raise ValueError(f"is shorter than every bucket, with {clip.frames} frames at {fps:g} fps: "
                         f"add a bucket of at most {clip.frames} frames")
    try:
        vae.latent_shape(bucket.frames, bucket.height, bucket.width)
    except ValueError as error:
        raise ValueError(f"is {bucket} at {fps:g} fps, and {error}; or use buckets") from None
    return replace(clip, bucket=bucket)


def check_folder(folder, vae, fps, buckets=(), check_caption=None, most=None):
    """Open and decode every clip of a folder -> list of Clips, list of (file name, reason why it is bad).

    Both are sorted by name. vae.latent_shape says which sizes are legal; without buckets every clip keeps its
    shape, or with `most` (frames, height, width) buckets are chosen and printed; check_caption(caption)
    raises ValueError to refuse a caption. Raises ValueError if no clip can be used as asked: there is no
    folder, fps is not above 0, a bucket is illegal, or the package for videos is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one with clips and captions")
    if not 0 < fps < math.inf:
        raise ValueError(f"clips cannot be read at {fps} fps: use a number above 0, such as 16")
    check_buckets(buckets, vae)
    captions, bad = read_metadata(folder)
    files, names = list_clips(folder, captions)
    if any(name.lower().endswith(VIDEOS) for name in names):
        import_av()
    read, clips = {}, []
    for name in tqdm(names, desc="clips", disable=None):
        try:
            read[name] = check_clip(folder, name, captions.get(name), fps, check_caption)
        except (ValueError, OSError) as error:
            bad.append((name, str(error)))
    if most and read and not buckets:
        buckets = suggest_buckets([(c.frames, c.height, c.width) for c in read.values()], vae, most)
        print(f"{folder}: clips are cut to {','.join(map(str, buckets))} (frames x height x width), chosen "
              f"from {len(read)} files: choose others with --buckets")
    for name, clip in read.items():
        try:
            clips.append(put_in_bucket(clip, vae, fps, buckets))
        except ValueError as error:
            bad.append((name, str(error)))
    described = {os.path.splitext(name)[0] for name in names}
    bad += [(p.name, "is a caption without a clip: add the clip, or remove the file") for p in files
            if p.suffix.lower() == ".txt" and p.stem not in described]
    return clips, sorted(bad)


def kind_of(name, reason):
    """A reason without what differs from file to file: its name, quoted words and numbers."""
    reason = reason.replace(f"{Path(name).stem}.txt", "#")
    return re.sub(r"'[^']*'|\d[\d.]*", "#", reason)


def report_bad(folder, clips, bad):
    """Print each kind of reason for which files of a folder are bad, with the first file and how many there
    are. Raises ValueError if no clip is left."""
    if bad:
        print(f"{folder}: {len(clips)} clips; {len(bad)} files or lines are skipped:")
    kinds = {}
    for name, reason in bad:
        kinds.setdefault(kind_of(name, reason), []).append(f"{name} {reason}")
    for lines in kinds.values():
        print(f"  {lines[0]}" + (f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else ""))
    if not clips:
        raise ValueError(f"there is no usable clip in {folder}: add {', '.join(ENDINGS)} with captions, in "
                         "x.txt next to x.mp4 or in metadata.jsonl")


# --- Batches for training ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class ClipConfig:
    """The shape of one bucket's clips; size is (height, width) in pixels."""

    frames: int
    size: tuple
    fps: float

    @property
    def clip_shape(self):
        """(frames, height, width)."""
        return self.frames, *self.size


class ClipCache:
    """Decoded clips, kept in memory up to `limit` bytes; the others are read again at each use."""

    def __init__(self, limit):
        self.room, self.videos = limit, {}

    def take(self, clip, fps):
        """The whole Clip in the size of its bucket -> (3, clip.frames, H, W), uint8. Raises ValueError if its
        file cannot be read, or has another number of frames."""
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
    """The clips of one bucket, all for training or all held out; `batch` is that of `MovingDigits`."""

    def __init__(self, clips, fps, cache, held_out=False):
        bucket = clips[0].bucket
        self.clips, self.cache, self.held_out = clips, cache, held_out
        self.config = ClipConfig(bucket.frames, (bucket.height, bucket.width), fps)

    def batch(self, count, generator, held_out=False):
        """`count` clips -> (video (B, 3, F, H, W) in [-1, 1], captions).

        The generator alone decides which clips (one may come twice) and where longer ones are cut in time.
        Raises ValueError if held_out is asked of clips for training; clips that are held out always are.
        """
        if held_out and not self.held_out:
            raise ValueError("these clips are for training: use the held-out ones of `open_folder`")
        picks = [self.clips[i] for i in torch.randint(len(self.clips), (count,), generator=generator)]
        videos = []
        for clip in picks:
            start = torch.randint(clip.frames - self.config.frames + 1, (1,), generator=generator).item()
            video = self.cache.take(clip, self.config.fps)
            videos.append(video[:, start : start + self.config.frames])                   # (3, F, H, W)
        return torch.stack(videos).float() / 127.5 - 1, [clip.caption for clip in picks]


def open_folder(folder, vae, fps, buckets=(), check_caption=None, most=None, limit=2 * 2**30):
    """Check a folder, print which files are bad, and hold some clips out.

    -> (ClipFolders for training, ClipFolders held out, [(file name, reason)]), a ClipFolder for each bucket
    that has clips (without buckets: for each shape), the most frames first. Every tenth of the usable clips,
    sorted by name, is held out; of fewer than ten, the last one; of a single clip, none, and the second list
    is empty. `limit`: bytes of decoded clips to keep in memory. The rest is as in `check_folder`. Raises
    ValueError as that does, and if there is no usable clip.
    """
    clips, bad = check_folder(folder, vae, fps, buckets, check_caption, most)
    report_bad(folder, clips, bad)
    held_out = clips[9::10] or clips[1:][-1:]
    out = set(held_out)
    training = [clip for clip in clips if clip not in out]
    cache = ClipCache(limit)

    def by_bucket(some, held_out):
        return [ClipFolder([clip for clip in some if clip.bucket == bucket], fps, cache, held_out)
                for bucket in sorted({clip.bucket for clip in some}, reverse=True)]

    return by_bucket(training, False), by_bucket(held_out, True), bad
