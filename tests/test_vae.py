"""The VAE: causal, exact about frame counts, one log-variance, and a decoder conditioned on t."""

from dataclasses import replace

import pytest
import torch

from minltx.vae import CausalConv3d, Downsample, Upsample, VAEConfig, VideoVAE, build_blocks, inject_noise

TINY = VAEConfig(latent_channels=4, encoder_width=8, decoder_width=16,
                 encoder_blocks=(("res", 1), ("down", (2, 1, 1), 16), ("down", (2, 2, 2), 16),
                                 ("down", (2, 1, 1), 16)),
                 decoder_blocks=(("res", 1), ("up", (2, 1, 1), 16), ("up", (2, 2, 2), 8), ("res", 1),
                                 ("up", (2, 1, 1), 8)))
NOISY = replace(TINY, decoder_blocks=(("noisy", 1), *TINY.decoder_blocks[1:]))


def tiny(**changes):
    torch.manual_seed(0)
    return VideoVAE(replace(TINY, **changes))


@pytest.mark.parametrize("config", [TINY, NOISY])
def test_a_latent_frame_sees_no_later_pixels(config):
    vae, video = tiny(**vars(config)), torch.rand(1, 3, 17, 16, 16) * 2 - 1
    before = vae.encode(video)[0]
    for first_changed, latent_frame in ((1, 1), (9, 2)):
        changed = video.clone()
        changed[:, :, first_changed:] = torch.rand(1, 3, 17 - first_changed, 16, 16)
        after = vae.encode(changed)[0]
        assert torch.equal(after[:, :, :latent_frame], before[:, :, :latent_frame])
        assert (after[:, :, latent_frame] - before[:, :, latent_frame]).abs().max() > 1e-4


@pytest.mark.parametrize("config", [TINY, NOISY])
def test_the_first_latent_frame_is_that_of_the_picture_alone(config):
    vae, video = tiny(**vars(config)), torch.rand(2, 3, 9, 16, 16) * 2 - 1
    for whole, alone in zip(vae.encode(video), vae.encode(video[:, :, :1])):
        torch.testing.assert_close(whole[:, :, :1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, NOISY])
@pytest.mark.parametrize("frames, latents", [(1, 1), (9, 2), (17, 3), (25, 4)])
def test_frames_are_8k_plus_1(frames, latents, config):
    vae = tiny(**vars(config))
    assert vae.config.stride == (8, 8, 8)
    mean, logvar = vae.encode(torch.zeros(1, 3, frames, 16, 24))
    assert mean.shape == logvar.shape == (1, 4, latents, 2, 3)
    assert vae.decode(mean, torch.zeros(1)).shape == (1, 3, frames, 16, 24)


def test_illegal_sizes_name_the_nearest_legal_ones():
    vae = tiny()
    with pytest.raises(ValueError, match="10 frames.*9 or 17"):
        vae.encode(torch.zeros(1, 3, 10, 16, 16))
    with pytest.raises(ValueError, match="height of 20.*16 or 24"):
        vae.encode(torch.zeros(1, 3, 9, 20, 16))
    with pytest.raises(ValueError, match="width of 3 .*8 or 16"):
        vae.encode(torch.zeros(1, 3, 9, 16, 3))
    with pytest.raises(ValueError, match="0 frames.*1 or 9"):
        vae.latent_shape(0, 16, 16)


def test_a_decoder_must_undo_the_encoders_strides():
    with pytest.raises(ValueError, match="must multiply to those of the encoder"):
        tiny(decoder_blocks=TINY.decoder_blocks[:-1])


@pytest.mark.parametrize("block, width, says", [
    (("down", (2, 2, 2), 12), 8, "8 channels cannot be downsampled by .2, 2, 2. to 12"),
    (("up", (2, 2, 2), 8), 12, "12 channels cannot be upsampled by .2, 2, 2. to 8"),
    (("up", (2, 2, 2), 3), 16, "16 channels cannot be upsampled by .2, 2, 2. to 3"),
    (("pool", (2, 2, 2), 8), 8, "'pool' is not a block of the VAE: use res, noisy, down, up")])
def test_blocks_that_cannot_be_built_are_named(block, width, says):
    with pytest.raises(ValueError, match=says):
        build_blocks((block,), width, causal=True, conditioned=False)


def test_injected_noise_is_one_map_for_all_frames_and_channels_at_each_ones_level():
    x, scale = torch.zeros(2, 3, 4, 5, 6), torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1)
    out = inject_noise(x, scale, torch.Generator().manual_seed(3))
    noise = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(out[1, 0, 2], noise) and torch.equal(out[0, 1, 3], -2 * noise) and not out[:, 2].any()
    assert inject_noise(x, None, None) is x


def test_one_log_variance_for_all_channels():
    logvar = tiny().encode(torch.rand(2, 3, 9, 16, 16))[1]
    assert torch.equal(logvar, logvar[:, :1].expand_as(logvar))
    assert logvar.std() > 0


@pytest.mark.parametrize("causal", [True, False])
def test_convolution_repeats_edge_frames_and_pads_zeros_in_space(causal):
    torch.manual_seed(0)
    layer, x = CausalConv3d(2, 3, causal=causal), torch.randn(1, 2, 4, 5, 5)
    slow = torch.zeros(1, 3, 4, 5, 5)
    for f in range(4):
        for y in range(5):
            for q in range(5):
                for dt in range(3):
                    source = min(max(f + dt - (2 if causal else 1), 0), 3)
                    for dy in range(3):
                        for dx in range(3):
                            if 0 <= y + dy - 1 < 5 and 0 <= q + dx - 1 < 5:
                                pixel = x[0, :, source, y + dy - 1, q + dx - 1]
                                slow[0, :, f, y, q] += layer.conv.weight[:, :, dt, dy, dx] @ pixel
    torch.testing.assert_close(layer(x), slow + layer.conv.bias[:, None, None, None], rtol=0, atol=1e-5)


def test_resampling_shortcuts_average_and_repeat_channels():
    x = torch.randn(1, 4, 3, 4, 4)
    down = Downsample(4, (2, 2, 2), 8)
    torch.nn.init.zeros_(down.conv.conv.weight)
    torch.nn.init.zeros_(down.conv.conv.bias)
    # 4 channels x 8 places in 8 means of 4: output 2c holds places t=0 of channel c, output 2c+1 places t=1.
    padded = torch.cat([x[:, :, :1], x], dim=2)
    for c in range(4):
        for t in range(2):
            torch.testing.assert_close(down(x)[0, 2 * c + t, 1, 1, 1], padded[0, c, 2 + t, 2:4, 2:4].mean())
    up = Upsample(16, (2, 2, 2), 8)
    torch.nn.init.zeros_(up.conv.conv.weight)
    torch.nn.init.zeros_(up.conv.conv.bias)
    y = torch.randn(1, 16, 2, 3, 3)
    out = up(y)                                         # 16 -> 2 channels, tiled 4 times; first frame dropped
    assert out.shape == (1, 8, 3, 6, 6)
    for channel in range(8):
        source = channel % 2 * 8 + 4 + 2 + 1                        # (c, t=1, y=1, x=1)
        assert out[0, channel, 2, 3, 5] == y[0, source, 1, 1, 2]


def test_the_decoder_depends_on_t():
    latent, vae = torch.randn(1, 4, 2, 2, 2), tiny()
    clean, noisy = (vae.decode(latent, torch.tensor([t])) for t in (0.0, 0.2))
    assert (clean - noisy).abs().max() > 1e-4


def test_normalize_and_denormalize_are_inverses():
    vae = tiny()
    vae.latent_mean.copy_(torch.randn(4))
    vae.latent_std.copy_(torch.rand(4) + 0.5)
    z = torch.randn(2, 4, 2, 2, 2)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)
    torch.testing.assert_close(vae.normalize(z)[0, 1], (z[0, 1] - vae.latent_mean[1]) / vae.latent_std[1])


def test_the_default_config_is_the_released_095_vae():
    with torch.device("meta"):
        vae = VideoVAE(VAEConfig())
    assert vae.config.stride == (8, 32, 32)
    assert sum(p.numel() for p in vae.encoder.parameters()) == 694_098_881
    assert sum(p.numel() for p in vae.decoder.parameters()) == 552_814_641
    assert 3 * 8 * 32 * 32 / vae.config.latent_channels == 192
