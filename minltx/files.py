"""Files are put in place whole: a reader finds the old file or the new one, never half of one."""

import os
from pathlib import Path


def put_in_place(path, write):
    """Call write(temporary path), flush that file to the disk, then rename it to `path` in one step.

    The old file stays whole until then, and no partial file is left. Missing folders are created. Raises
    whatever `write` raises, and OSError if the file cannot be written.
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
