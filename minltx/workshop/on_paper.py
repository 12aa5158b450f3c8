"""The released 2 B model on 8 and on 1,024 GPUs, on paper: what a training step takes and what breaks first.

    python -m minltx.workshop.on_paper                        print the tables of docs/scale.md
    python -m minltx.workshop.on_paper --write                put them into the page
    python -m minltx.workshop.on_paper --bench FILE.json      with the figures of a benchmark, see `rates`

Operations come from flops.py, memory from memory.py, and everything else from ASSUMED, where each number has
a name, a value and a source. The rest is division.
"""

import argparse
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from minltx.dit import DiTConfig
from minltx.vae import VAEConfig
from minltx.workshop.flops import (decode_flops, dit_flops, dit_parts, encode_flops, grids, t5_flops,
                                   training_flops)
from minltx.workshop.memory import estimate_dit
from minltx.workshop.tables import RESULTS, ROOT, between

PAGE = ROOT / "docs" / "scale.md"
BENCH = RESULTS / "bench.json"              # the page's own benchmark, if there is one
DIT, VAE, SIZE, WORDS = DiTConfig(), VAEConfig(), (121, 512, 768), 256
GRID = grids(VAE, SIZE)[1]
TOKENS = math.prod(GRID)
PER_NODE, GPUS, MICRO_BATCH = 8, (8, 1024), 2


@dataclass(frozen=True)
class Assumed:
    """A number that nothing here computes: its value, how the page writes it, and who says so."""

    value: float
    shown: str
    source: str


ASSUMED = {
    "peak": Assumed(790e12, "790 TFLOP/s", "a large bf16 matrix product on an H200, measured elsewhere"),
    "training MFU": Assumed(0.40, "40 %", "assumed; public trainings on H100 report 33-46 %, of the data "
                            "sheet's 989 TFLOP/s, not of 790, so this is a cautious reading of them"),
    "sampling MFU": Assumed(0.40, "40 %", "assumed, the same"),
    "inside a node": Assumed(450e9, "450 GB/s a GPU and direction", "NVLink 4, data sheet"),
    "InfiniBand": Assumed(8 * 50e9, "50 GB/s a GPU, 400 GB/s a node", "NDR 400 Gb/s, one port a GPU, line "
                          "rate"),
    "Ethernet": Assumed(12.5e9, "12.5 GB/s a node", "one port of 100 Gb/s for 8 GPUs, line rate"),
    "hop inside": Assumed(2e-6, "2 us", "assumed, from GPU to GPU over NVLink"),
    "hop between": Assumed(10e-6, "10 us", "assumed, from node to node"),
    "bucket": Assumed(25 * 2**20, "25 MiB", "DDP's default"),
    "GPU memory": Assumed(139 * 2**30, "139 GiB", "H200"),
    "jitter": Assumed(0.02, "2 %", "assumed, standard deviation of a GPU's step"),
    "hours to an interruption": Assumed(16384 * 54 * 24 / 419, "50,700 GPU-hours",
                                        "Llama 3's report: 419 unexpected ones, 16,384 H100, 54 days"),
    "storage": Assumed(2e9, "2 GB/s a node", "assumed, writing to a shared file system"),
    "clips": Assumed(100e6, "100 million", "assumed, clips seen in a training")}


# --- Rates: assumed, or a benchmark's ----------------------------------------------------------------------

def rates(path=None):
    """-> ASSUMED, with a benchmark's figures in the place of peak and MFU where it has them.

    The file is {"peak_flops": operations a second, "parts": {"dit step": {"seconds": s, "mfu": share of that
    peak}, "training step": {...}}}, every key optional. ValueError for a file with none of them, or nonsense.
    """
    if path is None:
        return ASSUMED
    try:
        stored = json.loads(path.read_text())
        parts = stored.get("parts", {})
        found = {"peak": stored.get("peak_flops"), "training MFU": parts.get("training step", {}).get("mfu"),
                 "sampling MFU": parts.get("dit step", {}).get("mfu")}
    except (OSError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no benchmark ({type(error).__name__}): write it with the benchmark's "
                         "--out") from None
    found = {name: value for name, value in found.items() if value is not None}
    sound = all(isinstance(value, (int, float)) and 0 < value <= (1e17 if name == "peak" else 1)
                for name, value in found.items())
    if not found or not sound:
        raise ValueError(f"{path} has no sound peak_flops or mfu: write it with the benchmark's --out")
    source = f"measured, {path.name}"
    shown = {name: f"{value / 1e12:.0f} TFLOP/s" if name == "peak" else f"{100 * value:.0f} %"
             for name, value in found.items()}
    return {**ASSUMED, **{name: Assumed(value, shown[name], source) for name, value in found.items()}}


# --- Computing ---------------------------------------------------------------------------------------------

def compute_seconds(a):
    """One clip on one GPU -> seconds forward, seconds backward."""
    rate = a["peak"].value * a["training MFU"].value
    forward, both = dit_flops(DIT, TOKENS, WORDS), training_flops(DIT, TOKENS, WORDS)
    return forward / rate, (both - forward) / rate


# --- Communicating -----------------------------------------------------------------------------------------

@functools.cache
def parameter_count():
    """The transformer's parameters, counted as its float32 weights are."""
    return estimate_dit(DIT, TOKENS, WORDS)["weights"] // 4


def ring_seconds(a, size, gpus, network, times):
    """Gathering `size` bytes on all GPUs in `times` equal pieces, or summing and scattering them.

    The GPUs stand in rings. All but one part of the bytes passes every one of them, at the speed of the
    slowest link: a ring leaves a node once, and eight rings share its ports. Each piece travels all around.
    """
    nodes = gpus // PER_NODE
    speed, way = a["inside a node"].value, (gpus - 1) * a["hop inside"].value
    if nodes > 1:
        speed = min(speed, a[network].value)
        way = nodes * ((PER_NODE - 1) * a["hop inside"].value + a["hop between"].value)
    return size * (gpus - 1) / gpus / speed + times * way


def tree_seconds(a, size, nodes, speed, times):
    """Summing `size` bytes over all nodes for all of them, in `times` pieces: the bytes pass twice, as in two
    rings, but a piece goes up and down a tree, whose height is the logarithm of the nodes."""
    height = math.ceil(math.log2(nodes)) * a["hop between"].value
    return 2 * size * (nodes - 1) / nodes / speed + times * 2 * height


def communication_seconds(a, kind, gpus, network):
    """One step's communication -> seconds that the forward pass could hide, seconds for the backward pass.

    Weights travel as bf16, gradients as float32. DDP sums the gradients over all GPUs. FSDP2 gathers every
    block's weights forward and again backward, then sums and scatters its gradients. HSDP does that within
    each node and then sums every shard over the nodes.
    """
    P, units, nodes = parameter_count(), DIT.depth + 1, gpus // PER_NODE
    if kind == "DDP":
        pieces = math.ceil(4 * P / a["bucket"].value)
        if nodes == 1:
            return 0.0, 2 * ring_seconds(a, 4 * P, gpus, network, pieces)
        inside = pieces * 2 * (PER_NODE - 1) * a["hop inside"].value
        return 0.0, tree_seconds(a, 4 * P, nodes, a[network].value, pieces) + inside
    ring = PER_NODE if kind == "HSDP" else gpus
    gather = ring_seconds(a, 2 * P, ring, network, units)
    scatter = ring_seconds(a, 4 * P, ring, network, units)
    across = tree_seconds(a, 4 * P, nodes, a[network].value, units) if kind == "HSDP" and nodes > 1 else 0
    return gather, gather + scatter + across


def received_bytes(kind, gpus):
    """What one GPU receives in a step: from inside or outside its node, all together."""
    P = parameter_count()
    if kind == "HSDP":
        nodes = gpus // PER_NODE
        return 8 * P * (PER_NODE - 1) / PER_NODE + 2 * 4 * P / PER_NODE * (nodes - 1) / nodes
    return 8 * P * (gpus - 1) / gpus


def step(a, kind, gpus, network, micro_batch):
    """-> dict: seconds of compute and of communication, of a step without and with overlap, and from which
    micro-batch on communication hides completely."""
    forward, backward = compute_seconds(a)
    first, second = communication_seconds(a, kind, gpus, network)
    compute = micro_batch * (forward + backward)
    overlapped = max(micro_batch * forward, first) + max(micro_batch * backward, second)
    return {"compute": compute, "communication": first + second, "in turn": compute + first + second,
            "overlapped": overlapped, "hidden from": math.ceil(max(first / forward, second / backward))}


@functools.cache
def memory_of(kind, gpus, micro_batch):
    """Bytes on one rank in bf16, with AdamW and averaged weights, without activation checkpointing."""
    ranks = {"DDP": gpus, "FSDP2": gpus, "HSDP": PER_NODE}[kind]
    return sum(estimate_dit(DIT, TOKENS, WORDS, micro_batch, precision="bf16", ranks=ranks,
                            parallel="ddp" if kind == "DDP" else "fsdp-bf16").values())


# --- The page ----------------------------------------------------------------------------------------------

def markdown(titles, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, ["---"] * len(titles), *rows])


def assumptions_table(a):
    return markdown(["assumption", "value", "source"], [[name, x.shown, x.source] for name, x in a.items()])


def clip_table(a):
    """What one clip costs, before anything is shared."""
    parts, forward = dit_parts(DIT, TOKENS, WORDS), dit_flops(DIT, TOKENS, WORDS)
    rate = a["peak"].value * a["training MFU"].value
    both, again = (training_flops(DIT, TOKENS, WORDS, checkpointing) for checkpointing in (False, True))
    share = {name: 100 * count / forward for name, count in parts.items()}
    quadratic = share["self-attention, q k' and weights v"]
    work = {"forward pass of the transformer": forward, "of these, every token with every other": None,
            "training step": both, "training step with activation checkpointing": again,
            "once before training: encode the clip": encode_flops(VAE, SIZE),
            "once before training: T5-XXL on the caption": t5_flops(WORDS)}
    rows = [[name, f"{quadratic:.0f} %", ""] if count is None else
            [name, f"{count / 1e12:.1f} TFLOP", f"{count / rate:.3f} s"] for name, count in work.items()]
    return markdown([f"one clip, {TOKENS:,} tokens, {WORDS} words", "operations", "one GPU"], rows)


def step_table(a):
    """Strategies against networks, at one micro-batch."""
    rows = []
    for gpus, network in ((GPUS[0], "NVLink"), (GPUS[1], "InfiniBand"), (GPUS[1], "Ethernet")):
        for kind in ("DDP", "FSDP2", "HSDP") if gpus > PER_NODE else ("DDP", "FSDP2"):
            s = step(a, kind, gpus, network, MICRO_BATCH)
            rows.append([f"{gpus:,}, {network}", kind, f"{received_bytes(kind, gpus) / 1e9:.1f} GB",
                         f"{s['communication']:.3f} s", f"{s['in turn']:.3f} s", f"{s['overlapped']:.3f} s",
                         f"{100 * s['compute'] / s['overlapped']:.0f} %", str(s["hidden from"]),
                         f"{memory_of(kind, gpus, MICRO_BATCH) / 2**30:.0f} GiB"])
    compute = MICRO_BATCH * sum(compute_seconds(a))
    return markdown([f"micro-batch {MICRO_BATCH}: {compute:.3f} s of compute", "strategy", "a GPU receives",
                     "communication", "step, in turn", "step, overlapped", "of it compute",
                     "hidden from micro-batch", "memory a GPU"], rows)


def here_text():
    """What parallel.py does otherwise, and what that costs."""
    P, gpus = parameter_count(), GPUS[0]
    here, lean = (estimate_dit(DIT, TOKENS, WORDS, MICRO_BATCH, precision="bf16", ranks=gpus,
                               parallel=parallel) for parallel in ("fsdp", "fsdp-bf16"))
    names = {"bf16 copies of the weights": "autocast's bf16 copies of all weights, {} GiB",
             "one block put together": "a gathered block that is {} GiB larger"}
    listed = "; ".join(shown.format(f"{(here[name] - lean.get(name, 0)) / 2**30:.1f}")
                       for name, shown in names.items())
    whole, less = (sum(items.values()) / 2**30 for items in (here, lean))
    return "\n".join([
        "[parallel.py](../minltx/workshop/parallel.py), which `train_tiny.py --parallel` uses, is simpler. "
        "Its DDP is the one above, HSDP it has none, and its FSDP2 has no policy for mixed precision:",
        "",
        f"- **It sends** 12 bytes per parameter and step, since weights are gathered in float32: on {gpus} "
        f"GPUs {12 * P * (gpus - 1) / gpus / 1e9:.1f} GB instead of "
        f"{received_bytes('FSDP2', gpus) / 1e9:.1f}.",
        f"- **It holds** more: {listed}. On {gpus} GPUs at micro-batch {MICRO_BATCH} that is {whole:.0f} GiB "
        f"instead of {less:.0f}.",
        f"- **It adds up** the gradients of several micro-batches uncut: {4 * P / 2**30:.1f} GiB more. DDP "
        "holds as much more then, since its buckets wait.",
        "",
        "Activations are those of autocast in both cases; the policy would cast what passes between blocks "
        "too, and keep somewhat less."])


def batch_table(a):
    """The same cluster with smaller and larger micro-batches."""
    rows, gpus = [], GPUS[1]
    for micro_batch in (1, 2, 4):
        both = {kind: step(a, kind, gpus, "InfiniBand", micro_batch) for kind in ("FSDP2", "HSDP")}
        shares = [f"{100 * s['compute'] / s['overlapped']:.0f} %" for s in both.values()]
        batch, memory = gpus * micro_batch, memory_of("HSDP", gpus, micro_batch)
        rows.append([str(micro_batch), f"{batch:,} clips", f"{batch * TOKENS / 1e6:.1f} M", *shares,
                     f"{memory / 2**30:.0f} of {a['GPU memory'].value / 2**30:.0f} GiB"])
    return markdown([f"micro-batch, {gpus:,} GPUs", "global batch", "tokens a step", "FSDP2: compute",
                     "HSDP: compute", "memory a GPU, HSDP"], rows)


def run_figures(a, gpus):
    """A whole training on so many GPUs, HSDP on InfiniBand -> dict of numbers."""
    kind = "HSDP" if gpus > PER_NODE else "FSDP2"
    seconds, nodes = step(a, kind, gpus, "InfiniBand", MICRO_BATCH)["overlapped"], gpus // PER_NODE
    late = a["jitter"].value * math.sqrt(2 * math.log(gpus))
    seconds *= 1 + late
    state = 16 * parameter_count()                  # float32: weights, their average, two moments
    writing = state / nodes / a["storage"].value
    failure = a["hours to an interruption"].value * 3600 / gpus
    between_saves = math.sqrt(2 * writing * failure)
    latent = 2 * VAE.channels * TOKENS
    text = 2 * WORDS * DIT.text_width
    clips_a_second = gpus * MICRO_BATCH / seconds
    steps = a["clips"].value / (gpus * MICRO_BATCH)
    return {"late": late, "seconds": seconds, "clips a day": 86400 * clips_a_second, "steps": steps,
            "days": steps * seconds / 86400, "state": state, "writing": writing, "failure": failure,
            "between saves": between_saves,
            "lost": writing / between_saves + between_saves / 2 / failure,
            "read": clips_a_second / nodes * (latent + text), "latent": latent, "text": text,
            "stored": a["clips"].value * (latent + text)}


def run_table(a):
    """A whole training on 8 and on 1,024 GPUs."""
    runs = [run_figures(a, gpus) for gpus in GPUS]
    lines = {
        "global batch": [f"{gpus * MICRO_BATCH:,} clips" for gpus in GPUS],
        "waiting for the slowest GPU": [f"{100 * r['late']:.1f} %" for r in runs],
        "step, that included": [f"{r['seconds']:.3f} s" for r in runs],
        "clips a day": [f"{r['clips a day'] / 1e6:.2f} M" for r in runs],
        f"steps for {a['clips'].shown} clips": [f"{r['steps']:,.0f}" for r in runs],
        "days for them": [f"{r['days']:.1f}" for r in runs],
        "read from storage, a node": [f"{r['read'] / 1e6:.0f} MB/s" for r in runs],
        "write a checkpoint, all nodes at once": [f"{r['writing']:.2f} s" for r in runs],
        "between two interruptions": [f"{r['failure'] / 3600:,.0f} hours" for r in runs],
        "best time between checkpoints": [f"{r['between saves'] / 60:.0f} minutes" for r in runs],
        "time lost to both": [f"{100 * r['lost']:.2f} %" for r in runs]}
    return markdown(["", *(f"{gpus:,} GPUs" for gpus in GPUS)], [[name, *cells]
                                                                for name, cells in lines.items()])


def breaks_text(a):
    """What breaks first, in the order in which one meets it."""
    far = {kind: step(a, kind, GPUS[1], "InfiniBand", 1) for kind in ("DDP", "FSDP2", "HSDP")}
    wire = step(a, "HSDP", GPUS[1], "Ethernet", 1)
    few, many = (run_figures(a, gpus) for gpus in GPUS)
    hops = a["hop inside"].value * (PER_NODE - 1) + a["hop between"].value
    way = GPUS[1] // PER_NODE * hops
    fits = memory_of("HSDP", GPUS[1], wire["hidden from"]) <= a["GPU memory"].value
    kept, inputs = (estimate_dit(DIT, TOKENS, WORDS, 1, precision="bf16", checkpointing=checkpointing)
                    ["activations"] / 2**30 for checkpointing in (False, True))
    return "\n".join([
        f"1. **Memory.** Weights, gradients, moments and average are {20 * parameter_count() / 2**30:.0f} "
        f"GiB, and FSDP2 shares them. One clip's activations are {kept:.0f} GiB, and nobody shares those. "
        f"Checkpointing makes them {inputs:.1f} GiB, for a third more compute.",
        f"2. **The way around the ring.** Flat FSDP2 on {GPUS[1]:,} GPUs sends every block around all of "
        f"them: {way * 1e3:.1f} ms of hops for a piece whose bytes take "
        f"{2 * parameter_count() / (DIT.depth + 1) / a['InfiniBand'].value * 1e3:.1f} ms. That is "
        f"{far['FSDP2']['communication']:.2f} s a step beside {far['FSDP2']['compute']:.2f} s of compute for "
        f"one clip; HSDP, with rings inside nodes, takes {far['HSDP']['communication']:.2f} s.",
        f"3. **The network.** On Ethernet the same takes {wire['communication']:.1f} s: it hides from a "
        f"micro-batch of {wire['hidden from']} on, which {'fits' if fits else 'does not fit'} without "
        "checkpointing. Or gradients of several micro-batches are added up before they are sent. The global "
        "batch grows either way.",
        f"4. **The global batch.** At {GPUS[1]:,} GPUs it is {GPUS[1] * MICRO_BATCH:,} clips, and "
        f"{a['clips'].shown} clips are {many['steps']:,.0f} steps instead of {few['steps']:,.0f}. Beyond "
        "some batch the gradient hardly gets better, and only steps count. Where that is for this model, "
        "nobody has measured here; learning rate and warm-up have to be found again.",
        f"5. **Data.** A clip is {many['latent'] / 1e6:.1f} MB of latents and {many['text'] / 1e6:.1f} MB of "
        f"text, in bf16: the caption weighs more than the video. {a['clips'].shown} are "
        f"{many['stored'] / 1e12:.0f} TB; reading them is {many['read'] / 1e6:.0f} MB/s a node, at random.",
        f"6. **Machines.** Something fails every {many['failure'] / 3600:,.0f} hours. The checkpoint is "
        f"{many['state'] / 1e9:.0f} GB whatever the number of GPUs, and quick where every node writes its "
        "part; what a failure really costs is the restart, which is not in the table.",
        "7. **The optimiser, not at all.** AdamW is elementwise, so shards need no word from each other. "
        "Muon needs whole matrices: each would have to be gathered, or computed by one rank."])


def sampling_table(a):
    """One clip on one GPU: passes through the transformer, the caption and the decoder."""
    forward, rows = dit_flops(DIT, TOKENS, WORDS), []
    for name, passes, captions in (("8 steps, distilled, no guidance", 8, 1),
                                   ("20 steps, no guidance", 20, 1),
                                   ("20 steps, guidance by the caption", 40, 2),
                                   ("20 steps, the same and spatio-temporal guidance", 60, 2)):
        work = passes * forward + captions * t5_flops(WORDS) + decode_flops(VAE, SIZE)
        peak = a["peak"].value
        rows.append([name, str(passes), f"{work / 1e12:,.0f} TFLOP", f"{work / peak:.2f} s",
                     f"{work / peak / a['sampling MFU'].value:.2f} s"])
    return markdown(["one clip of " + " x ".join(map(str, SIZE)), "passes", "operations", "at the peak",
                     f"at an MFU of {a['sampling MFU'].shown}"], rows)


def tables(a):
    """Marker in the page -> Markdown."""
    return {"assumptions": assumptions_table(a), "clip": clip_table(a), "step": step_table(a),
            "here": here_text(), "batch": batch_table(a), "run": run_table(a), "breaks": breaks_text(a),
            "sampling": sampling_table(a)}


def page_rates():
    """The rates of the page: its own benchmark's, or the assumed ones."""
    return rates(BENCH if BENCH.exists() else None)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", metavar="FILE", help=f"a benchmark's JSON (default: {BENCH.name} in "
                        "docs/results if it is there)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    args = parser.parse_args(argv)
    try:
        a = rates(Path(args.bench)) if args.bench else page_rates()
    except ValueError as error:
        parser.exit(2, f"minltx.workshop.on_paper: {error}\n")
    text = PAGE.read_text()
    for marker, table in tables(a).items():
        text = between(text, marker, table)
        print(table, "\n")
    if args.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
