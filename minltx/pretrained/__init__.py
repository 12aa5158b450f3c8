"""The released 2 B models in minltx's own classes: load the official weights, sample as released, save again.

    model = load_pretrained("ltx-video-2b-v0.9.5.safetensors")      # an official file, or a diffusers folder
    video = model.generate(text, null_text, seeds=[0])              # text: (embeddings, mask), see t5.py

Nothing of this is needed to understand the model: names of tensors (`names`), the languages of configs
(`releases`), files (`store`). The networks are `minltx.dit.DiT` and `minltx.vae.VideoVAE` as they stand.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from minltx.dit import DiT, DiTConfig
from minltx.flow import linear_quadratic_schedule, schedule_from, shift_times
from minltx.pretrained import names, store
from minltx.pretrained.releases import (DISTILLED, EARLY, RELEASES, Fields, ReleaseConfig, SamplingConfig,
                                        dit_config, dit_fields, vae_from_diffusers, vae_from_official,
                                        vae_to_diffusers, vae_to_official)
from minltx.sampler import Guidance, generate
from minltx.vae import VideoVAE
from minltx.workshop.checkpoint import GUIDANCE, STEPS, pixels

__all__ = ["LTXVideo", "RELEASES", "load_pretrained", "save_pretrained"]


class LTXVideo(nn.Module):
    """A released model: `dit` (a DiT), `vae` (a VideoVAE) and `config` (a ReleaseConfig)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dit, self.vae = DiT(config.dit), VideoVAE(config.vae)

    def schedule(self, steps=None, tokens=0):
        """The release's times (steps + 1,). ValueError for no steps, and if a distilled model is asked for
        others than its own."""
        c = self.config.sampling
        if c.times:
            if steps not in (None, len(c.times)):
                raise ValueError(f"this distilled model takes exactly {len(c.times)} steps, not {steps}")
            return torch.tensor([*c.times, 0.0])
        steps = c.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"the sampler needs at least 1 step, not {steps}")
        schedule = linear_quadratic_schedule(steps) if c.schedule == "linear_quadratic" else \
            torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if c.shifted:
            shifted = shift_times(schedule[:-1].double(), tokens, c.terminal, c.shift_line)
            schedule = torch.cat([shifted, schedule[-1:]])
        return schedule.float()

    @torch.no_grad()
    def generate(self, text, null_text=None, seeds=(0,), size=None, steps=None, guidance=None, fps=None,
                 conditions=(), start=None, change=1.0, condition_noise=None, stochastic=None,
                 decode_t=None, decode_noise=None, mix_raw=False, progress=None):
        """text = (B, L, text width), mask (B, L), as many seeds -> (B, 3, F, H, W) in [-1, 1], on the CPU.

        null_text, the negative prompt's pair, is needed where guidance.cfg > 1. size is (frames, height,
        width). conditions are (video (1 or B, 3, F', H, W), frame where it starts, strength); start is a
        video to change, made noisy to the time `change` (a distilled model: to its nearest own time). What is
        None is as the release has it (`config.sampling`). ValueError for illegal sizes, steps and conditions.
        """
        c, device, dtype = (self.config.sampling, self.dit.proj_out.weight.device,
                            self.dit.proj_out.weight.dtype)
        guidance = c.guidance if guidance is None else guidance
        if guidance.cfg > 1 and null_text is None:
            raise ValueError("guidance needs null_text, the embedding of the negative prompt: give it, "
                             "or set cfg to 1")
        if guidance.stg > 0 and not all(0 <= block < self.config.dit.depth for block in guidance.stg_blocks):
            raise ValueError(f"STG is to make the blocks {guidance.stg_blocks} blind, and this transformer "
                             f"has {self.config.dit.depth}: give stg_blocks below that, or set stg to 0")
        pairs = [None if pair is None else
                 (pair[0].to(device, dtype).expand(len(seeds), -1, -1), pair[1].to(device))
                 for pair in (text, null_text)]
        size = size or c.size
        schedule = self.schedule(steps, math.prod(self.vae.latent_shape(*size)[1:]))
        if start is not None:
            change = min(c.times, key=lambda t: abs(t - change)) if c.times and change > 0 else change
            schedule = schedule_from(schedule, change)
        chosen = {name: getattr(c, name) if value is None else value for name, value in (
            ("condition_noise", condition_noise), ("stochastic", stochastic), ("decode_t", decode_t),
            ("decode_noise", decode_noise))}
        return generate(self.vae, self.dit, *pairs, seeds, size, schedule, guidance,
                        c.fps if fps is None else fps, conditions, start, mix_raw=mix_raw,
                        progress=progress, **chosen).float().cpu()


# --- Loading ----------------------------------------------------------------------------------------------

def load_pretrained(path, dtype=None, device="cpu", causal_time=None, release=None):
    """An official single file (.safetensors) or a diffusers folder, of any size that it states -> LTXVideo.

    dtype defaults to float32 on a CPU and bfloat16 elsewhere. causal_time overrides whether RoPE knows that
    the first latent frame is one pixel frame (None: as the file says, SPEC 3.4). release, a name in RELEASES,
    says what an official file without metadata is. ValueError, one sentence, for whatever is missing, left
    over, misshapen, cut off, foreign or unknown; needs the package safetensors.
    No code in a file is executed.
    """
    path = Path(path)
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"the device {device!r} is not known ({store.sentence(error)})") from None
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if not path.exists():
        raise ValueError(f"there is no {path}: give an official .safetensors file or a diffusers folder")
    if path.is_dir():
        if release is not None:
            raise ValueError("a folder says what it is: leave out release")
        config, blocks = folder_config(path)
        model, parts = empty_model(config, causal_time), []
        for part, network, known in (
                ("transformer", model.dit, names.diffusers_dit_names(model.dit)),
                ("vae", model.vae, names.diffusers_vae_names(model.vae, blocks))):
            parts.append((network, known, store.locate(store.shards(path / part)), path / part))
    else:
        model = empty_model(official_config(path, release), causal_time)
        where, known = store.locate([path]), names.official_names(model.dit, model.vae)
        parts = [(network, {k: v for (p, k), v in known.items() if p == part}, where, path)
                 for part, network in (("dit", model.dit), ("vae", model.vae))]
    used = [stored for _, known, _, _ in parts for stored in known.values()]
    for network, known, where, source in parts:
        store.check(network, known, where, source)
        statistics = [name for name in where if name.startswith(names.UNUSED_STATISTICS)]
        store.refuse_left_over(where, used + statistics, source)
    for network, known, where, source in parts:
        store.fill(network, known, where, dtype, device, source)
    return model.eval()


def empty_model(config, causal_time):
    """An LTXVideo without memory for its weights, on the meta device."""
    if causal_time is not None:
        config = replace(config, dit=replace(config.dit, causal_time=causal_time))
    try:
        with torch.device("meta"):
            return LTXVideo(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"a model of this config cannot be built ({store.sentence(error)})") from None


def sampling_for(causal_time, depth, told_t, **known):
    """How a release samples, from what its files do say (SPEC 5.3)."""
    sampling = SamplingConfig() if causal_time else EARLY
    sampling = replace(DISTILLED if known.get("times") else sampling, **known)
    if depth <= 19:         # the block that the released models make blind
        sampling = replace(sampling, guidance=replace(sampling.guidance, stg=0.0, stg_blocks=(), rescale=1.0))
    return sampling if told_t else replace(sampling, condition_noise=0.0, decode_noise=0.0)        # 0.9.0


def official_config(path, release=None):
    """The header of an official file -> ReleaseConfig."""
    header = store.metadata(path)
    if release is not None:
        if release not in RELEASES:
            raise ValueError(f"unknown release {release!r}: minltx knows {', '.join(RELEASES)}")
        if "config" in header:
            raise ValueError(f"{path} says itself what it is: leave out release")
        return RELEASES[release]
    if "config" not in header:
        raise ValueError(f"{path} does not say what it is (no config in its header): load it with "
                         f"release=, one of {', '.join(RELEASES)}")
    own = header.get("minltx")
    header = Fields(store.parse_json(header["config"], f"the config in the header of {path}"), "the header")
    vae = vae_from_official(header.get("vae"))
    transformer = Fields(header.get("transformer"), "the header's transformer")
    causal_time = transformer.flag("causal_temporal_positioning")
    dit = dit_config(transformer, vae, causal_time)
    scheduler = Fields(header.get("scheduler"), "the header's scheduler")
    scheduler.must_be(_class_name="RectifiedFlowScheduler", sampler=("Uniform", "LinearQuadratic"),
                      shifting="SD3", num_train_timesteps=1000)
    if own is not None:
        own = store.parse_json(own, "the header's minltx")
        return ReleaseConfig(dit, vae, sampling_from(own, "the header's minltx"))
    quadratic = scheduler.get("sampler", "Uniform") == "LinearQuadratic"
    known = {"schedule": "linear_quadratic" if quadratic else "uniform",
             "shifted": scheduler.get("shifting", None) is not None,
             "terminal": scheduler.get("target_shift_terminal", None)}
    times = header.get("allowed_inference_steps", ())
    if not isinstance(times, (list, tuple)):
        raise ValueError(f"the header: allowed_inference_steps is {times!r:.60}, which is no list of times")
    if times:
        known |= {"times": tuple(times), "steps": len(times)}
    return ReleaseConfig(dit, vae, sampling_for(causal_time, dit.depth, vae.timestep_conditioning, **known))


def folder_config(path):
    """The JSON files of a diffusers folder -> ReleaseConfig, and what the VAE's blocks are called there."""
    for part in ("transformer", "vae", "scheduler"):
        if not (path / part).is_dir():
            raise ValueError(f"{path} has no folder {part}: "
                             "a diffusers folder holds transformer, vae and scheduler")
    vae, blocks = vae_from_diffusers(store.read_json(path / "vae" / "config.json"))
    own = path / "minltx.json"
    own = Fields(store.read_json(own) if own.exists() else {}, "minltx.json")
    late = any(block[0] == "down" for block in vae.encoder_blocks)      # diffusers goes by the VAE, so do we
    causal_time = own.flag("causal_temporal_positioning", late)
    transformer = Fields(store.read_json(path / "transformer" / "config.json"), "transformer/config.json")
    dit = dit_config(transformer, vae, causal_time)
    scheduler = Fields(store.read_json(path / "scheduler" / "scheduler_config.json"), "scheduler_config.json")
    scheduler.must_be(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000)
    if "sampling" in own.values:
        return ReleaseConfig(dit, vae, sampling_from(own.get("sampling"), "minltx.json")), blocks
    known = {"stochastic": scheduler.flag("stochastic_sampling")}
    if not late:            # the pipeline of the late ones has a list of its own, whatever the scheduler says
        known |= {"schedule": "uniform", "shifted": scheduler.flag("use_dynamic_shifting"),
                  "terminal": scheduler.get("shift_terminal", None)}
        scheduler.must_be(use_karras_sigmas=False, use_beta_sigmas=False, use_exponential_sigmas=False,
                          invert_sigmas=False)
        if known["shifted"]:
            scheduler.must_be(time_shift_type="exponential")
            known["shift_line"] = tuple((scheduler.number(f"{end}_image_seq_len", n), scheduler.number(
                f"{end}_shift", mu)) for end, n, mu in (("base", 256, 0.5), ("max", 4096, 1.15)))
        else:
            scheduler.must_be(shift=1.0)
    sampling = sampling_for(causal_time, dit.depth, vae.timestep_conditioning, **known)
    return ReleaseConfig(dit, vae, sampling), blocks


def sampling_from(values, where):
    """The stored form of a SamplingConfig."""
    try:
        guidance = {**values["guidance"], "stg_blocks": tuple(values["guidance"]["stg_blocks"])}
        return SamplingConfig(**{**values, "times": tuple(values["times"]), "size": tuple(values["size"]),
                                 "shift_line": tuple(map(tuple, values["shift_line"])),
                                 "guidance": Guidance(**guidance)})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{where}: its sampling is not understood ({store.sentence(error)})") from None


# --- Saving -----------------------------------------------------------------------------------------------

def save_pretrained(model, path):
    """Write a model (LTXVideo, or a trained ToyModel) as an official single file (a path that ends in
    .safetensors) or as a diffusers folder (any other path). Each file is written whole or not at all.

    A toy's caption encoder goes into neither: keep its own checkpoint. What the formats have no words for,
    how to sample and (in a folder) the causal first frame of RoPE, goes into the header's entry "minltx" and
    the folder's minltx.json, which others pass over. ValueError if the format cannot say what the model is.
    """
    path, config = Path(path), model.config
    if not isinstance(config, ReleaseConfig):
        sampling = SamplingConfig(schedule="uniform", shifted=True, terminal=0.1, steps=STEPS,
                                  guidance=Guidance(GUIDANCE),
                                  condition_noise=0.0, text_tokens=16, fps=config.data.fps,
                                  size=pixels(config.data))
        config = ReleaseConfig(config.dit, config.vae, sampling)
    if path.suffix == ".safetensors":
        return save_official(model, config, path)
    standard = DiTConfig()
    if (config.dit.theta, config.dit.max_position) != (standard.theta, standard.max_position):
        raise ValueError(f"diffusers fixes RoPE at theta {standard.theta:g} and {standard.max_position}; "
                         f"this model has {config.dit.theta:g} and {config.dit.max_position}: "
                         "save it as a .safetensors file")
    vae = vae_to_diffusers(config.vae)
    blocks, s = vae_from_diffusers(vae)[1], config.sampling
    transformer = {"_class_name": "LTXVideoTransformer3DModel", "patch_size": 1, "patch_size_t": 1,
                   "qk_norm": "rms_norm_across_heads", **dit_fields(config.dit)}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000,
                 "use_dynamic_shifting": s.shifted, "base_shift": s.shift_line[0][1],
                 "max_shift": s.shift_line[1][1], "base_image_seq_len": s.shift_line[0][0],
                 "max_image_seq_len": s.shift_line[1][0], "shift_terminal": s.terminal,
                 "stochastic_sampling": s.stochastic, "time_shift_type": "exponential"}
    parts = (("transformer", model.dit, names.diffusers_dit_names(model.dit), transformer),
             ("vae", model.vae, names.diffusers_vae_names(model.vae, blocks), vae))
    for part, network, known, fields in parts:
        (path / part).mkdir(parents=True, exist_ok=True)
        weights = {known[name]: tensor for name, tensor in network.state_dict().items()}
        store.write(path / part / "diffusion_pytorch_model.safetensors", weights)
        # of an older model in shards, which would go before this one
        (path / part / "diffusion_pytorch_model.safetensors.index.json").unlink(missing_ok=True)
        store.write_json(path / part / "config.json", fields)
    (path / "scheduler").mkdir(exist_ok=True)
    store.write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    store.write_json(path / "minltx.json", {"causal_temporal_positioning": config.dit.causal_time,
                                            "sampling": asdict(s)})


def save_official(model, config, path):
    """One .safetensors file with the config in its header (SPEC 9.6)."""
    s = config.sampling
    header = {
        "transformer": {"_class_name": "Transformer3DModel", "qk_norm": "rms_norm",
                        "standardization_norm": "rms_norm", "positional_embedding_theta": config.dit.theta,
                        "positional_embedding_max_pos": config.dit.max_position,
                        "timestep_scale_multiplier": 1000,
                        "causal_temporal_positioning": config.dit.causal_time, **dit_fields(config.dit)},
        "vae": vae_to_official(config.vae),
        "scheduler": {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000,
                      "sampler": "LinearQuadratic" if s.schedule == "linear_quadratic" else "Uniform",
                      "shifting": "SD3" if s.shifted else None,
                      "target_shift_terminal": s.terminal}}
    if s.times:
        header["allowed_inference_steps"] = s.times
    weights = {("dit", k): v for k, v in model.dit.state_dict().items()}
    weights |= {("vae", k): v for k, v in model.vae.state_dict().items()}
    known = names.official_names(model.dit, model.vae)
    store.write(path, {known[key]: tensor for key, tensor in weights.items()},
                {"config": json.dumps(header), "minltx": json.dumps(asdict(s))})
