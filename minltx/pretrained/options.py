"""The options of sample.py for released weights, and the model that they ask for."""

from pathlib import Path

import torch

from minltx.command import number
from minltx.memory import device_memory

NAMES = ("text", "t5", "negative", "stg", "release", "dtype", "upsampler", "one_pass", "offload", "clean")


def add_options(add):
    """Add the options; add is a parser's `add_argument`."""
    add("--weights", metavar="FILE_OR_FOLDER",
        help="released weights: an official .safetensors file, or a diffusers folder")
    add("--text", metavar="FILE", help="with --weights: the prompts' embeddings, from minltx.pretrained.t5")
    add("--t5", metavar="FOLDER", help="with --weights, instead of --text: T5 itself")
    add("--negative", type=str,
        help="with --weights: the prompt to steer away from (default: the released one)")
    add("--stg", type=number(0, 100),
        help="with --weights: scale of spatio-temporal guidance; 0 turns it off (default: the release's)")
    add("--upsampler", metavar="FILE_OR_FOLDER",
        help="with --weights of 0.9.7 and 0.9.8: their latent upsampler, for two passes as released")
    add("--one-pass", action="store_true", help="with --weights: one pass at full size, no upsampler")
    add("--release", help="with --weights: sample as 0.9.0, 0.9.5, 0.9.8-2b-distilled ... "
                          "(default: as the file or its published name says)")
    add("--clean", action="store_true",
        help="with --weights: give pictures as they are (default: blurred and compressed, as released)")
    add("--offload", action="store_true",
        help="with --weights: keep only the network that computes on the device; slower, with less memory")
    add("--dtype", choices=("float32", "bfloat16"), help="with --weights (default: bfloat16 on a GPU)")


def preparation(args, resize=False):
    """What makes a tensor of a given PIL image, as `pictures.as_released`; None: resized as for the toy."""
    if not args.weights or args.clean:
        return None
    from minltx.pretrained.pictures import as_released                 # the toy does not need this room

    return lambda image, height, width: as_released(image, height, width, resize)


def load(args, device, halo, announce_time):
    """The released model for these prompts. Raises ValueError, before it is loaded, if the device has less
    memory than it needs; otherwise prints that memory, and calls announce_time(the transformer's config,
    size, clips, evaluations, device, dtype), unless the size is that of a clip that is read later. args.tiles
    is set if the video would not fit on the device otherwise; halo is that of tiles."""
    from minltx.pretrained.prompts import load_prompted

    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    if Path(args.weights).exists() and (args.text or args.t5):
        config, size = plan_memory(args, device, dtype, halo)
        if not args.start:
            count = evaluations(config.sampling, args.steps, args.guidance, args.stg, args.upsampler)
            announce_time(config.dit, size, 1, count, device, dtype)
    return load_prompted(args.weights, args.prompts, args.text, args.t5, args.negative, dtype=dtype,
                         device=device, release=args.release, upsampler=args.upsampler,
                         one_pass=args.one_pass, offload=args.offload)


def evaluations(sampling, steps=None, guidance=None, stg=None, upsampler=None):
    """How often the transformer runs at full size for a video, at least: with an upsampler that is the second
    pass. sampling is a `SamplingConfig`; None: as released."""
    two = upsampler and sampling.second
    last = sampling.second if two else sampling.one_pass()
    guidance = last.guidance.scaled(guidance, stg)
    each = min(1 + (part.cfg > 1) + (part.stg > 0) for part in getattr(guidance, "parts", [guidance]))
    return each * (len(last.schedule_of(None if two else steps)) - 1)


def plan_memory(args, device, dtype, halo):
    """Print the estimate, and choose tiles if the decoder would exceed the device's memory -> the release's
    config, the size. Raises ValueError if the device has less memory than that needs."""
    from minltx.pretrained import plan
    from minltx.pretrained.releases import RELEASES, release_of
    from minltx.pretrained.upsampler import read_upsampler
    from minltx.pretrained.weights import read_config

    config = read_config(args.weights, args.release)[0]
    frames, *sides = config.sampling.size
    sides, frames = args.size or sides, frames if args.frames is None else args.frames
    size = (frames, sides[0], sides[-1])
    plan.check_size(config, size)
    upsampler = read_upsampler(args.upsampler) if args.upsampler else None
    how = config, size, dtype, upsampler, args.offload
    if not args.tiles:
        args.tiles = plan.fitting_tiles(*how, device_memory(device), halo)
        if args.tiles:
            print(f"decoding in tiles of {'x'.join(map(str, args.tiles))} latents, to fit into memory")
    found = plan.estimate(*how, args.tiles, halo)
    if more := plan.excess(found, device, args.offload):
        raise ValueError(f"a video of {'x'.join(map(str, size))}: {more}")
    lines = plan.lines(found, size, device, args.offload, args.t5, dtype)
    known = args.release or release_of(Path(args.weights).resolve(), config.dit, config.vae)
    if known and RELEASES[known].sampling.guidance == config.sampling.guidance:
        lines.append(f"sampling as release {known}")
    print("\n".join(lines))
    return config, size
