"""What configs and public entries require: a wrong value raises ValueError, which names it and says what fits.

The chapters call this once, at the entrance, where a mistake would give a wrong number without a word, or an
error deep inside; their inner functions stay plain. Values in a tensor are looked at on a CPU only: on a GPU
that would wait for all work that is still queued.
"""

import math

import torch


def require(ok, name, value, wanted):
    """Raises ValueError if not ok."""
    if not ok:
        raise ValueError(f"{name} is {value!r}: use {wanted}")


def whole(name, value, low, high=2**31):
    """A whole number from low to high."""
    require(type(value) is int and low <= value <= high, name, value, f"a whole number from {low} to {high}")


def number(name, value, low, high):
    """A number from low to high; NaN is none."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    require(known, name, value, f"a number from {low} to {high}")


def row(name, value, count, check, low, high):
    """A tuple or list of so many, each of which `check`, a function like `number`, accepts."""
    require(isinstance(value, (tuple, list)) and len(value) == count, name, value, f"{count} values")
    for one in value:
        check(f"a value of {name}", one, low, high)


def choice(name, value, known):
    require(value in known, name, value, " or ".join(map(repr, known)))
