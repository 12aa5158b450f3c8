"""What all commands share: one line for a mistake, sizes such as 17x32x32, device, name of the hardware."""

import argparse
import platform
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, exit code 2, and no abbreviated options."""

    def __init__(self, **how):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **how)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_sizes(text, names=("frames", "height", "width"), example="17x32x32"):
    """"17x32x32" -> (17, 32, 32), one whole number from 1 on for each of `names`. Raises ValueError."""
    parts = text.lower().split("x")
    numbers = text.isascii() and all(part.isdecimal() and int(part) for part in parts)
    if not numbers or len(parts) != len(names):
        raise ValueError(f"{text!r} is not understood: write {' x '.join(names)}, such as {example}")
    return tuple(map(int, parts))


def pick_device(name=None):
    """"cpu", "cuda" or "mps" -> torch.device; None: cuda if available. Raises ValueError if it is missing."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
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
