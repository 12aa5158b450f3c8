"""Everything that changes resolution moves numbers about and loses none."""

import pytest
import torch

from minltx.patchify import depth_to_space, patchify, space_to_depth, unpatchify


def test_patchify_equals_a_loop_over_pixels():
    video, p = torch.randn(2, 3, 2, 8, 12), 4
    slow = torch.zeros(2, 3 * p * p, 2, 2, 3)
    for c in range(3):
        for y in range(8):
            for x in range(12):
                slow[:, c * 16 + (x % 4) * 4 + y % 4, :, y // 4, x // 4] = video[:, c, :, y, x]
    assert torch.equal(patchify(video, p), slow)
    assert torch.equal(unpatchify(slow, p), video)


def test_column_is_the_slow_index_in_a_patch():
    video = torch.zeros(1, 3, 1, 4, 4)
    video[0, 1, 0, 2, 3] = 1                                # SPEC 1.2's example: c=1, row 2, column 3 -> 30
    assert patchify(video, 4)[0, :, 0, 0, 0].nonzero().item() == 30


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)])
def test_space_to_depth_equals_a_loop_over_voxels(stride):
    st, sy, sx = stride
    x = torch.randn(2, 3, 4, 4, 6)
    slow = torch.zeros(2, 3 * st * sy * sx, 4 // st, 4 // sy, 6 // sx)
    for c in range(3):
        for t in range(4):
            for i in range(4):
                for j in range(6):
                    channel = ((c * st + t % st) * sy + i % sy) * sx + j % sx
                    slow[:, channel, t // st, i // sy, j // sx] = x[:, c, t, i, j]
    assert torch.equal(space_to_depth(x, stride), slow)
    assert torch.equal(depth_to_space(slow, stride), x)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of the patch size 4"):
        patchify(torch.zeros(1, 3, 1, 6, 8), 4)
    with pytest.raises(ValueError, match="cannot be cut"):
        space_to_depth(torch.zeros(1, 3, 3, 4, 4), (2, 2, 2))
