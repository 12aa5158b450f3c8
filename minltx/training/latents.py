"""What the transformer learns from: clips as latents of a finished VAE, encoded once and cached."""

import hashlib
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from minltx.evaluation.report import clips_at_once
from minltx.files import read_torch, write_torch
from minltx.objectives import Batch
from minltx.sampler import Condition
from minltx.toy.captions import motion_alone
from minltx.toy.data import ALL_DIGITS, LATENTS, MovingDigit, describe, rng
from minltx.toy.model import load_checkpoint
from minltx.video.clips import ClipFolder


@dataclass
class LatentCache:
    """Clips of one data set as latents before normalisation (n, C, f, h, w), and their n scenes."""

    data: object
    latents: torch.Tensor
    scenes: list


def clip_variants(data, images, labels, settings):
    """The data sets that stage 2 learns from: the data itself, or one for each of settings.clip_variants."""
    names = ("frames", "size", "fps", "digits")
    return [data.like(images, labels, replace(data.config, **dict(zip(names, variant))))
            for variant in settings.clip_variants] or [data]


def take_vae(model, path):
    """Give the model the VAE of another run's file. Raises ValueError if its config differs."""
    model.vae.load_state_dict(read_vae(path, model.vae.config).state_dict())


def read_vae(path, config):
    """The VAE in another run's file. Raises ValueError if its config differs."""
    vae = load_checkpoint(path)[0].vae
    if vae.config != config:
        raise ValueError(f"the autoencoder in {path} has another config than this run's: "
                         "use the preset that it was trained with")
    return vae


# --- Encoding ---------------------------------------------------------------------------------------------

@torch.no_grad()
def encode_clips(vae, data, count, seed, device, held_out=False, first=0):
    """`count` clips -> latents before normalisation (count, C, f, h, w), and their scenes. Calls whose ranges
    from `first` to `first + count` are apart share no random numbers."""
    latents, scenes, several = [], [], clips_at_once(64, data)
    for start in tqdm(range(0, count, several), desc="latents", disable=None):
        video, some = data.batch(min(several, count - start), rng(seed, LATENTS, first + start), held_out)
        latents.append(vae.encode(video.to(device))[0])
        scenes += some
    return torch.cat(latents), scenes


def encode_variants(vae, variants, count, seed, device):
    """`count` clips in all -> a LatentCache for each of the data sets; equal ones get different clips."""
    return [LatentCache(data, *encode_clips(vae, data, count // len(variants), seed, device, first=first))
            for data, first in zip(variants, range(0, count, count // len(variants)))]


def latent_cache(path, vae, variants, settings, seed, world):
    """The LatentCaches in the file `path`; if it is not there, they are encoded and written to it.

    The file is mapped, not read into the memory: it may be larger. With path None nothing is stored. Raises
    ValueError if the file is damaged, or of other clips or another VAE.
    """
    if path is None:
        return encode_variants(vae, variants, settings.latents, seed, world.device)
    weights = sum(p.double().abs().sum().item() for p in vae.encoder.parameters())
    mark = [f"{weights:.6e}", *source_of(variants, settings, seed)]
    if not Path(path).exists() and world.rank == 0:
        caches = encode_variants(vae, variants, settings.latents, seed, world.device)
        views = [(cache.latents.cpu(), [s if isinstance(s, str) else [astuple(x) for x in s]
                                        for s in cache.scenes]) for cache in caches]
        write_torch(path, {"mark": mark, "views": views})
    world.wait()
    stored = open_latents(path)
    if stored["mark"] != mark:
        raise ValueError(f"{path} holds the latents of other clips or of another autoencoder: "
                         "name another file with --latents")
    try:
        return [stored_cache(vae, data, settings.latents // len(variants), *view)
                for data, view in zip(variants, stored["views"], strict=True)]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds other latents than it says ({error}): remove it") from None


def open_latents(path):
    """The dictionary in a file of latents, mapped. Raises ValueError if it is damaged or another file."""
    try:
        stored = read_torch(path, mmap=True)
        if not isinstance(stored, dict) or stored.keys() != {"mark", "views"}:
            raise ValueError("it is another kind of file")
        return stored
    except ValueError as error:
        raise ValueError(f"{path} does not hold latents, or is damaged ({error}): name another file with "
                         "--latents") from None


def check_latents(path, variants, settings, seed):
    """Raises ValueError, before the hours of the first stage, if `latent_cache` will refuse the file `path`
    for its clips. A file that does not exist, or None, is not checked."""
    if path is None or not Path(path).exists():
        return
    mark = open_latents(path)["mark"]
    if not isinstance(mark, list) or mark[1:] != source_of(variants, settings, seed):
        raise ValueError(f"{path} holds the latents of other clips: name another file with --latents")


def source_of(variants, settings, seed):
    """The part of a file's mark that describes the clips."""
    return [settings.latents, seed, [contents(data, seed, i * (settings.latents // len(variants)))
                                     for i, data in enumerate(variants)]]


def contents(data, seed, first):
    """A data set's fingerprint: the shape of its clips, their captions, the brightness of some of them."""
    video, scenes = data.batch(clips_at_once(16, data), rng(seed, LATENTS, first))
    captions = [describe(scene) for scene in scenes]
    if isinstance(data, ClipFolder):
        captions += [f"{clip.path.name} {clip.frames} {clip.caption}" for clip in data.clips]
    return [list(data.config.clip_shape), hashlib.sha256("\n".join(captions).encode()).hexdigest(),
            f"{video.double().mean() + 1:.4e}"]


def stored_cache(vae, data, count, latents, scenes):
    """A LatentCache from a file. Raises ValueError if it is not `count` clips of that data, or not finite."""
    shape = (count, *vae.latent_shape(*data.config.clip_shape))
    if tuple(latents.shape) != shape or len(scenes) != count:
        raise ValueError(f"shape {tuple(latents.shape)}, not {shape}")
    if not all(part.isfinite().all() for part in latents.split(64)):
        raise ValueError("not finite")
    scenes = [s if isinstance(s, str) else [MovingDigit(*x) for x in s] for s in scenes]
    if {x for scene in scenes if not isinstance(scene, str) for x in scene} - set(ALL_DIGITS):
        raise ValueError("a scene of no digit")
    return LatentCache(data, latents, scenes)


def measure_latents(vae, latents):
    """Give the VAE the mean and standard deviation of each channel, for `normalize`; latents is a list of
    (n, C, f, h, w) before normalisation."""
    channels = torch.cat([x.movedim(1, 0).flatten(1) for x in latents], dim=1)            # (C, all voxels)
    vae.latent_mean.copy_(channels.mean(1))
    vae.latent_std.copy_(channels.std(1))


# --- A batch ----------------------------------------------------------------------------------------------

def batch_of_latents(model, cache, layout, settings, generator, frames=None):
    """A training batch of settings.dit_batch clips, with the condition that belongs to the layout. Clips that
    are cut to fewer `frames`, and images, come in larger batches, of about as many tokens.

    "free": nothing is given; "still": images; "start": the first frame, or the first few latent frames, are
    given; "keyframe": a single later frame; "end": the last frames. Conditions of the last two are encoded
    on their own, so their clips are rendered, not taken from the cache.
    """
    vae, device, B = model.vae, model.vae.latent_mean.device, settings.dit_batch
    if layout in ("keyframe", "end"):
        latent, scenes, condition = later_frames(vae, cache.data, layout, B, generator)
        captions = captions_of(scenes, layout, settings, generator)
        return Batch(latent, captions, cache.data.config.fps, condition)
    latents, frames = cache.latents, 1 if layout == "still" else frames
    if frames:
        latents = latents[:, :, : (frames - 1) // vae.config.stride[0] + 1]          # the encoder is causal
    count = B * cache.latents.shape[2] // latents.shape[2]
    rows = torch.randint(len(latents), (count,), generator=generator)
    latent = vae.normalize(latents[rows.to(latents.device)].to(device))                   # (B, C, f, h, w)
    condition, captions = None, captions_of([cache.scenes[i] for i in rows], layout, settings, generator)
    if layout == "start":
        few = torch.randint(1, latent.shape[2], (1,), generator=generator).item()
        one = torch.rand(1, generator=generator).item() < 0.5
        condition = Condition(latent[:, :, : 1 if one else few])
    return Batch(latent, captions, cache.data.config.fps, condition)


def captions_of(scenes, layout, settings, generator):
    """Scenes -> their captions. Some say only how the clip moves: guidance compares with such captions."""
    captions = [describe(scene, layout == "still") for scene in scenes]
    if not settings.motion_captions or layout == "still":
        return captions
    cut = torch.rand(len(captions), generator=generator) < settings.motion_captions       # (B,)
    return [motion_alone(text) if alone else text for text, alone in zip(captions, cut)]


@torch.no_grad()
def later_frames(vae, data, layout, count, generator):
    """Freshly rendered clips, with one later frame given, or the last frames: latents, scenes, condition."""
    video, scenes = data.batch(count, generator)
    frame = torch.randint(1, video.shape[2], (1,), generator=generator).item()
    given = video[:, :, frame : frame + 1]
    if layout == "end":
        stride = vae.config.stride[0]
        frame = -(-frame // stride) * stride                                 # up to the next multiple
        given = video[:, :, frame:]
    latent, given = (vae.normalize(vae.encode(x.to(vae.latent_mean.device))[0]) for x in (video, given))
    return latent, scenes, Condition(given, frame)
