"""Captions of a folder of clips, read without opening a clip.

The caption of dance.mp4 is in dance.txt, or in a line of metadata.jsonl such as {"file_name": "dance.mp4",
"text": "a dancer turns"}, which takes precedence.
"""

import json
import os
from pathlib import Path

VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")
ENDINGS = (*VIDEOS, ".gif", ".png", ".jpg", ".jpeg")
METADATA = "metadata.jsonl"


def read_metadata(folder):
    """metadata.jsonl, if it exists -> {file name: caption}, [(line, what is wrong with it)]."""
    captions, bad = {}, []
    if not (folder / METADATA).is_file():
        return captions, bad
    try:
        lines = (folder / METADATA).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return captions, [(METADATA, "is not text in UTF-8: save it in UTF-8")]
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
            bad.append((where, 'is not of this form: {"file_name": "x.mp4", "text": "its caption"}'))
            continue
        name = Path(os.path.normpath(name)).as_posix()
        if name in captions:
            bad.append((where, f"names {name} a second time: keep one line"))
            continue
        captions[name] = text
    return captions, bad


def list_clips(folder, captions):
    """All files of a folder that are not hidden, and the sorted names of its clips: by their ending, or
    because metadata.jsonl names them."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    return files, sorted({p.name for p in files if p.suffix.lower() in ENDINGS} | set(captions))


def caption_of(path, text):
    """A clip's caption on one line: `text`, or if that is None, the text file next to the clip.

    Raises ValueError if there is no caption or it is empty.
    """
    file = path.with_suffix(".txt")
    if text is None:
        if not file.is_file():
            raise ValueError(f"has no caption: write it into {file.name} or {METADATA}")
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"has a caption that is not text in UTF-8: save {file.name} in UTF-8") from None
    text = " ".join(text.split())
    if not text:
        raise ValueError("has an empty caption: write what the clip shows")
    return text


def captions_in(folder):
    """All captions of a folder, each once, sorted; clips without a caption are skipped.

    Raises ValueError if the folder does not exist or holds no caption.
    """
    folder, found = Path(folder), set()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: name one with clips and captions")
    captions, _ = read_metadata(folder)
    for name in list_clips(folder, captions)[1]:
        try:
            found.add(caption_of(folder / name, captions.get(name)))
        except ValueError:
            continue                                    # training lists it, with the reason
    if not found:
        raise ValueError(f"there is no caption in {folder}: write x.txt next to x.mp4, or {METADATA}")
    return sorted(found)
