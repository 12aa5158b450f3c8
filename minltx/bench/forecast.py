"""What a sampling needs, told before it begins: refused if it cannot fit in memory, announced if it is long.

The memory is `training.memory`'s estimate, and the time a lower bound: the operations of `bench.flops`,
divided by the speed of a large matrix product, which is timed on the spot.
"""

import math

import torch

from minltx.bench.flops import dit_flops
from minltx.bench.timing import matmul_peak
from minltx.dit import DiT
from minltx.training.memory import BYTES, device_memory, refuse, sampling_peaks, weights_of
from minltx.vae import VideoVAE

LONG = 60       # seconds
WORDS = 16      # of a caption: a longer one adds little to so many tokens


def check_sampling(dit, vae, size, clips, steps, tiled=False):
    """Print how long the transformer works on `clips` videos of (frames, height, width), if that is long.

    dit, vae: the networks, on their device. tiled: the VAE decodes in tiles, so its memory is not counted.
    Returns the seconds. Raises ValueError, with the figure, if the device has too little memory.
    """
    weight, what = dit.proj_out.weight, f"{clips} of {'x'.join(map(str, size))} pixels"
    limit, pixels = device_memory(weight.device), 12 * clips * math.prod(size)
    refuse(what, pixels, limit)                                     # before anything is estimated
    precision = "bf16" if weight.dtype == torch.bfloat16 else "float32"
    tokens = math.prod(vae.latent_shape(*size)[1:])
    passes = sampling_peaks(dit.config, vae.config, size, WORDS, 2, precision)[: 1 if tiled else 3]
    operations = 2 * clips * steps * dit_flops(dit.config, tokens, WORDS)         # 2: with guidance
    weights = sum(weights_of(*pair) for pair in ((DiT, dit.config), (VideoVAE, vae.config)))
    refuse(what, pixels + clips * max(passes) + weights * BYTES[precision] // 4, limit)
    seconds = operations / matmul_peak(weight.device, weight.dtype, (1024,), 3)
    if seconds > LONG:
        print(f"{what}: the transformer alone needs at least {seconds / 60:.0f} minutes", flush=True)
    return seconds
