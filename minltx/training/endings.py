"""How a training ends: with one line and an exit code, also if another process ends first.

    0 it is finished    2 an input or a file is wrong, a disk is full    3 it diverged
    130 Ctrl-C, or SIGTERM, which clusters send                          1 another process ended

Under torchrun a process that ends leaves a note in torchrun's store. So the others can say which one ended
without a note: it was killed.
"""

import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

from minltx.command import in_one_line, too_large

STOPPED = "stopped; the same command with --resume goes on from the last checkpoint"
PATIENCE = 2.0      # seconds that a process waits for the notes of the others
LOST = re.compile("gloo|nccl|connection (closed|reset)|broken pipe|process group", re.IGNORECASE)


class Diverged(ArithmeticError):
    """A loss, a gradient or a weight is no longer a finite number."""


@contextmanager
def one_line(parser):
    """Inside, SIGTERM is Ctrl-C, and what ends the training becomes one line and an exit code, see above."""
    notes = Notes() if "RANK" in os.environ else None
    with sigterm_as_ctrl_c(notes, parser.prog):
        try:
            yield
        except (ValueError, OSError, MemoryError, Diverged, KeyboardInterrupt) as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else 3 if isinstance(error, Diverged) else 2
            line = f"{parser.prog}: {STOPPED if code == 130 else in_one_line(error)}"
            if notes is None:
                parser.exit(code, "\n" * (code == 130) + line + "\n")
            end(code, notes.own_line(line))
        except RuntimeError as error:
            if notes is None and too_large(error):
                parser.exit(2, f"{parser.prog}: {in_one_line(error)}\n")
            if notes is None or not LOST.search(str(error)):
                raise
            end(1, notes.line_about_others(parser.prog))


def end(code, line=None):
    """Leave at once. The usual way out waits for a process that is gone. And even if all is well, after FSDP2
    Python's own clearing up aborts in about one process of fifty, in a thread of torch."""
    if line:
        print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def sigterm_as_ctrl_c(notes, prog):
    """Inside, SIGTERM raises KeyboardInterrupt.

    Under torchrun a thread ends the process instead: the main thread may be waiting, deep in a library, for a
    process that is dead, and would never see the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, (lambda *_: None) if notes else signal.default_int_handler)
    if notes:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=end_on_sigterm, args=(reader, notes, prog), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if notes:
            signal.set_wakeup_fd(-1)


class Interrupt:
    """Ctrl-C and SIGTERM between steps: the first is only `noted`, so that the step is finished and saved."""

    noted = False

    def between_steps(self, steps, processes=1):
        """The steps, and until the last one signals are noted. Several processes would stop at different
        steps, so there, and outside the main thread, a signal acts as it did before."""
        if processes > 1 or threading.current_thread() is not threading.main_thread():
            yield from steps
            return
        before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield from steps
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def note(self, number, frame):
        """The second one stops the run at once."""
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
        print("\nsaving after this step; once more: stopping at once", file=sys.stderr, flush=True)


def end_on_sigterm(reader, notes, prog):
    """Wait for SIGTERM, which Python writes into this pipe as a byte, and end the process."""
    while os.read(reader, 1) != bytes([signal.SIGTERM]):
        pass
    end(130, notes.line_about_others(prog))


class Notes:
    """Why each process ended, in torchrun's store."""

    def __init__(self):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.first = threading.Lock()

    def exchange(self, own):
        """Leave a note -> the notes of all processes; None for one that left none in time."""
        from torch.distributed import TCPStore

        self.first.acquire()            # a signal and a lost process may come together: one is reported
        run = os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
        keys = [f"minltx {run} {rank}" for rank in range(self.size)]
        found, until = [None] * self.size, time.monotonic() + PATIENCE
        found[self.rank] = own
        try:
            store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                             timeout=timedelta(seconds=PATIENCE))
            store.set(keys[self.rank], own)
            while None in found and time.monotonic() < until:
                time.sleep(0.05)
                for rank, key in enumerate(keys):
                    if found[rank] is None and store.check([key]):
                        found[rank] = store.get(key).decode()
        except RuntimeError:
            pass                                                # the store has ended too
        return found

    def own_line(self, line):
        """What a process prints that ends for a reason of its own: nothing if process 0 prints the same."""
        first = self.exchange(line)[0]
        if self.rank == 0:
            return line
        return None if first == line else f"{line} (process {self.rank} of {self.size})"

    def line_about_others(self, prog):
        """What a process prints that was ended by others: which are dead. Only the first one left prints."""
        found = self.exchange("")
        dead = [rank for rank, note in enumerate(found) if note is None]
        if any(found) or self.rank != found.index(""):
            return None                                         # another process says why
        if not dead:
            return f"{prog}: {STOPPED}"
        dead = " and ".join(map(str, dead))
        return (f"{prog}: process {dead} of {self.size} died, and the others stopped; the same command with "
                "--resume goes on from the last checkpoint")
