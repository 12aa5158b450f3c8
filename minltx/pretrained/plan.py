"""How much memory a sampling needs, before anything is loaded, and how it can do with less.

Weights are arithmetic. Activations are measured on tensors without contents, see `minltx.memory`. A sampling
has phases: given pictures are encoded, the transformer runs, the latent may be upsampled, the result is
decoded. All networks stay on the device; with `--offload` only those of the present phase are on it. T5 has
a phase of its own, before the networks are loaded.
"""

import functools
import math
from dataclasses import replace

import torch

from minltx.dit import DiT
from minltx.memory import LiveTensors, device_memory, made_in
from minltx.pretrained.early import build_vae
from minltx.pretrained.model import LTXVideo
from minltx.pretrained.passes import first_size
from minltx.pretrained.stg import GuidanceOverTime
from minltx.pretrained.upsampler import LatentUpsampler

GIB, T5_PARAMETERS = 2**30, 4_762_310_656
TILES = ((8, 16, 16), (4, 12, 12), (2, 8, 8))      # latent frames, rows, columns: what to try, in this order


def numbers(module):
    """How many numbers a network has: parameters and statistics."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def captions_at_once(sampling):
    """2 if a step predicts for the caption and the negative prompt in one batch, see `stg`; otherwise 1."""
    over_time = isinstance(sampling.guidance, GuidanceOverTime)
    parts = sampling.guidance.parts if over_time else [sampling.guidance]
    return 1 + any(part.cfg > 1 and part.stg <= 0 and not part.cfg_star for part in parts)


def check_size(config, size):
    """Raises ValueError if the VAE cannot encode videos of this size."""
    with torch.device("meta"):
        build_vae(config.vae).latent_shape(*size)


def sizes_of(sampling, size, stride):
    """The size of every pass."""
    if sampling.second is None:
        return [tuple(size)]
    frames, height, width = first_size(size, stride)
    return [(frames, height, width), (frames, 2 * height, 2 * width)]


def live_bytes(network, work, *shapes, dtype):
    """The most bytes alive in work(network, *inputs of these shapes), next to weights and inputs."""
    from torch._subclasses.fake_tensor import FakeTensorMode                  # seconds, so only when needed

    with FakeTensorMode(), torch.no_grad(), made_in(dtype):
        network, inputs = network(), [torch.zeros(shape) for shape in shapes]
        with LiveTensors(layouts=True) as live:
            work(network, *inputs)
    return live.peak


@functools.cache
def activations(config, size, dtype=torch.float32, upsampler=None, tiles=None, halo=0):
    """Bytes of activations per phase, for one video of size (frames, height, width) pixels, without inputs.

    config is a `ReleaseConfig`; upsampler an `UpsamplerConfig` for two passes, or None; tiles, in latents,
    are decoded with their halo, one after the other.
    """
    def one_block():
        return DiT(replace(config.dit, depth=1))            # without gradients a block keeps nothing

    def run(dit, tokens, t, where, text, mask):
        dit.forward_tokens(tokens.repeat(batch, 1, 1), t, where, text, mask).float()

    def vae():
        return build_vae(config.vae)

    found, C, s = {}, config.dit.latent_channels, config.sampling
    stride = config.vae.stride
    if upsampler is None:
        s = s.one_pass()
    *_, now = sizes_of(s, size, stride)
    grid = (now[0] - 1) // stride[0] + 1, now[1] // stride[1], now[2] // stride[2]
    batch, N = max(map(captions_at_once, [s, *([s.second] if s.second else [])])), math.prod(grid)
    found["transformer"] = live_bytes(
        one_block, run, (1, N, C), (1, 1), (3, N), (batch, s.text_tokens, config.dit.text_width),
        (batch, s.text_tokens), dtype=dtype)
    if upsampler is not None:
        small = (1, C, grid[0], grid[1] // 2, grid[2] // 2)
        found["upsampler"] = live_bytes(lambda: LatentUpsampler(upsampler), lambda net, z: net(z), small,
                                        dtype=dtype)
    first = min(sizes_of(s, size, stride)[0][0], 1)
    found["encoder"] = live_bytes(vae, lambda vae, video: vae.encode(video), (1, 3, first, *now[1:]),
                                  dtype=dtype)
    part = grid if tiles is None else tuple(min(n, t + 2 * halo) for n, t in zip(grid, tiles))
    found["decoder"] = live_bytes(vae, lambda vae, z, t: vae.decode(z, t), (1, C, *part), (1,), dtype=dtype)
    if tiles is not None:
        found["decoder"] += 3 * math.prod(now) * dtype.itemsize                         # the whole video
    return found


def estimate(config, size, dtype=torch.float32, upsampler=None, offload=False, tiles=None, halo=0):
    """Bytes on the device in every phase, weights included -> {phase: bytes}; the peak is the largest."""
    with torch.device("meta"):
        model = LTXVideo(config)
        weights = {"transformer": numbers(model.dit), "VAE": numbers(model.vae),
                   "upsampler": numbers(LatentUpsampler(upsampler)) if upsampler else 0}
    at_work = {"transformer": ("transformer",), "encoder": ("VAE",), "decoder": ("VAE",),
               "upsampler": ("upsampler", "VAE")}
    found = {}
    for phase, live in activations(config, tuple(size), dtype, upsampler, tiles, halo).items():
        loaded = at_work[phase] if offload else weights
        found[phase] = live + dtype.itemsize * sum(weights[name] for name in loaded)
    return found


def fitting_tiles(config, size, dtype, upsampler, offload, limit, halo):
    """Tiles for the decoder if the whole decode exceeds limit bytes: the largest that fit, otherwise the
    smallest; None if the whole fits, and for a decoder that cannot be cut (SPEC 2.2)."""
    noisy = any(kind == "noisy" for kind, *_ in config.vae.decoder_blocks)
    if noisy or limit is None or estimate(config, size, dtype, upsampler, offload)["decoder"] <= limit:
        return None
    for tiles in TILES:
        if estimate(config, size, dtype, upsampler, offload, tiles, halo)["decoder"] <= limit:
            return tiles
    return TILES[-1]


def excess(found, device, offload=False):
    """What of an estimate is more than the device has, with what helps; "" if it fits."""
    phase, limit = max(found, key=found.get), device_memory(device)
    if limit is None or found[phase] <= limit:
        return ""
    help_ = "a smaller --size" if offload else "--offload or a smaller --size"
    return (f"the {phase} needs {found[phase] / GIB:,.2f} GiB of memory, and the device has "
            f"{limit / GIB:.1f} GiB: use {help_}, or --tiles")


def lines(found, size, device, offload=False, t5=False, dtype=torch.float32):
    """An estimate as lines for a terminal, with what helps if it is more than the device has."""
    phase, more = max(found, key=found.get), excess(found, device, offload)
    rows = ", ".join(f"{name} {count / GIB:.2f}" for name, count in found.items())
    text = [f"memory for {'x'.join(map(str, size))}: {found[phase] / GIB:.2f} GiB, most of it in the {phase} "
            f"(GiB per phase: {rows})"]
    if t5:
        text.append(f"memory for T5, before: {T5_PARAMETERS * dtype.itemsize / GIB:.1f} GiB")
    return text + [more] * bool(more)
