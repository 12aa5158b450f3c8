"""The built-in variants of the ablations: each computes what its name says, and nothing else differs."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_dit import TINY, inputs
from test_losses import FIRST, VIDEO
from test_training import SMALL
from test_vae import tiny
from torch import nn

from minltx.ablation import switches, variants
from minltx.ablation.ideas import Idea, combine, idea_of
from minltx.ablation.runner import dit_steps, vae_steps
from minltx.dit import DiT
from minltx.flow import sample_t, shift_mu
from minltx.losses import Discriminator, adversarial_loss, discriminator_loss
from minltx.objectives import Batch
from minltx.patchify import patchify
from minltx.rope import latent_coordinates
from minltx.toy.data import MovingDigits, draw_digits
from minltx.toy.model import ToyModel
from minltx.vae import VideoVAE

ROPE = switches.SWITCHES["rope"].levels


class OnlyDiT(nn.Module):
    """A model with a transformer and nothing else."""

    def __init__(self, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.dit, self.text = DiT(replace(TINY, **changes)), nn.Identity()


def randomised(idea, **changes):
    """The transformer of an idea, with no parameter at its special starting value."""
    dit = idea.change(OnlyDiT(**changes)).dit
    torch.manual_seed(0)
    for p in dit.parameters():
        nn.init.normal_(p, std=0.15)
    return dit


def velocity(dit, tokens, moved_by=(0.0, 0.0, 0.0)):
    """The transformer's output, with all coordinates moved by some seconds and pixels."""
    where = latent_coordinates((3, 2, 4), TINY.stride, 24, True) + torch.tensor(moved_by)[:, None]
    return dit.forward_tokens(tokens, torch.full((1, 1), 0.3), where, inputs(batch=1)[2])


def built(idea, settings=SMALL):
    torch.manual_seed(3)
    return idea.build(settings.model)


# --- The default ------------------------------------------------------------------------------------------

def test_the_default_is_the_toy_model_with_the_same_weights():
    torch.manual_seed(3)
    weights = ToyModel(SMALL.model).state_dict()
    ours = built(Idea()).state_dict()
    assert list(ours) == list(weights) and all(torch.equal(ours[k], weights[k]) for k in weights)


@pytest.mark.parametrize("name", ["rope", "qk-norm", "attention", "times", "coordinates", "gan"])
def test_variants_of_the_same_parameters_start_with_the_same_weights(name):
    default = built(Idea()).state_dict()
    for idea in switches.SWITCHES[name].levels.values():
        weights = built(idea).state_dict()
        same = default.keys() & weights.keys()
        assert all(torch.equal(default[k], weights[k]) for k in same)
        assert all("_norm." in k for k in default.keys() ^ weights.keys())


def after_a_step_of_each_kind(make_steps, idea, settings):
    """The model that `make_steps` trains, with the gradients of all its steps."""
    models, watched = [], copy.copy(idea)
    watched.build = lambda config: models.append(idea.build(config)) or models[-1]
    steps = make_steps(watched, settings, MovingDigits(*draw_digits(100, 0), settings.model.data))
    nn.init.normal_(models[0].dit.proj_out.weight)                     # zeros would let no gradient through
    for _, step in steps:
        step()
    return models[0]


@pytest.mark.parametrize("name, level", [(name, level) for name, switch in switches.SWITCHES.items()
                                         for level, idea in switch.levels.items() if idea.classes])
def test_every_parameter_of_a_variant_is_trained(name, level, monkeypatch):
    monkeypatch.setattr(switches, "SHORT", SMALL)
    switch = switches.SWITCHES[name]
    idea, trained = switch.levels[level], []
    settings = switches.settings_for(idea, switch.stage)
    if switch.stage != "dit":
        vae = after_a_step_of_each_kind(vae_steps, idea, settings).vae
        trained += (vae.decoder if switch.stage == "decoder" else vae).parameters()
    if switch.stage in ("dit", "both"):
        model = after_a_step_of_each_kind(dit_steps, idea, settings)
        trained += [*model.dit.parameters(), *model.text.parameters()]
    assert len(trained) >= 12 and all(p.grad is not None and p.grad.isfinite().all() for p in trained)


# --- Positions and attention ------------------------------------------------------------------------------

def test_what_each_position_scheme_knows():
    """RoPE knows offsets only, an absolute embedding knows places, and without either order means nothing."""
    tokens = torch.randn(1, 24, 4, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for name, places, order in (("exponential", False, True), ("inverse", False, True),
                                ("absolute", True, True), ("none", False, False)):
        dit = randomised(ROPE[name])
        here, there = velocity(dit, tokens), velocity(dit, tokens, (0.3, 8.0, 16.0))
        assert ((here - there).abs().max() > 1e-3) == places, name
        assert ((velocity(dit, tokens[:, shuffled]) - here[:, shuffled]).abs().max() > 1e-3) == order, name


def test_inverse_frequencies_fall_from_half_pi():
    """At position 1 (a fraction of 1) an angle is its frequency: from pi/2 to pi/2 times or over theta."""
    where = torch.tensor([[20.0], [2048.0], [2048.0]])
    x = torch.tensor([1.0, 0.0]).repeat(9)[None, None]                  # every pair of channels at angle 0
    for name, exponents in (("exponential", [0, 1, 2]), ("inverse", [0, -1, -2])):
        dit = ROPE[name].change(OnlyDiT(width=18, heads=1, max_position=(20.0, 2048.0, 2048.0))).dit
        turned = dit.rotation(where)(x)[0, 0].reshape(3, 3, 2)          # frequency, axis, cos and sin
        frequencies = torch.tensor([10.0**k * torch.pi / 2 for k in exponents])
        torch.testing.assert_close(turned[:, 0, 0], frequencies.cos(), rtol=0, atol=1e-4)
        torch.testing.assert_close(turned[:, 2, 1], frequencies.sin(), rtol=0, atol=1e-4)


def test_space_then_time_sees_its_frame_then_its_place():
    latent, t, text = inputs(batch=1)
    changed = latent.clone()
    changed[0, :, 1, 1, 2] += 1

    def reached(**changes):
        dit = randomised(variants.SpaceTime(), **changes)
        return ((dit(changed, t, text) - dit(latent, t, text)).abs().amax(dim=1) > 1e-6)[0], dit

    frame = torch.zeros(3, 2, 4, dtype=torch.bool)
    frame[1] = True
    assert torch.equal(reached(depth=1)[0], frame)                             # one block: its own frame
    all_of_it, dit = reached(depth=2)
    assert all_of_it.all()                                          # then every frame at every place
    assert [dit.blocks[i].attn1.mask.sum(-1).unique().tolist() for i in (0, 1)] == [[8], [3]]


def test_attention_with_a_full_mask_is_the_chapters():
    dit, masked = randomised(Idea()), randomised(variants.SpaceTime())
    x = torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))
    rotate = dit.rotation(latent_coordinates((3, 2, 4), TINY.stride, 24, True))
    ours, theirs = masked.blocks[0].attn1, dit.blocks[0].attn1
    ours.mask = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    torch.testing.assert_close(ours(x, rotate=rotate), theirs(x, rotate=rotate))


def test_query_key_norms_are_what_they_are_called():
    for level, kind in (("rms", "RMSNorm"), ("layer", "LayerNorm"), ("none", "Identity")):
        dit = randomised(switches.SWITCHES["qk-norm"].levels[level])
        norms = [norm for b in dit.blocks for a in (b.attn1, b.attn2) for norm in (a.q_norm, a.k_norm)]
        assert {type(norm).__name__ for norm in norms} == {kind} and len(norms) == 8
        assert torch.isfinite(dit(*inputs())).all()
    text = built(variants.NoQKNorm()).text                                  # the captions keep theirs
    assert type(text.attention.q_norm).__name__ == "RMSNorm"


@pytest.mark.parametrize("name", ["inverse", "absolute", "none"])
def test_positions_and_attention_combine_in_any_order(name):
    tokens = torch.randn(1, 24, 4, generator=torch.Generator().manual_seed(0))
    alone = [velocity(randomised(idea), tokens) for idea in (ROPE[name], variants.SpaceTime())]
    both = [velocity(randomised(combine(pair)), tokens) for pair in (
        [ROPE[name], variants.SpaceTime()], [variants.SpaceTime(), ROPE[name]])]
    assert torch.equal(*both) and all((both[0] - one).abs().max() > 1e-3 for one in alone)


# --- Training times and frame rates -----------------------------------------------------------------------

def test_training_times_are_drawn_as_they_are_called():
    levels, generator = switches.SWITCHES["times"].levels, torch.Generator().manual_seed(0)
    drawn = {name: idea.draw_t(20000, 4096, generator) for name, idea in levels.items()}
    assert drawn["shifted"].median() > 0.75 and abs(drawn["logit-normal"].median() - 0.5) < 0.03
    for share in (0.1, 0.5, 0.9):
        assert abs((drawn["uniform"] < share).float().mean() - share) < 0.01
    assert shift_mu(variants.LogitNormalTimes.UNSHIFTED) == pytest.approx(0, abs=1e-12)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(Idea().draw_t(5, 48, seeds[0]), sample_t(5, 48, seeds[1]))


def spied(idea, fps, draw_t=None):
    """What the transformer is given in a step: t (B,) of the objective, and coordinates (3, N)."""
    model, seen = built(idea), []
    forward = model.dit.forward_tokens
    model.dit.forward_tokens = lambda z, t, where, *args: seen.append(where) or forward(z, t, where, *args)
    batch = Batch(torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), [""] * 4, fps)
    _, t, _ = idea.flow_objective(model, batch, SMALL, torch.Generator().manual_seed(1))
    return t, seen[0]


def test_the_objective_uses_the_times_of_the_idea():
    usual, uniform = (spied(idea, 16.0)[0] for idea in (Idea(), variants.UniformTimes()))
    generator = torch.Generator().manual_seed(1)
    torch.rand(4, generator=generator)                                              # caption dropout
    torch.testing.assert_close(uniform, torch.rand(4, generator=generator))
    assert not torch.equal(usual, uniform)


def test_frames_have_the_same_coordinates_at_every_frame_rate():
    seconds = [spied(Idea(), fps)[1][0].max().item() for fps in (16.0, 32.0)]
    frames = [spied(variants.FramesNotSeconds(), fps)[1] for fps in (16.0, 32.0)]
    assert seconds[0] == pytest.approx(2 * seconds[1]) and torch.equal(*frames)
    assert frames[0][0].max().item() == pytest.approx(seconds[0])                   # the data's own 16 fps


def test_times_and_frame_rates_combine():
    both = combine([variants.UniformTimes(), variants.FramesNotSeconds()])
    assert torch.equal(spied(both, 32.0)[0], spied(variants.UniformTimes(), 16.0)[0])
    assert torch.equal(spied(both, 32.0)[1], spied(variants.FramesNotSeconds(), 16.0)[1])


# --- The VAE ----------------------------------------------------------------------------------------------

def vae_of(idea, **changes):
    """A VAE with an idea's networks."""
    vae = tiny(**changes)
    torch.manual_seed(0)
    vae.encoder, vae.decoder = idea.encoder(vae.config), idea.decoder(vae.config)
    return vae


def test_a_log_variance_for_every_channel():
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    shared, own = tiny().encode(video)[1], vae_of(variants.LogvarPerChannel()).encode(video)[1]
    assert shared.shape == own.shape == (1, 4, 2, 2, 2)
    assert (shared == shared[:, :1]).all() and (own != own[:, :1])[:, 1:].all()


def test_folded_latents_are_patches_of_the_latents():
    video, t = torch.rand(1, 3, 9, 16, 16) * 2 - 1, torch.tensor([0.1])
    folded = vae_of(variants.FoldedLatents())                      # of 4 channels and 8x8x8 pixels, as others
    finer = VideoVAE(replace(folded.config, patch=2, latent_channels=1))
    finer.encoder.load_state_dict(folded.encoder.state_dict())
    finer.decoder.load_state_dict(folded.decoder.state_dict())
    assert folded.config.stride == (8, 8, 8) and finer.config.stride == (8, 4, 4)
    for a, b in zip(folded.encode(video), finer.encode(video), strict=True):
        assert torch.equal(a, patchify(b, 2))
    mean = finer.encode(video)[0]
    assert torch.equal(folded.decode(patchify(mean, 2), t), finer.decode(mean, t))


def test_an_unconditioned_decoder_is_the_usual_one_with_a_condition_of_zero():
    plain, usual = vae_of(variants.Unconditioned()), tiny()
    weights = plain.decoder.state_dict()
    assert not any("time" in name or "table" in name for name in weights)
    usual.decoder.load_state_dict({name: weights.get(name, torch.zeros_like(x))
                                   for name, x in usual.decoder.state_dict().items()})
    latent = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    outputs = [vae.decode(latent, torch.tensor(t)) for vae in (plain, usual)
               for t in ([0.0, 0.1], [0.2, 0.0])]
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert (tiny().decode(latent, torch.tensor([0.0, 0.1])) != tiny().decode(latent, torch.zeros(2))).any()


# --- The ordinary GAN -------------------------------------------------------------------------------------

def ordinary(silent=False):
    torch.manual_seed(0)
    discriminator = variants.OrdinaryGAN().discriminator(4)
    if silent:
        for p in discriminator.parameters():
            nn.init.zeros_(p)
    return discriminator


def test_the_ordinary_discriminator_never_sees_both_videos():
    margins = ordinary()(VIDEO, VIDEO.flip(-1), FIRST)
    assert margins.shape == (2, 1, 9, 4, 4)
    assert torch.equal(margins[:1], ordinary()(VIDEO, -VIDEO, ~FIRST)[:1])      # of the original alone
    assert torch.equal(margins[1:], ordinary()(-VIDEO, VIDEO.flip(-1), ~FIRST)[1:])      # of the output
    same = ordinary()(VIDEO, VIDEO, FIRST)
    assert torch.equal(same[:1], -same[1:])
    assert isinstance(Idea().discriminator(4), Discriminator)


def test_each_side_of_the_ordinary_gan_leaves_the_other_alone():
    vae, discriminator = tiny(), ordinary()
    output = vae.decode(vae.encode(VIDEO)[0], torch.zeros(1))
    discriminator_loss(discriminator, VIDEO, output, FIRST).backward(retain_graph=True)
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.grad.abs().max() > 0 for p in discriminator.parameters())
    discriminator.zero_grad()
    adversarial_loss(discriminator, VIDEO, output, FIRST).backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(p.grad.abs().max() > 0 for p in vae.decoder.conv_out.parameters())


def test_the_ordinary_gan_at_chance_costs_log_2_and_its_sides_pull_apart():
    output = VIDEO.flip(-1)
    for loss in (discriminator_loss, adversarial_loss):
        assert loss(ordinary(silent=True), VIDEO, output, FIRST).item() == pytest.approx(math.log(2))
    discriminator = ordinary()
    optimizer = torch.optim.SGD(discriminator.parameters(), 0.05)
    both = (discriminator_loss, adversarial_loss)
    before = [loss(discriminator, VIDEO, output, FIRST).item() for loss in both]
    discriminator_loss(discriminator, VIDEO, output, FIRST).backward()
    optimizer.step()
    after = [loss(discriminator, VIDEO, output, FIRST).item() for loss in both]
    assert after[0] < before[0] and after[1] > before[1]            # what one gains the other loses
    x = output.clone().requires_grad_()
    adversarial_loss(discriminator, VIDEO, x, FIRST).backward()
    with torch.no_grad():
        assert adversarial_loss(discriminator, VIDEO, x - x.grad / x.grad.norm(), FIRST) < after[1]


# --- Swapping and combining -------------------------------------------------------------------------------

def test_a_subclass_of_a_chapters_module_is_swapped_in_where_the_stage_trains():
    class Doubled(DiT):
        def rotation(self, coordinates):
            return lambda x: 2 * x

    class Linear(nn.Linear):
        pass

    class Other(Discriminator):
        pass

    idea = idea_of(Doubled, {"dit_lr": 0.01})
    assert idea.stage == "dit" and idea.changes == {"dit_lr": 0.01} and idea.classes == [Doubled]
    assert type(built(idea).dit) is Doubled
    for wrong in (Linear, int, print):
        with pytest.raises(ValueError, match="is not an idea: it must be a subclass of Idea, or of a module"):
            idea_of(wrong)
    with pytest.raises(ValueError, match="replaces Discriminator, which stage dit does not train"):
        built(idea_of(Other))


def test_two_ideas_that_override_the_same_hook_cannot_be_combined():
    with pytest.raises(ValueError, match="LogitNormalTimes and UniformTimes cannot be combined: .* draw_t"):
        combine([variants.UniformTimes(), variants.LogitNormalTimes()])
    both = combine([Idea({"dit_lr": 0.1}), variants.Unconditioned({"noise_range": 0.0}),
                    Idea({"loss.dwt": 0.5})])
    assert both.changes == {"dit_lr": 0.1, "noise_range": 0.0, "loss.dwt": 0.5}
    assert both.classes == [variants.Unconditioned] and combine([]).classes == []
