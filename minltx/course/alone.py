"""One submission at a time, in a process of its own: whatever it does costs only itself.

On Linux all processes that it started are ended with it, also those that detached themselves: the grader
becomes the parent of orphans, so that it finds them.
"""

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

LINUX = sys.platform == "linux"
ADOPT_ORPHANS = 36                                      # PR_SET_CHILD_SUBREAPER of prctl(2)


def run_alone(function, arguments, seconds):
    """Call function(*arguments) in a process and a session of its own -> its result, which must fit JSON.

    Raises RuntimeError with the reason if there is no result: an exception, a crash, or more than so many
    seconds. Afterwards no process is left that the call started.
    """
    context = new_processes()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sender, function, arguments))
    if LINUX:
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    before = descendants(os.getpid())
    try:
        process.start()
        sender.close()
        if not receiver.poll(seconds):
            raise RuntimeError(f"it took longer than {seconds:.0f} s")
        result, error = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join(10)
        raise RuntimeError(f"its process ended with code {process.exitcode}") from None
    finally:
        end(process, before)
        receiver.close()
    if error:
        raise RuntimeError(error)
    return result


def new_processes():
    """How the process of a call is started.

    Never as a copy of this one: OpenMP's threads are not copied, and the copy would wait for them forever. On
    Linux it is a copy of a server that has imported the grader and computed nothing, which costs no time.
    """
    context = multiprocessing.get_context("forkserver" if LINUX else "spawn")
    if LINUX:
        context.set_forkserver_preload(["minltx.course.submission"])
        forkserver.ensure_running()         # before `descendants`, which would count it to a submission
    return context


def answer(sender, function, arguments):
    """The body of that process: send [result, error], one of them None."""
    if hasattr(os, "setsid"):
        os.setsid()                                     # Ctrl-C in the terminal is for the parent
    try:
        reply = json.dumps([function(*arguments), None])
    except BaseException as error:                      # SystemExit too: nothing may pass
        reply = json.dumps([None, f"{type(error).__name__}: {str(error)[:200]}"])
    sender.send_bytes(reply.encode())


def states(paths):
    """All that is at these paths and in these folders -> {path: size and digest, None if it is not a file}.
    Of files from 64 MiB on, which the package does not have, the size alone."""
    found = {entry: None for path in paths for entry in (path, *path.rglob("*"))}
    for entry in found:
        with contextlib.suppress(OSError):
            if entry.is_file():
                size = entry.stat().st_size
                found[entry] = size, size < 2**26 and hashlib.sha256(entry.read_bytes()).hexdigest()
    return found


def descendants(pid):
    """The ids of all processes below this one; on other systems than Linux an empty set."""
    parents, found, new = {}, set(), {pid}
    for stat in Path("/proc").glob("[0-9]*/stat") if LINUX else ():
        with contextlib.suppress(OSError):              # it ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_bytes().rpartition(b")")[2].split()[1])
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def end(process, before):
    """End a process, and all descendants of this one that are not in `before`."""
    for _ in range(200):
        alive, started = process.is_alive(), descendants(os.getpid()) - before      # is_alive() also reaps
        if not alive and not started:
            break
        process.kill()
        for number in (signal.SIGSTOP, signal.SIGKILL) if LINUX else ():        # first none can start others
            for pid in started:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        for pid in started - {process.pid}:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
