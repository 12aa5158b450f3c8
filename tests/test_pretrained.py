"""Released files: official ones written here in the layout of SPEC 9, broken ones of every kind,
T5, and sample.py."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minltx.dit import DiTConfig
from minltx.toy import load_toy
from minltx.toy.model import ToyModel
from minltx.training.settings import SHORT

safetensors = pytest.importorskip("safetensors.torch")
import sample                                                                             # noqa: E402
from minltx.pretrained import RELEASES, LTXVideo, load_pretrained, save_pretrained, store    # noqa: E402
from minltx.pretrained.diffusers import read_folder                                       # noqa: E402
from minltx.pretrained.official import read_header                                        # noqa: E402
from minltx.pretrained.releases import NEGATIVE, ReleaseConfig, SamplingConfig            # noqa: E402
from minltx.pretrained.stg import SpatioTemporalGuidance                                  # noqa: E402
from minltx.pretrained.t5 import encode_prompts, load_embeddings, load_t5, save_embeddings  # noqa: E402
from tiny_releases import VAES, release                                                   # noqa: E402

TRANSFORMER = {
    "_class_name": "Transformer3DModel", "num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 3,
    "in_channels": 8, "out_channels": 8, "cross_attention_dim": 64, "caption_channels": 32, "norm_eps": 1e-6,
    "qk_norm": "rms_norm", "standardization_norm": "rms_norm", "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate", "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048], "timestep_scale_multiplier": 1000,
    "attention_type": "default", "dropout": 0.0, "upcast_attention": False}
COMMON = {"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
          "latent_channels": 8, "patch_size": 4, "norm_layer": "pixel_norm", "latent_log_var": "uniform",
          "use_quant_conv": False, "causal_decoder": False, "scaling_factor": 1.0}
UP = ["compress_all", {"residual": True, "multiplier": 2}]
OLD = [["res_x", 2], ["compress_all", 1], ["res_x_y", {"multiplier": 2}], ["res_x", 2], ["compress_all", 1],
       ["res_x_y", {}], ["res_x", {"num_layers": 2}], ["compress_all", 1], ["res_x", 2], ["res_x", 2]]
HEADERS = {
    "0.9.0": {"vae": {**COMMON, "blocks": OLD, "encoder_base_channels": 8, "decoder_base_channels": 8},
              "transformer": TRANSFORMER,
              "scheduler": {"_class_name": "RectifiedFlowScheduler", "shifting": "SD3",
                            "target_shift_terminal": 0.1, "num_train_timesteps": 1000}},
    "0.9.1": {"vae": {**COMMON, "encoder_blocks": OLD, "encoder_base_channels": 8, "decoder_base_channels": 8,
                      "timestep_conditioning": True, "decoder_blocks": [
                          ["res_x", {"num_layers": 3, "inject_noise": True}], UP,
                          ["res_x", {"num_layers": 3, "inject_noise": True}], UP,
                          ["res_x", {"num_layers": 4, "inject_noise": True}], UP,
                          ["res_x", {"num_layers": 4, "inject_noise": False}]]},
              "transformer": TRANSFORMER,
              "scheduler": {"_class_name": "RectifiedFlowScheduler", "sampler": "Uniform",
                            "shifting": "SD3", "target_shift_terminal": None}},
    "0.9.5": {"vae": {**COMMON, "encoder_base_channels": 8, "decoder_base_channels": 8,
                      "timestep_conditioning": True,
                      "encoder_blocks": [["res_x", 2], ["compress_space_res", {"multiplier": 2}],
                                         ["res_x", 1], ["compress_time_res", {"multiplier": 2}],
                                         ["res_x", 1], ["compress_all_res", {}],
                                         ["res_x", 1], ["compress_all_res", {"multiplier": 2}],
                                         ["res_x", {"num_layers": 1}]],
                      "decoder_blocks": [["res_x", 1], UP, ["res_x", 2], UP, ["res_x", 1], UP, ["res_x", 2]]},
              "transformer": {**TRANSFORMER, "causal_temporal_positioning": True},
              "scheduler": {"_class_name": "RectifiedFlowScheduler", "sampler": "LinearQuadratic",
                            "shifting": None}},
}
# The tables of SPEC 9.4, written out: block k of an official file -> where diffusers keeps it.
OLD_ENCODER = ["down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out", "down_blocks.1",
               "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out", "down_blocks.2",
               "down_blocks.2.downsamplers.0", "down_blocks.3", "mid_block"]
NEW_ENCODER = ["down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.1",
               "down_blocks.1.downsamplers.0", "down_blocks.2", "down_blocks.2.downsamplers.0",
               "down_blocks.3", "down_blocks.3.downsamplers.0", "mid_block"]
OLD_DECODER = ["mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1", "up_blocks.2.conv_in",
               "up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.conv_in", "up_blocks.3.upsamplers.0",
               "up_blocks.3"]
NEW_DECODER = ["mid_block", "up_blocks.0.upsamplers.0", "up_blocks.0", "up_blocks.1.upsamplers.0",
               "up_blocks.1", "up_blocks.2.upsamplers.0", "up_blocks.2"]
BLOCKS = {"0.9.0": (OLD_ENCODER, OLD_DECODER), "0.9.1": (OLD_ENCODER, NEW_DECODER),
          "0.9.5": (NEW_ENCODER, NEW_DECODER)}


def official_tensors(folder, version):
    """A diffusers folder's weights under the official names, by the tables of SPEC 9.2 to 9.4."""
    tensors = {}
    for name, tensor in safetensors.load_file(
            folder / "transformer/diffusion_pytorch_model.safetensors").items():
        for new, old in (("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."),
                         (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm.")):
            name = (name.replace(new, old) if not name.startswith("transformer_blocks") or new[0] == "."
                    else name)
        tensors["model.diffusion_model." + name] = tensor
    for name, tensor in safetensors.load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = {"latents_mean": "per_channel_statistics.mean-of-means",
                "latents_std": "per_channel_statistics.std-of-means",
                "decoder.scale_shift_table": "decoder.last_scale_shift_table"}.get(name, name)
        name = name.replace("decoder.time_embedder", "decoder.last_time_embedder")
        for side, official, places in zip(("encoder", "decoder"), ("down_blocks", "up_blocks"),
                                          BLOCKS[version]):
            for k, place in sorted(enumerate(places), key=lambda pair: -len(pair[1])):   # most specific first
                if name.startswith(f"{side}.{place}."):
                    name = f"{side}.{official}.{k}." + name[len(f"{side}.{place}."):]
                    break
        name = name.replace("resnets", "res_blocks").replace("norm3.", "norm3.norm.")
        tensors["vae." + name.replace("conv_shortcut.conv", "conv_shortcut")] = tensor
    for unused in ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel"):
        tensors[f"vae.per_channel_statistics.{unused}"] = torch.arange(8.0)
    return tensors


@pytest.fixture(scope="module", params=HEADERS)
def files(request, tmp_path_factory):
    """The same weights as a diffusers folder and as an official single file."""
    version, path = request.param, tmp_path_factory.mktemp("files")
    save_pretrained(release(version), path / "folder")
    tensors = official_tensors(path / "folder", version)
    safetensors.save_file(tensors, path / "ltx.safetensors",
                          metadata={"config": json.dumps(HEADERS[version])})
    return version, path / "folder", path / "ltx.safetensors"


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_pretrained(release("0.9.5"), path / "ltx.safetensors")
    save_pretrained(release("0.9.5"), path / "folder")
    return path


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_official_file_equals_diffusers_folder(files):
    version, folder, file = files
    from_folder, from_file = load_pretrained(folder), load_pretrained(file)
    same_weights(from_folder, from_file)
    same_weights(release(version), from_file)
    assert from_file.config.vae == VAES[version] == from_folder.config.vae
    assert from_file.config.dit == from_folder.config.dit
    assert from_file.config.dit.causal_time == (version == "0.9.5")


def test_the_official_file_is_written_as_it_is_read(files, tmp_path):
    version, _, file = files
    model = load_pretrained(file)
    save_pretrained(model, tmp_path / "again.safetensors")
    again = load_pretrained(tmp_path / "again.safetensors")
    same_weights(model, again)
    assert again.config == model.config
    unused = {name for name in store.locate(file) if "of-stds" in name or "channel" == name.split(".")[-1]}
    assert set(store.locate(tmp_path / "again.safetensors")) == set(store.locate(file)) - unused


def test_what_a_header_says_about_sampling(files, tmp_path):
    version, _, file = files
    model = load_pretrained(file)
    sampling, t = model.config.sampling, model.schedule(8, 48)
    golden = {"0.9.0": [1.0, 0.91757, 0.82465, 0.7191], "0.9.5": [1, 0.99375, 0.9875, 0.98125]}
    assert sampling.shifted == (version != "0.9.5") and sampling.guidance.cfg == 3.0
    if version in golden:
        torch.testing.assert_close(t[:4], torch.tensor(golden[version]), rtol=0, atol=1e-5)
    else:
        assert t[-2] > 0.11                                             # not stretched: the terminal is empty
    assert sampling.text_tokens == (256 if version == "0.9.5" else 128)
    assert sampling.lowercase == (version != "0.9.5")
    distilled = {**HEADERS[version], "allowed_inference_steps": [1.0, 0.9, 0.4]}
    safetensors.save_file(safetensors.load_file(file), tmp_path / "d.safetensors",
                          {"config": json.dumps(distilled)})
    model = load_pretrained(tmp_path / "d.safetensors")
    torch.testing.assert_close(model.schedule(tokens=48), torch.tensor([1.0, 0.9, 0.4, 0.0]))
    assert model.config.sampling.stochastic and model.config.sampling.guidance == SpatioTemporalGuidance()
    text = torch.randn(1, 5, 32), torch.ones(1, 5)
    made = [model.generate(text, seeds=[4], size=(9, 32, 64), stochastic=s) for s in (None, True, False)]
    assert torch.equal(made[0], made[1]) and (made[1] - made[2]).abs().max() > 1e-3
    near = [model.generate(text, seeds=[4], size=(9, 32, 64), start=made[0], change=c) for c in (0.9, 0.8)]
    assert torch.equal(*near)                                           # 0.8 is not one of its times
    with pytest.raises(ValueError, match="1 to 3 steps, not 8"):
        model.schedule(8)


@torch.no_grad()
def test_a_release_samples_by_its_own_rules(files):
    """A prompt, a first frame, a keyframe; the same seed is the same video, injected noise included."""
    version, _, file = files
    model, picture = load_pretrained(file), torch.rand(1, 3, 1, 64, 64) * 2 - 1
    text, null = [(torch.randn(1, 5, 32), torch.ones(1, 5)) for _ in range(2)]
    options = dict(size=(17, 64, 64), steps=2, conditions=[(picture, 0, 1.0), (picture, 9, 0.8)])
    a, b, c = (model.generate(text, null, [seed], **options) for seed in (4, 4, 5))
    assert a.shape == (1, 3, 17, 64, 64) and torch.equal(a, b) and (a - c).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needs null_text"):
        model.generate(text, seeds=[0], size=(9, 64, 64))
    with pytest.raises(ValueError, match="9 or 17"):
        model.generate(text, null, [0], size=(10, 64, 64))
    start = model.generate(text, null, [4], start=a, change=0.0, size=(17, 64, 64), decode_noise=0.0)
    mean, generator = model.vae.encode(a)[0], torch.Generator().manual_seed(4 + 2**32)
    torch.randn(mean.shape[1:], generator=generator)                            # the decode noise, not used
    plain = model.vae.decode(mean, torch.tensor([0.05]), generator).clamp(-1, 1)
    torch.testing.assert_close(start, plain, rtol=0, atol=1e-5)                     # nothing was changed
    with pytest.raises(ValueError, match="this transformer has 0 to 2"):
        model.generate(text, null, [0], guidance=SpatioTemporalGuidance(3.0, 1.0, (19,)), size=(9, 64, 64))


@torch.no_grad()
def test_bfloat16_is_near_float32(files):
    _, folder, _ = files
    latent, text, t = torch.randn(1, 8, 3, 2, 2), torch.randn(1, 4, 32), torch.tensor([0.5])
    full, half = load_pretrained(folder), load_pretrained(folder, dtype=torch.bfloat16)
    assert half.dit.proj_out.weight.dtype == torch.bfloat16
    v = half.dit(latent.bfloat16(), t, text.bfloat16())
    assert v.dtype == torch.bfloat16 and (v.float() - full.dit(latent, t, text)).abs().mean() < 0.05
    mean = half.vae.encode(torch.rand(1, 3, 9, 64, 64).bfloat16())[0]
    assert mean.dtype == torch.bfloat16 and half.vae.decode(mean, t).isfinite().all()


def test_the_causal_fix_can_be_overridden_and_matters(files):
    version, _, file = files
    latent, text, t = torch.randn(1, 8, 3, 2, 2), torch.randn(1, 4, 32), torch.tensor([0.5])
    outputs = [load_pretrained(file, causal_time=flag).dit(latent, t, text) for flag in (None, True, False)]
    assert torch.equal(outputs[0], outputs[1 if version == "0.9.5" else 2])
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


def test_a_header_less_file_is_named_by_its_release(tmp_path, monkeypatch):
    tiny = RELEASES["0.9.5"].__class__(DiTConfig(8, 64, 3, 4, 32, (8, 32, 32)), VAES["0.9.5"],
                                       SamplingConfig())
    monkeypatch.setitem(RELEASES, "0.9.5", tiny)
    save_pretrained(release("0.9.5"), tmp_path / "a.safetensors")
    safetensors.save_file(safetensors.load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="does not say what it is.*release="):
        load_pretrained(tmp_path / "b.safetensors")
    for file, name, says in (("b", "1.0", "unknown release '1.0'"),
                             ("a", "0.9.1", "not those of release 0.9.1")):
        with pytest.raises(ValueError, match=says):
            load_pretrained(tmp_path / f"{file}.safetensors", release=name)
    same_weights(load_pretrained(tmp_path / "b.safetensors", release="0.9.5"), release("0.9.5"))


def test_loaded_tensors_are_aligned(tiny_files):
    """In the file they are not, and then oneDNN rounds differently, by up to 5e-7."""
    tensors = load_pretrained(tiny_files / "ltx.safetensors").state_dict()
    assert len(tensors) > 100 and not [k for k, v in tensors.items() if v.data_ptr() % 64]
    opened = store.open_file(tiny_files / "ltx.safetensors")
    assert [k for k in opened.keys() if opened.get_tensor(k).data_ptr() % 64]


# --- Broken files -----------------------------------------------------------------------------------------

class Bomb:
    """A pickle that executes code when it is opened."""

    def __reduce__(self):
        return os.mkdir, (os.environ["MINLTX_BOMB"],)


def changed(file, header=None, tensors=None, metadata=None):
    """Write an official file again with parts of its header or its tensors changed."""
    config = json.loads(store.metadata(file)["config"])
    for path, value in (header or {}).items():
        *parents, leaf = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    stored = {**safetensors.load_file(file), **(tensors or {})}
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    safetensors.save_file(stored, file, {"config": json.dumps(config)} if metadata is None else metadata)


Q = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
FILE_FAULTS = {
    "absent": (lambda f: f.unlink(), "there is no"),
    "text": (lambda f: f.write_text("no tensors here"), "not a safetensors file"),
    "empty": (lambda f: f.write_bytes(b""), "not a safetensors file"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-1000]), "truncated"),
    "truncated in its header": (lambda f: f.write_bytes(f.read_bytes()[:300]), "truncated"),
    "pickle": (lambda f: f.write_bytes(pickle.dumps(Bomb())), "not a safetensors file"),
    "no header": (lambda f: changed(f, metadata={}), "does not say what it is"),
    "header no JSON": (lambda f: changed(f, metadata={"config": "{"}), "not readable as JSON"),
    "header a list": (lambda f: changed(f, metadata={"config": "[1]"}), "not an object"),
    "no vae": (lambda f: changed(f, {"vae": None}), "lacks the field 'vae'"),
    "no transformer": (lambda f: changed(f, {"transformer": None}), "lacks the field 'transformer'"),
    "another class": (lambda f: changed(f, {"vae._class_name": "VideoAutoencoder9"}),
                      "_class_name is 'VideoAutoencoder9'"),
    "unknown block": (lambda f: changed(f, {"vae.encoder_blocks": [["attn_res_x", 2]]}), "block attn_res_x"),
    "no block": (lambda f: changed(f, {"vae.encoder_blocks": [7]}),
                 "encoder_blocks is [7], not a list of blocks"),
    "causal decoder": (lambda f: changed(f, {"vae.causal_decoder": True}), "causal_decoder is True"),
    "other norm": (lambda f: changed(f, {"transformer.qk_norm": "layer_norm"}), "qk_norm is 'layer_norm'"),
    "depth in words": (lambda f: changed(f, {"transformer.num_layers": "three"}), "num_layers is 'three'"),
    "other channels": (lambda f: changed(f, {"vae.latent_channels": 16}), "8 latent channels and the VAE 16"),
    "unknown sampler": (lambda f: changed(f, {"scheduler.sampler": "Magic"}), "sampler is 'Magic'"),
    "decoder of another size": (lambda f: changed(f, {"vae.decoder_blocks": [["res_x", 1]]}),
                                "strides of the decoder"),
    "missing tensor": (lambda f: changed(f, tensors={Q: None}), f"lacks {Q}"),
    "left-over tensor": (lambda f: changed(f, tensors={"vae.extra": torch.zeros(2)}),
                         "unknown to its config: vae.extra"),
    "misshapen tensor": (lambda f: changed(f, tensors={Q: torch.zeros(64, 63)}), "has the shape (64, 63)"),
    "integers": (lambda f: changed(f, tensors={Q: torch.zeros(64, 64, dtype=torch.int8)}),
                 "holds I8"),
    "one layer too few": (lambda f: changed(f, {"transformer.num_layers": 2}),
                          "unknown to its config: model.diffusion_model"),
}


# Values of fields that no config should have: path in the header, value, what the sentence has to say.
IMPOSSIBLE = [
    ("transformer.num_attention_heads", 0, "num_attention_heads"),
    ("transformer.num_layers", 10**9, "num_layers"), ("transformer.num_layers", 5000, "cannot be built"),
    ("transformer.attention_head_dim", 7, "cross_attention_dim"),
    ("transformer.caption_channels", 10**30, "caption_channels"), ("transformer.norm_eps", 1e-5, "norm_eps"),
    ("transformer.double_self_attention", True, "double_self_attention"),
    ("transformer.positional_embedding_max_pos", 5, "positional_embedding_max_pos"),
    ("transformer.positional_embedding_max_pos", [20, 2048], "one number per axis"),
    ("transformer.positional_embedding_max_pos", [[20], 1, 1], "positional_embedding_max_pos"),
    ("transformer.positional_embedding_theta", [1], "positional_embedding_theta"),
    ("transformer.positional_embedding_theta", 10**400, "positional_embedding_theta"),
    ("transformer.causal_temporal_positioning", "yes", "causal_temporal_positioning"),
    ("vae.timestep_conditioning", "false", "timestep_conditioning"),
    ("vae.encoder_blocks", [[["res_x"], {}]], "encoder_blocks is [[['res_x'], {}]], not a list of blocks"),
    ("vae.decoder_blocks", [["compress_all", {"residual": "no"}]], "residual"),
    ("vae.decoder_blocks", 5, "decoder_blocks is 5, not a list of blocks"),
    ("vae.encoder_blocks", [["res_x", 0]], "num_layers"),
    ("vae.encoder_blocks", [["compress_space_res", {"multiplier": 3}], ["compress_time_res", {}],
                            ["compress_all_res", {}], ["compress_all_res", {}]], "cannot be downsampled"),
    ("vae.encoder_base_channels", -8, "encoder_base_channels"), ("vae.scaling_factor", 2.0, "scaling_factor"),
    ("scheduler.target_shift_terminal", "0.1", "terminal"),
    ("scheduler.shifting", "SimpleDiffusion", "shifting"),
    ("allowed_inference_steps", 5, "allowed_inference_steps"), ("allowed_inference_steps", [None], "times"),
    ("allowed_inference_steps", [0.4, 1.0], "times"), ("allowed_inference_steps", [2], "times"),
]


@pytest.mark.parametrize("field, value, says", IMPOSSIBLE)
def test_impossible_fields_of_a_header_are_named(tmp_path, field, value, says):
    """No tensors needed: all of it is reported before any is read."""
    header = json.loads(json.dumps(HEADERS["0.9.5"]))
    *parents, leaf = field.split(".")
    place = header
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    safetensors.save_file({}, tmp_path / "a.safetensors", {"config": json.dumps(header)})
    with pytest.raises(ValueError) as error:
        load_pretrained(tmp_path / "a.safetensors")
    assert says in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_header_of_brackets_is_not_json(tmp_path):
    safetensors.save_file({}, tmp_path / "a.safetensors", {"config": "[" * 100_000})
    with pytest.raises(ValueError, match="not readable as JSON"):
        load_pretrained(tmp_path / "a.safetensors")


OLD_FIELDS = {      # what an official transformer's header holds besides, from older classes
    "_diffusers_version": "0.25.1", "_name_or_path": "PixArt-alpha/PixArt-XL-2-256x256",
    "attention_bias": True, "attention_type": "default", "double_self_attention": False, "dropout": 0.0,
    "norm_num_groups": 32,
    "num_embeds_ada_norm": 1000, "num_vector_embeds": None, "only_cross_attention": False,
    "project_to_2d_pos": True, "upcast_attention": False, "use_linear_projection": False, "sample_size": 128,
    "positional_embedding_type": "rope"}
BIG = {**TRANSFORMER, **OLD_FIELDS, "num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 28,
       "in_channels": 128, "out_channels": 128, "cross_attention_dim": 2048, "caption_channels": 4096}
BIG_OLD = [["res_x", 4], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3], ["compress_all", 1],
           ["res_x_y", 1], ["res_x", 3], ["compress_all", 1], ["res_x", 3], ["res_x", 4]]
BIG_VAE = {**COMMON, "latent_channels": 128}
CONDITIONED = {**BIG_VAE, "timestep_conditioning": True, "spatial_padding_mode": "zeros"}
LATE_VAE = {**CONDITIONED, "encoder_blocks": [
    ["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}], ["res_x", {"num_layers": 6}],
    ["compress_time_res", {"multiplier": 2}], ["res_x", {"num_layers": 6}],
    ["compress_all_res", {"multiplier": 2}], ["res_x", {"num_layers": 2}],
    ["compress_all_res", {"multiplier": 2}], ["res_x", {"num_layers": 2}]],
    "decoder_blocks": [["res_x", {"num_layers": 5, "inject_noise": False}], UP] * 3 + [
        ["res_x", {"num_layers": 5, "inject_noise": False}]]}
SHIFT = {"_class_name": "RectifiedFlowScheduler", "_diffusers_version": "0.25.1", "num_train_timesteps": 1000,
         "shifting": "SD3", "base_resolution": None, "target_shift_terminal": 0.1}
QUADRATIC = {**SHIFT, "sampler": "LinearQuadratic", "shifting": None, "target_shift_terminal": None}
NOISY = [["res_x", {"num_layers": n, "inject_noise": n < 8}] for n in (5, 6, 7, 8)]
LATE = {**BIG, "causal_temporal_positioning": True}
FULL = {
    "0.9.0": {"transformer": BIG, "vae": {**BIG_VAE, "blocks": BIG_OLD}, "scheduler": SHIFT},
    "0.9.1": {"transformer": BIG, "scheduler": SHIFT, "vae": {
        **CONDITIONED, "encoder_blocks": BIG_OLD,
        "decoder_blocks": [NOISY[0], UP, NOISY[1], UP, NOISY[2], UP, NOISY[3]]}},
    "0.9.5": {"transformer": LATE, "vae": LATE_VAE, "scheduler": QUADRATIC},
    "0.9.6-distilled": {"transformer": LATE, "vae": LATE_VAE, "scheduler": QUADRATIC,
                        "allowed_inference_steps": [1.0, .9937, .9875, .9812, .975, .9094, .725, .4219]}}


@pytest.mark.parametrize("name", FULL)
def test_full_size_headers_are_the_releases(tmp_path, name):
    """With the fields of older classes that official headers carry; STG in block 19 and all."""
    safetensors.save_file({}, tmp_path / "a.safetensors", {"config": json.dumps(FULL[name])})
    assert read_header(tmp_path / "a.safetensors") == RELEASES[name]


HUB = {             # the folders of the hub, with diffusers' defaults left out as there
    "0.9.0": ({"latent_channels": 128, "scaling_factor": 1.0}, True),
    "0.9.1": ({"decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5, 6, 7, 8],
               "decoder_spatio_temporal_scaling": [True] * 3, "upsample_residual": [True] * 3,
               "decoder_inject_noise": [True, True, True, False], "upsample_factor": [2] * 3,
               "timestep_conditioning": True}, True),
    "0.9.5": ({"block_out_channels": [128, 256, 512, 1024, 2048], "layers_per_block": [4, 6, 6, 2, 2],
               "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "downsample_type": [
                   "spatial", "temporal", "spatiotemporal", "spatiotemporal"],
               "spatio_temporal_scaling": [True] * 4,
               "decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5, 5, 5, 5],
               "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
               "upsample_residual": [True] * 3, "upsample_factor": [2] * 3, "timestep_conditioning": True,
               "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}, False)}


@pytest.mark.parametrize("name", HUB)
def test_full_size_folders_are_the_releases(tmp_path, name):
    vae, shifting = HUB[name]
    transformer = {"_class_name": "LTXVideoTransformer3DModel", "num_attention_heads": 32,
                   "attention_head_dim": 64, "num_layers": 28, "in_channels": 128, "out_channels": 128,
                   "caption_channels": 4096, "cross_attention_dim": 2048, "norm_eps": 1e-6,
                   "qk_norm": "rms_norm_across_heads"}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": shifting,
                 "shift_terminal": 0.1 if shifting else None, "base_shift": 0.95, "max_shift": 2.05,
                 "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift": 1.0,
                 "use_karras_sigmas": False}
    for part, file, fields in (("vae", "config", {"_class_name": "AutoencoderKLLTXVideo", **vae}),
                               ("transformer", "config", transformer),
                               ("scheduler", "scheduler_config", scheduler)):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{file}.json").write_text(json.dumps(fields))
    assert read_folder(tmp_path)[0] == RELEASES[name]


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_every_broken_file_gets_its_own_sentence(tiny_files, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("MINLTX_BOMB", str(tmp_path / "exploded"))
    file = Path(shutil.copy(tiny_files / "ltx.safetensors", tmp_path))
    break_it, says = FILE_FAULTS[fault]
    break_it(file)
    with pytest.raises(ValueError) as error:
        load_pretrained(file)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


def rewrite(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shard(folder, weight_map):
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(weight_map))


def only_pickles(folder):
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def twice(folder):
    part = folder / "vae/diffusion_pytorch_model.safetensors"
    for name in ("a", "b"):
        shutil.copy(part, folder / "vae" / f"{name}.safetensors")
    shard(folder, {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})


FOLDER_FAULTS = {
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "no folder vae"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no folder scheduler"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), "config.json is missing"),
    "config no JSON": (lambda f: (f / "transformer/config.json").write_text("{"), "not readable as JSON"),
    "no weights": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(),
                   "no diffusion_pytorch_model"),
    "pickles": (only_pickles, "a pickle, which could execute code"),
    "index a list": (lambda f: shard(f, []), "no weight_map"),
    "shard missing": (lambda f: shard(f, {"weight_map": {"x": "gone.safetensors"}}), "no file"),
    "index without map": (lambda f: shard(f, {"metadata": {}}), "no weight_map"),
    "tensor twice": (twice, "for a second time"),
    "another VAE": (lambda f: rewrite(f / "vae/config.json", _class_name="AutoencoderKL"), "'AutoencoderKL'"),
    "lists too short": (lambda f: rewrite(f / "vae/config.json", layers_per_block=[1]), "layers_per_block"),
    "widths in words": (lambda f: rewrite(f / "vae/config.json", block_out_channels=["wide"]), "['wide']"),
    "another transformer": (lambda f: rewrite(f / "transformer/config.json", norm_eps=1e-5),
                            "norm_eps is 1e-05"),
    "heads missing": (lambda f: (f / "transformer/config.json").write_text("{}"), "'num_attention_heads'"),
    "minltx.json a list": (lambda f: (f / "minltx.json").write_text("[]"), "minltx.json is not an object"),
    "another scheduler": (lambda f: rewrite(f / "scheduler/scheduler_config.json", _class_name="DDIM"),
                          "'DDIM'"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_every_broken_folder_gets_its_own_sentence(tiny_files, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("MINLTX_BOMB", str(tmp_path / "exploded"))
    folder = Path(shutil.copytree(tiny_files / "folder", tmp_path / "folder"))
    break_it, says = FOLDER_FAULTS[fault]
    break_it(folder)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_with_a_bomb_would_go_off(tmp_path, monkeypatch):
    """The bomb of the tests above is real."""
    monkeypatch.setenv("MINLTX_BOMB", str(tmp_path / "exploded"))
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_a_model_is_never_held_twice(tiny_files, tmp_path):
    """Loading 104 MB of float32 from a file of bfloat16 takes 104 MB, and not half as much again."""
    config = ReleaseConfig(DiTConfig(8, 768, 2, 12, 1024, (8, 32, 32)), VAES["0.9.5"], SamplingConfig())
    model = LTXVideo(config).bfloat16()
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    save_pretrained(model, tmp_path / "a.safetensors")
    code = f"""
import re, threading, time, torch
from pathlib import Path
from minltx.pretrained import load_pretrained
load_pretrained({str(tiny_files/'ltx.safetensors')!r})                    # imports what torch needs for this
def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024
before, peak, done = private(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], private())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
model = load_pretrained({str(tmp_path / 'a.safetensors')!r}, torch.float32)
done.append(1)
watcher.join()
print(max(peak[0], private()) - before)
"""
    # Freed memory is given back at once, not kept for later.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1], env={**os.environ, **at_once})
    assert done.returncode == 0, done.stderr
    assert size > 80 and 0.9 * size < float(done.stdout) < 1.25 * size


# --- The toy, in the released formats ---------------------------------------------------------------------

@torch.no_grad()
def test_the_shipped_toy_as_an_official_file(tmp_path):
    toy = load_toy()
    save_pretrained(toy, tmp_path / "toy.safetensors")
    same_toy(toy, load_pretrained(tmp_path / "toy.safetensors"))


def same_toy(toy, model):
    """The loaded model samples the toy's video, and knows by itself how."""
    captions = ["a red 7 moving left"]
    text, negative = toy.embed(captions), toy.embed(toy.negative(captions))
    assert torch.equal(model.generate(text, negative, [3]), toy.generate(captions, [3]))


@torch.no_grad()
def test_a_toy_opens_in_diffusers(tmp_path):
    """The shipped weights with the released RoPE, which the preset "short" has: diffusers has no other."""
    diffusers = pytest.importorskip("diffusers")
    shipped = load_toy()
    toy = ToyModel(replace(shipped.config, dit=replace(
        shipped.config.dit, theta=SHORT.model.dit.theta, max_position=SHORT.model.dit.max_position)))
    toy.load_state_dict(shipped.state_dict())
    toy.eval()
    save_pretrained(toy, tmp_path)
    same_toy(toy, load_pretrained(tmp_path))
    dit = diffusers.LTXVideoTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer")
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(tmp_path, subfolder="vae")
    latent, t, (text, mask) = (torch.randn(1, 4, 5, 4, 4), torch.tensor([0.6]),
                               toy.embed(["a blue 3 moving up"]))
    frames = torch.tensor([0, 1, 5, 9, 13]) / 16               # stride 4: the first latent frame is one frame
    where = torch.stack(torch.meshgrid(frames, torch.arange(4) * 8.0, torch.arange(4) * 8.0, indexing="ij"))
    theirs = dit(latent.flatten(2).mT, text, 1000 * t, mask, video_coords=where.flatten(1)[None]).sample
    ours = toy.dit(latent, t, text, mask, fps=16.0)
    assert (ours.flatten(2).mT - theirs).abs().max() <= 1e-5 and ours.std() > 0.1
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    assert (toy.vae.encode(video)[0] - vae.encode(video).latent_dist.mean).abs().max() <= 1e-5
    raw = toy.vae.denormalize(latent)
    assert (toy.vae.decode(raw, t / 10) - vae.decode(raw, t / 10).sample).abs().max() <= 1e-5


def test_a_model_that_a_format_cannot_express_is_refused(tmp_path):
    def tiny(**vae):
        config = replace(VAES["0.9.5"], **vae)
        dit = DiTConfig(8, 64, 1, 4, 32, config.stride)
        return LTXVideo(ReleaseConfig(dit, config, SamplingConfig()))

    by_frames = tiny(encoder_blocks=(("down", (2, 1, 1), 16), ("res", 1)),
                     decoder_blocks=(("res", 1), ("up", (2, 1, 1), 32), ("res", 1)))
    with pytest.raises(ValueError, match="diffusers cannot express"):
        save_pretrained(by_frames, tmp_path / "folder")
    with pytest.raises(ValueError, match="official format cannot express"):
        save_pretrained(by_frames, tmp_path / "a.safetensors")
    slow = LTXVideo(ReleaseConfig(DiTConfig(8, 64, 1, 4, 32, (8, 32, 32), theta=100.0), VAES["0.9.5"],
                                  SamplingConfig()))
    with pytest.raises(ValueError, match="RoPE at theta 10000"):
        save_pretrained(slow, tmp_path / "folder")
    save_pretrained(slow, tmp_path / "slow.safetensors")
    assert load_pretrained(tmp_path / "slow.safetensors").config.dit.theta == 100.0
    assert not (tmp_path / "folder").exists()


# --- T5 ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A tiny T5 with a tokenizer of its own, in the layout of the released repositories."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "a", "lighthouse", "in", "storm", "A", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>",
                                                eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=64, num_layers=2,
                                   num_heads=4, feed_forward_proj="gated-gelu")
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_prompts_are_padded_masked_and_kept(t5, tmp_path):
    tokenizer, encoder = load_t5(t5)
    prompts = ["a lighthouse in the storm", " A storm "]
    text, mask = encode_prompts(prompts, tokenizer, encoder, tokens=9)
    assert text.shape == (2, 9, 32) and mask.sum(1).tolist() == [6, 3]
    alone, _ = encode_prompts(prompts[1:], tokenizer, encoder, tokens=3)
    torch.testing.assert_close(text[1:, :3], alone, rtol=0, atol=1e-5)              # padding changes no word
    seen, _ = encode_prompts(prompts, tokenizer, encoder, tokens=9, mask_in_encoder=False)
    assert (seen[1, :3] - alone[0]).abs().max() > 1e-4                              # unless T5 may look at it
    lower, _ = encode_prompts(prompts[1:], tokenizer, encoder, tokens=3, lowercase=True)
    assert (lower - alone).abs().max() > 1e-4
    save_embeddings(tmp_path / "w.safetensors", prompts, text, mask)
    kept = load_embeddings(tmp_path / "w.safetensors", prompts[::-1])
    assert (torch.equal(kept[0], text.flip(0)) and torch.equal(kept[1], mask.flip(0))
            and kept[2] == prompts[::-1])
    with pytest.raises(ValueError, match="does not hold 'a ship'"):
        load_embeddings(tmp_path / "w.safetensors", ["a ship"])
    with pytest.raises(ValueError, match="with 9 tokens; this release has 128 tokens in lower case"):
        load_embeddings(tmp_path / "w.safetensors", prompts, 128, True)
    for n, broken in enumerate(({"prompts": 5}, {"prompts": ["a"], "tokens": 9}, {"prompts": [1, 2]}, [])):
        path = tmp_path / f"{n}.safetensors"
        safetensors.save_file({"text": text, "mask": mask}, path, {"minltx": json.dumps(broken)})
        with pytest.raises(ValueError):
            load_embeddings(path)


@pytest.mark.parametrize("masked", [True, False])
def test_embeddings_are_those_of_diffusers(t5, masked):
    """LTXConditionPipeline masks padding in T5, LTXPipeline does not (SPEC 7)."""
    diffusers = pytest.importorskip("diffusers")
    tokenizer, encoder = load_t5(t5)
    cls = diffusers.LTXConditionPipeline if masked else diffusers.LTXPipeline
    pipe = cls(scheduler=None, vae=None, text_encoder=encoder, tokenizer=tokenizer, transformer=None)
    prompts = ["a lighthouse in the storm", "storm"]
    theirs = pipe._get_t5_prompt_embeds(prompt=prompts, max_sequence_length=12, device="cpu",
                                        dtype=torch.float32)
    ours = encode_prompts(prompts, tokenizer, encoder, tokens=12, mask_in_encoder=masked)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    assert torch.equal(ours[1].bool(), theirs[1].bool())


# --- sample.py --------------------------------------------------------------------------------------------

def test_the_three_commands_of_the_readme(t5, tiny_files, tmp_path, capsys):
    """Embed, sample from the file without T5, look: with tiny weights in place of the released ones."""
    from minltx.pretrained import t5 as program

    words, out = tmp_path / "words.safetensors", tmp_path / "a.npz"
    program.main([str(t5), "a lighthouse in a storm", "the storm", "--out", str(words)])
    options = ["--weights", str(tiny_files / "ltx.safetensors"), "--text", str(words), "--size", "64x96",
               "--frames", "9", "--steps", "2", "--guidance", "2", "--stg", "0", "--fps", "12",
               "--out", str(out)]
    assert sample.main(["a lighthouse in a storm", "the storm", *options]) == 0
    import numpy as np
    frames = np.load(out)["frames"]
    assert frames.shape == (2, 9, 64, 96, 3) and (frames[0] != frames[1]).any()
    from_folder = [*options[:1], str(tiny_files / "folder"), "--t5", str(t5), *options[4:]]
    assert sample.main(["a lighthouse in a storm", "the storm", *from_folder]) == 0
    assert np.abs(np.load(out)["frames"].astype(int) - frames).max() <= 1


@pytest.mark.parametrize("options, says", [
    ([], "--text FILE"),
    (["--text", "absent.safetensors"], "no file absent.safetensors"),
    (["--text", "WORDS"], "does not hold 'a ship'"),
    (["--text", "WORDS", "--negative", "ugly", "--checkpoint", "x.pt"], "two models"),
    (["--text", "short"], "with 2 tokens; this release has 256 tokens"),
    (["--t5", "absent"], "no folder text_encoder"),
    (["--text", "right", "--size", "64", "--frames", "9", "--stg", "1"], "STG cannot skip blocks ()"),
])
def test_mistakes_with_weights_get_one_line(tiny_files, tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    save_embeddings("words", ["a storm"], torch.zeros(1, 2, 32), torch.ones(1, 2))
    save_embeddings("short", ["a ship", NEGATIVE], torch.zeros(2, 2, 32), torch.ones(2, 2))
    save_embeddings("right", ["a ship", NEGATIVE], torch.zeros(2, 2, 32), torch.ones(2, 2), tokens=256)
    options = ["words" if option == "WORDS" else option for option in options]
    with pytest.raises(SystemExit) as stop:
        sample.main(["a ship", "--weights", str(tiny_files / "ltx.safetensors"), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error
