"""The same numbers as an independent implementation, diffusers, from the same random weights (SPEC 12).

Every norm weight, table and scale is random, because ones and zeros would hide errors. Skipped where
diffusers is not installed; the project's own CI installs it.
"""

import math
from dataclasses import replace

import pytest
import torch

from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.flow import SHIFT, linear_quadratic_schedule, shift_times, shifted_schedule
from minltx.pretrained import RELEASES, LTXVideo, load_pretrained, save_pretrained
from minltx.pretrained.diffusers import read_vae, vae_fields
from minltx.pretrained.names import diffusers_dit_names, official_names
from minltx.pretrained.official import dit_fields
from minltx.pretrained.releases import VAE_090, VAE_091, ReleaseConfig, SamplingConfig
from minltx.rope import latent_coordinates, rope_tables
from minltx.sampler import Condition, Guidance, Sampling, decode, sample_latent
from minltx.vae import VAEConfig

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("safetensors")
from tiny_releases import VAE_LATE, VAES, randomise, release    # noqa: E402

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each tiny release as minltx has it and as diffusers loads it from the folder that minltx wrote."""
    made = {}
    for version in VAES:
        model, path = release(version), tmp_path_factory.mktemp("release") / version
        save_pretrained(model, path)
        made[version] = (model, *open_in_diffusers(path), path)
    return made


def open_in_diffusers(path):
    """-> (transformer, vae), having checked that diffusers missed nothing and ignored nothing.

    Their tensors are copied: in the file they are not aligned, and then oneDNN rounds differently on some
    processors.
    """
    opened = []
    for cls, part in ((diffusers.LTXVideoTransformer3DModel, "transformer"),
                      (diffusers.AutoencoderKLLTXVideo, "vae")):
        network, info = cls.from_pretrained(path, subfolder=part, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys",
                                               "error_msgs"))
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.data = tensor.data.clone()
        opened.append(network.eval())
    return opened


def scheduler():
    """The scheduler of 0.9.0's and 0.9.1's folders on the hub (SPEC 4.3)."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.1, base_shift=0.95, max_shift=2.05,
        base_image_seq_len=1024, max_image_seq_len=4096)


def close(a, b, atol=1e-5):
    assert a.shape == b.shape and a.isfinite().all()
    assert (a - b).abs().max().item() <= atol
    assert b.std() > 0.05                                           # zeros would agree with anything


# --- The transformer --------------------------------------------------------------------------------------

@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("fps", [24, 25, 29.97])
@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 3, 2), (2, 5, 3)])
@pytest.mark.parametrize("per_token", [True, False])
@torch.no_grad()
def test_transformer(folders, grid, fps, causal, per_token):
    model, theirs, _, _ = folders["0.9.5"]
    torch.manual_seed(1)
    latent, text = torch.randn(2, 8, *grid), torch.randn(2, 7, 32)
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    t = torch.rand(2, *grid) if per_token else torch.rand(2)
    ours = DiT(DiTConfig(**{**vars(model.dit.config), "causal_time": causal})).eval()
    ours.load_state_dict(model.dit.state_dict())
    f, h, w = grid
    if causal:          # as LTXConditionPipeline: coordinates are given
        frames = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
        coordinates = torch.stack(frames).flatten(1)[None].float() * torch.tensor([8, 32, 32])[None, :, None]
        coordinates[:, 0] = (coordinates[:, 0] + 1 - 8).clamp(min=0) * (1.0 / fps)
        where = dict(video_coords=coordinates.expand(2, -1, -1))
    else:               # as LTXPipeline: the scale of every axis is given
        where = dict(num_frames=f, height=h, width=w, rope_interpolation_scale=(8 / fps, 32, 32))
    output = theirs(flatten_latent(latent), text, 1000 * t.reshape(2, -1), mask, **where).sample
    close(flatten_latent(ours(latent, t, text, mask, fps=fps)), output)


@pytest.mark.parametrize("width, heads", [(60, 2), (64, 8), (40, 5), (6, 1)])
@torch.no_grad()
def test_transformer_of_other_shapes(tmp_path, width, heads):
    """Widths that 6 divides and that it does not, other head sizes, a text that is longer than the video."""
    torch.manual_seed(0)
    config = DiTConfig(8, width, 2, heads, 20, (8, 32, 32))
    model = randomise(LTXVideo(ReleaseConfig(config, VAE_LATE, SamplingConfig())), seed=3)
    save_pretrained(model, tmp_path)
    theirs, _ = open_in_diffusers(tmp_path)
    latent, text, t = torch.randn(1, 8, 1, 2, 2), torch.randn(1, 30, 20), torch.tensor([0.3])
    output = theirs(flatten_latent(latent), text, 1000 * t, torch.ones(1, 30),
                    video_coords=latent_coordinates((1, 2, 2), (8, 32, 32), 24, True)[None]).sample
    close(flatten_latent(model.dit(latent, t, text, fps=24)), output)


@pytest.mark.parametrize("fps", [8, 12, 15, 16, 23.976, 24, 25, 29.97, 30, 50, 60])
def test_rope_tables_are_bit_equal(fps):
    rope = diffusers.models.transformers.transformer_ltx.LTXVideoRotaryPosEmbed(2048)
    x, grid = torch.zeros(1, 1, 1), (5, 3, 4)
    ours = latent_coordinates(grid, (8, 32, 32), fps, causal=False)
    for a, b in zip(rope_tables(ours, 2048, (20.0, 2048.0, 2048.0)),
                    rope(x, *grid, rope_interpolation_scale=(torch.tensor(8 / fps), 32, 32))):
        assert torch.equal(a, b[0])
    ours = latent_coordinates(grid, (8, 32, 32), fps, causal=True)
    for a, b in zip(rope_tables(ours, 2048, (20.0, 2048.0, 2048.0)), rope(x, video_coords=ours[None])):
        assert torch.equal(a, b[0])


# --- The VAE ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", VAES)
@pytest.mark.parametrize("frames, height, width", [(17, 64, 96), (1, 32, 64), (9, 96, 32)])
@torch.no_grad()
def test_vae(folders, version, frames, height, width):
    """Encoder and decoder, with the same draws of injected noise."""
    model, _, theirs, _ = folders[version]
    torch.manual_seed(2)
    video = torch.rand(2, 3, frames, height, width) * 2 - 1
    mean, logvar = model.vae.encode(video)
    posterior = theirs.encode(video).latent_dist
    close(mean, posterior.mean)
    close(logvar, posterior.logvar)
    latent, t = torch.randn_like(mean), torch.tensor([0.05, 0.13]) if version != "0.9.0" else None
    torch.manual_seed(5)
    output = theirs.decode(latent, t).sample
    torch.manual_seed(5)
    ours = model.vae.decode(latent, torch.zeros(2) if t is None else t)
    close(ours, output)
    again = model.vae.decode(latent, torch.zeros(2) if t is None else t)
    assert torch.equal(ours, again) == (version != "0.9.1")         # noise injection draws anew


def test_injected_noise_comes_from_the_generator(folders):
    model, latent, t = folders["0.9.1"][0], torch.randn(1, 8, 2, 2, 2), torch.tensor([0.05])
    a, b, c = (model.vae.decode(latent, t, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and (a - c).abs().max() > 1e-3


# --- Files ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", VAES)
@torch.no_grad()
def test_round_trip_from_diffusers_and_back(folders, tmp_path, version):
    """Weights that diffusers wrote, through minltx, and into diffusers again: nothing changes."""
    _, transformer, vae, _ = folders[version]
    first, second = tmp_path / "first", tmp_path / "second"
    transformer.save_pretrained(first / "transformer")
    vae.save_pretrained(first / "vae")
    scheduler().save_pretrained(first / "scheduler")
    model = load_pretrained(first)
    assert model.config.dit.causal_time == (version == "0.9.5")
    assert model.config.vae == VAES[version]
    save_pretrained(model, second)
    again = open_in_diffusers(second)
    for network, copy in zip((transformer, vae), again):
        before, after = network.state_dict(), copy.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    latent, text = torch.randn(1, 36, 8), torch.randn(1, 5, 32)
    outputs = [t(latent, text, torch.tensor([400.0]), torch.ones(1, 5), 3, 3, 4, (8 / 25, 32, 32)).sample
               for t in (transformer, again[0])]
    assert torch.equal(*outputs) and outputs[0].std() > 0.05
    outputs = []
    for network in (vae, again[1]):
        torch.manual_seed(1)
        z = network.encode(torch.ones(1, 3, 9, 64, 64).cumsum(3) / 64).latent_dist.mean
        outputs.append(network.decode(z, torch.tensor([0.05])).sample)
    assert torch.equal(*outputs) and outputs[0].std() > 0.01


@torch.no_grad()
def test_sharded_folders(folders, tmp_path):
    model, transformer, vae, _ = folders["0.9.5"]
    transformer.save_pretrained(tmp_path / "transformer", max_shard_size="200KB")
    vae.save_pretrained(tmp_path / "vae", max_shard_size="1MB")
    scheduler().save_pretrained(tmp_path / "scheduler")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    loaded = load_pretrained(tmp_path)
    a, b = model.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_diffusers_can_express_every_released_vae():
    """The released configs themselves, against the lists of SPEC 1.8 and diffusers' own parameter count."""
    for config, total in ((VAE_090, 419_193_649), (VAE_091, 934_976_434), (VAEConfig(), 1_246_913_522)):
        fields = vae_fields(config)
        assert read_vae(fields)[0] == config
        with torch.device("meta"):
            theirs = diffusers.AutoencoderKLLTXVideo.from_config(fields)
        assert sum(p.numel() for p in theirs.parameters()) == total


@pytest.mark.parametrize("name", ["0.9.5", "0.9.8-13b-dev"])
def test_full_size_transformers_have_the_names_and_shapes_of_diffusers(name):
    """Every tensor, on the meta device. The official names differ from diffusers' in four words (SPEC 9)."""
    with torch.device("meta"):
        model = LTXVideo(RELEASES[name])
        other = diffusers.LTXVideoTransformer3DModel.from_config(
            {"patch_size": 1, "patch_size_t": 1, "qk_norm": "rms_norm_across_heads",
             **dit_fields(model.dit.config)})
    shapes = {key: x.shape for key, x in other.state_dict().items()}
    known = diffusers_dit_names(model.dit)
    assert {known[key]: x.shape for key, x in model.dit.state_dict().items()} == shapes
    words = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
    official = {".".join(words.get(word, word) for word in key.split(".")) for key in shapes}
    found = {key for key in official_names(model).values() if key.startswith("model.diffusion_model.")}
    assert found == {"model.diffusion_model." + key for key in official}


# --- Sampling ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps, grid", [(20, (16, 16, 24)), (40, (16, 15, 22)), (8, (3, 4, 4)),
                                         (50, (8, 8, 8))])
@pytest.mark.parametrize("line", [((1024, 0.95), (4096, 2.05)), ((256, 0.5), (4096, 1.15))])
def test_shifted_schedule(steps, grid, line):
    theirs, tokens, ((low, mu_low), (high, mu_high)) = scheduler(), math.prod(grid), line
    mu = diffusers.pipelines.ltx.pipeline_ltx.calculate_shift(tokens, low, high, mu_low, mu_high)
    theirs.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=mu)
    uniform = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    assert (shift_times(uniform, tokens, 0.1, line) - theirs.sigmas[:-1]).abs().max() <= 1e-6
    if line == SHIFT:
        assert (shifted_schedule(steps, tokens) - theirs.sigmas).abs().max() <= 1e-6


@pytest.mark.parametrize("steps", [2, 7, 8, 20, 30, 40])
def test_linear_quadratic_schedule(steps):
    theirs = diffusers.pipelines.ltx.pipeline_ltx_condition.linear_quadratic_schedule(steps)
    assert (linear_quadratic_schedule(steps)[:-1] - theirs).abs().max() <= 1e-6


def pipeline(cls, transformer, vae, scheduler):
    made = cls(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)
    made.set_progress_bar_config(disable=True)
    return made


def words():
    torch.manual_seed(3)
    text, null = torch.randn(2, 2, 6, 32).unbind(0)
    masks = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]), torch.tensor([[1.0, 0, 0, 0, 0, 0]] * 2)
    given = dict(prompt_embeds=text, prompt_attention_mask=masks[0], negative_prompt_embeds=null,
                 negative_prompt_attention_mask=masks[1], height=96, width=128, num_frames=17,
                 num_inference_steps=8, guidance_scale=3.0, frame_rate=25, output_type="latent")
    return (text, masks[0]), (null, masks[1]), given


@pytest.mark.parametrize("image_to_video", [False, True])
@torch.no_grad()
def test_a_whole_sampling_run(folders, image_to_video):
    """8 steps of the shifted schedule with guidance, as 0.9.0 and 0.9.1 sample,
    from the same injected latent."""
    model, transformer, vae, _ = folders["0.9.1"]
    text, null, given = words()
    noise, image = torch.randn(2, 8, 3, 3, 4), torch.rand(2, 3, 1, 96, 128) * 2 - 1
    first = model.vae.normalize(model.vae.encode(image)[0])
    cls = diffusers.LTXImageToVideoPipeline if image_to_video else diffusers.LTXPipeline
    begin = torch.cat([first, noise[:, :, 1:]], dim=2) if image_to_video else noise
    if image_to_video:
        given["image"] = image[:, :, 0]
    theirs = pipeline(cls, transformer, vae, scheduler())(latents=flatten_latent(begin), **given).frames
    conditions = [Condition(first)] if image_to_video else []
    sampling = Sampling(model.schedule(8, 36), Guidance(3.0), fps=25)
    ours = sample_latent(model.dit, noise, text, null, sampling, conditions)
    close(flatten_latent(ours), theirs, atol=1e-4)


@pytest.mark.parametrize("condition_noise", [0.0, 0.15])
@torch.no_grad()
def test_a_whole_run_with_every_kind_of_condition(folders, monkeypatch, condition_noise):
    """As 0.9.5 samples: linear-quadratic, causal time; a first frame, a soft keyframe, a clip at the end."""
    module = diffusers.pipelines.ltx.pipeline_ltx_condition
    # the mean of a picture's posterior, as minltx takes it, not a sample of it
    monkeypatch.setattr(module, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    model, transformer, vae, _ = folders["0.9.5"]
    text, null, given = words()
    given.update(num_frames=33, prompt_embeds=text[0][:1], negative_prompt_embeds=null[0][:1],
                 prompt_attention_mask=text[1][:1], negative_prompt_attention_mask=null[1][:1])
    videos = [(torch.rand(1, 3, n, 96, 128) * 2 - 1, frame, strength)
              for n, frame, strength in ((1, 0, 1.0), (1, 5, 0.6), (17, 16, 1.0))]
    pipe = pipeline(diffusers.LTXConditionPipeline, transformer, vae,
                    diffusers.FlowMatchEulerDiscreteScheduler())
    monkeypatch.setattr(pipe.video_processor, "preprocess_video", lambda video, *_, **__: video)
    conditions = [module.LTXVideoCondition(video=video, frame_index=frame, strength=strength)
                  for video, frame, strength in videos]
    theirs = pipe(conditions=conditions, image_cond_noise_scale=condition_noise,
                  generator=torch.Generator().manual_seed(4), **given).frames
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1, 8, 5, 3, 4, generator=generator)
    normalised = [Condition(model.vae.normalize(model.vae.encode(video)[0]), frame, strength)
                  for video, frame, strength in videos]
    # The extra tokens' noise as diffusers draws it, each condition's as (B, C, f, h, w); then a draw a step.
    extra = [flatten_latent(torch.randn(1, 8, f, 3, 4, generator=generator)) for f in (1, 2)]
    draws = [torch.cat(extra, dim=1)]
    monkeypatch.setattr("minltx.sampler.randn_per_sample", lambda shape, generators, device=None: (
        draws.pop() if draws else torch.randn(1, *shape, generator=generator)))
    text, null = [tuple(x[:1] for x in pair) for pair in (text, null)]
    sampling = Sampling(model.schedule(8), Guidance(3.0), fps=25, condition_noise=condition_noise)
    ours = sample_latent(model.dit, noise, text, null, sampling, normalised, generators=[generator])
    close(flatten_latent(ours), flatten_latent(theirs) if theirs.ndim == 5 else theirs, atol=1e-4)


@torch.no_grad()
def test_the_pipelines_own_decoding(folders):
    """diffusers from noise to pixels. Its pipelines mix decode noise into the un-normalised latent: our
    result is the same if the noise is normalised before."""
    model, transformer, vae, _ = folders["0.9.5"]
    text, null, given = words()
    noise = torch.randn(2, 8, 3, 3, 4)
    given.update(output_type="pt", decode_timestep=0.05, decode_noise_scale=0.1)
    theirs = pipeline(diffusers.LTXPipeline, transformer, vae, scheduler())(
        latents=flatten_latent(noise), generator=torch.Generator().manual_seed(7), **given).frames
    model.dit.config, before = replace(model.dit.config, causal_time=False), model.dit.config
    sampling = Sampling(shifted_schedule(8, 36), Guidance(3.0), fps=25)
    latent = sample_latent(model.dit, noise, text, null, sampling)
    model.dit.config = before
    last = torch.randn(2, 8, 3, 3, 4, generator=torch.Generator().manual_seed(7))
    ours = decode(model.vae, latent, 0.05, 0.1, model.vae.normalize(last))
    close((ours + 1) / 2, theirs.movedim(1, 2), atol=1e-4)


@torch.no_grad()
def test_decode_noise_in_the_order_of_diffusers(folders):
    """Plain noise is what the official code mixes in, normalised noise what diffusers' pipelines do."""
    model, _, theirs, _ = folders["0.9.5"]
    torch.manual_seed(0)
    latent, noise = torch.randn(2, 1, 8, 2, 2, 3).unbind(0)
    raw = latent * theirs.latents_std.view(1, -1, 1, 1, 1) + theirs.latents_mean.view(1, -1, 1, 1, 1)
    output = theirs.decode(0.9 * raw + 0.1 * noise, torch.tensor([0.05])).sample.clamp(-1, 1)
    close(decode(model.vae, latent, 0.05, 0.1, model.vae.normalize(noise)), output)
    assert (decode(model.vae, latent, 0.05, 0.1, noise) - output).abs().max() > 1e-3
