"""The rooms around the book but the toy, and the files beside it, called wrongly, as in test_wrong_calls.py:
each raises a ValueError that says why, and its docstring says so. tests/faults has many broken files; this
has a few. Command lines are in test_bad_calls.py."""

import copy
import importlib
import inspect
import json
import math
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_wrong_calls import CALLS as CALLS_OF_THE_BOOK
from test_wrong_calls import MODULES, public, quiet_calls, raises_itself, says_so
from tiny_releases import release
from torch import nn

from minltx import command, require
from minltx.ablation import __main__ as ablation
from minltx.ablation import ideas, runner, switches, variants
from minltx.ablation.ideas import Idea
from minltx.bench import __main__ as bench
from minltx.bench import diffusers as rivals
from minltx.bench import flops, forecast, headline, parts
from minltx.caption_files import caption_of, captions_in
from minltx.dit import Block, DiTConfig
from minltx.evaluation import conditions, digits, metrics
from minltx.fast_cpu import FastDiT
from minltx.files import check_zip, read_json, read_torch, write_torch
from minltx.pretrained import __main__ as which
from minltx.pretrained import diffusers, fields, model, official, options, passes, pictures, plan, prompts
from minltx.pretrained import releases, stg, store, t5, upsampler, weights
from minltx.pretrained.fields import Fields
from minltx.pretrained.releases import ReleaseConfig, SamplingConfig
from minltx.pretrained.stg import GuidanceOverTime, SpatioTemporalGuidance
from minltx.pretrained.upsampler import LatentUpsampler, UpsamplerConfig
from minltx.toy import load_toy
from minltx.toy.model import ToyModel, save_checkpoint
from minltx.training import __main__ as train
from minltx.training import latents, memory, muon, parallel, run, shards
from minltx.training.parallel import World
from minltx.training.settings import TOY, stored
from minltx.vae import VAEConfig, VideoVAE
from minltx.video import clips, files, tiles
from minltx.video.clips import Bucket, Clip, ClipCache, ClipFolder
from tools.count import CHAPTERS, PACKAGE

CPU, NAN, INF = torch.device("cpu"), math.nan, math.inf
JUPYTER = all(map(find_spec, ("IPython", "nbclient", "nbformat")))       # without it, the course only says so
ROOMS = [importlib.import_module(f"minltx.{room}.{path.stem}")
         for room in ("pretrained", "video", "evaluation", "training", "ablation", "bench",
                      *(("course",) if JUPYTER else ()))
         for path in sorted((PACKAGE / room).glob("*.py")) if path.stem != "__init__"]
ROOMS += [importlib.import_module(f"minltx.{path.stem}") for path in sorted(PACKAGE.glob("*.py"))
          if path.stem not in ("__init__", *CHAPTERS)]
if JUPYTER:
    from minltx.course import __main__ as course
    from minltx.course import diagrams, worker
# Without that package, a file is not opened to find out what is wrong with it.
MISSING = () if find_spec("safetensors") else ("needs a package: pip install safetensors",)


# --- What is called wrongly -------------------------------------------------------------------------------

class Odd(nn.Linear):
    """A layer that no released format has."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a few wrong files, and small models."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("empty", "upsampler", "run", "single", "done", "block.svg", "shown.png"):
        (folder / name).mkdir()
    (folder / "upsampler" / "config.json").write_text('{"_class_name": "Other"}')
    (folder / "text.txt").write_text("hello")
    Image.new("RGB", (32, 32), "red").save(folder / "picture.png")
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(folder / "deep.png")
    np.savez(folder / "bare.npz", x=np.ones(3))
    Image.new("RGB", (32, 32), "red").save(folder / "single" / "one.png")
    (folder / "single" / "one.txt").write_text("a red square")
    (folder / "done" / "report.json").write_text('{"idea": ["Other"], "changes": {}, "budget": 1}')
    (folder / "x.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    (folder / "broken.py").write_text("1 / 0")
    (folder / "own.py").write_text(
        "from minltx.ablation.ideas import Idea\n"
        "class A(Idea):\n    stage = 'vae'\n"
        "class B(Idea):\n    stage = 'dit'\n")
    write_torch(folder / "latents.pt", {"mark": [], "views": []})
    short = replace(TOY.model, data=replace(TOY.model.data, frames=9))
    save_checkpoint(folder / "short.pt", ToyModel(short))
    two, toy = release(), load_toy()
    save_checkpoint(folder / "run" / "checkpoint.pt", toy)
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


def with_memory(module, call):
    """A call on a device with one byte of memory, as this module is told."""
    return mock.patch.object(module, "device_memory", lambda device: 1)(call)


def importing(call):
    """A call that imports a file of the folder, of which nothing is kept."""
    def called(place):
        with mock.patch.object(sys, "path", [*sys.path]), mock.patch.object(sys, "dont_write_bytecode", True):
            with mock.patch.dict(sys.modules):
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
    (conditions.compare, lambda p: conditions.compare(
        SimpleNamespace(out=p.path / "shown.json")), "which is a folder"),
    *said(conditions.set_up, {"there is no checkpoint": "absent", "one digit and 17 frames": "short.pt"},
          lambda p, v: conditions.set_up(p.path / v, 2, 0)),
    *[call for metric in (metrics.check_pair, metrics.psnr, metrics.motion_ratio, metrics.detail_ratio)
      for call in each(metric, " is ", PAIRS, lambda p, v, metric=metric: metric(*v))],
    (metrics.lpips_distance, without("lpips", lambda p: metrics.lpips_distance(CPU)), "pip install lpips"),
    *said(digits.read_clips, {"video is ": (z(3, 2, 8, 8), []),
                              "the number of scenes is 1": (z(2, 3, 2, 8, 8), [[]])},
          lambda p, v: digits.read_clips(*v, None, 22)),
    (digits.judge_clips, lambda p: digits.judge_clips(z(2, 3, 2, 8, 8), [[]], ON_BLACK, None), "of scenes")]

# --- Training ---------------------------------------------------------------------------------------------

def a_run(place, folder="empty", settings=TOY, pending=None, **how):
    """A Run of the toy; pending: the checkpoint that its stage would be loaded from."""
    one = run.Run(place.path / folder, place.toy, settings, 0, "drawn", **how)
    one.pending = pending
    return one


def state_of(seed):
    """A checkpoint's plain values, of a run with this seed; its errors by t are missing."""
    return {"identity": {"settings": stored(TOY), "seed": seed, "digits": "drawn"}, "seconds": {},
            "by_t": [], "history": {}, "step": 0, "stages_done": []}


def of_training(**given):
    """The command line of a training with only these options."""
    names = ("clips", "buckets", "text", "vae", "weights", "only", "token_drop", "digits", "latents",
             "micro_batches", "precision", "optimizer", "start")
    return SimpleNamespace(**{**dict.fromkeys(names), "preset": "toy", "budget": 1, "seed": 0, **given})


CACHED = (1, *VideoVAE(TOY.model.vae).latent_shape(*TOY.model.data.clip_shape))
OTHER = SimpleNamespace(vae=SimpleNamespace(config=VAEConfig(), load_state_dict=None))
TRAINING = [
    *said(latents.take_vae, {"has another config": "short.pt", "there is no checkpoint": "absent"},
          lambda p, v: latents.take_vae(OTHER, p.path / v)),
    *said(latents.read_vae, {"has another config": "short.pt", "there is no checkpoint": "absent"},
          lambda p, v: latents.read_vae(p.path / v, VAEConfig())),
    *said(latents.latent_cache, {"does not hold latents": "text.txt", "of other clips or": "latents.pt"},
          lambda p, v: latents.latent_cache(p.path / v, p.toy.vae, [], TOY, 0, World())),
    *each(latents.open_latents, "does not hold latents", ("text.txt", "absent/x", "short.pt"),
          lambda p, v: latents.open_latents(p.path / v)),
    *said(latents.check_latents, {"does not hold latents": "text.txt", "of other clips": "latents.pt"},
          lambda p, v: latents.check_latents(p.path / v, [], TOY, 0)),
    *said(latents.stored_cache, {
        "shape (1,), not": (z(1), ["a"]), "not (1, ": (z(*CACHED), []),
        "not finite": (z(*CACHED) + NAN, ["a"]),
        "a scene of no digit": (z(*CACHED), [[(11, "red", "left")]])},
          lambda p, v: latents.stored_cache(VideoVAE(TOY.model.vae), ON_BLACK, 1, *v)),
    *named(memory.Plan, {"precision": ["x", None], "optimizer": ["sgd"], "parallel": [None], "batch": [0, -1],
                         "ranks": [0, 2], "micro_batches": [0]}, lambda p, v: memory.Plan(**v)),
    (memory.Plan, lambda p: memory.Plan(parallel="fsdp-bf16"), "use precision bf16"),
    (memory.estimate_dit, lambda p: memory.estimate_dit(TOY.model.dit, 4, 4, batch=0), "batch is 0"),
    (memory.refuse, lambda p: memory.refuse("a clip", 2**40, 2**30), "a clip: this needs 1,024 GiB"),
    *said(memory.asked_for, {"--ranks is for training": ["--stage", "sample", "--ranks", "2"],
                             "--words is for the transformer": ["--stage", "vae", "--words", "3"]},
          lambda p, v: memory.asked_for(memory.options().parse_args(v))),
    *each(muon.optimizers, "unknown optimiser", ("sgd", "", None), lambda p, v: muon.optimizers([], kind=v)),
    *each(parallel.join, "is for several processes", ("ddp", "fsdp"), lambda p, v: parallel.join(v, CPU)),
    (run.Run, lambda p: a_run(p, world=World(size=7)), "cannot be shared by 7 processes"),
    (run.Run, lambda p: a_run(p, "run"), "has a checkpoint: go on with --resume"),
    (run.Run, lambda p: a_run(p, "run", resume=True), "is a finished model"),
    (run.Run, lambda p: a_run(p, resume=True), "there is no checkpoint"),
    (run.Run.restore, lambda p: a_run(p).restore(), "there is no checkpoint"),
    *said(run.Run.take_state, {"holds a damaged run (": {}, "a run with other settings": state_of(1),
                               "its curves are not numbers": state_of(0)},
          lambda p, v: a_run(p).take_state(v)),
    *each(run.Run.load, "holds a stage that does not fit", ({"optimizers": []}, {"optimizers": [{}] * 2}),
          lambda p, v: a_run(p, pending={"parts": None, **v}).load(
              SimpleNamespace(optimizers=[1], average=None, discriminator=None))),
    *each(run.fitting, "a tensor of the shape (2,)", (z(3), z(2) + INF, "x", None, [0.0, 0.0]),
          lambda p, v: run.fitting(v, z(2))),
    *each(run.load_optimizer, "a tensor of the shape ", (z(9), torch.tensor(NAN), "x"),
          lambda p, v: run.load_optimizer(torch.optim.AdamW([z(2)]), {0: {"exp_avg": v}})),
    *each(shards.read_parts, "is damaged", ("text.txt", "absent"),
          lambda p, v: shards.read_parts(p.path / v)),
    *said(shards.fill, {"a is missing": [{}], "parts that do not fit": [{"a": z(1)}, {"a": z(1, 1)}],
                        "a has the shape (3,), not (2,)": [{"a": z(3)}], "not finite": [{"a": z(2) + NAN}]},
          lambda p, v: shards.fill({"a": z(2)}, [{"tensors": tensors} for tensors in v])),
    *said(train.settings_of, {"is trained on your clips": {"preset": "2b"}, "--budget 0": {"budget": 0},
                              "--buckets is for a folder": {"buckets": "17x32x32"},
                              "micro_batches": {"micro_batches": 0}},
          lambda p, v: train.settings_of(of_training(**v))),
    *said(train.clips_data, {"has one usable clip": "single", "there is no usable clip": "empty"},
          lambda p, v: train.clips_data(of_training(clips=p.path / v), TOY)),
    (train.read_text, lambda p: train.read_text(p.path / "text.txt", 64), "is not a safetensors file"),
    *said(train.check_files, {"there is no checkpoint": {"vae": "absent"}, "there is no gone": {
        "weights": "gone"}, "does not hold latents": {"latents": "text.txt"}},
          lambda p, v: train.check_files(of_training(**v), SimpleNamespace(dit=[]), TOY)),
    (train.estimate_memory, with_memory(memory, lambda p: train.estimate_memory(
        TOY, World(), of_training(vae="x"))), "training the transformer: this needs")]

# --- Ablations, costs, the course -------------------------------------------------------------------------

def asked_to_ablate(**given):
    return SimpleNamespace(**{"all": False, "switches": [], "model": None, "digits": "drawn", "keep": None,
                              "out": "new", **given})


def failing(folder, jobs):
    """A process that has failed."""
    return SimpleNamespace(poll=lambda: 1, returncode=1)


def of_bench(**given):
    return SimpleNamespace(**{"device": "cpu", "config": "toy", "size": None, "dtype": None, "seed": 0,
                              "steps": None, "guidance": None, "compile": False,
                              "checkpoint_activations": False, **given})


class OwnBlock(Block):
    """A module that the stage of the VAE does not have."""

    stage = "vae"


WIDER = Idea({"model.vae.latent_channels": 16})
ABLATION = [
    *[(network, lambda p, network=network: network(TOY.model.dit)(None, z(1), z(1, 1, 64), None, 16.0),
       "latent is") for network in (variants.InverseDiT, variants.UnrotatedDiT, variants.AbsoluteDiT,
                                    variants.SpaceTimeDiT, FastDiT)],
    (ideas.Swap.change, lambda p: ideas.idea_of(OwnBlock).change(p.toy), "OwnBlock replaces Block"),
    (ideas.idea_of, lambda p: ideas.idea_of(type("Own", (Idea,), {"__init__": lambda self, x: None})),
     "Own cannot be created: TypeError"),
    *each(ideas.idea_of, "is not an idea", (int, nn.Linear, None, DiTConfig), lambda p, v: ideas.idea_of(v)),
    (ideas.combine, lambda p: ideas.combine([variants.LogitNormalTimes(), variants.UniformTimes()]),
     "both override"),
    *said(ideas.load_class, {"has no class 'Nothing'": "minltx.dit:Nothing", "does not exist": "gone.py:A"},
          lambda p, v: ideas.load_class(v)),
    (ideas.load_file, lambda p: ideas.load_file("gone.py"), "does not exist"),
    (ideas.load_file, importing(lambda p: ideas.load_file("broken.py")), "broken.py cannot be imported"),
    (runner.train_and_judge, lambda p: runner.train_and_judge(
        {"classes": [], "changes": {}, "stage": "dit", "level": "x", "idea": ["Other"]}, p.path),
     "the file of x has changed"),
    *said(switches.changed, {"'nothing' is not a setting": {"nothing": 1}, "loss is 'x'": {"loss": "x"},
                             "optimizer is 3": {"optimizer": 3}, "has none": {"dit_steps.x": 1}},
          lambda p, v: switches.changed(TOY, v)),
    *said(switches.parse_switch, {
        "is not a switch": "nothing", "the level none twice": "rope=none,none", "has no level 'x'": "rope=x",
        "has nothing to compare": "loss.dwt=1", "'nothing' is not a setting": "nothing=1,2"},
          lambda p, v: switches.parse_switch(v)),
    (switches.with_levels, lambda p: switches.with_levels("rope", ["x"]), "rope has no level 'x'"),
    (switches.switch_of_file, importing(lambda p: switches.switch_of_file("own.py", ["A", "B"])),
     "must have one stage"),
    (ablation.try_all, lambda p: ablation.try_all([("x", "y", "dit", ideas.Idea({"nothing": 1}))]),
     "x = y cannot be trained: ValueError: 'nothing'"),
    (ablation.shared_model, lambda p: ablation.shared_model(asked_to_ablate(model="gone"), p.path, "dit"),
     "--model gone is not a file"),
    (ablation.is_done, lambda p: ablation.is_done(p.path / "done", ideas.Idea(), 1), "with another idea"),
    (ablation.check_judge, lambda p: ablation.check_judge([p.path / "done"]), "is of an earlier judge"),
    (ablation.run_workers, mock.patch.object(ablation, "start_worker", failing)(
        lambda p: ablation.run_workers([Path("a"), Path("b")], 2)), "2 runs failed"),
    *said(ablation.check_files, {"no checkpoint": {"model": "gone"}, "one folder": {"keep": "new/../new"}},
          lambda p, v: ablation.check_files(asked_to_ablate(**v), [])),
    (ablation.check_files, lambda p: ablation.check_files(
        asked_to_ablate(model=p.path / "short.pt"), [("x", "y", "dit", WIDER)]), "has another config"),
    *each(ablation.read_own, "is damaged", ("text.txt", "done/report.json"),
          lambda p, v: ablation.read_own(p.path / v, "seed")),
    *said(ablation.ablate, {"name a switch": {}, "--all is all": {"all": True, "switches": ["rope"]}},
          lambda p, v: ablation.ablate(asked_to_ablate(**v), ""))]

TOO_LONG = 10, 32, 32
BENCH = [
    (rivals.import_diffusers, without("diffusers", lambda p: rivals.import_diffusers()), "install diffusers"),
    *each(headline.read_result, "is damaged", ("text.txt",), lambda p, v: headline.read_result(p.path / v)),
    *said(flops.vae_flops, {"10 frames cannot": TOO_LONG, "a height of 30": (9, 30, 32)},
          lambda p, v: flops.vae_flops(TOY.model.vae, v)),
    (forecast.check_memory, with_memory(forecast, lambda p: forecast.check_memory(
        TOY.model.dit, TOY.model.vae, (17, 32, 32), 2, CPU)), "2 videos of 17x32x32: this needs"),
    (parts.latent_grid, lambda p: parts.latent_grid(SimpleNamespace(preset=parts.PRESETS["toy"]), TOO_LONG),
     "10 frames cannot be encoded"),
    (parts.text_part, without("transformers", lambda p: parts.text_part(
        SimpleNamespace(preset=parts.PRESETS["2b"]))), "pip install transformers"),
    *each(bench.chosen, "--items ", ("x", "", "a,x"), lambda p, v: bench.chosen(v, ["a", "b"], "--items")),
    *said(bench.setup_from, {"'meta' is not a device": {"device": "meta"}, "10 frames": {"size": TOO_LONG}},
          lambda p, v: bench.setup_from(of_bench(**v)))]

COURSE = [] if not JUPYTER else [
    *each(course.read_notebook, "is not a Jupyter notebook", ("absent", "text.txt", "empty"),
          lambda p, v: course.read_notebook(p.path / v)),
    (course.build, lambda p: course.build(p.path / "empty", p.path / "new"), "there are no assignments"),
    (course.build, lambda p: course.build(course.SOURCES, course.SOURCES), "would replace the assignments"),
    (diagrams.write_all, lambda p: diagrams.write_all(p.path), "block.svg is a folder"),
    *said(course.read_submission, {"is not a Jupyter notebook": "text.txt", "is not named after": "x.ipynb"},
          lambda p, v: course.read_submission(p.path / v)),
    (course.read_submission, lambda p: course.read_submission("x", "x is not a file"), "x is not a file"),
    *[call for entry in (course.submissions, lambda path: course.grade_all(path, "new", (1.0, 1.0)))
      for call in said(entry if entry is course.submissions else course.grade_all, {
          "there is no file or folder": "absent", "there is no notebook in": "empty",
          "is not a Jupyter notebook": "text.txt"}, lambda p, v, entry=entry: entry(p.path / v))],
    (worker.send, lambda p: worker.send(z(worker.LARGEST // 4)), "the results are too large")]

# --- Beside the book --------------------------------------------------------------------------------------

def config_of(config, changes):
    """A config that has not checked itself."""
    return SimpleNamespace(**vars(config) | changes)


SPACE = SimpleNamespace(a=1, b=None, c=2)
CHECKED = [
    (require.require, lambda p: require.require(False, "x", 1, "2"), "x is 1: use 2"),
    *each(require.whole, "x is ", (0, 4, 1.5, True, "1", None, NAN),
          lambda p, v: require.whole("x", v, 1, 3)),
    *each(require.number, "x is ", (NAN, -1, 1.1, "1", None, True),
          lambda p, v: require.number("x", v, 0, 1)),
    *each(require.row, "x ", (3, (1,), (1, 1, 1), (1, NAN), None, (1, 2)),
          lambda p, v: require.row("x", v, 2, require.number, 0, 1)),
    (require.choice, lambda p: require.choice("x", 1, (2, 3)), "x is 1: use 2 or 3"),
    *named(require.dit_config, {"width": [0, 127], "heads": [3], "stride": [(1, 2)], "theta": [NAN]},
           lambda p, v: require.dit_config(config_of(TOY.model.dit, v))),
    *named(require.vae_config, {"patch": [0], "encoder_blocks": [None, ((1, 2),)]},
           lambda p, v: require.vae_config(config_of(TOY.model.vae, v))),
    *each(require.shape, "x is ", (z(2), z(1, 1), z(1).long(), None), lambda p, v: require.shape("x", v, 1)),
    *each(require.times, "x is ", (1.5, -0.1, NAN, torch.tensor([0, NAN]), torch.tensor(2.0)),
          lambda p, v: require.times("x", v)),
    *said(require.encodable, {"10 frames": TOO_LONG, "a height of 30": (9, 30, 32),
                              "a width of 0": (9, 32, 0)},
          lambda p, v: require.encodable(v, (8, 32, 32))),
    *said(require.caption, {"text is": (z(1, 3), None), "the shape of the mask": (z(1, 3, 4), z(1, 2)),
                            "a row of the mask": (z(1, 3, 4), z(1, 3))},
          lambda p, v: require.caption(*v, 4, 1)),
    *said(require.dit_inputs, {"latent is": (None, z(1)), "the shape of t": (z(1, 4, 1, 1, 1), z(2)),
                               "t is": (z(1, 4, 1, 1, 1), z(1) + 2)},
          lambda p, v: require.dit_inputs(config_of(TOY.model.dit, {"latent_channels": 4}), *v, None, None)),
    *said(require.decodable, {"latent is": (None, None), "t is": (z(2, 4, 1, 1, 1), z(3))},
          lambda p, v: require.decodable(config_of(TOY.model.vae, {"latent_channels": 4}), *v)),
    (require.counted, lambda p: require.counted(z(2)), "the weight of every token is 0"),
    *each(require.schedule, "the schedule is ", ([0.0, 1.0], [], [[1.0]], [2.0, 0.0], [1.0, NAN]),
          lambda p, v: require.schedule(torch.tensor(v))),
    (require.sampling, lambda p: require.sampling(TOY.model.dit, None, None, None, None), "noise is"),
    *said(require.mixable, {"noise_scale is": (None, 2.0), "noise is": (z(3), 0.5)},
          lambda p, v: require.mixable(z(2), *v))]

BESIDE = [
    *each(read_json, "is another file", ("text.txt", "done/report.json"),
          lambda p, v: read_json(p.path / v, ["seed"], "is another file")),
    *said(read_torch, {"it is not a whole file of torch": "text.txt", "No such file": "absent",
                       "not a file of torch": "bare.npz"}, lambda p, v: read_torch(p.path / v)),
    (check_zip, lambda p: check_zip(zipfile.ZipFile(p.path / "bare.npz"), 10**6), "not a file of torch"),
    *said(command.check_together, {
        "--a is for x: add --b, or leave it out": {"needs": [("a", ["b"], "for x")]},
        "--a and --c are two: give one": {"excludes": [("a", "c", "are two")]}},
          lambda p, v: command.check_together(SPACE, **v)),
    *each(command.in_range, "x is out of range", (-1, 3, NAN), lambda p, v: command.in_range(v, 0, 2, "x")),
    *each(command.parse_sizes, " is ", ("", "1x2", "1x2x0", "1x2x-3", "1x2x3x4", "1x2x1234567", "axbxc"),
          lambda p, v: command.parse_sizes(v)),
    (command.try_writing, lambda p: command.try_writing(p.path / "text.txt"), "cannot write in"),
    *each(command.pick_device, "device", ("x", "", "meta", "cuda:999", "cuda:-1"),
          lambda p, v: command.pick_device(v)),
    (caption_of, lambda p: caption_of(p.path / "picture.png", None), "has no caption"),
    (caption_of, lambda p: caption_of(p.path / "picture.png", " \n"), "has an empty caption"),
    *said(captions_in, {"there is no folder": "absent", "there is no caption in": "empty"},
          lambda p, v: captions_in(p.path / v))]
CALLS = (CONFIGS + STORED + SAMPLED + VIDEO + EVALUATION + TRAINING + ABLATION + BENCH + COURSE + CHECKED
         + BESIDE)


# --- The two ways -----------------------------------------------------------------------------------------

def test_wrong_calls_raise_value_errors_that_name_what_is_wrong(place, monkeypatch):
    monkeypatch.chdir(place.path)
    before = sorted(place.path.rglob("*"))
    assert quiet_calls(CALLS, place, MISSING) == [] and len(CALLS) > 450
    assert sorted(place.path.rglob("*")) == before


def test_docstrings_say_what_is_raised():
    entries = dict.fromkeys(entry for entry, _, _ in CALLS)
    assert [entry.__qualname__ for entry in entries if not says_so(entry)] == [] and len(entries) > 150


def test_whatever_says_that_it_raises_is_called_so():
    called = {entry for entry, _, _ in CALLS + CALLS_OF_THE_BOOK} | {LatentUpsampler.forward}
    missing = [f"{thing.__module__}.{thing.__qualname__}" for room in ROOMS for thing in public(room)
               if says_so(thing) and thing not in called]
    assert missing == []


def is_option_type(thing):
    """Whether argparse reports what this raises, or the function that it makes; see test_bad_calls.py."""
    return inspect.isfunction(thing) and "option_type" in inspect.getsource(thing)


def test_what_raises_says_so():
    """Functions whose own lines raise ValueError, or check something with `require`."""
    silent = [f"{thing.__module__}.{thing.__qualname__}" for module in (*MODULES, *ROOMS)
              for thing in public(module)
              if raises_itself(thing) and not says_so(thing) and not is_option_type(thing)]
    assert silent == []
