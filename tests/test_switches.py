"""The switches of the chapters: each does what its name says, and its default is the released model's."""

from dataclasses import replace

import pytest
import torch
from test_dit import TINY, inputs
from test_training import SMALL, batch, spied
from test_vae import tiny

import train_tiny
from minltx.data import MovingDigits, draw_digits
from minltx.dit import DiT, DiTConfig, who_sees_whom
from minltx.flow import sample_t
from minltx.patchify import patchify
from minltx.rope import latent_coordinates, rope_tables
from minltx.sampler import Condition


def randomised(**changes):
    torch.manual_seed(0)
    dit = DiT(replace(TINY, **changes))
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return dit


def moved(dit, tokens, by):
    """The transformer's answer when all coordinates are moved by some seconds and pixels."""
    where = latent_coordinates((3, 2, 4), TINY.stride, 24, True) + torch.tensor(by)[:, None]
    return dit.forward_tokens(tokens, torch.full((1, 1), 0.3), where, inputs(batch=1)[2])


def test_what_each_position_scheme_knows():
    """RoPE knows offsets only, an absolute embedding knows places, and without either order means nothing."""
    tokens = torch.randn(1, 24, 4, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for rope, places, order in (("exponential", False, True), ("inverse", False, True),
                                ("absolute", True, True), ("none", False, False)):
        dit = randomised(rope=rope)
        here = moved(dit, tokens, (0.0, 0.0, 0.0))
        there = moved(dit, tokens, (0.3, 8.0, 16.0))
        assert ((here - there).abs().max() > 1e-3) == places, rope
        assert ((moved(dit, tokens[:, shuffled], (0.0, 0.0, 0.0))
                 - here[:, shuffled]).abs().max() > 1e-3) == order, rope


def test_inverse_frequencies_fall_from_half_pi():
    """At the position 1 (a fraction of 1) an angle is its frequency: pi/2 down to pi/2 / theta."""
    where = torch.tensor([[20.0], [2048.0], [2048.0]])
    for ascending, expected in ((True, [0, 1, 2]), (False, [0, -1, -2])):
        cos, sin = rope_tables(where, 18, (20.0, 2048.0, 2048.0), 100.0, ascending)
        frequencies = torch.tensor([10.0**k * torch.pi / 2 for k in expected])
        torch.testing.assert_close(cos[0].reshape(3, 3, 2)[:, 0, 0], frequencies.cos(), rtol=0, atol=1e-4)
        torch.testing.assert_close(sin[0].reshape(3, 3, 2)[:, 2, 1], frequencies.sin(), rtol=0, atol=1e-4)


def test_space_then_time_sees_its_frame_then_its_place():
    latent, t, text = inputs(batch=1)
    changed = latent.clone()
    changed[0, :, 1, 1, 2] += 1

    def reached(**changes):
        dit = randomised(attention="space-time", **changes)
        return ((dit(changed, t, text) - dit(latent, t, text)).abs().amax(dim=1) > 1e-6)[0]

    frame = torch.zeros(3, 2, 4, dtype=torch.bool)
    frame[1] = True
    assert torch.equal(reached(depth=1), frame)                                # one block: its own frame
    assert reached(depth=2).all()                                   # then every frame at every place
    space, time = who_sees_whom(latent_coordinates((3, 2, 4), (8, 32, 32), 24, True))
    assert space.sum(-1).unique().tolist() == [8] and time.sum(-1).unique().tolist() == [3]


def test_query_key_norms_are_what_they_are_called():
    for name, kind in (("rms", "RMSNorm"), ("layer", "LayerNorm"), ("none", "Identity")):
        dit = randomised(qk_norm=name)
        assert {type(a.q_norm).__name__ for b in dit.blocks for a in (b.attn1, b.attn2)} == {kind}
        assert torch.isfinite(dit(*inputs())).all()
    for field in ("rope", "qk_norm", "attention"):
        with pytest.raises(ValueError, match=f"unknown {field} 'no'.*use one of"):
            DiTConfig(**{field: "no"})


def test_a_log_variance_for_every_channel():
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    shared, own = tiny().encode(video)[1], tiny(shared_logvar=False).encode(video)[1]
    assert shared.shape == own.shape == (1, 4, 2, 2, 2)
    assert (shared == shared[:, :1]).all() and (own != own[:, :1])[:, 1:].all()


def test_folded_latents_are_patches_of_the_latents():
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    plain, folded = tiny(), tiny(fold=2)
    folded.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("latent_")},
                           strict=False)
    assert folded.config.stride == (8, 16, 16) and plain.config.stride == (8, 8, 8)
    assert folded.latent_shape(9, 16, 32) == (16, 2, 1, 2)
    for a, b in zip(folded.encode(video), plain.encode(video)):
        assert torch.equal(a, patchify(b, 2))
    mean, t = plain.encode(video)[0], torch.tensor([0.1])
    assert torch.equal(folded.decode(patchify(mean, 2), t), plain.decode(mean, t))


def test_training_times_are_drawn_as_they_are_called():
    generator = torch.Generator().manual_seed(0)
    drawn = {kind: sample_t(20000, 4096, generator, kind) for kind in ("shifted", "logit-normal", "uniform")}
    middle = {kind: t.median().item() for kind, t in drawn.items()}
    assert middle["shifted"] > 0.75 and abs(middle["logit-normal"] - 0.5) < 0.03
    for share in (0.1, 0.5, 0.9):
        assert abs((drawn["uniform"] < share).float().mean() - share) < 0.01
    with pytest.raises(ValueError, match="use one of shifted"):
        sample_t(1, 80, kind="cosine")


def test_dropped_tokens_are_neither_seen_nor_answered():
    model, latent, captions = batch()
    sizes = set()
    for seed in range(8):
        seen, _ = spied(model, latent, captions, None, replace(SMALL, token_drop=0.5), seed)
        whole, _ = spied(model, latent, captions, None, SMALL, seed)
        n = seen["z"].shape[1]
        kept = {tuple(x) for x in seen["coordinates"].T.tolist()}
        assert 24 <= n == len(kept) <= 48 and kept <= {tuple(x) for x in whole["coordinates"].T.tolist()}
        sizes.add(n)
    assert len(sizes) > 3
    given = Condition(latent[:, :, :1])
    seen, t = spied(model, latent, captions, given,
                    replace(SMALL, token_drop=0.5, conditioned=1.0, soft=0.0), 3)
    first = seen["coordinates"][0] == 0
    assert (seen["t"][:, first] == 0).all() and torch.equal(
        seen["t"][:, ~first], t[:, None].expand(-1, int((~first).sum())))


def test_given_tokens_can_carry_a_little_noise():
    model, latent, captions = batch()
    noisy = replace(SMALL, conditioned=1.0, soft=0.0, condition_noise=0.2)
    for seed in range(4):
        seen, t = spied(model, latent, captions, Condition(latent[:, :, :1]), noisy, seed)
        own = seen["t"][:, :16]
        assert (own <= t[:, None].clamp(max=0.2)).all() and (own > 0).all() and len(own[:, 0].unique()) == 4


def test_several_kinds_of_clips_in_one_training(tmp_path):
    """Sizes, lengths and frame rates in turn, about as many tokens whichever it is, each with its own fps."""
    kinds = ((9, 32, 16.0), (5, 40, 16.0), (1, 56, 16.0), (9, 32, 32.0))
    settings = replace(SMALL, views=kinds, dit_steps=40, conditioned=0.0)
    images = draw_digits(100, 0)
    views = train_tiny.views_of(MovingDigits(*images, SMALL.model.data), *images, settings)
    model, seen = train_tiny.ToyModel(SMALL.model), []
    model.vae.requires_grad_(False)
    encoded = train_tiny.encode_views(model.vae, views, 32, 0, "cpu")
    grids = [tuple(latents.shape[2:]) for _, latents, _ in encoded]
    assert grids == [(3, 4, 4), (2, 5, 5), (1, 7, 7), (3, 4, 4)]
    original = model.dit.forward_tokens

    def spy(z, t, coordinates, *args):
        seen.append((len(z) * z.shape[1], coordinates[0].max().item(), coordinates[2].max().item()))
        return original(z, t, coordinates, *args)

    model.dit.forward_tokens = spy
    run = train_tiny.Run(tmp_path, model, settings, 0, "drawn", torch.device("cpu"), False)
    train_tiny.train_dit(run, model, encoded, MovingDigits(*images, SMALL.model.data))
    tokens = [n for n, _, _ in seen if n < 1000]                      # without the validation batch
    assert len(tokens) == 40 and max(tokens) <= 1.34 * 4 * 48 and min(tokens) >= 0.7 * 4 * 48
    assert {column for _, _, column in seen} == {24.0, 32.0, 48.0}
    assert {round(s, 3) for _, s, _ in seen if s} >= {round(5 / 16, 3), round(5 / 32, 3)}


def test_the_switches_change_nothing_when_they_are_off():
    """The first step of the reported toy, made before the switches, has the same losses today."""
    import json

    from minltx.workshop import tables
    report = json.loads((tables.RESULTS / "toy.json").read_text())
    torch.manual_seed(0)
    model = train_tiny.ToyModel(train_tiny.TOY.model)
    data = MovingDigits(*train_tiny.load_digits("drawn", 0)[0], train_tiny.TOY.model.data)
    generator = train_tiny.rng(0, train_tiny.VAE_STAGE, 0)
    video = data.batch(32, generator)[0]
    start = torch.randint(17, (1,), generator=generator).item()
    _, terms = train_tiny.vae_step(model.vae, video[:, :, start : start + 1], train_tiny.TOY, 10.0, generator)
    for name, term in terms.items():
        assert term.item() == pytest.approx(report["history"][f"vae {name}"][0][1], rel=1e-3, abs=1e-6)
