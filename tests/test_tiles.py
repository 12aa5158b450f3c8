"""Tiles: exact with a halo as wide as the receptive field, nearly so with less, never larger than asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minltx.pretrained.early import PlainVAEConfig, build_vae
from minltx.toy import load_toy
from minltx.vae import VAEConfig, VideoVAE
from minltx.video.tiles import decode_in_tiles, receptive_field, spans, use_tiles

SHALLOW = VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                    encoder_blocks=(("down", (2, 2, 2), 16), ("down", (2, 1, 1), 16)),
                    decoder_blocks=(("res", 1), ("up", (2, 1, 1), 16), ("up", (2, 2, 2), 8)))
EARLY = PlainVAEConfig(4, 2, 8, SHALLOW.encoder_blocks, 16,          # of the kinds of release 0.9.0
                       (("width", 16), ("plain_up", (2, 2, 2), 16), ("plain_up", (2, 1, 1), 8), ("res", 1)))
TIMELESS = replace(SHALLOW, encoder_blocks=(("down", (1, 2, 2), 16),), decoder_blocks=(("up", (1, 2, 2), 8),))
NOISY = replace(SHALLOW, decoder_blocks=(("noisy", 1), ("up", (2, 1, 1), 16), ("up", (2, 2, 2), 8)))
KINDS = {"shallow": SHALLOW, "early": EARLY, "timeless": TIMELESS}


def random_vae(config):
    """Every parameter random: a weight of zero would hide what a pixel depends on."""
    torch.manual_seed(0)
    vae = build_vae(config)
    for p in vae.decoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return vae


def in_tiles(vae, latent, tiles, halo, t=0.05, generator=None):
    times = torch.full((len(latent),), t)
    return decode_in_tiles(vae.decode, vae.config, latent, times, generator, tiles, halo)


def test_the_receptive_field_of_the_released_decoder_is_22_latents():
    """By hand: conv_in, ten convolutions and one of the upsampling on the latents' grid; eleven each on grids
    of half and quarter voxels; ten and conv_out on eighths: 12 + 11/2 + 11/4 + 11/8 = 21.6."""
    with torch.device("meta"):
        assert receptive_field(VideoVAE(VAEConfig()).decoder) == (22, 22, 22)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_depends_on_the_receptive_field_and_on_nothing_beyond(kind):
    """The gradient of the pixels of one latent voxel, in double precision: not zero in a box of the latents,
    and zero outside."""
    vae = random_vae(KINDS[kind]).double()
    reach, (st, sy, sx) = receptive_field(vae.decoder), vae.config.stride
    grid = [2 * r + 5 for r in reach]
    middle = [n // 2 for n in grid]
    latent = torch.randn(1, vae.config.latent_channels, *grid, dtype=torch.float64, requires_grad=True)
    f, y, x = middle
    box = vae.decode(latent, torch.zeros(1, dtype=torch.float64))
    box = box[..., max(st * (f - 1) + 1, 0) : st * f + 1, y * sy : (y + 1) * sy, x * sx : (x + 1) * sx]
    seen = torch.autograd.grad(box.square().sum(), latent)[0].abs().sum((0, 1)).nonzero()        # (n, 3)
    low, high = seen.min(dim=0).values.tolist(), seen.max(dim=0).values.tolist()
    assert all(m - a <= r and b - m <= r for m, a, b, r in zip(middle, low, high, reach))
    assert max(b - m for m, b in zip(middle, high)) >= max(reach) - 1                     # and hardly less


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid, tiles", [((7, 9, 5), (3, 4, 2)), ((5, 3, 7), (4, 3, 3)),
                                         ((3, 5, 2), (1, 1, 1)), ((1, 7, 5), (1, 2, 3)),
                                         ((3, 4, 5), (8, 16, 16)), ((20, 3, 2), (2, 3, 2))])
def test_with_the_receptive_field_for_a_halo_tiles_are_the_whole(kind, grid, tiles):
    vae = random_vae(KINDS[kind])
    latent = torch.randn(2, vae.config.latent_channels, *grid)
    whole = vae.decode(latent, torch.full((2,), 0.05))
    parts = in_tiles(vae, latent, tiles, max(receptive_field(vae.decoder)))
    assert parts.shape == whole.shape
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_shipped_decoder_in_tiles():
    """Its receptive field is 10 latents, so the grid is larger; with a halo of 6 no pixel is off by one in
    255."""
    vae = load_toy().vae
    latent, far = torch.randn(1, 4, 13, 25, 6, generator=torch.Generator().manual_seed(0)), (10, 10, 10)
    assert receptive_field(vae.decoder) == far
    whole, errors = vae.decode(latent, torch.tensor([0.05])), []
    for halo in (1, 2, 4, 6, 10):
        errors.append((in_tiles(vae, latent, (5, 9, 6), halo) - whole).abs().max().item())
    assert all(b < a / 1.5 for a, b in zip(errors, errors[1:])) and errors[-1] < 1e-5
    assert errors[3] < 1 / 127.5


@torch.no_grad()
@pytest.mark.parametrize("halo", [1, 2, 5])
def test_no_tile_is_larger_than_asked_plus_its_halo(halo):
    vae, sizes = random_vae(SHALLOW), []
    decode = vae.decode

    def count(latent, t, generator):
        sizes.append(tuple(latent.shape[2:]))
        return decode(latent, t, generator)

    latent = torch.randn(1, 4, 10, 11, 7)
    decode_in_tiles(count, vae.config, latent, torch.zeros(1), None, (4, 3, 2), halo)
    assert len(sizes) == 3 * 4 * 4
    assert all(n <= tile + 2 * halo for size in sizes for n, tile in zip(size, (4, 3, 2)))


def test_spans_cover_everything_once_in_even_parts():
    for size, tile in ((17, 16), (16, 16), (10, 4), (1, 1), (5, 9)):
        parts = spans(size, tile, 2)
        assert [i for a, b, _, _ in parts for i in range(a, b)] == list(range(size))
        lengths = [b - a for a, b, _, _ in parts]
        assert max(lengths) <= tile and max(lengths) - min(lengths) <= 1
        assert all(first == max(a - 2, 0) and last == min(b + 2, size) for a, b, first, last in parts)


@torch.no_grad()
def test_injected_noise_allows_tiles_in_time_only():
    vae, latent = random_vae(NOISY), torch.randn(2, 4, 9, 3, 4)
    far = max(receptive_field(vae.decoder))
    for seed in (0, 1):
        whole = vae.decode(latent, torch.full((2,), 0.05), torch.Generator().manual_seed(seed))
        parts = in_tiles(vae, latent, (2, 3, 4), far, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="in time only, 2x3x4"):
        in_tiles(vae, latent, (2, 2, 4), far)
    torch.manual_seed(5)
    whole = vae.decode(latent, torch.full((2,), 0.05))
    torch.manual_seed(5)
    torch.testing.assert_close(in_tiles(vae, latent, (4, 3, 4), far), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiles, halo, says", [((0, 4, 4), 1, "from 1 on.*8x16x16"),
                                               ((4, 4), 1, "three numbers"), ((4, 2, 2), -1, "use 0 or more"),
                                               ((2, 4, 4), 0, "use 1 or more, or 4 frames")])
def test_impossible_tiles_name_the_fix(tiles, halo, says):
    with pytest.raises(ValueError, match=says):
        in_tiles(random_vae(SHALLOW), torch.zeros(1, 4, 4, 4, 4), tiles, halo)


@torch.no_grad()
def test_no_halo_is_legal_in_space():
    vae, latent = random_vae(SHALLOW), torch.randn(1, 4, 2, 4, 4)
    assert in_tiles(vae, latent, (2, 2, 2), 0).shape == vae.decode(latent, torch.zeros(1)).shape


@torch.no_grad()
def test_use_tiles_makes_a_vae_decode_in_tiles():
    vae, latent, t = random_vae(SHALLOW), torch.randn(1, 4, 3, 8, 8), torch.tensor([0.05])
    whole = vae.decode(latent, t)
    rough = in_tiles(vae, latent, (2, 3, 3), 1)
    use_tiles(vae, (2, 3, 3), 1)
    assert torch.equal(vae.decode(latent, t), rough) and not torch.equal(rough, whole)


def test_sample_py_decodes_in_tiles(tmp_path, capsys):
    import sample

    def run(name, *options):
        path = tmp_path / name
        wanted = ["a red 7 moving left", "--steps", "3", "--size", "32x40", "--out", str(path)]
        assert sample.main([*wanted, *options]) == 0
        with np.load(path) as file:
            return file["frames"].astype(int)

    whole = run("whole.npz")
    exact = run("exact.npz", "--tiles", "3x3x2", "--halo", "10")
    rough = run("rough.npz", "--tiles", "3X3X2", "--halo", "1")
    assert whole.shape == exact.shape == (1, 17, 32, 40, 3)
    assert abs(whole - exact).max() <= 1 and 1 < abs(whole - rough).max()
    for options, says in ((["3x3"], "latent frames x rows x columns"), (["3x0x3"], "such as 8x16x16"),
                          (["3x3x-1"], "such as 8x16x16"), (["all"], "such as 8x16x16"),
                          (["2x4x4", "--halo", "0"], "use 1 or more")):
        with pytest.raises(SystemExit) as stop:
            sample.main(["a red 7 moving left", "--tiles", *options])
        assert stop.value.code == 2 and says in capsys.readouterr().err
