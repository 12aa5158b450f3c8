"""0.9.7 and 0.9.8: the latent upsampler, two passes, guidance that changes over time; against diffusers, and
against the official code where it is installed (see test_official.py)."""

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_releases import release

from minltx.pretrained import RELEASES, passes
from minltx.pretrained.releases import DEV_13B, DISTILLED_TWICE, SamplingConfig, release_of
from minltx.pretrained.stg import GuidanceOverTime, SpatioTemporalGuidance, project
from minltx.pretrained.upsampler import LatentUpsampler, UpsamplerConfig, adain, load_upsampler, tone_map

TINY = UpsamplerConfig(8, 32, 1)


def random_upsampler(config=TINY, seed=4):
    """Every norm is random; the output is of the size of a latent."""
    upsampler, generator = LatentUpsampler(config).eval(), torch.Generator().manual_seed(seed)
    for name, p in upsampler.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        usual = "norm" in name and "weight" in name                              # 1 or 0
        p.data = noise / p[0].numel()**0.5 if p.ndim > 1 else noise * 0.3 + usual
    return upsampler


def twice(guidance=1.0, **changes):
    """A tiny model that samples in two passes, with its upsampler and no noise but the first of each pass."""
    model = release("0.9.5")
    quiet = dict(condition_noise=0.0, decode_noise=0.0, guidance=SpatioTemporalGuidance(guidance))
    sampling = replace(DISTILLED_TWICE, **quiet, second=replace(DISTILLED_TWICE.second, **quiet), **changes)
    model.config = replace(model.config, sampling=sampling)
    model.upsampler = random_upsampler()
    return model


def words(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, n, 32, generator=generator), torch.ones(1, n)) for n in (6, 6)]


# --- The upsampler ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)])
@torch.no_grad()
def test_the_upsampler_is_that_of_diffusers_from_both_formats(tmp_path, stride):
    diffusers = pytest.importorskip("diffusers")
    safetensors = pytest.importorskip("safetensors.torch")
    ours = random_upsampler(replace(TINY, stride=stride, blocks=2))
    theirs = diffusers.LTXLatentUpsamplerModel if hasattr(diffusers, "LTXLatentUpsamplerModel") else \
        pytest.importorskip("diffusers.pipelines.ltx.modeling_latent_upsampler").LTXLatentUpsamplerModel
    theirs = theirs(8, 32, 2, 3, stride[1] == 2, stride[0] == 2).eval()
    theirs.load_state_dict(ours.state_dict())                                    # the names are the released
    latent = torch.randn(2, 8, 3, 4, 5)
    out = theirs(latent)
    assert (ours(latent) - out).abs().max() <= 1e-5 and out.std() > 0.05
    theirs.save_pretrained(tmp_path / "latent_upsampler")
    config = {"in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 2, "dims": 3,
              "spatial_upsample": stride[1] == 2, "temporal_upsample": stride[0] == 2}
    safetensors.save_file(ours.state_dict(), tmp_path / "up.safetensors",
                          {"config": json.dumps({"_class_name": "LatentUpsampler", **config})})
    for path in (tmp_path, tmp_path / "latent_upsampler", tmp_path / "up.safetensors"):
        loaded = load_upsampler(path)
        assert loaded.config == ours.config and torch.equal(loaded(latent), ours(latent))


@pytest.mark.parametrize("config, says", [
    (None, "does not say what it is"), ({}, "lacks the field 'in_channels'"),
    ({"dims": 2}, "dims is 2"), ({"vae": {}}, "a whole model"), ({"mid_channels": 40}, "32 groups"),
    ({"spatial_upsample": False}, "neither space nor time"), ({"_class_name": "UNet"}, "'UNet'"),
    ({"mid_channels": 64}, "has the shape")])
def test_a_file_that_is_not_an_upsampler_gets_a_sentence(tmp_path, config, says):
    safetensors = pytest.importorskip("safetensors.torch")
    whole = {"in_channels": 8, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
    header = None if config is None else {"config": json.dumps({**whole, **config} if config else {"dims": 3,
                                                               "mid_channels": 32})}
    safetensors.save_file(random_upsampler().state_dict(), tmp_path / "up.safetensors", header)
    with pytest.raises(ValueError) as error:
        load_upsampler(tmp_path / "up.safetensors")
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="there is no"):
        load_upsampler(tmp_path / "absent")


def test_adain_and_tone_mapping_are_those_of_diffusers():
    pytest.importorskip("diffusers")
    from diffusers import LTXLatentUpsamplePipeline as Pipeline

    latent, reference = torch.randn(2, 5, 3, 4, 6) * 2 + 1, torch.randn(2, 5, 3, 2, 3)
    theirs = Pipeline.adain_filter_latent(None, latent, reference, 1.0)
    assert (adain(latent, reference) - theirs).abs().max() <= 1e-6
    for compression in (0.0, 0.6, 1.0):
        theirs = Pipeline.tone_map_latents(None, latent, compression)
        assert (tone_map(latent, compression) - theirs).abs().max() <= 1e-6
    assert torch.equal(tone_map(latent, 0.0), latent)


# --- Two passes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("given", [False, True])
@torch.no_grad()
def test_two_passes_are_those_of_diffusers(tmp_path, monkeypatch, guidance, given):
    """Its condition pipeline, its upsampling pipeline, its condition pipeline again; to the pixels."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("safetensors")
    from diffusers import LTXConditionPipeline, LTXLatentUpsamplePipeline
    from diffusers.pipelines.ltx import pipeline_ltx_condition as module
    from test_parity import open_in_diffusers, pipeline

    from minltx.pretrained import save_pretrained

    model, (text, null) = twice(guidance), words()
    save_pretrained(model, tmp_path)
    transformer, vae = open_in_diffusers(tmp_path)
    upsampler = pytest.importorskip("diffusers.pipelines.ltx.modeling_latent_upsampler").\
        LTXLatentUpsamplerModel(8, 32, 1, 3).eval()
    upsampler.load_state_dict(model.upsampler.state_dict())
    picture = torch.rand(1, 3, 1, 160, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    monkeypatch.setattr(module, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    pipe = pipeline(LTXConditionPipeline, transformer, vae, diffusers.FlowMatchEulerDiscreteScheduler())
    monkeypatch.setattr(pipe.video_processor, "preprocess_video", passes.resized)
    conditions = [module.LTXVideoCondition(video=picture, frame_index=0, strength=1.0)] if given else None
    generator = torch.Generator().manual_seed(4)
    shared = dict(prompt_embeds=text[0], prompt_attention_mask=text[1], negative_prompt_embeds=null[0],
                  negative_prompt_attention_mask=null[1], num_frames=17, guidance_scale=guidance,
                  frame_rate=25, output_type="latent", generator=generator, image_cond_noise_scale=0.0,
                  conditions=conditions)
    first = pipe(height=96, width=128, timesteps=[1000 * t for t in DISTILLED_TWICE.times], **shared).frames
    larger = LTXLatentUpsamplePipeline(vae, upsampler)(
        latents=first, height=192, width=256, adain_factor=1.0, output_type="latent").frames
    times = DISTILLED_TWICE.second.times
    second = pipe(height=192, width=256, latents=larger, denoise_strength=0.75,
                  timesteps=[1000 * t for t in (1.0, *times)], **shared).frames
    theirs = vae.decode(model.vae.denormalize(second), torch.tensor([0.05])).sample.clamp(-1, 1)
    theirs = F.interpolate(theirs[0].movedim(1, 0), (160, 224), mode="bilinear").movedim(0, 1)[None]

    generator = torch.Generator().manual_seed(4)
    draw = lambda shape, *_: torch.randn(1, *shape, generator=generator)
    monkeypatch.setattr(passes, "seeded_noise", draw)
    monkeypatch.setattr(passes, "randn_per_sample", draw)
    ours = model.generate(text, null, [0], (17, 160, 224), [(picture, 0, 1.0)] if given else [], fps=25.0)
    assert ours.shape == (1, 3, 17, 160, 224)
    assert (ours - theirs).abs().max() <= 1e-4 and ours.std() > 0.05


@pytest.mark.parametrize("size, small", [((121, 704, 1216), (121, 448, 800)), ((9, 64, 128), (9, 32, 64))])
def test_the_first_pass_is_two_thirds_of_the_size_in_whole_latents(size, small):
    assert passes.first_size(size, (8, 32, 32)) == small
    with pytest.raises(ValueError, match="too small for two passes: use at least 64x64"):
        passes.first_size((9, 32, 96), (8, 32, 32))


@torch.no_grad()
def test_seeds_sizes_and_what_two_passes_cannot_do():
    model, (text, null) = twice(), words()
    a, b = (model.generate(text, seeds=seeds, size=(9, 64, 96)) for seeds in ([4, 5], [5]))
    torch.testing.assert_close(a[1:], b, rtol=0, atol=1e-4)                         # the same in a batch
    assert (a[0] - a[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="video-to-video is one pass"):
        model.generate(text, seeds=[4], size=(9, 64, 96), start=b, change=0.5)
    picture = torch.rand(1, 3, 1, 64, 96) * 2 - 1
    with pytest.raises(ValueError, match="overlap at frame 0: give the later one strength 1"):
        model.generate(text, seeds=[4], size=(9, 64, 96), conditions=[(picture, 0, 1.0), (picture, 0, 0.5)])
    over = [(picture, 0, 0.5), (-picture, 0, 1.0)]
    kept = model.generate(text, seeds=[4], size=(9, 64, 96), conditions=over)
    assert torch.equal(kept, model.generate(text, seeds=[4], size=(9, 64, 96), conditions=over[1:]))
    model.upsampler = None
    with pytest.raises(ValueError, match="two passes: load its latent upsampler"):
        model.generate(text, seeds=[4], size=(9, 64, 96))
    one = model.use_one_pass()
    assert one.schedule().tolist() == pytest.approx([1, .9937, .9875, .9812, .975, .9094, .725, .4219, 0])
    assert one.generate(text, seeds=[4], size=(9, 64, 96)).shape == (1, 3, 9, 64, 96)


def test_tone_mapping_acts_on_what_is_decoded(monkeypatch):
    """Between the decoder's noise and the un-normalising, and only where the release has it."""
    plain, mapped = twice(), twice()
    second = mapped.config.sampling.second
    mapped.config = replace(mapped.config, sampling=replace(mapped.config.sampling,
                                                            second=replace(second, tone_map=0.6)))
    seen, (text, _) = [], words()
    for model in (plain, mapped):
        monkeypatch.setattr(model.vae, "decode", lambda z, t, generator=None, own=model.vae: (
            seen.append(own.normalize(z)), own.decoder(z, t, generator))[1])
        model.generate(text, seeds=[4], size=(9, 64, 96))
    torch.testing.assert_close(seen[1], tone_map(seen[0], 0.6), rtol=0, atol=1e-4)
    assert (seen[1] - seen[0]).abs().max() > 0.01
    tones = {name: (config.sampling.second or config.sampling).tone_map for name, config in RELEASES.items()}
    assert {name for name, tone in tones.items() if tone} == {"0.9.8-13b-distilled"}


# --- Guidance over time -----------------------------------------------------------------------------------

def test_the_guidance_of_a_step_is_the_first_whose_time_is_not_above_it():
    """The official rule, over all times of the 13 B recipe: 30 steps without the last 3."""
    times, guidance = DEV_13B.schedule_of().tolist()[:-1], DEV_13B.guidance
    assert len(times) == 27 and len(DEV_13B.second.schedule_of()) == 14
    for t in times:
        below = [i for i, time in enumerate(guidance.times) if torch.tensor(t) >= time]
        assert guidance.at(t) is guidance.parts[below[0] if below else -1]
    assert [part.cfg for part in map(guidance.at, times)].count(8.0) == 5          # from 0.99167 to 0.985
    assert guidance.at(1.0).stg == 0 and guidance.at(0.01) is guidance.parts[-1]
    assert guidance.scaled(cfg=1.0).cfg == 1.0 and guidance.cfg == 8.0
    with pytest.raises(ValueError, match="as many falling times as parts"):
        GuidanceOverTime(times=(0.5, 1.0), parts=guidance.parts[:2])


def test_cfg_star_projects_the_caption_on_the_null_caption():
    v_text, v_null = torch.randn(2, 2, 5, 3).unbind(0)
    for b in range(2):
        scales = torch.linspace(-3, 3, 601)
        errors = [(v_text[b] - s * v_null[b]).square().sum() for s in scales]           # the nearest multiple
        best = scales[torch.stack(errors).argmin()]
        torch.testing.assert_close(project(v_text, v_null)[b], best * v_null[b], rtol=0, atol=0.03)
    guidance = SpatioTemporalGuidance(3.0, cfg_star=True)
    predictions = iter([v_text, v_null])
    v = guidance.velocity(lambda *_: next(predictions), (0, 0), (0, 0))
    v_null = project(v_text, v_null)
    torch.testing.assert_close(v, v_null + 3 * (v_text - v_null))


def test_recipes_are_stored_and_restored():
    for config in RELEASES.values():
        stored = json.loads(json.dumps(config.sampling.stored()))
        assert SamplingConfig.restored(stored, "here") == config.sampling
        assert ("second" in stored) == (config.sampling.second is not None)
    with pytest.raises(ValueError, match="here: its sampling is not understood"):
        SamplingConfig.restored({**stored, "second": {"steps": 0}}, "here")


def test_the_release_is_known_by_the_published_name_or_by_the_networks():
    late, large = RELEASES["0.9.5"], RELEASES["0.9.8-13b-dev"]
    for name, config, expected in (
            ("ltx-video-2b-v0.9.1.safetensors", RELEASES["0.9.1"], "0.9.1"),
            ("ltx-video-2b-v0.9.safetensors", RELEASES["0.9.0"], "0.9.0"),
            ("ltxv-2b-0.9.6-dev-04-25.safetensors", late, "0.9.6-dev"),
            ("ltxv-2b-0.9.8-distilled-fp8.safetensors", late, "0.9.8-2b-distilled"),
            ("ltxv-13b-0.9.7-dev-fp8.safetensors", large, "0.9.7-13b-dev"),
            ("LTX-Video-0.9.7-distilled", large, "0.9.7-13b-distilled"),
            ("mine.safetensors", large, "0.9.8-13b-dev"), ("mine.safetensors", late, None),
            ("ltxv-13b-0.9.7-dev.safetensors", late, None)):                   # the name says something else
        assert release_of(name, config.dit, config.vae) == expected
    assert release_of("mine", large.dit, large.vae, distilled=True) == "0.9.8-13b-distilled"


# --- The official code itself -----------------------------------------------------------------------------

def as_official(guidance):
    """A guidance as parameters of the official pipeline."""
    parts, over_time = [guidance], isinstance(guidance, GuidanceOverTime)
    if over_time:
        parts = guidance.parts
    each = [{"guidance_scale": p.cfg, "stg_scale": p.stg, "rescaling_scale": p.rescale,
             "skip_block_list": list(p.stg_blocks)} for p in parts]
    found = {name: [part[name] for part in each] for name in each[0]} if over_time else each[0]
    return found | {"guidance_timesteps": list(guidance.times) if over_time else None,
                    "cfg_star_rescale": parts[0].cfg_star}


def as_pass(sampling):
    """A pass as parameters of the official pipeline."""
    times = {"timesteps": list(sampling.times), "num_inference_steps": None} if sampling.times else {
        "num_inference_steps": sampling.steps, "skip_initial_inference_steps": sampling.skip_first,
        "skip_final_inference_steps": sampling.skip_last}
    return times | as_official(sampling.guidance) | {"tone_map_compression_ratio": sampling.tone_map}


@pytest.mark.skipif(not os.environ.get("MINLTX_OFFICIAL"), reason="set MINLTX_OFFICIAL, see test_official.py")
@pytest.mark.parametrize("name", ["0.9.8-13b-dev", "0.9.8-13b-distilled", "0.9.8-2b-distilled"])
@torch.no_grad()
def test_a_recipe_is_that_of_the_official_pipeline(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(os.environ["MINLTX_OFFICIAL"])
    from ltx_video.models.autoencoders import latent_upsampler
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder
    from ltx_video.models.transformers.symmetric_patchifier import SymmetricPatchifier
    from ltx_video.models.transformers.transformer3d import Transformer3DModel
    from ltx_video.pipelines import pipeline_ltx_video as official
    from ltx_video.schedulers.rf import RectifiedFlowScheduler
    from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy

    from minltx.pretrained import save_pretrained

    model = release("0.9.5", heads=2, depth=RELEASES[name].dit.depth)
    recipe = RELEASES[name].sampling
    recipe = replace(recipe, condition_noise=0.0, second=replace(recipe.second, condition_noise=0.0,
                                                                 decode_noise=0.0))
    model.config, model.upsampler = replace(model.config, sampling=recipe), random_upsampler()
    save_pretrained(model, tmp_path / "a.safetensors")
    upsampler = latent_upsampler.LatentUpsampler(8, 32, 1).eval()
    upsampler.load_state_dict(model.upsampler.state_dict())
    vae = CausalVideoAutoencoder.from_pretrained(tmp_path / "a.safetensors").eval()
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda *args, **how: with_mean(encode(*args, **how)))
    enhancer = dict.fromkeys(f"prompt_enhancer_{part}" for part in (
        "image_caption_model", "image_caption_processor", "llm_model", "llm_tokenizer"))
    pipe = official.LTXVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, patchifier=SymmetricPatchifier(1), **enhancer,
        transformer=Transformer3DModel.from_pretrained(tmp_path / "a.safetensors").eval(),
        scheduler=RectifiedFlowScheduler.from_pretrained(tmp_path / "a.safetensors"))
    pipe.set_progress_bar_config(disable=True)
    text, null = words()
    picture = torch.rand(1, 3, 1, 64, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs = official.LTXMultiScalePipeline(pipe, upsampler)(
        downscale_factor=0.6666666, first_pass=as_pass(replace(recipe, tone_map=0.0)),
        second_pass=as_pass(recipe.second), height=64, width=128, num_frames=17, frame_rate=30,
        skip_layer_strategy=SkipLayerStrategy.AttentionValues, output_type="pt", is_video=True,
        vae_per_channel_normalize=True, image_cond_noise_scale=0.0, decode_timestep=0.05,
        decode_noise_scale=0.0, generator=torch.Generator().manual_seed(4), prompt_embeds=text[0],
        negative_prompt=None,
        prompt_attention_mask=text[1], negative_prompt_embeds=null[0], negative_prompt_attention_mask=null[1],
        conditioning_items=[official.ConditioningItem(picture, 0, 1.0)]).images * 2 - 1
    generator = torch.Generator().manual_seed(4)
    draw = lambda shape, *_: torch.randn(1, shape[1] * shape[2] * shape[3], shape[0],
                                         generator=generator).mT.unflatten(2, shape[1:])
    monkeypatch.setattr(passes, "seeded_noise", draw)
    monkeypatch.setattr(passes, "randn_per_sample", draw)
    ours = model.generate(text, null, [0], (17, 64, 128), [(picture, 0, 1.0)])
    assert ours.shape == theirs.shape and ours.std() > 0.05
    assert (ours - theirs).abs().max() <= 1e-4, (ours - theirs).abs().max()


def with_mean(output):
    """A posterior whose sample is its mean, as minltx takes it."""
    output.latent_dist.sample = output.latent_dist.mode
    return output
