"""Public entries called wrongly: each raises a ValueError that says why, and its docstring says so."""

import ast
import inspect
import math
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from minltx import dit, flow, losses, objectives, patchify, rope, sampler, vae
from minltx.flow import flow_loss, linear_quadratic_schedule, schedule_from, shift_times, shifted_schedule
from minltx.patchify import space_to_depth
from minltx.rope import latent_coordinates
from minltx.sampler import Condition, Guidance, Sampling, check_condition, decode, generate, layout_tokens
from minltx.sampler import sample_latent
from minltx.toy import captions, data, load_toy
from minltx.toy import model as toy_model
from minltx.toy.captions import CaptionEncoder, StoredText, tokenize
from minltx.toy.data import DataConfig, MovingDigits, draw_digits
from minltx.toy.model import ToyModel, config_from
from minltx.training.settings import SHORT, TOY, Settings, scaled
from minltx.vae import VAEConfig, VideoVAE, build_blocks

NAN, INF = math.nan, math.inf
GRID = (5, 4, 4), (4, 8, 8)       # latent frames, rows, columns; the stride
SCHEDULE = torch.tensor([1.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def toy():
    return load_toy()


def fields(base, **values):
    """(the class, a call with one field wrong, the field's name in the message), of all these values."""
    return [(type(base), lambda toy, n=name, v=value: replace(base, **{n: v}), name.split("_")[-1])
            for name, some in values.items() for value in some]


def changes(**values):
    return fields(TOY, **values)


CONFIGS = [
    *fields(TOY.model.dit, latent_channels=[0, -1, 1.5, "4", None, NAN], width=[0, -128, 127.0, 10**9],
            depth=[0, -1, None, 10**9, "6"], heads=[0, 3, -4, 2.0, None], text_width=[0, None, -64],
            stride=[(0, 8, 8), (4, 8), 8, None, (4, 8, -8), ("4", 8, 8), (4, 8, 8.5)],
            max_position=[(0, 1, 1), (NAN, 1, 1), (INF, 1, 1), (1, 1), None],
            theta=[NAN, INF, 0, -1, None, "x"],
            causal_time=["yes", None, 2]),
    *fields(TOY.model.vae, latent_channels=[0, -1, None, 2.0], patch=[0, -2, None],
            encoder_width=[0, None, NAN],
            decoder_width=[0, -1, 10**9],
            encoder_blocks=[None, (("res",),), (("res", 0),), (("res", 10**9),), (("down", (0, 2, 2), 8),),
                            (("down", (2, 2), 8),), (("down", (3, 1, 1), 8),), ((1, 2),), "res", [("res", 1)],
                            (("down", 2, 8),), (("res", 1),) * 101],
            decoder_blocks=[None, (("up", (2, 2, 2), 0),), (("up", (2, 2, NAN), 8),)]),
    *fields(TOY.model.data, frames=[0, -1, None, 1.5], size=[0, None, (32,), (32, 32, 32), -1, "32"],
            digits=[-1, 7, 11, None, 1.5], digit_size=[33, -1, None], fps=[0, -1, NAN, INF, None],
            speed=[(1.0,), None, (NAN, 1.0), (-1.0, 2.0), (0.0, INF)]),
    *changes(precision=["float16", None], optimizer=["sgd", "", None], perceptual=["vgg"],
             freeze_encoder=["x"],
             vae_phases=[(), ((1, 2),), ((0, 1, 1),), ((1, 1, NAN),), None], vae_lr=[NAN, -1, INF, None],
             dit_lr=[NAN, -0.1], ema=[1, -1, NAN, 2], latents=[0, -1, 1.5], dit_steps=[0, NAN, None],
             dit_batch=[0, -3], curriculum=[None, (1,), ((0, 0.5),), ((1, NAN),), ((1, 0.6), (9, 0.6))],
             micro_batches=[0, 1.5], token_drop=[1, -0.1, NAN],
             caption_dropout=[1.5, -1, NAN], conditioned=[2, NAN], soft=[-1], noise_range=[2, NAN, -0.1],
             clean=[1.1], discriminator_width=[0], layouts=[(), ("free", "middle")], model=[None, 1],
             loss=[None, 0.1]),
    *[(Settings, lambda toy, n=name, v=value: replace(TOY, loss=replace(TOY.loss, **{n: v})), f"loss.{name}")
      for name in ("pixel", "dwt", "motion", "kl", "perceptual", "adversarial", "foreground")
      for value in (NAN, -1, INF, None)],
    *[(scaled, lambda toy, v=value: scaled(TOY, v), "budget") for value in (0, -1, NAN, INF, 1000)]]


def z(*shape):
    return torch.zeros(shape)


def call_dit(toy, latent=(2, 4, 2, 2, 2), t=(0.5, 0.5), text=(2, 3, 64), mask=((1, 1, 0), (1, 0, 0)),
             fps=16.0):
    latent, text = (z(*x) if isinstance(x, tuple) else x for x in (latent, text))
    t, mask = (torch.tensor(x) if isinstance(x, tuple) else x for x in (t, mask))
    return toy.dit(latent, t, text, mask, fps)


def call_sampler(toy, noise=(1, 4, 2, 2, 2), text=(1, 3, 64), mask=(1, 3), null=(1, 3, 64), guidance=None,
                 conditions=(), generators=None, **fields):
    guidance = guidance or Guidance(3.0)
    sampling = Sampling(**{"schedule": SCHEDULE, "guidance": guidance, "fps": 16.0, **fields})
    pair = None if null is None else (z(*null), torch.ones(null[:2]))
    return sample_latent(toy.dit, z(*noise), (z(*text), torch.ones(mask)), pair, sampling, conditions,
                         generators=generators)


def generated(toy, texts=("a red 7",), seeds=(0,), **how):
    texts = list(texts) if isinstance(texts, tuple) else texts
    return toy.generate(texts, list(seeds), **{"steps": 1, **how})


ENTRIES = [
    # the transformer
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, latent=v), "latent is")
      for v in ((4, 2, 2, 2), (2, 5, 2, 2, 2), (2, 4, 2, 2), None, torch.zeros(2, 4, 2, 2, 2).long())],
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, t=v), "t is") for v in (
        (0.5, 1.5), (-0.1, 0.5), (NAN, 0.5), (INF, 0.5))],
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, t=v), "the shape of t is") for v in (
        (0.5,) * 3, z(2, 8), z(2, 2, 2), 0.5, None)],
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, text=v, mask=None), "text is") for v in (
        (2, 3, 63), (2, 64), (3, 3, 64), (1, 3, 64), None)],
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, mask=v), "mask") for v in (
        ((0, 0, 0), (1, 1, 1)), ((1, 1), (1, 1)), ((1, 1, 1),))],
    *[(dit.DiT, lambda toy, v=v: call_dit(toy, fps=v), "fps must be positive") for v in (0, -1.0, NAN)],
    # the autoencoder
    *[(VideoVAE.encode, lambda toy, v=v: toy.vae.encode(v), "video is") for v in (
        z(1, 1, 17, 32, 32), z(3, 17, 32, 32), None, z(1, 3, 17, 32, 32).byte(), z(1, 17, 32, 32, 3))],
    *[(VideoVAE.encode, lambda toy, v=v: toy.vae.encode(z(1, 3, *v)), "use ") for v in (
        (16, 32, 32), (0, 32, 32), (17, 31, 32), (17, 32, 0), (2, 8, 8))],
    *[(VideoVAE.latent_shape, lambda toy, v=v: toy.vae.latent_shape(*v), "use ") for v in (
        (0, 32, 32), (-3, 32, 32), (17, 0, 32), (17, 32, 33), (18, 32, 32))],
    *[(VideoVAE.decode, lambda toy, v=v: toy.vae.decode(v, torch.zeros(1)), "latent is") for v in (
        z(1, 5, 1, 4, 4), z(4, 1, 4, 4), None)],
    *[(VideoVAE.decode, lambda toy, v=v: toy.vae.decode(z(2, 4, 1, 4, 4), v), "t is") for v in (
        0.05, z(3), torch.tensor([1.5, 0]), torch.tensor([NAN, 0]), torch.tensor([-1.0, 0]), z(2, 1))],
    (VideoVAE, lambda toy: VideoVAE(replace(TOY.model.vae, decoder_blocks=(("res", 1),))), "strides"),
    (build_blocks, lambda toy: build_blocks((("ress", 1),), 8, True, False), "'ress' is not a block"),
    (vae.Downsample, lambda toy: vae.Downsample(8, (2, 2, 2), 12), "cannot be downsampled"),
    (vae.Upsample, lambda toy: vae.Upsample(12, (2, 2, 2), 8), "cannot be upsampled"),
    # rectified flow
    *[(flow_loss, lambda toy, v=v: flow_loss(z(2, 3, 4), z(2, 3, 4), v), "the weight of every token")
      for v in (z(2, 3, 1), z(1, 1, 1))],
    *[(shifted_schedule, lambda toy, v=v: shifted_schedule(*v), "") for v in (
        (0, 80), (-1, 80), (1.5, 80), (8, -5), (8, 1.5), (8, 80, 5), (8, 80, NAN), (None, 80))],
    *[(linear_quadratic_schedule, lambda toy, v=v: linear_quadratic_schedule(v), "steps is")
      for v in (0, -3, 2.5, NAN, None)],
    *[(shift_times, lambda toy, v=v: shift_times(SCHEDULE, *v), "") for v in ((-1,), (80, 2.0), (80, NAN))],
    *[(schedule_from, lambda toy, v=v: schedule_from(SCHEDULE, v), "t is") for v in (1.1, -0.1, NAN, INF)],
    *[(patchify.patchify, lambda toy, v=v: patchify.patchify(z(1, 3, 1, *v), 4), "multiples of the patch")
      for v in ((6, 8), (8, 7))],
    (space_to_depth, lambda toy: space_to_depth(z(1, 1, 3, 4, 4), (2, 2, 2)), "cannot be cut"),
    *[(latent_coordinates, lambda toy, v=v: latent_coordinates((1, 2, 2), (8, 32, 32), v, True), "fps")
      for v in (0, -24, NAN)],
    # sampling
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, noise=v), "noise is") for v in (
        (1, 5, 2, 2, 2), (4, 2, 2, 2))],
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, **v), "") for v in (
        {"text": (2, 3, 64), "mask": (2, 3)}, {"text": (1, 3, 32)}, {"mask": (1, 4)}, {"null": (1, 3, 60)},
        {"null": None}, {"fps": 0.0}, {"fps": NAN})],
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, guidance=Guidance(v)), "cfg is")
      for v in (NAN, -1.0, INF, None)],
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, schedule=torch.tensor(v)), "the schedule is")
      for v in ([0.0, 0.5, 1.0], [1.5, 0.5, 0.0], [1.0, 0.5, 0.5], [1.0, NAN, 0.0], [1.0, 0.0, -0.5],
                [[1.0, 0.0]], [])],
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, **v), next(iter(v))) for v in (
        {"decode_t": 2.0}, {"decode_t": NAN}, {"decode_noise": -1.0}, {"condition_noise": NAN})],
    *[(sample_latent, lambda toy, v=v: call_sampler(toy, **v), "generators for 1 samples") for v in (
        {"stochastic": True}, {"stochastic": True, "generators": [torch.Generator()] * 2},
        {"conditions": [Condition(z(1, 4, 1, 2, 2), 8)]},
        {"conditions": [Condition(z(1, 4, 1, 2, 2))], "condition_noise": 0.1})],
    *[(check_condition, lambda toy, v=v: check_condition(Condition(z(1, 4, 2, 4, 4), *v), *GRID), "")
      for v in ((17,), (-4,), (2,), (0, 1.5), (0, -0.1), (0, NAN))],
    (check_condition, lambda toy: check_condition(Condition(z(1, 4, 1, 3, 4)), *GRID), "resize"),
    (layout_tokens, lambda toy: layout_tokens([Condition(z(1, 4, 1, 4, 4), 99)], z(1, 4, 5, 4, 4), GRID[1],
                                              16.0, True), "exceeds a video"),
    (check_condition, lambda toy: check_condition(Condition(z(1, 4, 6, 4, 4)), *GRID), "longer"),
    *[(decode, lambda toy, v=v: decode(toy.vae, z(1, 4, 1, 4, 4), **v), "") for v in (
        {"noise": None}, {"noise": z(1, 4, 1, 4, 5)}, {"noise_scale": 2.0}, {"noise_scale": NAN},
        {"noise_scale": 0, "t": 1.5}, {"noise_scale": 0, "t": NAN})],
    *[(generate, lambda toy, v=v: generated(toy, **v), "") for v in (
        {"size": (16, 32, 32)}, {"size": (17, 30, 32)}, {"guidance": NAN}, {"guidance": -2.0}, {"fps": 0})],
    # the toy
    *[(ToyModel.generate, lambda toy, v=v: generated(toy, **v), "") for v in (
        {"texts": ()}, {"texts": "a red 7"}, {"texts": ("a red horse",)},
        {"texts": ("a red 7",), "seeds": (0, 1)},
        {"texts": ("a red 7 and a blue 3",)}, {"steps": 0}, {"start": z(1, 3, 17, 32, 32), "change": 1.5},
        {"decode_t": 3.0}, {"decode_noise": NAN}, {"conditions": [(z(1, 3, 1, 32, 32), 17, 1.0)]},
        {"conditions": [(z(1, 3, 1, 32, 32), 0, 2.0)]}, {"conditions": [(z(1, 3, 1, 16, 16), 0, 1.0)]})],
    *[(ToyModel.sampling, lambda toy, v=v: toy.sampling(**v), "") for v in (
        {"size": (2, 32, 32)}, {"steps": -1}, {"change": -0.5}, {"change": NAN})],
    *[(ToyModel.check, lambda toy, v=v: toy.check(v), "") for v in ([], "a red 7", ["a 7 7"], ["red " * 17])],
    (ToyModel.embed, lambda toy: toy.embed(["nothing known"]), "unknown word"),
    *[(tokenize, lambda toy, v=v: tokenize(v), "") for v in ([], ["<pad>"], ["a " * 17])],
    (CaptionEncoder, lambda toy: CaptionEncoder(66), "text_width is 66"),
    (StoredText.check, lambda toy: StoredText().check("a storm"), "has no embedding"),
    (StoredText.forward, lambda toy: StoredText()(["a storm"], "cpu"), "has no embedding"),
    *[(MovingDigits, lambda toy, v=v: MovingDigits(z(9, 28, 28) + 1, torch.arange(9), DataConfig(speed=v)),
       "use a") for v in ((5.0, 9.0), (9.0, 99.0))],
    *[(toy_model.start_from, lambda toy, v=v: toy_model.start_from(ToyModel(v), "shipped"), "is another")
      for v in (SHORT.model, replace(TOY.model, words=("<pad>", "<nothing>", "<unknown>", "a")))],
    (MovingDigits.place, lambda toy: MovingDigits(*draw_digits(200, 0), DataConfig(digits=2)).place(
        torch.ones(4, 2, 2), torch.Generator()), "do not find room"),
    (toy_model.ModelConfig, lambda toy: replace(TOY.model, negative="ugly"), "negative is 'ugly'"),
    (toy_model.ModelConfig, lambda toy: replace(TOY.model, guidance=-1), "guidance is -1"),
    (toy_model.ModelConfig, lambda toy: replace(TOY.model, stochastic="yes"), "stochastic is 'yes'"),
    (config_from, lambda toy: config_from({"data": {}, "vae": {}, "dit": {"rope": "none"}}), "variant"),
    (toy_model.read_checkpoint, lambda toy: toy_model.read_checkpoint("absent.pt"), "no checkpoint"),
    (toy_model.load_checkpoint, lambda toy: toy_model.load_checkpoint(__file__), "not a checkpoint")]
CALLS = CONFIGS + ENTRIES


def quiet_calls(calls, given, or_says=()):
    """The calls, with `given`, that do not raise ValueError with `says`, or one of these texts, in it."""
    quiet = []
    for number, (entry, call, says) in enumerate(calls):
        try:
            call(given)
        except ValueError as error:
            if not str(error).strip() or not any(text in str(error) for text in (says, *or_says)):
                quiet.append((number, entry.__qualname__, says, str(error)))
        except Exception as error:      # noqa: BLE001 - the point of the test
            quiet.append((number, entry.__qualname__, says, repr(error)))
        else:
            quiet.append((number, entry.__qualname__, says, "no error"))
    return quiet


def test_wrong_calls_raise_value_errors_that_name_what_is_wrong(toy):
    assert quiet_calls(CALLS, toy) == [] and len(CALLS) > 250


def documented(entry):
    """The docstrings that say what a call raises: also those of the methods that do the call."""
    own = [entry] if inspect.isfunction(entry) else [entry, entry.__init__, getattr(entry, "forward", entry),
                                                     getattr(entry, "__post_init__", entry)]
    return " ".join(" ".join((inspect.getdoc(one) or "").split()) for one in own)


def says_so(thing):
    """Whether the docstring of a function, class or method says it, or that of its class for all methods."""
    if "Raises ValueError" in documented(thing):
        return True
    cls, dot, name = thing.__qualname__.partition(".")
    words = "Raises ValueError" if name == "forward" else "All methods raise ValueError"
    return bool(dot) and words in documented(vars(sys.modules[thing.__module__])[cls])


def raises_itself(thing):
    """Whether a function's own lines, or those of a class's __init__ or __post_init__, raise ValueError or
    check something with `require`."""
    if inspect.isclass(thing):
        own = [vars(thing).get(name) for name in ("__init__", "__post_init__")]
        return any(raises_itself(one) for one in own if inspect.isfunction(one) and
                   one.__code__.co_filename == inspect.getsourcefile(thing))       # not a dataclass's own
    code = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    return any(isinstance(node, ast.Raise) and "ValueError" in ast.unparse(node) or
               isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] == "require"
               for node in code)


def test_docstrings_say_what_is_raised():
    entries = dict.fromkeys(entry for entry, _, _ in CALLS)
    silent = [entry.__qualname__ for entry in entries if not says_so(entry)]
    assert silent == [] and len(entries) > 30


MODULES = (patchify, flow, vae, losses, rope, dit, sampler, objectives, captions, data, toy_model)


def public(module):
    """The public functions, classes and methods of a module."""
    for name, thing in vars(module).items():
        own = getattr(thing, "__module__", "") == module.__name__ and hasattr(thing, "__qualname__")
        if own and name != "main" and not name.startswith("_"):
            yield thing
            yield from (f for n, f in vars(thing).items() if inspect.isfunction(f) and not n.startswith("_")
                        and f.__module__ == module.__name__) if inspect.isclass(thing) else ()


def test_whatever_says_that_it_raises_is_called_so():
    called = {entry for entry, _, _ in CALLS} | {dit.DiT.forward}
    missing = [thing.__qualname__ for module in MODULES for thing in public(module)
               if "Raises ValueError" in " ".join((inspect.getdoc(thing) or "").split())
               and thing not in called]
    assert missing == []
