"""The memory and time of a sampling, before it begins: too much memory is refused, a long time is printed.

The memory is `training.memory`'s estimate, and the time a lower bound: the operations of `bench.flops`,
divided by the speed of a large matrix product, which is timed on the spot. Both need the configs of the
networks and not the networks.
"""

import math

from minltx.bench.flops import dit_flops
from minltx.bench.timing import matmul_peak
from minltx.dit import DiT
from minltx.training.memory import device_memory, refuse, sampling_peaks, weights_of
from minltx.vae import VideoVAE

LONG = 60       # seconds
WORDS = 16      # of a caption: a longer one adds little to so many tokens


def named(clips, size):
    """So many videos of (frames, height, width), in words."""
    return f"{clips} video{'s' * (clips > 1)} of {'x'.join(map(str, size))}"


def check_memory(dit, vae, size, clips, device, tiled=False):
    """Raises ValueError, with the figure, if the device has too little memory for sampling `clips` videos of
    (frames, height, width) in float32.

    dit, vae: the networks' configs. tiled: the VAE decodes in tiles, so its memory is not counted.
    """
    limit, pixels = device_memory(device), 12 * clips * math.prod(size)
    refuse(named(clips, size), pixels, limit)                       # before anything is estimated
    passes = sampling_peaks(dit, vae, size, WORDS, 2)[: 1 if tiled else 3]
    weights = weights_of(DiT, dit) + weights_of(VideoVAE, vae)
    refuse(named(clips, size), pixels + clips * max(passes) + weights, limit)


def announce_time(dit, size, clips, evaluations, device, dtype):
    """Print how long the transformer of this config works on `clips` videos of (frames, height, width), if
    that is long. evaluations: how often it runs for each. Returns the seconds."""
    tokens = math.prod(-(-n // stride) for n, stride in zip(size, dit.stride))
    operations = clips * evaluations * dit_flops(dit, tokens, WORDS)
    seconds = operations / matmul_peak(device, dtype, (1024,), 3)
    if seconds > LONG:
        print(f"{named(clips, size)}: the transformer alone needs at least {seconds / 60:.0f} minutes",
              flush=True)
    return seconds
