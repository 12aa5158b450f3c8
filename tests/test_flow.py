"""Rectified flow on its own: no network, any shape."""

import math

import pytest
import torch

from minltx.flow import (flow_loss, interpolate, linear_quadratic_schedule, predict_x0, sample_t,
                         schedule_from, shift_mu, shifted_schedule, velocity)
from minltx.sampler import classifier_free_guidance, euler, seeded_noise


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 2, 4, 4)])
def test_the_path_runs_from_data_to_noise_at_constant_velocity(shape):
    x0, noise = torch.randn(2, *shape, dtype=torch.float64)
    at = lambda t: interpolate(x0, noise, torch.full((5,), t, dtype=torch.float64))
    assert torch.equal(at(0.0), x0) and torch.equal(at(1.0), noise)
    for t in (0.2, 0.7):
        torch.testing.assert_close((at(t + 1e-3) - at(t)) / 1e-3, velocity(x0, noise), rtol=0, atol=1e-9)
        found = predict_x0(at(t), velocity(x0, noise), torch.full((5,), t))
        torch.testing.assert_close(found, x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_euler_lands_on_the_data_when_the_velocity_is_known(steps):
    x0, noise = torch.randn(2, 3, 4, 3, 2, 2)
    # For one data point x0 the exact velocity field is (z - x0) / t: straight lines, so any number of steps
    # will do.
    z = euler(lambda z, t: (z - x0) / t.view(-1, 1, 1, 1, 1), noise, shifted_schedule(steps, 12))
    torch.testing.assert_close(z, x0, rtol=0, atol=1e-5)


def test_euler_converges_on_a_curved_field_at_first_order():
    z = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)                      # dz/dt = z, from t = 1 to 0: 1/e
    errors = [(euler(lambda z, t: z, z, torch.linspace(1, 0, n + 1)) - math.exp(-1)).abs().item()
              for n in (50, 100)]
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_given_tokens_do_not_move_and_have_their_own_time():
    z, seen = torch.randn(2, 3, 4), []
    strength = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1)

    def field(z, t):
        seen.append(t)
        return torch.ones_like(z)

    schedule = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    out = euler(field, z, schedule, strength)
    assert torch.equal(out[:, 0], z[:, 0])
    torch.testing.assert_close(out[:, 1], z[:, 1] - 0.5)                    # it moves from t = 0.5 on
    torch.testing.assert_close(out[:, 2], z[:, 2] - 1.0)
    for t, tokens in zip(schedule, seen):
        assert (tokens[:, 0] == 0).all() and (tokens[:, 1] == min(t, 0.5)).all() and (tokens[:, 2] == t).all()


def test_stochastic_steps_go_to_the_end_of_the_path_and_back_up():
    x0, z, fresh = torch.randn(3, 2, 5, 4)
    schedule = torch.tensor([1.0, 0.6, 0.0])
    exact = lambda z, t: (z - x0) / t.view(-1, 1, 1)
    half = euler(exact, z, schedule[:2], stochastic_noise=lambda z: fresh)
    torch.testing.assert_close(half, 0.4 * x0 + 0.6 * fresh)
    torch.testing.assert_close(euler(exact, z, schedule, stochastic_noise=lambda z: fresh), x0)


@pytest.mark.parametrize("steps, golden", [
    (1, [1.0]), (7, [1, 0.99167, 0.98333, 0.975, 0.9078, 0.7229, 0.4203]),
    (8, [1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875])])
def test_linear_quadratic_schedule_has_the_released_values(steps, golden):
    schedule = linear_quadratic_schedule(steps)
    assert len(schedule) == steps + 1 and schedule[-1].abs() < 1e-6
    torch.testing.assert_close(schedule[:-1], torch.tensor(golden, dtype=torch.float32), rtol=0, atol=5e-5)
    with pytest.raises(ValueError, match="steps is 0: use a whole number from 1"):
        linear_quadratic_schedule(0)


@pytest.mark.parametrize("steps", [2, 20, 40, 101])
def test_linear_quadratic_steps_spend_half_on_the_first_noise(steps):
    schedule = linear_quadratic_schedule(steps)
    assert (schedule.diff() < 0).all() and abs(schedule[steps // 2] - 0.975) < 1e-6
    removed = (1 - schedule[steps // 2:]).double()
    assert removed.diff(n=3).abs().max() < 1e-5 if len(removed) > 3 else True           # quadratic


def test_the_rest_of_a_schedule():
    schedule = torch.tensor([1.0, 0.8, 0.5, 0.0])
    for t, rest in ((1.0, [1.0, 0.8, 0.5, 0.0]), (0.8, [0.8, 0.5, 0.0]), (0.6, [0.6, 0.5, 0.0]),
                    (0.1, [0.1, 0.0])):
        torch.testing.assert_close(schedule_from(schedule, t), torch.tensor(rest))


def test_a_guidance_of_one_is_the_captions_velocity():
    a, b = torch.randn(2, 3, 4)
    torch.testing.assert_close(classifier_free_guidance(a, b, 1.0), b)
    torch.testing.assert_close(classifier_free_guidance(a, b, 3.0), a + 3 * (b - a))


@pytest.mark.parametrize("steps, tokens, golden", [
    (20, 6144, {0: 1.0, 1: 0.9946, 2: 0.98863, 3: 0.98202, 4: 0.97464, 16: 0.66964,
                17: 0.5677, 18: 0.40433, 19: 0.1}),
    (40, 5280, {0: 1.0, 1: 0.99747, 4: 0.98911, 36: 0.49375, 38: 0.27746, 39: 0.1}),
    (8, 48, {0: 1.0, 1: 0.91757, 2: 0.82465, 3: 0.7191, 4: 0.59817, 5: 0.45822, 6: 0.29439, 7: 0.1}),
])
def test_shifted_schedule_has_the_released_values(steps, tokens, golden):
    schedule = shifted_schedule(steps, tokens)
    assert len(schedule) == steps + 1 and schedule[-1] == 0
    for k, value in golden.items():
        assert abs(schedule[k].item() - value) < 1e-5
    with pytest.raises(ValueError, match="steps is 0: use a whole number from 1"):
        shifted_schedule(0, tokens)


def test_shift_has_the_published_values():
    for tokens, mu in ((256, 0.675), (1024, 0.95), (4096, 2.05), (6144, 2.783)):
        assert abs(shift_mu(tokens) - mu) < 1e-3


def test_an_offset_of_the_times_is_the_shift_of_fewer_tokens():
    fewer = 80 - 0.3 * (4096 - 1024) / (2.05 - 0.95)
    moved, same, plain = (sample_t(1000, *how) for how in (
        (80, torch.Generator().manual_seed(0), -0.3), (fewer, torch.Generator().manual_seed(0)),
        (80, torch.Generator().manual_seed(0))))
    torch.testing.assert_close(moved, same)
    assert moved.median() < plain.median() - 0.03


def test_training_times_stay_in_range_and_move_towards_noise_with_the_tokens():
    few, many = (sample_t(20000, n, torch.Generator().manual_seed(0)) for n in (48, 6144))
    for t in (few, many):
        assert t.min() >= 0 and t.max() <= 1
        assert (torch.histc(t, 10, 0, 1) > 0.005 * len(t)).all()            # no time starves
    assert many.median() > few.median() + 0.2
    # The middle of the distribution is the logit-normal's, stretched: the median of sigmoid(mu + N) is
    # sigmoid(mu).
    mu = shift_mu(48)
    low, high = 1 / (1 + math.exp(2.5758 - mu)), 1 / (1 + math.exp(-3.0902 - mu))
    assert abs(few.median().item() - (1 / (1 + math.exp(-mu)) - low) / (high - low)) < 0.02


def test_loss_counts_only_what_is_free():
    v, target = torch.randn(2, 2, 4, 3, 2, 2)
    weight = torch.ones(2, 1, 3, 2, 2)
    weight[0, :, 0] = 0
    slow = torch.cat([((v - target) ** 2)[0, :, 1:].flatten(), ((v - target) ** 2)[1].flatten()]).mean()
    torch.testing.assert_close(flow_loss(v, target, weight), slow)


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    assert torch.equal(seeded_noise((2, 3), [7, 8])[1], seeded_noise((2, 3), [8])[0])
