"""A report of the benchmark: what is measured of each part, and how it is shown."""

import gc
import sys

import torch

from minltx.bench import timing
from minltx.bench.diffusers import theirs
from minltx.bench.parts import PARTS, operations, swaps, twin
from minltx.fast_cpu import accelerate


# --- Measuring --------------------------------------------------------------------------------------------

def works_of(name, part, setup, against):
    """What is timed in turn -> {column: function without arguments}."""
    networks = {"plain": part.network}
    if setup.device.type == "cpu" and not setup.compiled and not part.training and name != "save":
        networks |= swaps(part.network) if against == "plain" else {}
        networks["accelerated"] = accelerate(twin(part.network))
    works = {column: lambda network=network: part.work(network) for column, network in networks.items()}
    if against == "diffusers":
        works["diffusers"] = theirs(name, part, setup.compiled)
    return works


def columns_of(works, reference, setup, repeats):
    """Time works in turn -> {column: median seconds, their ratio to the reference, both with quartiles, and
    how far the output is from the reference's, absolutely and in standard deviations}."""
    times = timing.in_turn(works, timing.timer(setup.device), repeats)
    outputs = {name: work() for name, work in works.items()} if len(works) > 1 else {}
    found = {}
    for name, seconds in times.items():
        found[name] = dict(zip(("seconds", "quartiles"), timing.spread(seconds)))
        if name in outputs and name != reference:
            ratios = [a / b for a, b in zip(seconds, times[reference])]
            found[name] |= dict(zip(("ratio", "ratio_quartiles"), timing.spread(ratios)))
            found[name] |= difference(outputs[name], outputs[reference])
    return found


def difference(ours, theirs):
    """How far two outputs are apart at most: absolutely, and in standard deviations of the second."""
    apart = (ours.float() - theirs.float()).abs().max().item()
    return {"largest_difference": apart, "relative_difference": apart / theirs.float().std().item()}


def figures(name, setup, limits, repeats, against=None):
    """One part -> its name and its row of the report. limits: the machine's "peak_flops" and "bandwidth"."""
    part, count = PARTS[name](setup), operations(name, setup)
    with torch.inference_mode(not part.training):
        works = works_of(name, part, setup, against)
        columns = columns_of(works, against or "plain", setup, repeats)
        memory = timing.peak_memory(works["plain"], setup.device)
        attention = timing.attention_used(works["plain"]) if part.tokens else {}
    seconds = columns["plain"]["seconds"]
    return part.name, {
        "columns": columns, "mfu": count / seconds / limits["peak_flops"] if count else None,
        "floor": max(count / limits["peak_flops"], part.traffic / limits["bandwidth"]),
        "operations": count, "traffic": part.traffic, "peak_memory": memory,
        "parameters": sum(p.numel() for p in part.network.parameters()),
        "tokens_per_second": part.tokens and part.tokens / seconds,
        "frames_per_second": part.frames and part.frames / seconds, "attention": attention, "note": part.note}


def measure(setup, names, attention, repeats, against=None):
    """The machine's limits and the chosen parts, one after the other. A part for which a package or memory is
    missing is left out, with a note."""
    limits = {"peak_flops": timing.matmul_peak(setup.device, setup.dtype),
              "bandwidth": timing.copy_bandwidth(setup.device)}
    report = {**limits, "parts": {}, "left_out": {}}
    with timing.attention_by(attention):
        for name in names:
            gc.collect()                # the last part's memory
            if setup.device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                title, row = figures(name, setup, limits, repeats, against)
                report["parts"][title] = row
            except (ValueError, torch.OutOfMemoryError) as error:
                report["left_out"][name] = str(error).splitlines()[0]
    return report


# --- Showing ----------------------------------------------------------------------------------------------

def shown(numbers, form, unit=1):
    """Numbers for a table: one, a list from low to high, or None."""
    if isinstance(numbers, list):
        return " to ".join(shown(x, form, unit) for x in numbers)
    return "-" if numbers is None else format(numbers / unit, form)


def aligned(rows):
    """Rows of cells -> lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]


def table(report):
    """The report as lines for a terminal: the times of every part, then what the parts cost."""
    times = [["", "", "ms", "quartiles", "ratio", "quartiles", "outputs differ by"]]
    costs = [["", "floor, ms", "GFLOP", "of peak", "GiB", "tokens/s", "frames/s", "attention by"]]
    for name, row in report["parts"].items():
        for column, c in row["columns"].items():
            times.append([name, column, shown(c["seconds"], ".2f", 1e-3), shown(c["quartiles"], ".2f", 1e-3)])
            times[-1] += ([shown(c["ratio"], ".3f"), shown(c["ratio_quartiles"], ".3f"),
                           shown(c["largest_difference"], ".1e")] if "ratio" in c else ["", "", ""])
        costs.append([name, shown(row["floor"], ".3f", 1e-3), shown(row["operations"], ",.3f", 1e9),
                      shown(row["mfu"], ".1%"), shown(row["peak_memory"], ".2f", 2**30),
                      shown(row["tokens_per_second"], ",.1f"), shown(row["frames_per_second"], ",.1f"),
                      ", ".join(f"{kernel} x{count}" for kernel, count in row["attention"].items())])
    notes = [f"{name}: {row['note']}" for name, row in report["parts"].items() if row["note"]]
    notes += [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    return "\n".join([f"{report['hardware']}, {report['dtype']}",
                      f"large matrix product {report['peak_flops'] / 1e12:.3g} TFLOP/s, large copy "
                      f"{report['bandwidth'] / 1e9:.3g} GB/s", "", *aligned(times), "", *aligned(costs), "",
                      *notes])
