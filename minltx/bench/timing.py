"""Time, memory and a machine's own limits, measured the same way on a CPU and on a GPU.

A limit is what this machine reaches when it does nothing else: the operations of a large matrix product, the
bytes of a large copy, per second. A part cannot be faster than its operations and its bytes allow; that is
its floor.
"""

import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

ATTENTIONS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
              "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
PROCESS = Path("/proc/self")            # where Linux says how much memory a process has


# --- Time -------------------------------------------------------------------------------------------------

def timer(device):
    """A device -> a function from work to the seconds that work() takes there: by the device's own events on
    a GPU, whose commands return before they are done, and by the clock on a CPU."""
    def by_events(work):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def by_clock(work):
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return by_events if device.type == "cuda" else by_clock


def in_turn(works, seconds_of, repeats, warm_up=2):
    """Time every work of a dictionary `repeats` times, one after the other -> {name: list of seconds}.

    Other load on the machine slows all works of a round, and hardly their ratios; each round starts with the
    next work. The first rounds are not timed: memory is allocated, kernels are chosen and compiled.
    """
    names, times = list(works), {name: [] for name in works}
    for i in range(warm_up):
        for name in names:
            works[name]()
    for i in range(repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(works[name]))
    return times


def spread(numbers):
    """Numbers -> median and both quartiles."""
    if len(numbers) == 1:
        return numbers[0], [numbers[0], numbers[0]]
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return middle, [low, high]


# --- The machine's limits ---------------------------------------------------------------------------------

def matmul_peak(device, dtype, sides=None, repeats=10):
    """The most operations per second that a product of two square matrices reaches, of several sizes."""
    sides = sides or ((4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048))
    best = 0.0
    for side in sides:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        times = in_turn({"product": lambda: a @ b}, timer(device), repeats)["product"]
        best = max(best, 2 * side**3 / min(times))
    return best


def copy_bandwidth(device, megabytes=None, repeats=10):
    """Bytes per second, read and written, of a copy that is much larger than any cache."""
    megabytes = megabytes or (4096 if device.type == "cuda" else 512)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = in_turn({"copy": lambda: target.copy_(source)}, timer(device), repeats)["copy"]
    return 2 * source.numel() / min(times)


# --- Memory -----------------------------------------------------------------------------------------------

def peak_memory(work, device):
    """The most bytes allocated during work(): all tensors on a GPU, on a CPU the whole process. None where
    the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        (PROCESS / "clear_refs").write_text("5")                        # resets the peak
    except OSError:
        return None
    work()
    return 1024 * int((PROCESS / "status").read_text().split("VmHWM:")[1].split()[0])


# --- Attention --------------------------------------------------------------------------------------------

@contextmanager
def attention_by(name):
    """A context in which attention prefers this kernel; "auto" leaves the choice to torch. If the kernel
    cannot do it (flash attention takes no mask, and the caption has one), "efficient" or "math" does."""
    if name == "auto":
        yield
        return
    import torch._inductor.config as inductor

    order = ["math"] if name == "math" else dict.fromkeys([name, "efficient", "math"])
    # The compiler's cache on disk does not know about this choice, and would return code for another one.
    with (sdpa_kernel([ATTENTIONS[kernel] for kernel in order], set_priority=True),
          inductor.patch(force_disable_caches=True)):
        yield


def attention_used(work):
    """Do work() once -> {name of an attention kernel: number of calls}, as torch's profiler saw them. Kernels
    that a compiler took apart, "math" for example, are not seen."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")      # otherwise some versions print to the terminal
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    prefix = "aten::_scaled_dot_product_"
    return {event.key.removeprefix(prefix): event.count for event in seen.key_averages()
            if event.key.startswith(prefix)}
