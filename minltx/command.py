"""What all commands share: one parser with one set of types, one line for a mistake, device, hardware.

A type checks its option's value when the command line is parsed, before anything is loaded or written. Every
option that takes a number, a file to write or a device has one of the types below (tests/test_bad_calls.py).
"""

import argparse
import functools
import math
import os
import platform
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path


# --- The parser -------------------------------------------------------------------------------------------

def printable(text):
    """The same in one line, with escapes for characters that a terminal or a file may not take."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class Once(argparse.Action):
    """An option's value. A second one would silently replace the first, so it is refused."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string in parser.given:
            raise argparse.ArgumentError(self, "it is given twice: give it once")
        if option_string:
            parser.given.add(option_string)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, exit code 2, no abbreviated options and no empty words."""

    def __init__(self, **how):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **how)
        self.register("type", None, not_empty)
        self.register("action", None, Once)

    def parse_known_args(self, args=None, namespace=None):
        self.given = set()
        return super().parse_known_args(args, namespace)

    def error(self, message):
        self.exit(2, f"{self.prog}: {printable(message)} (see --help)\n")


def too_large(error):
    """Whether a RuntimeError of torch's means that sizes do not fit in memory."""
    return isinstance(error, RuntimeError) and bool(re.search("memory|overflow", str(error)))


def in_one_line(error):
    """An exception's message without its later lines."""
    line = (str(error).splitlines() or [""])[0] or "out of memory"
    return printable(f"this does not fit in memory, use smaller sizes ({line})" if too_large(error) else line)


@contextmanager
def one_line(parser, stopped="stopped"):
    """Inside, a mistake becomes one line and exit code 2, and Ctrl-C the line `stopped` and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: {stopped}\n")
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not too_large(error):
            raise                                       # not a mistake of the user's
        parser.exit(2, f"{parser.prog}: {in_one_line(error)}\n")


def check_together(args, needs=(), excludes=()):
    """Raises ValueError for options that need or exclude another one.

    needs: (option, others, what it is for), of which one other must be given; excludes: (option, other, why).
    An option is given if its value is neither None nor False.
    """
    def given(name):
        value = getattr(args, name)
        return value is not None and value is not False and value != []

    def option(name):
        return "--" + name.replace("_", "-")

    for name, others, what in needs:
        if given(name) and not any(map(given, others)):
            raise ValueError(f"{option(name)} is {what}: add {' or '.join(map(option, others))}, "
                             "or leave it out")
    for name, other, why in excludes:
        if given(name) and given(other):
            raise ValueError(f"{option(name)} and {option(other)} {why}: give one")


# --- Types of options -------------------------------------------------------------------------------------

def option_type(convert):
    """A function from text that raises ValueError -> a type for argparse, which reports that message."""
    @functools.wraps(convert)
    def typed(text):
        try:
            return convert(text)
        except (ValueError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    typed.checks = True
    return typed


@option_type
def not_empty(text):
    """Any text but an empty one: the type of options that have no other."""
    if not text:
        raise ValueError("it is empty: give a value, or leave the option out")
    return text


def in_range(value, low, high, text):
    """The value. Raises ValueError, which names its text, if it is not from low to high."""
    if not low <= value <= high:                        # NaN too
        raise ValueError(f"{text} is out of range: use {low:,} to {high:,}".replace(",", ""))
    return value


def whole(low, high):
    """A type: whole numbers from low to high."""
    @option_type
    def convert(text):
        if not re.fullmatch(r"[+-]?[0-9]{1,99}", text):
            raise ValueError(f"{text!r} is not a whole number: use {low} to {high}")
        return in_range(int(text), low, high, text)

    return convert


def number(low, high):
    """A type: numbers from low to high, without NaN."""
    @option_type
    def convert(text):
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            raise ValueError(f"{text!r} is not a number: use {low} to {high}") from None
        return in_range(value, low, high, text)

    return convert


LONGEST = 200                                           # bytes of a file's name: systems allow 255 in all
SEED = whole(0, 2**32 - 1)
COUNT = whole(1, 100_000)
BUDGET = number(0.0001, 999)                            # times the usual steps


def sizes(names=("frames", "height", "width"), example="17x32x32"):
    """A type: "17x32x32" -> (17, 32, 32), see `parse_sizes`."""
    return option_type(functools.partial(parse_sizes, names=names, example=example))


def parse_sizes(text, names=("frames", "height", "width"), example="17x32x32", digits=6):
    """"17x32x32" -> (17, 32, 32), one whole number from 1 on for each of `names`. Raises ValueError for other
    words, and for a number of more than so many digits."""
    parts = text.lower().split("x")
    if not all(re.fullmatch("0*[1-9][0-9]*", part) for part in parts) or len(parts) != len(names):
        raise ValueError(f"{text!r} is not understood: write {' x '.join(names)}, such as {example}")
    if max(map(len, parts)) > digits:
        raise ValueError(f"{text} is out of range: use at most {'9' * digits} for each")
    return tuple(map(int, parts))


def new_file(*endings):
    """A type: the path of a file to write, with one of these endings. Writing next to it is tried at once."""
    @option_type
    def convert(text):
        path = Path(os.path.abspath(not_empty(text)))           # new/../folder is folder
        if endings and path.suffix.lower() not in endings:
            raise ValueError(f"cannot write {text}: use a name that ends in {', '.join(endings)}")
        if path.exists() and not path.is_file():
            raise ValueError(f"{text} is not a file: give the name of a file to write")
        if len(os.fsencode(path.name)) > LONGEST:
            raise ValueError(f"the name {path.name:.40}... is too long: use at most {LONGEST} letters")
        try_writing(path.parent)
        return text

    return convert


@option_type
def new_folder(text):
    """A type: the path of a folder to write to. Writing is tried at once; the folder is not made yet."""
    if Path(not_empty(text)).exists() and not Path(text).is_dir():
        raise ValueError(f"{text} is not a folder: name another one")
    try_writing(Path(text))
    return text


def try_writing(folder):
    """Raises ValueError if nothing can be written in a folder, or in the nearest one above it that exists."""
    folder = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write in {folder}: {error.strerror}") from None


@option_type
def device_name(text):
    """A type: a device that is available here, see `pick_device`."""
    pick_device(text)
    return text


def pick_device(name=None):
    """"cpu", "cuda", "cuda:1", "mps" or a torch.device -> torch.device; None: cuda if available. Raises
    ValueError if it is another name, or missing."""
    import torch

    if name is not None and not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", str(name)):
        raise ValueError(f"{name!r} is not a device: use cpu, cuda or mps")
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"the device {name} is not available here ({reason}): use cpu") from None
    return device


def hardware(device):
    """What figures were measured on, in words: processor or GPU, threads, torch."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"
