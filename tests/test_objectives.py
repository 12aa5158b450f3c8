"""The training objectives, compared with slow versions written out sample by sample and token by token."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_vae import tiny

from minltx.dit import DiT, DiTConfig, flatten_latent
from minltx.losses import Critics, Discriminator, LossConfig, vae_loss
from minltx.objectives import Batch, FlowRecipe, VAERecipe, draw_strength, flow_objective, vae_objective
from minltx.sampler import Condition
from minltx.toy.captions import CaptionEncoder, tokenize

VIDEO = torch.rand(3, 3, 9, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


# --- Stage 1 ----------------------------------------------------------------------------------------------

class Watched:
    """A VAE that records what its decoder is given."""

    def __init__(self, vae):
        self.vae, self.encode = vae, vae.encode

    def decode(self, latent, t):
        self.latent, self.t = latent, t
        return self.vae.decode(latent, t)


def test_the_decoders_input_is_the_posterior_sample_moved_towards_noise():
    vae, recipe = Watched(tiny()), VAERecipe(noise_range=0.5, clean=0.4)
    loss, terms = vae_objective(vae, VIDEO, recipe, seeded(), foreground=2.0)
    mean, logvar = vae.encode(VIDEO)
    generator = seeded()
    posterior = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)
    degree, choice = torch.rand(2, 3, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    for b in range(3):
        t = 0.0 if choice[b] <= 0.4 else 0.5 * degree[b].item()
        assert vae.t[b].item() == pytest.approx(t)
        for c in range(4):
            level = noise[b, c] * mean[:, c].std() + mean[:, c].mean()     # the statistics of these latents
            torch.testing.assert_close(vae.latent[b, c], (1 - t) * posterior[b, c] + t * level, rtol=0,
                                       atol=1e-5)
    wanted, _ = vae_loss(VIDEO, vae.vae.decode(vae.latent, vae.t), (mean, logvar),
                         replace(recipe.loss, foreground=2.0))
    torch.testing.assert_close(loss, wanted)
    assert set(terms) == {"pixel", "dwt", "motion", "kl"}


def test_shares_and_range_of_the_noise():
    vae, video = Watched(tiny()), VIDEO[:1, :, :1].expand(400, -1, -1, -1, -1)
    with torch.no_grad():
        vae_objective(vae, video, VAERecipe(noise_range=0.2, clean=0.3), seeded())
    assert (vae.t == 0).float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert vae.t.max() <= 0.2 and vae.t[vae.t > 0].mean().item() == pytest.approx(0.1, abs=0.015)


def test_the_noise_carries_no_gradient_to_the_statistics_it_copies():
    """The encoder must not learn latents whose noise is weak: only the posterior sample has a gradient."""
    vae = tiny()
    vae_objective(vae, VIDEO, VAERecipe(noise_range=1.0, clean=0.0), seeded())[0].backward()
    with_noise = vae.encoder.conv_in.conv.weight.grad.clone()
    mean, logvar = vae.encode(VIDEO)
    generator = seeded()
    posterior = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)
    t = torch.rand(2, 3, generator=generator)[0]
    axes = (0, 2, 3, 4)
    noise = (torch.randn(mean.shape, generator=generator) * mean.std(axes, keepdim=True)
             + mean.mean(axes, keepdim=True)).detach()
    at = t.view(3, 1, 1, 1, 1)
    vae.zero_grad()
    output = vae.decode((1 - at) * posterior + at * noise, t)
    vae_loss(VIDEO, output, (mean, logvar), LossConfig())[0].backward()
    torch.testing.assert_close(with_noise, vae.encoder.conv_in.conv.weight.grad, rtol=1e-3, atol=1e-6)


def test_the_discriminators_loss_is_reported_and_not_summed():
    vae, discriminator = tiny(), Discriminator(width=8)
    recipe = VAERecipe(LossConfig(adversarial=0.1))
    loss, terms = vae_objective(vae, VIDEO, recipe, seeded(), critics=Critics(discriminator=discriminator))
    weighted = sum(getattr(recipe.loss, name) * value for name, value in terms.items()
                   if name != "discriminator")
    torch.testing.assert_close(loss, weighted)
    loss.backward(retain_graph=True)
    assert all(p.grad is None for p in discriminator.parameters())
    vae.zero_grad()
    terms["discriminator"].backward()
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())


# --- Stage 2 ----------------------------------------------------------------------------------------------

class Model:
    """A transformer that records its inputs and predicts what `answer` says."""

    def __init__(self, answer=None):
        self.answer, self.captions = answer, None
        self.dit = SimpleNamespace(config=SimpleNamespace(stride=(8, 8, 8), causal_time=True),
                                   forward_tokens=self.forward_tokens)

    def embed(self, captions):
        self.captions = captions
        return torch.zeros(len(captions), 2, 3), torch.ones(len(captions), 2)

    def forward_tokens(self, tokens, times, coordinates, text, mask):
        self.tokens, self.times, self.coordinates = tokens, times, coordinates
        return torch.zeros_like(tokens) if self.answer is None else self.answer


LATENT = torch.randn(4, 5, 3, 2, 2, generator=torch.Generator().manual_seed(7))
CAPTIONS = ["one", "two", "three", "four"]
ALWAYS = FlowRecipe(caption_dropout=0.0, conditioned=1.0, soft=0.0)


def fixed_t(count, tokens, generator):
    return torch.tensor([0.9, 0.5, 0.2, 0.7])[:count]


def test_text_to_video_moves_every_token_along_its_straight_path():
    model, generator = Model(), seeded()
    loss, t, error = flow_objective(model, Batch(LATENT, CAPTIONS, 16.0), ALWAYS, generator, fixed_t)
    clean = flatten_latent(LATENT)
    for b in range(4):                                     # z = (1 - t) x0 + t noise, so noise is known
        noise = (model.tokens[b] - (1 - t[b]) * clean[b]) / t[b]
        torch.testing.assert_close(error[b], (noise - clean[b]).square().mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, error.mean())
    assert model.times.tolist() == [[x] for x in t.tolist()] and model.captions == CAPTIONS
    assert model.coordinates.shape == (3, 12)


def test_a_perfect_prediction_costs_nothing():
    model = Model()
    flow_objective(model, Batch(LATENT, CAPTIONS, 16.0), ALWAYS, seeded(), fixed_t)
    t, clean = fixed_t(4, 0, None).view(4, 1, 1), flatten_latent(LATENT)
    perfect = Model((model.tokens - (1 - t) * clean) / t - clean)
    loss = flow_objective(perfect, Batch(LATENT, CAPTIONS, 16.0), ALWAYS, seeded(), fixed_t)[0]
    assert loss < 1e-8


def test_given_frames_stay_clean_have_t_0_and_are_no_part_of_the_loss():
    given = LATENT[:, :, :1]
    batch = Batch(LATENT, CAPTIONS, 16.0, Condition(given))
    model = Model()
    loss, t, error = flow_objective(model, batch, ALWAYS, seeded(), fixed_t)
    clean = flatten_latent(LATENT)
    assert torch.equal(model.tokens[:, :4], clean[:, :4]) and not model.times[:, :4].any()
    slow = 0.0
    for b in range(4):
        assert (model.times[b, 4:] == t[b]).all()
        noise = (model.tokens[b, 4:] - (1 - t[b]) * clean[b, 4:]) / t[b]
        slow += (noise - clean[b, 4:]).square().mean() / 4
    torch.testing.assert_close(loss, slow, rtol=1e-4, atol=1e-4)


def test_a_keyframe_is_extra_tokens_that_are_no_part_of_the_loss():
    key = torch.randn(4, 5, 1, 2, 2)
    model = Model()
    flow_objective(model, Batch(LATENT, CAPTIONS, 16.0, Condition(key, frame=5)), ALWAYS, seeded(), fixed_t)
    assert model.tokens.shape == (4, 4 + 12, 5) and torch.equal(model.tokens[:, :4], flatten_latent(key))
    assert torch.equal(model.coordinates[0, :4], torch.full((4,), 5 / 16)) and not model.times[:, :4].any()


def test_a_batch_with_a_condition_also_trains_text_to_video():
    """Where a clip does not use the condition, its tokens have the clip's own t and all count."""
    model = Model()
    batch = Batch(LATENT, CAPTIONS, 16.0, Condition(LATENT[:, :, :1]))
    recipe = replace(ALWAYS, conditioned=0.0)
    loss, t, error = flow_objective(model, batch, recipe, seeded(), fixed_t)
    torch.testing.assert_close(model.times, t[:, None].expand(4, 12))
    torch.testing.assert_close(loss, error.mean())


def test_shares_of_the_recipe():
    strength = draw_strength(4000, FlowRecipe(conditioned=0.8, soft=0.25), seeded()).flatten()
    for low, high, share in ((0, 0, 0.2), (1, 1, 0.6), (1e-6, 1 - 1e-6, 0.2)):
        inside = (strength >= low) & (strength <= high)
        assert inside.float().mean().item() == pytest.approx(share, abs=0.03)
    noisy = draw_strength(4000, FlowRecipe(conditioned=1.0, soft=0.0, condition_noise=0.2), seeded())
    assert noisy.min() >= 0.8 and noisy.mean().item() == pytest.approx(0.9, abs=0.01)
    model, latent = Model(), LATENT[:1].expand(1000, -1, -1, -1, -1)
    recipe = FlowRecipe(caption_dropout=0.1)
    flow_objective(model, Batch(latent, ["x"] * 1000, 16.0), recipe, seeded())
    assert model.captions.count("") == pytest.approx(100, abs=30)


def test_dropped_tokens_are_left_out_with_their_coordinates():
    model, recipe = Model(), replace(ALWAYS, token_drop=0.9)
    whole = Model()
    flow_objective(whole, Batch(LATENT, CAPTIONS, 16.0), ALWAYS, seeded(), fixed_t)
    sizes = set()
    for seed in range(12):
        zero_noise_t = lambda count, tokens, generator: torch.zeros(count)
        flow_objective(model, Batch(LATENT, CAPTIONS, 16.0), recipe, seeded(seed), zero_noise_t)
        sizes.add(model.tokens.shape[1])
        clean = flatten_latent(LATENT)
        for n, where in enumerate(model.coordinates.T):               # at t = 0 every token shows its content
            i = (whole.coordinates.T == where).all(1).nonzero().item()
            assert torch.equal(model.tokens[:, n], clean[:, i])
    assert len(sizes) > 3 and max(sizes) <= 12 and min(sizes) >= 1


def test_the_gradient_reaches_transformer_and_captions_only():
    torch.manual_seed(0)
    dit, words = DiT(DiTConfig(5, 24, 2, 2, 16, (8, 8, 8))), CaptionEncoder(16)
    torch.nn.init.normal_(dit.proj_out.weight)

    def embed(captions):
        ids, mask = tokenize(captions)
        return words(ids, mask), mask

    model, latent = SimpleNamespace(dit=dit, embed=embed), LATENT.clone().requires_grad_()
    batch = Batch(latent.detach(), ["a red 7 moving left"] * 4, 16.0, Condition(LATENT[:, :, :1]))
    flow_objective(model, batch, FlowRecipe(), seeded())[0].backward()
    missing = [name for part in (dit, words) for name, p in part.named_parameters()
               if p.grad is None or not p.grad.any()]
    assert missing == []
