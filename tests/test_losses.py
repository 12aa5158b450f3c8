"""The VAE's losses: each is what its name says, and each pulls on what it should."""

import inspect
import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from test_vae import tiny

from minltx import losses
from minltx.losses import (Critics, Discriminator, LossConfig, adversarial_loss, discriminator_loss,
                           feature_distance, haar_dwt, kl_divergence, motion_amplitude, vae_loss)
from minltx.evaluation.digits import DigitClassifier
from minltx.evaluation.metrics import digit_distance, lpips_distance


def test_the_wavelet_transform_keeps_all_and_sorts_by_frequency():
    video = torch.randn(2, 3, 4, 6, 8)
    bands = haar_dwt(video)
    assert bands.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(bands.square().sum(), video.square().sum())  # orthonormal: nothing is lost
    for t in range(2):
        for y in range(2):
            for x in range(2):
                slow = sum((-1) ** (t * i + y * j + x * k) * video[:, 1, i::2, j::2, k::2]
                           for i in range(2) for j in range(2) for k in range(2)) / 8**0.5
                torch.testing.assert_close(bands[:, 8 + 4 * t + 2 * y + x], slow)
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    high = haar_dwt(still).unflatten(1, (3, 2, 4))[:, :, 1]
    assert high.abs().max() == 0  # what does not move has no high band in time


def test_kl_is_torchs():
    mean, logvar = torch.randn(2, 100)
    slow = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (logvar / 2).exp()),
                                             torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(mean, logvar), slow)


def test_motion_amplitude_of_known_clips():
    assert motion_amplitude(torch.ones(2, 3, 1, 4, 4)).max() < 2e-4         # a still image does not move
    ramp = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 4, 4) * 0.25
    torch.testing.assert_close(motion_amplitude(ramp), torch.tensor([0.25]), rtol=0, atol=1e-5)


TERMS = ["pixel", "dwt", "motion", "kl", "perceptual", "adversarial"]
VIDEO = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
FIRST = torch.tensor([True])


def a_discriminator(silent=False):
    torch.manual_seed(1)
    discriminator = Discriminator(width=8)
    if silent:
        torch.nn.init.zeros_(discriminator.layers[-1].weight)
        torch.nn.init.zeros_(discriminator.layers[-1].bias)
    return discriminator


def a_classifier():
    torch.manual_seed(2)
    return DigitClassifier()


def gradients(loss_of, config):
    """The gradient of every parameter of a fresh VAE, and of the discriminator, under one step's loss."""
    vae, discriminator = tiny(), a_discriminator()
    mean, logvar = vae.encode(VIDEO)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    output = vae.decode(mean + (logvar / 2).exp() * noise, torch.tensor([0.1]))
    critics = Critics(digit_distance(a_classifier()), discriminator)
    loss_of(VIDEO, output, (mean, logvar), config, critics, FIRST)[0].backward()
    return {**{n: p.grad for n, p in vae.named_parameters()},
            **{f"discriminator.{n}": p.grad for n, p in discriminator.named_parameters()}}


def check_wiring(loss_of, term):
    """Setting the term's weight to 0 changes the gradient of exactly the parameters it should: all of the
    encoder's for the KL term, all of encoder and decoder for the others, never the discriminator's."""
    full = LossConfig(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    one, other = gradients(loss_of, full), gradients(loss_of, replace(full, **{term: 0.0}))
    none = {n for n in one if one[n] is None}
    changed = {n for n in set(one) - none if not torch.equal(one[n], other[n])}
    assert none == {n for n in other if other[n] is None} == {n for n in one if n.startswith("discriminator")}
    pulled = "encoder" if term == "kl" else ("encoder", "decoder")
    assert changed == {n for n in one if n.startswith(pulled)}


@pytest.mark.parametrize("term", TERMS)
def test_every_weight_changes_the_gradient_of_exactly_what_it_should(term):
    check_wiring(vae_loss, term)


@pytest.mark.parametrize("term", TERMS)
def test_the_wiring_test_sees_a_term_that_is_dropped(term):
    """The mutation: the same code, but for one term that is left out of the sum."""
    source, whole = inspect.getsource(vae_loss), "for name, term in terms.items())"
    assert source.count(whole) == 1
    mutant = dict(vars(losses))
    exec(source.replace(whole, f"for name, term in terms.items() if name != {term!r})"), mutant)
    with pytest.raises(AssertionError):
        check_wiring(mutant["vae_loss"], term)
    for other in {"pixel", "kl"} - {term}:
        check_wiring(mutant["vae_loss"], other)


def test_each_side_of_the_gan_leaves_the_other_alone():
    vae, discriminator = tiny(), a_discriminator()
    output = vae.decode(vae.encode(VIDEO)[0], torch.zeros(1))
    discriminator_loss(discriminator, VIDEO, output, FIRST).backward(retain_graph=True)
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.grad.abs().max() > 0 for p in discriminator.parameters())
    discriminator.zero_grad()
    adversarial_loss(discriminator, VIDEO, output, FIRST).backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(p.grad.abs().max() > 0 for p in vae.decoder.conv_out.parameters())


def test_the_gan_at_chance_costs_log_2_and_its_sides_pull_apart():
    output = VIDEO.flip(-1)
    for loss in (discriminator_loss, adversarial_loss):
        assert loss(a_discriminator(silent=True), VIDEO, output, FIRST).item() == pytest.approx(math.log(2))
    discriminator = a_discriminator()
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


def test_swapping_the_pair_swaps_the_answer():
    """The network sees the same two videos in the same order; only which one is the original differs."""
    discriminator, other = a_discriminator(), VIDEO.flip(-1)
    for first in (torch.tensor([True]), torch.tensor([False])):
        right = discriminator(VIDEO, other, first)
        assert torch.equal(right, -discriminator(other, VIDEO, ~first))
        assert right.shape == (1, 1, 9, 4, 4) and right.abs().max() > 0
    shown = torch.cat([VIDEO, other], dim=1)
    assert torch.equal(discriminator(VIDEO, other, torch.tensor([True])), discriminator.layers(shown))


@pytest.mark.parametrize("bias, sign", [(-2.0, -1), (2.0, 1)])
def test_the_log_variance_is_pulled_towards_zero(bias, sign):
    """Below 0 the KL term raises it (a negative gradient), above 0 it lowers it, by (exp(logvar) - 1) / 2."""
    vae = tiny()
    torch.nn.init.zeros_(vae.encoder.conv_out.conv.weight)
    torch.nn.init.constant_(vae.encoder.conv_out.conv.bias, bias)
    kl_divergence(*vae.encode(VIDEO)).backward()
    gradient = vae.encoder.conv_out.conv.bias.grad[-1].item()
    assert gradient * sign > 0 and gradient == pytest.approx((math.exp(bias) - 1) / 2, rel=1e-4)


def test_frozen_features_stay_frozen_and_let_the_gradient_through():
    classifier = a_classifier()
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    distance, output = digit_distance(classifier), VIDEO.flip(-1).requires_grad_()
    distance(output, VIDEO).backward()
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert output.grad.abs().max() > 0 and distance(VIDEO, VIDEO) == 0 and not classifier.training


def test_feature_distance_is_lpips_formula_without_weights():
    a, b = torch.randn(2, 2, 5, 3, 4)
    slow = 0.0
    for n in range(2):
        for y in range(3):
            for x in range(4):
                u, v = a[n, :, y, x], b[n, :, y, x]
                slow += (u / u.norm() - v / v.norm()).square().sum() / 24
    torch.testing.assert_close(feature_distance(lambda x: [x, 2 * x], a, b), 2 * slow)


def test_lpips_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="pip install lpips"):
        lpips_distance("cpu")

    class LPIPS(torch.nn.Module):                                    # the package's interface
        def __init__(self, net):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))
            assert net == "vgg"

        def forward(self, a, b):
            assert a.shape == b.shape == (9, 3, 16, 16)
            return self.scale * (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    distance = lpips_distance("cpu")
    torch.testing.assert_close(distance(VIDEO + 0.1, VIDEO), torch.tensor(0.2))


def test_foreground_weighs_bright_pixels():
    video, config = -torch.ones(1, 3, 1, 2, 2), LossConfig(pixel=1, dwt=0, motion=0, kl=0, foreground=3.0)
    video[0, 0, 0, 0, 0] = 1.0                                      # one red pixel of four
    output = video + 0.1
    loss, _ = vae_loss(video, output, (torch.zeros(1), torch.zeros(1)), config)
    torch.testing.assert_close(loss, torch.tensor(0.01 * (3 * 1 + 1 * 4) / 4))
