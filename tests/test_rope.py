"""Rotary position embedding: a rotation, by differences of seconds, rows and columns only."""

import pytest
import torch

from minltx.rope import latent_coordinates, rope_tables, rotate

FULL = (20.0, 2048.0, 2048.0)


def at(seconds, row, column):
    return torch.tensor([[seconds], [row], [column]])


@pytest.mark.parametrize("width", [48, 64, 2048])
def test_it_is_the_rotation_written_out_pair_by_pair(width):
    cos, sin = rope_tables(latent_coordinates((2, 2, 2), (8, 32, 32), 25, True), width, FULL)
    x, still = torch.randn(1, 8, width), width % 6
    slow = x.clone()
    for n in range(8):
        for j in range(still, width, 2):
            c, s, a, b = cos[n, j], sin[n, j], x[0, n, j], x[0, n, j + 1]
            slow[0, n, j], slow[0, n, j + 1] = a * c - b * s, b * c + a * s
            assert cos[n, j] == cos[n, j + 1] and sin[n, j] == sin[n, j + 1]
    fast = rotate(x, cos, sin)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast.norm(dim=-1), x.norm(dim=-1))           # lengths stay
    assert torch.equal(fast[..., :still], x[..., :still])                   # the channels in front never turn


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_products_depend_on_offsets_only_along_each_axis(axis):
    q, k = torch.randn(2, 1, 1, 96, dtype=torch.float32)

    def product(a, b):
        return (rotate(q, *rope_tables(a, 96, (2.0, 64.0, 64.0), 100.0))
                * rotate(k, *rope_tables(b, 96, (2.0, 64.0, 64.0), 100.0))).sum()

    one, two = torch.tensor([0.1, 3.0, 5.0])[:, None], torch.tensor([0.4, 9.0, 2.0])[:, None]
    move, other = torch.zeros(3, 1), torch.zeros(3, 1)
    move[axis], other[axis] = (0.5, 20.0, 20.0)[axis], (0.25, 10.0, 10.0)[axis]
    torch.testing.assert_close(product(one, two), product(one + move, two + move), rtol=0, atol=1e-4)
    assert (product(one, two) - product(one + other, two)).abs() > 1e-2     # and they do depend on offsets


def test_golden_values_of_the_released_model():
    golden = [((0, 0, 0), 25, False, (-0.0, -0.0, -0.0, -0.04312, -0.911874, 1.0), -20.2651, -46.335),
              ((2, 1, 1), 25, False, (0.100362, 0.049068, 0.049068, 0.060122, -0.114973, 0.707409),
               -123.5847, -16.6958),
              ((2, 1, 1), 25, True, (0.056519, 0.049068, 0.049068, 0.014968, -0.114973, 0.707409),
               -143.1651, -40.6527),
              ((15, 15, 23), 24, False, (0.707107, 0.671559, 0.903989, 0.691694, 0.868204, 0.707052),
               -17.7317, -209.1009)]
    for (f, y, x), fps, causal, values, cos_sum, sin_sum in golden:
        coordinates = latent_coordinates((16, 16, 24), (8, 32, 32), fps, causal)
        cos, sin = rope_tables(coordinates, 2048, FULL)
        row = (f * 16 + y) * 24 + x
        for index, value in zip((2, 4, 6, 8, 1000, 2047), values):
            assert abs(cos[row, index].item() - value) < 2e-6
        # Without vector instructions torch rounds some powers differently. One unit in the last place of the
        # highest frequency, 15708, is 1e-3: it changes its angles, and the sums, by as much.
        bits = (10000.0 ** torch.linspace(0, 1, 341) * torch.pi / 2).view(torch.int32).sum()
        tolerance = 2e-3 if bits == 383990083161 else 3e-2
        assert abs(cos[row].double().sum().item() - cos_sum) < tolerance
        assert abs(sin[row].double().sum().item() - sin_sum) < tolerance


def test_coordinates_are_seconds_and_pixels():
    plain = latent_coordinates((3, 2, 2), (8, 32, 32), 16, causal=False).reshape(3, 3, 2, 2)
    fixed = latent_coordinates((3, 2, 2), (8, 32, 32), 16, causal=True).reshape(3, 3, 2, 2)
    assert plain[0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]
    assert fixed[0, :, 0, 0].tolist() == [0.0, 1 / 16, 9 / 16]       # the first frame is one frame, not eight
    assert plain[1, 0, :, 0].tolist() == [0.0, 32.0] and plain[2, 0, 0].tolist() == [0.0, 32.0]
    half = latent_coordinates((3, 2, 2), (8, 32, 32), 8, causal=False)
    assert torch.equal(half[0], 2 * plain.flatten(1)[0]) and torch.equal(half[1:], plain.flatten(1)[1:])
    with pytest.raises(ValueError, match="fps"):
        latent_coordinates((1, 1, 1), (8, 32, 32), 0, False)
