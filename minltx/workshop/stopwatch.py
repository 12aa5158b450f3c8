"""Time, memory and a machine's own limits, measured the same way on a CPU and on a GPU.

A limit is what this machine does when it does nothing else: the operations of a large matrix product, the
bytes of a large copy, per second. Whatever a part computes and moves, it cannot be faster than both allow;
that is its floor.
"""

import os
import statistics
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

ATTENTIONS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
              "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
RESIDENT = Path("/proc/self/statm")     # where Linux says how much memory a process has


# --- Time -------------------------------------------------------------------------------------------------

def timer(device):
    """A device -> a function from work to the seconds that work() takes there: by the device's own events on
    a GPU, whose commands return before they are done, and by the clock on a CPU."""
    if device.type != "cuda":
        return by_the_clock

    def by_events(work):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return by_events


def by_the_clock(work):
    """The seconds that work() takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def repeated(work, seconds_of, repeats, warm_up=2):
    """Do work() a few times in vain (memory is allocated, kernels are chosen and compiled), then `repeats`
    times by the timer `seconds_of` -> list of seconds."""
    for _ in range(warm_up):
        work()
    return [seconds_of(work) for _ in range(repeats)]


def in_turn(ours, theirs, seconds_of, repeats, warm_up=2):
    """Two works `repeats` times each, one after the other, the second one first in every other pair -> two
    lists of seconds. What else the machine does meanwhile slows both of a pair, and hardly its ratio."""
    for _ in range(warm_up):
        ours()
        theirs()
    times = ([], [])
    for i in range(repeats):
        for which in ((0, 1), (1, 0))[i % 2]:
            times[which].append(seconds_of((ours, theirs)[which]))
    return times


def spread(numbers):
    """Numbers -> median and both quartiles."""
    if len(numbers) == 1:
        return numbers[0], [numbers[0], numbers[0]]
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return middle, [low, high]


# --- The machine's limits ---------------------------------------------------------------------------------

def matmul_peak(device, dtype, sides=None, repeats=10):
    """The most operations a second that a product of two square matrices gets, of several sizes."""
    sides = sides or ((4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048))
    best = 0.0
    for side in sides:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        with torch.inference_mode():
            times = repeated(lambda: a @ b, timer(device), repeats)
        best = max(best, 2 * side**3 / min(times))
    return best


def copy_bandwidth(device, megabytes=None, repeats=10):
    """Bytes a second, read and written, of a copy that is much larger than any cache."""
    megabytes = megabytes or (4096 if device.type == "cuda" else 512)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(repeated(lambda: target.copy_(source), timer(device), repeats))


def floor(operations, traffic, peak, bandwidth):
    """The least seconds that so many operations and so many bytes of traffic can take."""
    return max(operations / peak, traffic / bandwidth)


# --- Memory -----------------------------------------------------------------------------------------------

def peak_memory(work, device):
    """Do work() once -> the most bytes that were held, and what that counts in words.

    On a GPU all tensors on it; on a CPU the whole process, looked at every millisecond, or None where the
    system does not say.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device), "torch's tensors on the device"
    if not RESIDENT.exists():
        work()
        return None, "not to be known on this system"
    most, done = resident_bytes(), threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(most, resident_bytes()), "resident set of the whole process, looked at every millisecond"


def resident_bytes():
    """How much memory this process has at the moment."""
    return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- Attention --------------------------------------------------------------------------------------------

@contextmanager
def attention_by(name):
    """A context in which attention prefers this kernel; "auto" leaves the choice to torch. What the kernel
    cannot do (flash attention knows no mask, and the caption has one) goes to "efficient", else to "math"."""
    if name == "auto":
        yield
        return
    order = {"math": ["math"]}.get(name, [name, "efficient", "math"])
    kernels = [ATTENTIONS[kernel] for kernel in dict.fromkeys(order)]
    # The compiler's cache on disk does not know about this choice, and would return another one's code.
    with sdpa_kernel(kernels, set_priority=True), inductor.patch(force_disable_caches=True):
        yield


def attention_used(work):
    """Do work() once -> {name of an attention kernel: how often it was asked}, as torch's profiler saw it.
    What a compiler has taken to pieces, "math" for instance, has no name any more."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")      # or some versions of it talk on the terminal
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    prefix = "aten::_scaled_dot_product_"
    return {event.key.removeprefix(prefix): event.count for event in seen.key_averages()
            if event.key.startswith(prefix)}
