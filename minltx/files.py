"""Files are put in place whole, and damaged ones are noticed.

A reader finds the old file or the new one, never half of one. torch's files are zips without compression, in
which every entry has a checksum (CRC-32); torch writes it and does not read it.
"""

import json
import os
import pickletools
import re
import zipfile
from pathlib import Path

# In the pickle of a file of torch: the operations that name a class or function, and what may be named.
BUILDING = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
TENSORS = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")


def put_in_place(path, write):
    """Call write(temporary path), flush that file to the disk, then rename it to `path` in one step.

    The old file stays whole until then, and no partial file is left. Missing folders are created. Raises
    whatever `write` raises, and OSError, which names the file, if it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")
    try:
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def clear_leftovers(folder):
    """Remove the temporary files that killed processes left in a folder; those of running ones stay."""
    for file in Path(folder).glob(".*.part-*"):
        number = re.search(r"\.part-(\d+)", file.name)
        if number and not is_running(int(number[1])):
            file.unlink(missing_ok=True)


def is_running(process):
    """Whether this machine has a process of this number."""
    if os.name == "nt":
        return process == os.getpid()       # there a file in use cannot be removed anyway
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_torch(path, values):
    """Write tensors and plain values, in lists and dictionaries, as one of torch's files.

    Raises OSError, which says what happened, as for a full disk.
    """
    import torch

    def write(part):
        with open(part, "wb") as file:
            try:
                torch.save(values, file)
            except RuntimeError as error:       # torch's, while it closes the zip that could not be written
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    put_in_place(path, write)


def reason(error, otherwise):
    """Why a file cannot be read: a ValueError's own words, or the system's, or `otherwise`, because the
    messages of libraries are not for users."""
    return str(error) if type(error) is ValueError else getattr(error, "strerror", None) or otherwise


def read_json(path, names, otherwise):
    """A file's JSON dictionary. Raises ValueError with the path and the text `otherwise` if it is damaged, of
    another kind, or lacks one of the names."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(name not in found for name in names):
        raise ValueError(f"{path} {otherwise}")
    return found


def read_torch(path, mmap=False):
    """The inverse of `write_torch`, on the CPU, for files from anywhere; no code in them is executed.

    With mmap the tensors are read when they are used. Raises ValueError for a file that is foreign, damaged
    (every checksum is compared: the file is read once), or larger in memory than on the disk.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as file:
            check_zip(file, os.path.getsize(path))
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:    # zipfile and torch have many kinds of error for foreign and broken files
        raise ValueError(reason(error, "it is not a whole file of torch")) from None


def check_zip(file, size):
    """Raises ValueError if an open zip of so many bytes is not one that torch writes, or a checksum differs.

    Its pickle may build tensors over the zip's other entries and nothing else: torch's reader would also make
    a bytearray of any length. A tensor may repeat one number, so its shape is to be checked before a copy.
    """
    entries, names = file.infolist(), {entry.filename.lower() for entry in file.infolist()}
    pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
    if len(names) < len(entries) or len(pickles) != 1:
        raise ValueError("not a file of torch")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or size < sum(
            entry.file_size for entry in entries):
        raise ValueError("it would unpack to more than it is, and torch does not compress")
    damaged = file.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} differs")
    for opcode, argument, _ in pickletools.genops(file.read(pickles[0])):
        if opcode.name in BUILDING and not (opcode.name == "GLOBAL" and TENSORS.fullmatch(argument)):
            raise ValueError(f"it holds {str(argument)[:40]}, not tensors and plain values only")
