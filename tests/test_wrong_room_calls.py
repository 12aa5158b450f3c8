"""The rooms `pretrained`, `video` and `evaluation` called wrongly, as in test_wrong_calls.py: each raises a
ValueError that says why, and its docstring says so. tests/faults has many broken files; this has a few."""

import copy
import importlib
import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_wrong_calls import MODULES, public, quiet_calls, raises_itself, says_so
from tiny_releases import release
from torch import nn

from minltx.dit import DiTConfig
from minltx.evaluation import conditions, digits, metrics
from minltx.pretrained import __main__ as which
from minltx.pretrained import diffusers, fields, model, official, options, passes, pictures, plan, prompts
from minltx.pretrained import releases, stg, store, t5, upsampler, weights
from minltx.pretrained.fields import Fields
from minltx.pretrained.releases import ReleaseConfig, SamplingConfig
from minltx.pretrained.stg import GuidanceOverTime, SpatioTemporalGuidance
from minltx.pretrained.upsampler import LatentUpsampler, UpsamplerConfig
from minltx.toy import load_toy
from minltx.toy.model import ToyModel, save_checkpoint
from minltx.training.settings import TOY
from minltx.vae import VAEConfig
from minltx.video import clips, files, tiles
from minltx.video.clips import Bucket, Clip, ClipCache, ClipFolder

CPU, NAN, INF = torch.device("cpu"), math.nan, math.inf
ROOMS = [importlib.import_module(f"minltx.{room}.{path.stem}")
         for room in ("pretrained", "video", "evaluation")
         for path in sorted((Path(stg.__file__).parents[1] / room).glob("*.py")) if path.stem != "__init__"]
# Without that package, a file is not opened to find out what is wrong with it.
MISSING = () if find_spec("safetensors") else ("needs a package: pip install safetensors",)


# --- What is called wrongly -------------------------------------------------------------------------------

class Odd(nn.Linear):
    """A layer that no released format has."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a few wrong files, and small models."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("empty", "upsampler"):
        (folder / name).mkdir()
    (folder / "upsampler" / "config.json").write_text('{"_class_name": "Other"}')
    (folder / "text.txt").write_text("hello")
    Image.new("RGB", (32, 32), "red").save(folder / "picture.png")
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(folder / "deep.png")
    np.savez(folder / "bare.npz", x=np.ones(3))
    short = replace(TOY.model, data=replace(TOY.model.data, frames=9))
    save_checkpoint(folder / "short.pt", ToyModel(short))
    two, toy = release(), load_toy()
    two.config = replace(two.config, sampling=releases.DISTILLED_TWICE)
    variant = copy.deepcopy(toy)
    variant.dit.proj_out.__class__ = Odd
    return SimpleNamespace(path=folder, toy=toy, tiny=release(), two=two, variant=variant)


def z(*shape):
    return torch.zeros(shape)


def each(entry, says, values, call):
    """(the function, a call with one of these values, what the error says) for each of them."""
    return [(entry, lambda place, v=value: call(place, v), says) for value in values]


def said(entry, values, call):
    """The same for {what the error says: value}."""
    return [(entry, lambda place, v=value: call(place, v), says) for says, value in values.items()]


def named(entry, values, call):
    """The same for {name: values}: the call gets {name: value}, and the error names it."""
    return [(entry, lambda place, n=name, v=value: call(place, {n: v}), name)
            for name, some in values.items() for value in some]


def without(package, call):
    """A call in which an optional package is not installed."""
    def called(place):
        with mock.patch.dict(sys.modules, {name: None for name in (package, f"{package}.torch")}):
            return call(place)
    return called


def of(**values):
    return Fields(values, "the file")


def odd(**values):
    return replace(VAEConfig(), **values)


def opened(digests):
    """An open safetensors file with one tensor, whose header holds these checksums."""
    return SimpleNamespace(keys=lambda: ["a"], get_slice=None, get_tensor=lambda name: z(1),
                           metadata=lambda: {store.DIGEST: json.dumps(digests)})


def clip_of(place, frames):
    return Clip(place.path / "picture.png", "a", frames, 32, 32, Bucket(frames, 32, 32))


ONE, GIVEN = SpatioTemporalGuidance(3.0), (z(1, 3, 9, 64, 96), 0, 1.0)
ENDS_TOO_EARLY = odd(decoder_blocks=(("res", 5), ("up", (2, 2, 2), 512)))
WIDE_STEP = odd(encoder_blocks=(("down", (1, 2, 2), 300),))
IN_SPACE = odd(decoder_blocks=(("res", 5), ("up", (1, 2, 2), 512), ("res", 5)))
DEEP = ReleaseConfig(DiTConfig(depth=200), VAEConfig(), SamplingConfig())
ASKED = SimpleNamespace(weights="absent", release=None, text=None, t5=None, prompts=["a"], negative=None,
                        dtype=None, upsampler=None, one_pass=False, offload=False)

# --- Released weights: what their files say ---------------------------------------------------------------

CONFIGS = [
    (Fields, lambda p: Fields([], "the file"), "the file is not an object with fields"),
    (Fields.get, lambda p: of().get("x"), "lacks the field 'x'"),
    (Fields.checked, lambda p: of(x=1).checked("x", lambda x: False, "word", ()), "x is 1, not a word"),
    *each(Fields.count, "x is ", (0, -1, 1.5, "1", True, NAN, 2**30), lambda p, v: of(x=v).count("x")),
    *each(Fields.flag, "x is ", (1, 0, "true", []), lambda p, v: of(x=v).flag("x")),
    *each(Fields.number, "x is ", (0, -1, NAN, INF, "1", True), lambda p, v: of(x=v).number("x")),
    *each(Fields.listed, "x ", (1, "12", [0], [1, "2"], [], {}),
          lambda p, v: of(x=v).listed("x", fields.whole, "numbers")),
    (Fields.not_null, lambda p: of(x=None).not_null("x"), "x is null"),
    (Fields.must_be, lambda p: of(x=2).must_be(x=(1, 3)), "x is 2, and minltx only knows 1 or 3"),
    # diffusers' configs, read and written
    (diffusers.read_decoder, lambda p: diffusers.read_decoder(
        of(decoder_block_out_channels=[8, 16], timestep_conditioning=True)), "narrows 16 to 8 channels"),
    *named(diffusers.read_vae, {"_class_name": ["x"], "latent_channels": [0, NAN], "decoder_causal": [True],
                                "block_out_channels": ["x", [0]]}, lambda p, v: diffusers.read_vae(v)),
    (diffusers.stages_of, lambda p: diffusers.stages_of([("odd", 1)], ("res",)), "the VAE block ('odd', 1)"),
    (diffusers.decoder_fields, lambda p: diffusers.decoder_fields(ENDS_TOO_EARLY), "put residual blocks"),
    (diffusers.vae_fields, lambda p: diffusers.vae_fields(IN_SPACE), "cannot express this VAE"),
    *each(diffusers.read_folder, "has no folder transformer", ("empty", "absent"),
          lambda p, v: diffusers.read_folder(p.path / v)),
    (diffusers.folder_fields, lambda p: diffusers.folder_fields(replace(DEEP, dit=DiTConfig(theta=1.0))),
     "diffusers fixes RoPE"),
    # official headers, read and written
    (official.dit_config, lambda p: official.dit_config(
        of(**official.dit_fields(DiTConfig())), odd(latent_channels=4), True), "and the VAE 4"),
    *named(official.dit_config, {
        "num_layers": [0], "num_attention_heads": ["x"], "activation_fn": ["relu"], "norm_eps": [1e-5],
        "positional_embedding_max_pos": [[1, 1], [1, 1, NAN]], "positional_embedding_theta": [NAN, 0]},
           lambda p, v: official.dit_config(of(**official.dit_fields(DiTConfig()) | v), VAEConfig(), True)),
    (official.require_fields, lambda p: official.require_fields(Fields({}, "the header's vae")), "lacks the"),
    *each(official.listed_blocks, "blocks ", ("x", [], ["res_x"], [["res_x", 1]] * 101),
          lambda p, v: official.listed_blocks(of(blocks=v), ("blocks",))),
    (official.read_encoder, lambda p: official.read_encoder(of(encoder_blocks=[["odd", {}]])), "block odd"),
    (official.read_decoder, lambda p: official.read_decoder(of(decoder_blocks=[["odd", {}]])), "block odd"),
    *each(official.read_vae, "the header's vae", ({}, None, [], {"dims": 2}),
          lambda p, v: official.read_vae(v)),
    (official.vae_object, lambda p: official.vae_object(WIDE_STEP), "format cannot express this VAE"),
    (official.read_header, lambda p: official.read_header(p.path / "text.txt"), "is not a safetensors file"),
    *said(official.read_schedule, {
        "lacks the field 'scheduler'": {}, "sampler is 'x'": {"scheduler": {"sampler": "x"}},
        "allowed_inference_steps": {"scheduler": {}, "allowed_inference_steps": [2]}},
          lambda p, v: official.read_schedule(Fields(v, "the header")))]

STORED = [
    (store.library, without("safetensors", lambda p: store.library()), "pip install safetensors"),
    (store.write, without("safetensors", lambda p: store.write(p.path / "new", {})), "install safetensors"),
    (store.open_file, lambda p: store.open_file(p.path / "absent"), "there is no file"),
    (store.open_file, lambda p: store.open_file(p.path / "text.txt"), "is not a safetensors file"),
    (store.File, lambda p: store.File("x", opened({"": 1})), "the checksum of its header differs"),
    (store.File.get_tensor, lambda p: store.File("x", opened(
        {"": store.checksum_of_header({}, ["a"]), "a": 1})).get_tensor("a"), "the checksum of a differs"),
    (store.check_header, lambda p: store.check_header(p.path / "text.txt"), "a header of "),
    *each(store.parse_json, "here is not readable as JSON", ("{", "", "[" * 10**5),
          lambda p, v: store.parse_json(v, "here")),
    (store.read_json, lambda p: store.read_json(p.path / "absent"), "is missing or not readable"),
    (store.locate, lambda p: store.locate(p.path / "empty"), "has no diffusion_pytorch_model"),
    (store.shards, lambda p: store.shards(p.path / "empty"), "has no diffusion_pytorch_model"),
    (store.check, lambda p: store.check(nn.Linear(1, 1), {"weight": "w"}, {}, "the file"), "lacks w"),
    (store.fill, lambda p: store.fill(nn.Linear(1, 1), {"weight": "w"}, {"w": SimpleNamespace(
        get_tensor=lambda name: z(1, 1) + NAN)}, "the file", torch.float32, CPU), "are not finite"),
    (t5.load_t5, lambda p: t5.load_t5(p.path / "empty"), "has no folder text_encoder"),
    (t5.load_embeddings, lambda p: t5.load_embeddings(p.path / "text.txt"), "is not a safetensors file"),
    *each(t5.encode_prompts, "prompts is ", ("a ship", []), lambda p, v: t5.encode_prompts(v, None, None)),
    *each(t5.save_embeddings, "text is ", (z(2, 3, 4), z(3, 4), z(1, 3, 4).long(), None),
          lambda p, v: t5.save_embeddings(p.path / "new", ["a"], v, z(1, 3))),
    *each(t5.save_embeddings, "mask is ", (z(1, 2), z(2, 3), None),
          lambda p, v: t5.save_embeddings(p.path / "new", ["a"], z(1, 3, 4), v)),
    (which.describe_model, lambda p: list(which.describe_model("absent", None, CPU)), "there is no absent"),
    (weights.load_pretrained, lambda p: weights.load_pretrained("absent"), "there is no absent"),
    (weights.read_config, lambda p: weights.read_config("absent"), "there is no absent"),
    (weights.read_config, lambda p: weights.read_config(p.path, "9.9"), "unknown release '9.9'"),
    (weights.located, lambda p: weights.located(p.tiny.config, p.path / "empty", None), "there is no file"),
    (weights.check_size, lambda p: weights.check_size(DEEP, 10, "the file"), "the file: its config asks for"),
    (weights.empty_model, lambda p: weights.empty_model(replace(DEEP, vae=ENDS_TOO_EARLY), None), "strides"),
    (weights.check_expressible, lambda p: weights.check_expressible(p.toy, p.tiny), "cannot express dit"),
    (weights.save_pretrained, lambda p: weights.save_pretrained(p.variant, p.path / "new"),
     "cannot express dit.proj_out (Odd)"),
    (upsampler.upsampler_at, lambda p: upsampler.upsampler_at("absent"), "give a latent upsampler"),
    (upsampler.read_upsampler, lambda p: upsampler.read_upsampler(p.path / "upsampler"), "is 'Other'"),
    (upsampler.load_upsampler, lambda p: upsampler.load_upsampler("absent"), "give a latent upsampler")]

# --- Released weights: how they sample --------------------------------------------------------------------

SAMPLED = [
    *named(SamplingConfig, {
        "steps": [0, 1.5, None], "times": [(0.1, 0.9), (NAN,), (2,)], "fps": [NAN, 0], "terminal": [5, NAN],
        "schedule": ["x"], "size": [(1, 2), (1, 2, 0)], "decode_t": [2, NAN], "decode_noise": [-1, NAN],
        "condition_noise": [-1, "x"], "tone_map": [2], "skip_first": [40, -1, "x"], "skip_last": [40],
        "shifted": ["no", 1], "guidance": [SpatioTemporalGuidance(NAN)], "shift_line": [((2, 0), (1, 1))],
        "text_tokens": [0]}, lambda p, v: SamplingConfig(**v)),
    *each(SamplingConfig.schedule_of, "takes 1 to 7 steps", (0, 8, -1),
          lambda p, v: releases.DISTILLED_TWICE.schedule_of(v)),
    *each(SamplingConfig.restored, "here: its sampling is not understood",
          ({}, None, [], {"guidance": {"cfg": "x"}}, {"guidance": {"import": 1}},
           {"guidance": {}, "steps": 0}),
          lambda p, v: SamplingConfig.restored(v, "here")),
    (releases.recipe, lambda p: releases.recipe("0.9.5", DiTConfig(depth=3), VAEConfig()), "are not those"),
    (SpatioTemporalGuidance, lambda p: SpatioTemporalGuidance(stg_mode="x"), "unknown STG mode 'x'"),
    *each(SpatioTemporalGuidance.of, "STG cannot skip blocks", ((), (3,), (-1,)),
          lambda p, v: SpatioTemporalGuidance(3.0, 1.0, v).of(p.tiny.dit)),
    *each(GuidanceOverTime, "as many falling times as parts",
          (((), ()), ((1.0,), (ONE, ONE)), ((0.1, 0.9), (ONE, ONE)), ((1.0, 1.0), (ONE, ONE))),
          lambda p, v: GuidanceOverTime(times=v[0], parts=v[1])),
    (model.LTXVideo.passes, lambda p: p.two.passes((9, 96, 96), {}), "load its latent upsampler too"),
    *said(model.LTXVideo.generate, {
        "guidance needs null_text": {"size": (9, 64, 64)}, "steps is 0": {"steps": 0},
        "10 frames cannot be encoded": {"size": (10, 64, 64), "guidance": 1}},
          lambda p, v: p.tiny.generate((z(1, 3, 32), torch.ones(1, 3)), **v)),
    *said(model.LTXVideo.sampling, {"a height of 60": {"size": (9, 60, 64)}, "steps is 0": {"steps": 0},
                                    "t is 1.5": {"change": 1.5}, "t is nan": {"change": NAN}},
          lambda p, v: p.tiny.sampling(**v)),
    (model.LTXVideo.schedule, lambda p: p.tiny.schedule(-1), "steps is -1"),
    (passes.first_size, lambda p: passes.first_size((9, 32, 32), (8, 32, 32)), "too small for two passes"),
    (passes.check_overlaps, lambda p: passes.check_overlaps([GIVEN, (*GIVEN[:2], 0.5)], (8, 32, 32)),
     "two given clips overlap at frame 0"),
    (passes.generate, lambda p: passes.generate(
        p.tiny, (z(1, 3, 32), None), None, [0], (10, 64, 64), [None]), "10 frames cannot be encoded"),
    (pictures.compress, without("av", lambda p: pictures.compress(z(3, 8, 8))), "pip install av"),
    (pictures.as_released, without("av", lambda p: pictures.as_released(Image.new("RGB", (8, 8)), 8, 8)),
     "or use them as they are with --clean"),
    (plan.check_size, lambda p: plan.check_size(p.tiny.config, (10, 64, 64)), "10 frames cannot be encoded"),
    (options.load, lambda p: options.load(ASKED, CPU, 6, None), "need the prompts' embeddings"),
    (options.plan_memory, lambda p: options.plan_memory(ASKED, CPU, torch.float32, 6), "there is no absent"),
    (prompts.load_prompted, lambda p: prompts.load_prompted("absent", ["a"]), "need the prompts' embeddings"),
    (prompts.load_released, lambda p: prompts.load_released("absent"), "there is no absent"),
    (prompts.PromptedVideo.generate, lambda p: prompts.PromptedVideo(
        p.tiny, ["a"], z(1), z(1)).generate(["b"], [0]), "the prompt is 'b': use 'a'"),
    *named(UpsamplerConfig, {"width": [33, 0, "x"], "blocks": [1.5, 0], "latent_channels": [None],
                             "stride": [(1, 2), (1, 3, 2), None]}, lambda p, v: UpsamplerConfig(**v)),
    *each(LatentUpsampler, "latent is ", (z(1, 5, 1, 2, 2), z(4, 1, 2, 2), None),
          lambda p, v: LatentUpsampler(UpsamplerConfig(4, 32, 1))(v)),
    *each(upsampler.adain, "reference is ", (z(1, 1, 1, 2, 2), z(2, 4, 1, 2, 2), z(4, 1, 2, 2), None),
          lambda p, v: upsampler.adain(z(1, 4, 1, 2, 2), v)),
    *each(upsampler.tone_map, "compression is ", (-0.1, 1.1, NAN), lambda p, v: upsampler.tone_map(z(1), v))]

# --- Videos -----------------------------------------------------------------------------------------------

VIDEO = [
    *said(clips.read_clip, {"cannot be read to its end": "text.txt", "absent: is not a file": "absent",
                            "empty: is not a file": "empty"}, lambda p, v: clips.read_clip(p.path / v)),
    *each(clips.parse_buckets, "is not understood", ("x", "17x32", "", "1x1x0", "1x1x1,"),
          lambda p, v: clips.parse_buckets(v)),
    *each(clips.check_buckets, "the bucket ", ((10, 32, 32), (17, 30, 32), (17, 32, 0)),
          lambda p, v: clips.check_buckets([Bucket(*v)], p.toy.vae)),
    *said(clips.check_clip, {"does not exist": "absent.png", "must lie inside": "../x.png",
                             "does not end in": "text.txt", "has no caption": "picture.png"},
          lambda p, v: clips.check_clip(p.path, v, None if v == "picture.png" else "a", 16)),
    (clips.put_in_bucket, lambda p: clips.put_in_bucket(clip_of(p, 1), p.toy.vae, 16, [Bucket(17, 32, 32)]),
     "is shorter than every bucket"),
    (clips.put_in_bucket, lambda p: clips.put_in_bucket(clip_of(p, 2), p.toy.vae, 16, []), "or use buckets"),
    (clips.check_folder, lambda p: clips.check_folder("absent", p.toy.vae, 16), "there is no folder absent"),
    *each(clips.check_folder, "clips cannot be read at", (0, -1, NAN, INF),
          lambda p, v: clips.check_folder(p.path / "empty", p.toy.vae, v)),
    (clips.report_bad, lambda p: clips.report_bad("empty", [], []), "there is no usable clip in empty"),
    (clips.open_folder, lambda p: clips.open_folder(p.path / "empty", p.toy.vae, 16), "is no usable clip"),
    (ClipCache.take, lambda p: ClipCache(0).take(clip_of(p, 5), 16), "has changed since it was checked"),
    (ClipFolder.batch, lambda p: ClipFolder([clip_of(p, 1)], 16, ClipCache(0)).batch(
        1, torch.Generator(), held_out=True), "these clips are for training"),
    (files.import_av, without("av", lambda p: files.import_av()), "pip install av"),
    *each(files.check_ending, "use a name that ends in", ("x.avi", "x", ""),
          lambda p, v: files.check_ending(v)),
    *each(files.save_video, "video is ", (z(3, 2, 8, 8), z(1, 1, 2, 8, 8), z(1, 3, 2, 8, 8).byte(), None),
          lambda p, v: files.save_video(p.path / "new.gif", v, ["a"])),
    *each(files.save_video, "captions", (["a"], ["a", "b", "c"], [], None),
          lambda p, v: files.save_video(p.path / "new.gif", z(2, 3, 2, 8, 8), v)),
    *each(files.save_video, "fps is ", (0, -1, NAN, INF),
          lambda p, v: files.save_video(p.path / "new.gif", z(1, 3, 2, 8, 8), ["a"], v)),
    *said(files.read_frames, {"cannot be read to its end": "text.txt", "is not a file": "absent"},
          lambda p, v: list(files.read_frames(p.path / v))),
    (files.frames_of_video, without("av", lambda p: list(files.frames_of_video("absent"))), "install av"),
    (files.frames_of_picture, lambda p: list(files.frames_of_picture(p.path / "deep.png")), "than 8 bits"),
    (files.frames_of_npz, lambda p: list(files.frames_of_npz(p.path / "bare.npz")), "no array named frames"),
    *each(files.load_clip, "as a picture or clip", ("text.txt", "absent", "empty"),
          lambda p, v: files.load_clip(p.path / v, 32, 32)),
    *each(files.load_given, "is not understood", ((), ("two",), ("1", "x"), ("1", "1", "1")),
          lambda p, v: files.load_given([[p.path / "picture.png", *v]], 32, 32)),
    (files.load_given, lambda p: files.load_given([[p.path / "picture.png", "4"]] * 2, 32, 32), "at frame 4"),
    *said(tiles.check_tiles, {
        "tiles of 2x4 latents": ((2, 4), 1), "tiles of 0x4x4": ((0, 4, 4), 1),
        "a halo of -1": ((5, 4, 4), -1), "a halo of at least 1": ((2, 4, 4), 0)},
          lambda p, v: tiles.check_tiles(TOY.model.vae, (5, 4, 4), *v)),
    (tiles.decode_in_tiles, lambda p: tiles.decode_in_tiles(
        p.toy.vae.decode, TOY.model.vae, z(1, 4, 5, 4, 4), z(1), tiles=(0, 4, 4)), "tiles of 0x4x4"),
    *said(tiles.use_tiles, {"tiles of 2x4 ": ((2, 4), 1), "tiles of 0x4x4": ((0, 4, 4), 1),
                            "a halo of -1": ((8, 8, 8), -1)}, lambda p, v: tiles.use_tiles(p.toy.vae, *v))]

# --- Measurements -----------------------------------------------------------------------------------------

PAIRS = [(z(1, 3, 2, 8, 8), z(1, 3, 3, 8, 8)), (z(2, 3, 2, 8, 8), z(3, 3, 2, 8, 8)), (z(3, 2, 8, 8),) * 2,
         (z(1, 1, 2, 8, 8),) * 2, (z(1, 3, 2, 8, 8).byte(),) * 2, (None, z(1, 3, 2, 8, 8))]
ON_BLACK = SimpleNamespace(digits_alone=lambda video: video, config=TOY.model.data)
EVALUATION = [
    *said(conditions.set_up, {"there is no checkpoint": "absent", "one digit and 17 frames": "short.pt"},
          lambda p, v: conditions.set_up(p.path / v, 2, 0)),
    *[call for metric in (metrics.check_pair, metrics.psnr, metrics.motion_ratio, metrics.detail_ratio)
      for call in each(metric, " is ", PAIRS, lambda p, v, metric=metric: metric(*v))],
    (metrics.lpips_distance, without("lpips", lambda p: metrics.lpips_distance(CPU)), "pip install lpips"),
    *said(digits.read_clips, {"video is ": (z(3, 2, 8, 8), []),
                              "the number of scenes is 1": (z(2, 3, 2, 8, 8), [[]])},
          lambda p, v: digits.read_clips(*v, None, 22)),
    (digits.judge_clips, lambda p: digits.judge_clips(z(2, 3, 2, 8, 8), [[]], ON_BLACK, None), "of scenes")]
CALLS = CONFIGS + STORED + SAMPLED + VIDEO + EVALUATION


# --- The two ways -----------------------------------------------------------------------------------------

def test_wrong_calls_raise_value_errors_that_name_what_is_wrong(place, monkeypatch):
    monkeypatch.chdir(place.path)
    before = sorted(place.path.rglob("*"))
    assert quiet_calls(CALLS, place, MISSING) == [] and len(CALLS) > 200
    assert sorted(place.path.rglob("*")) == before


def test_docstrings_say_what_is_raised():
    entries = dict.fromkeys(entry for entry, _, _ in CALLS)
    assert [entry.__qualname__ for entry in entries if not says_so(entry)] == [] and len(entries) > 70


def test_whatever_says_that_it_raises_is_called_so():
    called = {entry for entry, _, _ in CALLS} | {LatentUpsampler.forward}
    missing = [f"{thing.__module__}.{thing.__qualname__}" for room in ROOMS for thing in public(room)
               if says_so(thing) and thing not in called]
    assert missing == []


def test_what_raises_says_so():
    """Functions whose own lines raise ValueError, or check something with `require`."""
    silent = [f"{thing.__module__}.{thing.__qualname__}" for module in (*MODULES, *ROOMS)
              for thing in public(module) if raises_itself(thing) and not says_so(thing)]
    assert silent == []
