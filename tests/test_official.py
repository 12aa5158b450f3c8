"""What minltx saves, read as the official code reads it: with the official defaults for absent fields.

The defaults below are facts of the official repository (github.com/Lightricks/LTX-Video, version 5260738):
the parameters of `Transformer3DModel.__init__` and `RectifiedFlowScheduler.__init__`, and what
`CausalVideoAutoencoder.from_config` takes for an absent field. `expected_*` build the names and shapes of
all tensors from a header and these defaults. To run the official code itself as well, install its packages
and set MINLTX_OFFICIAL to the path of a clone.
"""

import json
import math
import os
from dataclasses import replace

import pytest
import torch

from minltx.ablation import variants
from minltx.ablation.ideas import Idea
from minltx.fast_cpu import accelerate
from minltx.toy import load_toy

pytest.importorskip("safetensors")
from minltx.pretrained import load_pretrained, save_pretrained, store                # noqa: E402
from minltx.pretrained.releases import DISTILLED, DISTILLED_TWICE                     # noqa: E402
from test_training import SMALL                                                      # noqa: E402
from tiny_releases import randomise, release                                         # noqa: E402

TRANSFORMER_DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 88, "in_channels": None, "out_channels": None,
    "num_layers": 1, "dropout": 0.0, "norm_num_groups": 32, "cross_attention_dim": None,
    "attention_bias": False, "num_vector_embeds": None, "activation_fn": "geglu", "num_embeds_ada_norm": None,
    "use_linear_projection": False, "only_cross_attention": False, "double_self_attention": False,
    "upcast_attention": False, "adaptive_norm": "single_scale_shift", "standardization_norm": "layer_norm",
    "norm_elementwise_affine": True, "norm_eps": 1e-5, "attention_type": "default", "caption_channels": None,
    "use_tpu_flash_attention": False, "qk_norm": None, "positional_embedding_type": "rope",
    "positional_embedding_theta": None, "positional_embedding_max_pos": None,
    "timestep_scale_multiplier": None, "causal_temporal_positioning": False}
VAE_DEFAULTS = {
    "double_z": True, "latent_log_var": "per_channel", "use_quant_conv": True,
    "normalize_latent_channels": False, "in_channels": 3, "out_channels": 3, "patch_size": 1,
    "norm_layer": "group_norm", "encoder_base_channels": 128, "decoder_base_channels": 128,
    "spatial_padding_mode": "zeros", "causal_decoder": False, "timestep_conditioning": False}
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000, "shifting": None, "base_resolution": 32**2, "target_shift_terminal": None,
    "sampler": "Uniform", "shift": None}
STRIDES = {"compress_time": (2, 1, 1), "compress_space": (1, 2, 2), "compress_all": (2, 2, 2)}


def layer(name, outputs, *inputs, bias=True):
    """The tensors of a linear layer or a convolution."""
    return {f"{name}.weight": (outputs, *inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def conv(name, outputs, inputs):
    return layer(f"{name}.conv", outputs, inputs, 3, 3, 3)


def expected_transformer(header):
    """Name -> shape of every tensor of the official transformer of this header."""
    c = {**TRANSFORMER_DEFAULTS, **header}
    D = c["num_attention_heads"] * c["attention_head_dim"]
    found = {"scale_shift_table": (2, D), **layer("patchify_proj", D, c["in_channels"]),
             **layer("proj_out", c["out_channels"] or c["in_channels"], D),
             **layer("adaln_single.emb.timestep_embedder.linear_1", D, 256),
             **layer("adaln_single.emb.timestep_embedder.linear_2", D, D),
             **layer("adaln_single.linear", 6 * D, D)}
    if c["caption_channels"]:
        found |= layer("caption_projection.linear_1", D, c["caption_channels"])
        found |= layer("caption_projection.linear_2", D, D)
    for i in range(c["num_layers"]):
        block = f"transformer_blocks.{i}"
        found[f"{block}.scale_shift_table"] = (6, D)
        if c["norm_elementwise_affine"]:
            for norm in ("norm1", "norm2"):
                found |= layer(f"{block}.{norm}", D, bias=c["standardization_norm"] == "layer_norm")
        for attn in ("attn1", "attn2"):
            context = D if attn == "attn1" else c["cross_attention_dim"] or D
            for name, inputs in (("to_q", D), ("to_k", context), ("to_v", context)):
                found |= layer(f"{block}.{attn}.{name}", D, inputs, bias=c["attention_bias"])
            found |= layer(f"{block}.{attn}.to_out.0", D, D)
            if c["qk_norm"]:
                for norm in ("q_norm", "k_norm"):
                    found |= layer(f"{block}.{attn}.{norm}", D, bias=c["qk_norm"] == "layer_norm")
        wide = 8 * D if c["activation_fn"] == "geglu" else 4 * D
        found |= layer(f"{block}.ff.net.0.proj", wide, D) | layer(f"{block}.ff.net.2", D, 4 * D)
    return {f"model.diffusion_model.{name}": shape for name, shape in found.items()}


def res_block(name, width, outputs, c, noisy=False, timed=False):
    found = conv(f"{name}.conv1", outputs, width) | conv(f"{name}.conv2", outputs, outputs)
    if c["norm_layer"] != "pixel_norm":
        found |= layer(f"{name}.norm1", width) | layer(f"{name}.norm2", outputs)
    if width != outputs:
        found |= layer(f"{name}.conv_shortcut", outputs, width, 1, 1, 1) | layer(f"{name}.norm3.norm", width)
    if noisy:
        found |= {f"{name}.per_channel_scale{i}": (outputs, 1, 1) for i in (1, 2)}
    return found | ({f"{name}.scale_shift_table": (4, outputs)} if timed else {})


def res_group(name, width, p, c, timed):
    found = {}
    for j in range(p["num_layers"]):
        found |= res_block(f"{name}.res_blocks.{j}", width, width, c, p.get("inject_noise", False), timed)
    if timed:
        for i, inputs in ((1, 256), (2, 4 * width)):
            found |= layer(f"{name}.time_embedder.timestep_embedder.linear_{i}", 4 * width, inputs)
    return found


def listed(blocks):
    return [(name, {"num_layers": p} if isinstance(p, int) else p) for name, p in blocks]


def expected_encoder(c):
    width = c["encoder_base_channels"]
    found = conv("encoder.conv_in", width, c["in_channels"] * c["patch_size"]**2)
    for k, (kind, p) in enumerate(listed(c.get("encoder_blocks", c.get("blocks")))):
        name, outputs = f"encoder.down_blocks.{k}", width
        if kind == "res_x":
            found |= res_group(name, width, p, c, timed=False)
        elif kind == "res_x_y":
            outputs = width * p.get("multiplier", 2)
            found |= res_block(name, width, outputs, c)
        elif kind.endswith("_res"):
            outputs = width * p.get("multiplier", 2)
            found |= conv(f"{name}.conv", outputs // math.prod(STRIDES[kind[:-4]]), width)
        else:
            found |= conv(name, width, width)
        width = outputs
    extra = {"per_channel": c["latent_channels"], "uniform": 1}[c["latent_log_var"]]
    return found | conv("encoder.conv_out", c["latent_channels"] + extra, width)


def expected_decoder(c):
    blocks, width = listed(c.get("decoder_blocks", c.get("blocks")))[::-1], c["decoder_base_channels"]
    for kind, p in blocks:
        width *= p.get("multiplier", 2 if kind == "res_x_y" else 1) if kind != "res_x" else 1
    found, timed = conv("decoder.conv_in", width, c["latent_channels"]), c["timestep_conditioning"]
    for k, (kind, p) in enumerate(blocks):
        name, outputs = f"decoder.up_blocks.{k}", width
        if kind == "res_x":
            found |= res_group(name, width, p, c, timed)
        elif kind == "res_x_y":
            outputs = width // p.get("multiplier", 2)
            found |= res_block(name, width, outputs, c)
        else:
            outputs = width // (p.get("multiplier", 1) if kind == "compress_all" else 1)
            found |= conv(f"{name}.conv", math.prod(STRIDES[kind]) * outputs, width)
        width = outputs
    if timed:
        found |= {"decoder.timestep_scale_multiplier": (), "decoder.last_scale_shift_table": (2, width)}
        for i, inputs in ((1, 256), (2, 2 * width)):
            found |= layer(f"decoder.last_time_embedder.timestep_embedder.linear_{i}", 2 * width, inputs)
    return found | conv("decoder.conv_out", c["out_channels"] * c["patch_size"]**2, width)


def expected_vae(header):
    """Name -> shape of every tensor of the official VAE of this header, without its statistics."""
    c = {**VAE_DEFAULTS, **header}
    found = expected_encoder(c) | expected_decoder(c)
    if c["use_quant_conv"]:
        found |= layer("quant_conv", 1) | layer("post_quant_conv", 1)
    return {f"vae.{name}": shape for name, shape in found.items()}


def distilled(sampling=DISTILLED):
    """A tiny 0.9.6-distilled, or with the sampling of another release."""
    model = release("0.9.5")
    model.config = replace(model.config, sampling=sampling)
    return model


MODELS = {"0.9.0": lambda: release("0.9.0"), "0.9.1": lambda: release("0.9.1"),
          "0.9.5": lambda: release("0.9.5"), "0.9.6-distilled": distilled,
          "0.9.8": lambda: distilled(DISTILLED_TWICE), "toy": load_toy}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model, and the file that minltx writes of it."""
    model, path = MODELS[request.param](), tmp_path_factory.mktemp("saved") / "a.safetensors"
    save_pretrained(model, path)
    return model, path


def header_of(path):
    return json.loads(store.metadata(path)["config"])


def test_the_written_header_describes_the_same_model_to_the_official_code(saved):
    model, path = saved
    header = header_of(path)
    opened = store.open_file(path)
    held = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    statistics = {f"vae.per_channel_statistics.{kind}": (model.vae.config.latent_channels,)
                  for kind in ("mean-of-means", "std-of-means")}
    assert held == (expected_transformer(header["transformer"]) | expected_vae(header["vae"]) | statistics)
    t, vae = {**TRANSFORMER_DEFAULTS, **header["transformer"]}, {**VAE_DEFAULTS, **header["vae"]}
    assert (t["standardization_norm"], t["norm_eps"], t["qk_norm"]) == ("rms_norm", 1e-6, "rms_norm")
    assert (t["activation_fn"], t["timestep_scale_multiplier"]) == ("gelu-approximate", 1000)
    assert (t["positional_embedding_type"], t["adaptive_norm"]) == ("rope", "single_scale_shift")
    config = model.dit.config
    assert t["positional_embedding_theta"] == config.theta
    assert tuple(t["positional_embedding_max_pos"]) == config.max_position
    assert t["causal_temporal_positioning"] == config.causal_time
    assert t["num_attention_heads"] == config.heads
    assert not vae["causal_decoder"] and not vae["normalize_latent_channels"]
    assert vae["_class_name"] == "CausalVideoAutoencoder" and vae["dims"] == 3


def test_the_written_scheduler_has_the_models_times(saved):
    """The official schedule, in its plainest form, from the header; allowed times are the rounded ones."""
    model, path = saved
    header = header_of(path)
    s, sampling = {**SCHEDULER_DEFAULTS, **header["scheduler"]}, model.sampling_defaults()
    assert s["sampler"] == {"uniform": "Uniform", "linear_quadratic": "LinearQuadratic"}[
        sampling.get("schedule", "linear_quadratic")]
    assert s["shifting"] == ("SD3" if sampling.get("shifted") else None)
    assert s["target_shift_terminal"] == sampling.get("terminal")
    if sampling.get("second"):                                              # the times of both passes
        assert header["allowed_inference_steps"] == [1.0, .9937, .9875, .9812, .975, .9094, .725, .4219]
        assert load_pretrained(path).config.sampling == DISTILLED_TWICE
    elif sampling.get("times"):
        assert header["allowed_inference_steps"] == [1.0, .9937, .9875, .9812, .975, .9094, .725, .4219]
        assert all(round(t, 4) in header["allowed_inference_steps"] for t in model.schedule().tolist()[:-1])
        unrounded = torch.tensor([1, .99375, .9875, .98125, .975, .909375, .725, .421875, 0])
        torch.testing.assert_close(load_pretrained(path).schedule(), unrounded, rtol=0, atol=1e-7)
        assert torch.equal(model.schedule(3)[:3], model.schedule()[:3])                     # a prefix, then 0
        assert model.schedule(3)[3:].tolist() == [0.0]
        with pytest.raises(ValueError, match="1 to 8 steps, not 9"):
            model.schedule(9)


def test_a_header_without_minltx_s_own_entry_samples_at_unrounded_times(tmp_path):
    """As the official 0.9.6-distilled file: only rounded times in its header."""
    import safetensors.torch

    save_pretrained(distilled(), tmp_path / "a.safetensors")
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "a.safetensors"),
                                tmp_path / "b.safetensors",
                                {"config": store.metadata(tmp_path / "a.safetensors")["config"]})
    times = load_pretrained(tmp_path / "b.safetensors").schedule()
    assert times[1].item() == pytest.approx(0.99375, abs=1e-7) and times[7].item() == 0.421875


def test_files_of_earlier_versions_still_load(tmp_path):
    """They lack attention_bias; their tensors have the biases."""
    import safetensors.torch

    model = release("0.9.5")
    save_pretrained(model, tmp_path / "a.safetensors")
    header = store.metadata(tmp_path / "a.safetensors")
    config = json.loads(header["config"])
    del config["transformer"]["attention_bias"]
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "a.safetensors"),
                                tmp_path / "b.safetensors",
                                {"minltx": header["minltx"], "config": json.dumps(config)})
    assert load_pretrained(tmp_path / "b.safetensors").config == model.config


# --- What the formats cannot express ----------------------------------------------------------------------

REFUSED = {
    "inverse RoPE": (lambda: variants.swap(toy(), variants.DiT, variants.InverseDiT), "dit (InverseDiT)"),
    "no RoPE": (lambda: variants.swap(toy(), variants.DiT, variants.UnrotatedDiT), "dit (UnrotatedDiT)"),
    "absolute positions": (lambda: variants.AbsolutePositions().change(toy()), "dit (AbsoluteDiT)"),
    "space, then time": (lambda: variants.SpaceTime().change(toy()), "dit (SpaceTimeDiT)"),
    "no norm": (lambda: variants.NoQKNorm().change(toy()), "q_norm (Identity)"),
    "layer norm": (lambda: variants.LayerQKNorm().change(toy()), "q_norm (LayerNorm)"),
    "log-variance per channel": (lambda: variants.LogvarPerChannel().build(SMALL.model),
                                 "vae.encoder.conv_out.conv.weight of shape (8, 16, 3, 3, 3)"),
    "folded latents": (lambda: variants.FoldedLatents().build(SMALL.model), "vae.encoder (FoldedEncoder)")}


def toy():
    return Idea().build(SMALL.model)


@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
@pytest.mark.parametrize("variant", REFUSED)
def test_a_variant_that_no_format_can_express_is_refused_by_name(tmp_path, variant, name):
    make, says = REFUSED[variant]
    with pytest.raises(ValueError, match="the released formats cannot express") as error:
        save_pretrained(make(), tmp_path / name)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []                                              # nothing is written


@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
@torch.no_grad()
def test_a_decoder_without_timestep_conditioning_can_be_expressed(tmp_path, name):
    model = randomise(variants.Unconditioned().build(SMALL.model))
    save_pretrained(model, tmp_path / name)
    loaded, latent = load_pretrained(tmp_path / name), torch.randn(1, 4, 2, 3, 3)
    assert torch.equal(loaded.vae.decode(latent, torch.tensor([0.1])), model.vae.decode(latent, None))


def test_faster_modules_are_the_same_model(tmp_path):
    save_pretrained(accelerate(release("0.9.5")), tmp_path / "a.safetensors")
    assert load_pretrained(tmp_path / "a.safetensors").config == release("0.9.5").config


# --- The official code itself -----------------------------------------------------------------------------

@pytest.fixture
def official(monkeypatch):
    """The official package, if MINLTX_OFFICIAL says where a clone of it is."""
    if not os.environ.get("MINLTX_OFFICIAL"):
        pytest.skip("set MINLTX_OFFICIAL to a clone of github.com/Lightricks/LTX-Video")
    monkeypatch.syspath_prepend(os.environ["MINLTX_OFFICIAL"])
    return pytest.importorskip("ltx_video.models")


@torch.no_grad()
def test_the_official_code_opens_what_minltx_saves(saved, official):
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder
    from ltx_video.models.transformers.transformer3d import Transformer3DModel
    from ltx_video.schedulers.rf import RectifiedFlowScheduler

    model, path = saved
    dit = Transformer3DModel.from_pretrained(path).eval()
    vae = CausalVideoAutoencoder.from_pretrained(path).eval()
    RectifiedFlowScheduler.from_pretrained(path)
    c, vae_config = model.dit.config, model.vae.config
    latent, text = torch.randn(1, c.latent_channels, 2, 2, 3), torch.randn(1, 5, c.text_width)
    t, mask = torch.tensor([0.4]), torch.tensor([[1.0, 1, 1, 0, 0]])
    from minltx.rope import latent_coordinates
    where = latent_coordinates((2, 2, 3), c.stride, 24, c.causal_time)[None]
    theirs = dit(latent.flatten(2).mT, where, text, t[:, None], encoder_attention_mask=mask,
                 return_dict=False)[0]
    ours = model.dit(latent, t, text, mask, fps=24).flatten(2).mT
    assert (ours - theirs).abs().max() <= 1e-5 and ours.std() > 0.01
    st, sy, sx = vae_config.stride
    video = torch.rand(1, 3, st + 1, 2 * sy, 2 * sx) * 2 - 1
    assert (model.vae.encode(video)[0] - vae.encode(video).latent_dist.mean).abs().max() <= 1e-5
    torch.manual_seed(5)
    theirs = vae.decode(latent, target_shape=(1, 3, st + 1, 2 * sy, 3 * sx), timestep=t / 10).sample
    torch.manual_seed(5)
    assert (model.vae.decode(latent, t / 10) - theirs).abs().max() <= 1e-5
