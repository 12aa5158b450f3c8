"""Real handwritten digits: MNIST from a folder of IDX files, or downloaded on request."""

import gzip
import hashlib
import http.client
import math
import os
import struct
import urllib.request
import zlib
from pathlib import Path

import torch
from tqdm import tqdm

from minltx.files import reason

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/",
           "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {"train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
         "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
         "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
         "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c"}

MOST = 2**28        # bytes of an unpacked file; MNIST's largest has 47 million


def read_idx(path, shape):
    """An IDX file of unsigned bytes, gzipped or not -> uint8 tensor of this shape; None is any length.

    Its header, two zeros, the type 8, the number of axes and their lengths, says how many bytes follow; no
    more are unpacked, and none if it says another shape. Raises ValueError if the file is anything else, and
    for more than MOST bytes.
    """
    wanted = "x".join("n" if n is None else str(n) for n in shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            begin, lengths = file.read(4), file.read(4 * len(shape))
            if begin[:3] != b"\0\0\x08" or len(begin) < 4 or len(lengths) < 4 * min(begin[3], len(shape)):
                raise ValueError("its header is cut off, or of another kind of file")
            found = struct.unpack(f">{len(shape)}I", lengths) if begin[3] == len(shape) else ()
            if not found or any(n not in (None, own) for n, own in zip(shape, found)):
                raise ValueError(f"its header says {'x'.join(map(str, found)) or f'{begin[3]} axes'}")
            count = math.prod(found)
            if not 0 < count <= MOST:
                raise ValueError(f"its header announces {count} bytes")
            raw = file.read(count + 1)
        if len(raw) != count:
            raise ValueError(f"its header announces {count} bytes, and "
                             f"{'more' if len(raw) > count else len(raw)} follow")
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(found)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is not an intact IDX file of {wanted} unsigned bytes "
                         f"({reason(error, 'it cannot be unpacked')}): copy or download it again") from None


def find_set(folder, prefix):
    """images (n, 28, 28) in [0, 1] and labels (n,) of the set "train" or "t10k"; None if it is not there.
    Raises ValueError for files that are not intact, and for labels above 9."""
    paths = []
    for kind in ("images-idx3", "labels-idx1"):
        names = [folder / f"{prefix}-{kind}-ubyte{ending}" for ending in ("", ".gz")]
        paths += [path for path in names if path.is_file()][:1]
    if len(paths) < 2:
        return None
    images = read_idx(paths[0], (None, 28, 28))
    labels = read_idx(paths[1], (len(images),))
    if labels.max() > 9:
        raise ValueError(f"{paths[1]} has the label {labels.max()}: digits are 0 to 9")
    return images.float() / 255, labels.long()


def read_folder(folder):
    """(train images, train labels), (held-out images, held-out labels) from a folder of MNIST's IDX files.

    With both sets there, they are the two; with one, its first four fifths train and the rest is held out.
    """
    folder = Path(folder)
    sets = [s for prefix in ("train", "t10k") if (s := find_set(folder, prefix))]
    if not sets:
        raise ValueError(f"no digits in {folder}: it needs train-images-idx3-ubyte and train-labels-idx1-"
                         "ubyte, or the same names with t10k, each with or without .gz")
    if len(sets) == 2:
        return tuple(sets)
    images, labels = sets[0]
    cut = len(images) * 4 // 5
    if cut == 0:
        raise ValueError(f"{len(images)} digits in {folder} are too few to hold some out")
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def download(cache=None):
    """Fetch MNIST (11 MB) into a cache folder, unless it is there, and return the folder.

    The default is $MINLTX_CACHE or ~/.cache/minltx. Files are checked against their MD5 sums and moved into
    place whole. ConnectionError if no mirror answers with the right bytes.
    """
    folder = Path(cache or os.environ.get("MINLTX_CACHE") or Path.home() / ".cache" / "minltx") / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in FILES.items():
        if not (folder / name).is_file():
            fetch(name, md5, folder / name)
    return folder


def fetch(name, md5, path):
    """One file from the first mirror that has it whole."""
    part = path.with_suffix(".part")
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=30) as answer, open(part, "wb") as file:
                length = answer.headers.get("Content-Length", "")
                total = int(length) if length.isdigit() else None
                with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None) as bar:
                    while chunk := answer.read(1 << 16):
                        file.write(chunk)
                        bar.update(len(chunk))
            if hashlib.md5(part.read_bytes()).hexdigest() == md5:
                os.replace(part, path)
                return
        except (OSError, http.client.HTTPException):
            continue
        finally:
            part.unlink(missing_ok=True)
    raise ConnectionError(f"could not download {name} from any mirror: leave out --digits for drawn digits, "
                          "or name a folder of MNIST's IDX files with --digits FOLDER")
