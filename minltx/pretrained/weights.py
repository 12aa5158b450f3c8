"""Whole models from files and into files: official single files, and diffusers folders."""

from dataclasses import replace
from pathlib import Path

import torch

from minltx.command import pick_device
from minltx.pretrained import diffusers, names, official, store
from minltx.pretrained.early import PlainDecoder, PlainVAEConfig
from minltx.pretrained.model import LTXVideo
from minltx.pretrained.releases import RELEASES, ReleaseConfig, SamplingConfig


def load_pretrained(path, dtype=None, device="cpu", causal_time=None, release=None):
    """An official single file (.safetensors) or a diffusers folder, of any size that it states -> LTXVideo.

    dtype defaults to float32 on a CPU and bfloat16 elsewhere. causal_time overrides whether RoPE knows that
    the first latent frame is one pixel frame (None: as the file says, SPEC 3.4). release, a name in RELEASES,
    says how to sample (None: as the file says, or the release of its name and networks), and what an official
    file without metadata is. Needs the package safetensors; no code in a file is executed. Raises ValueError,
    in one line, for tensors or fields that are missing, left over, misshapen, unknown or not finite, for
    broken files, and if a checksum in a file of minltx differs.
    """
    path, device = Path(path), pick_device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    config, blocks = read_config(path, release)
    model, parts = located(config, path, blocks, causal_time)
    for part in parts:
        store.fill(*part, dtype, device)
    return model.eval()


def read_config(path, release=None):
    """A file or folder -> its `ReleaseConfig`, and what the VAE's blocks are called there (None: officially).
    Reads headers only. Raises ValueError for a missing or foreign file, and for an unknown release."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {path}: give an official .safetensors file or a diffusers folder")
    if release is not None and release not in RELEASES:
        raise ValueError(f"unknown release {release!r}: minltx knows {', '.join(RELEASES)}")
    if path.is_dir():
        return diffusers.read_folder(path, release)
    return official.read_header(path, release), None


def located(config, path, blocks, causal_time=None):
    """A model on the meta device, and what `store.fill` needs for each of its parts. Raises ValueError unless
    the file or folder holds exactly the model's tensors; none of them is read."""
    where = {source: store.locate(source)
             for source in ([path / "transformer", path / "vae"] if path.is_dir() else [path])}
    check_size(config, sum(map(len, where.values())), path)
    model = empty_model(config, causal_time)
    parts = [(network, known, where[source], source)
             for network, known, source in parts_of(model, path, blocks)]
    for part in parts:
        store.check(*part)
    return model, parts


def check_size(config, tensors, path):
    """Raises ValueError if a config asks for more blocks than a file with so many tensors can fill, unless
    they are few."""
    blocks = config.dit.depth + sum(args[0] if kind in ("res", "noisy") else 1 for kind, *args in
                                    config.vae.encoder_blocks + config.vae.decoder_blocks)
    if blocks > max(tensors, 100):
        raise ValueError(f"{path}: its config asks for {blocks} blocks, and it holds {tensors} tensors")


def empty_model(config, causal_time):
    """An LTXVideo without memory for its weights, on the meta device. Raises ValueError for a config that no
    model has."""
    if causal_time is not None:
        config = replace(config, dit=replace(config.dit, causal_time=causal_time))
    try:
        with torch.device("meta"):
            return LTXVideo(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"a model of this config cannot be built ({store.sentence(error)})") from None


def parts_of(model, path, blocks=None):
    """Where a model's tensors are: [(module, its name -> the stored name, file or folder)]. blocks, for a
    folder, says what the VAE's blocks are called there."""
    if blocks is None:
        return [(model, names.official_names(model), path)]
    return [(model.dit, names.diffusers_dit_names(model.dit), path / "transformer"),
            (model.vae, names.diffusers_vae_names(model.vae, blocks), path / "vae")]


def vae_config(vae):
    """A VAE's config; a `PlainVAEConfig` if its decoder is not conditioned on t."""
    return PlainVAEConfig(**vars(vae.config)) if type(vae.decoder) is PlainDecoder else vae.config


def plain_class(module):
    """A module's class, without what only makes it faster or distributes it over processes."""
    return next(cls for cls in type(module).__mro__
                if not cls.__module__.startswith(("minltx.fast_", "torch.distributed")))


def check_expressible(model, loaded):
    """Raises ValueError if `loaded`, the model that would be built from what is written, computes something
    else: another class of module somewhere, or other tensors. A variant of an ablation is such a model."""
    for part in ("dit", "vae"):
        own, other = dict(getattr(model, part).named_modules()), dict(getattr(loaded, part).named_modules())
        for name, module in own.items():
            kind, known = plain_class(module), type(other.get(name))
            if kind is not known:
                known = known.__name__ if name in other else "no module"
                place = f"{part}.{name}".rstrip(".")
                raise ValueError(f"the released formats cannot express {place} ({kind.__name__}), only "
                                 f"{known}: keep the model's own checkpoint")
        shapes = {k: v.shape for k, v in getattr(loaded, part).state_dict().items()}
        for name, tensor in getattr(model, part).state_dict().items():
            if shapes.get(name) != tensor.shape:
                raise ValueError(f"the released formats cannot express {part}.{name} of shape "
                                 f"{tuple(tensor.shape)}, only {tuple(shapes.get(name, ()))}: "
                                 "keep the model's own checkpoint")


def save_pretrained(model, path):
    """Write a model as an official single file (a path that ends in .safetensors) or as a diffusers folder
    (any other path). Each file is written completely or not at all.

    The model is an LTXVideo, or any other with a `dit`, a `vae` and `sampling_defaults()`, such as a trained
    toy, whose caption encoder is in neither format: keep its own checkpoint. Sampling settings that the
    formats lack, and in a folder the causal first frame of RoPE, go into an entry "minltx" of the header, or
    into minltx.json; other programs skip both. Raises ValueError, which names the module, if the format
    cannot express the model: nothing is written then.
    """
    path = Path(path)
    sampling = SamplingConfig.restored(model.sampling_defaults(), "the model")
    config = ReleaseConfig(model.dit.config, vae_config(model.vae), sampling)
    check_expressible(model, empty_model(config, None))
    if path.suffix == ".safetensors":
        known, weights = names.official_names(model), model.state_dict()
        return store.write(path, {known[name]: weights[name] for name in known}, official.header_of(config))
    fields = diffusers.folder_fields(config)
    for network, known, folder in parts_of(model, path, diffusers.read_vae(fields["vae/config.json"])[1]):
        weights = network.state_dict()
        store.write(folder / store.WEIGHTS, {known[name]: weights[name] for name in known})
        (folder / store.INDEX).unlink(missing_ok=True)     # of an older model: it would be read first
    for name, values in fields.items():
        store.write_json(path / name, values)
