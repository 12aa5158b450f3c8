"""Which model is in a file: release, parts, sizes, memory, how it samples, and whether minltx loads it.

    python -m minltx.pretrained ltxv-13b-0.9.8-dev.safetensors
    python -m minltx.pretrained FOLDER --device cuda

FILE_OR_FOLDER is an official .safetensors file, a diffusers folder, or a latent upsampler. Only headers are
read, so the answer for 26 GB takes seconds and no memory. The exit code is 1 for a model that is refused.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import torch

from minltx.command import Parser, device_name, hardware, one_line, pick_device
from minltx.pretrained import plan, store
from minltx.pretrained.releases import RELEASES, release_of
from minltx.pretrained.stg import GuidanceOverTime
from minltx.pretrained.upsampler import LatentUpsampler, UpsamplerConfig, read_upsampler, upsampler_at
from minltx.pretrained.weights import located, read_config

PARTS = {"model.diffusion_model.": "transformer", "transformer": "transformer", "vae.": "VAE", "vae": "VAE"}


def tensors_of(path):
    """Every tensor of a file, or of the folders transformer and vae -> {name: (shape, dtype)}, with the
    folder's name before it."""
    path, found = Path(path), {}
    whole = path.is_dir() and (path / "transformer").is_dir()
    for source in [path / "transformer", path / "vae"] if whole else [path]:
        if not source.exists():
            continue
        for name, opened in store.locate(source).items():
            part = opened.get_slice(name)
            found[f"{source.name}/{name}" if whole else name] = part.get_shape(), part.get_dtype()
    return found


def parts(tensors):
    """Lines: each part with its parameters and kinds of number."""
    counts, kinds = Counter(), {}
    for name, (shape, kind) in tensors.items():
        part = next((word for start, word in PARTS.items() if name.startswith(start)), "other")
        counts[part] += torch.Size(shape).numel()
        kinds.setdefault(part, Counter())[kind] += torch.Size(shape).numel()
    return [f"{part}: {count:,} numbers in {', '.join(kind for kind, _ in kinds[part].most_common())}"
            for part, count in counts.items()]


def size_on_disk(path):
    """Bytes of a file, or of all files of a folder."""
    files = Path(path).rglob("*") if Path(path).is_dir() else [Path(path)]
    return sum(file.stat().st_size for file in files if file.is_file())


def steps_in_words(s):
    """How one pass takes its steps."""
    if s.times:
        return f"{len(s.times)} steps at its own times {', '.join(f'{t:.5g}' for t in s.times)}"
    words = [f"{s.steps} steps", s.schedule.replace("_", "-")]
    words += ["shifted by the number of tokens"] * s.shifted
    words += [f"the first {s.skip_first} left out"] * bool(s.skip_first)
    words += [f"the last {s.skip_last} left out"] * bool(s.skip_last)
    return ", ".join(words)


def guidance_in_words(guidance):
    """Classifier-free guidance and STG of one pass."""
    if isinstance(guidance, GuidanceOverTime):
        scales = [f"{p.cfg:g}/{p.stg:g}" for p in guidance.parts]
        return f"guidance/STG over time {', '.join(scales)}"
    stg = f", STG {guidance.stg:g} in block {', '.join(map(str, guidance.stg_blocks))}"
    return f"guidance {guidance.cfg:g}{stg * (guidance.stg > 0)}"


def recipe_in_words(s):
    """Lines: how a release samples."""
    lines = [f"{'first pass: ' * (s.second is not None)}{steps_in_words(s)}; {guidance_in_words(s.guidance)}"]
    if s.second:
        lines.append(f"second pass, after the upsampler: {steps_in_words(s.second)}; "
                     f"{guidance_in_words(s.second.guidance)}")
    tone, frames, height, width = (s.second or s).tone_map, *s.size
    tones = f", tones compressed by {tone:g}" * bool(tone)
    lines.append(f"{'stochastic' if s.stochastic else 'deterministic'}; the decoder at t = {s.decode_t:g} "
                 f"with noise {s.decode_noise:g}{tones}; {s.text_tokens} tokens of text")
    return [*lines, f"{frames} frames of {height}x{width} at {s.fps:g} per second"]


def describe_model(path, release, device):
    """Lines about a whole model. Raises ValueError, with the reason, if minltx does not load it."""
    config, blocks = read_config(path, release)
    known = release or release_of(Path(path).resolve(), config.dit, config.vae, bool(config.sampling.times))
    same = [name for name, other in RELEASES.items() if other == config]
    yield f"release: {known or ' or '.join(same) or 'none that is known; it samples as its file says'}"
    for line in recipe_in_words(config.sampling):
        yield f"sampling: {line}"
    located(config, Path(path), blocks)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    upsampler = UpsamplerConfig(config.dit.latent_channels) if config.sampling.second else None
    how = config, config.sampling.size, dtype, upsampler
    yield from plan.lines(plan.estimate(*how), config.sampling.size, device, dtype=dtype)
    yield f"with --offload: {max(plan.estimate(*how, offload=True).values()) / plan.GIB:.2f} GiB"


def describe_upsampler(path):
    """Lines about a latent upsampler."""
    config, path = read_upsampler(path), upsampler_at(path)
    with torch.device("meta"):
        upsampler = LatentUpsampler(config)
    store.check(upsampler, {name: name for name in upsampler.state_dict()}, store.locate(path), path)
    yield (f"latent upsampler for 0.9.7 and 0.9.8: {config.latent_channels} channels, finer by "
           f"{'x'.join(map(str, config.stride))} (frames x rows x columns); give it to --upsampler")


def is_upsampler(path):
    """Does the path look like a latent upsampler rather than a whole model?"""
    path = upsampler_at(path)
    if path.is_dir():
        return (path / "config.json").is_file() and not (path / "transformer").is_dir()
    return "initial_conv.weight" in store.open_file(path).keys()


def options():
    parser = Parser(prog="python -m minltx.pretrained", description=__doc__)
    parser.add_argument("path", metavar="FILE_OR_FOLDER")
    parser.add_argument("--release", choices=RELEASES, help="describe it as this release")
    parser.add_argument("--device", type=device_name,
                        help="whose memory it has to fit (default: cuda if there is one)")
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser):
        device, small = pick_device(args.device), is_upsampler(args.path)
        tensors = tensors_of(upsampler_at(args.path))
    print(f"{args.path}: {size_on_disk(args.path) / plan.GIB:.3f} GiB on disk, on {hardware(device)}")
    described = describe_upsampler(args.path) if small else describe_model(args.path, args.release, device)
    try:
        for line in itertools.chain(parts(tensors), described):
            print(line)
    except ValueError as error:
        print(f"refused: {error}")
        return 1
    print("refused: nothing, it loads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
