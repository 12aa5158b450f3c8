"""The VAEs of 0.9.0 and 0.9.1: the older blocks obey the same laws, and the plain decoder does not use t."""

import pytest
import torch
import torch.nn.functional as F

from minltx.pretrained.early import PlainDecoder, PlainVAEConfig, build_vae
from minltx.vae import CausalConv3d, Decoder, VAEConfig, build_blocks

# As 0.9.1 is built: strided convolutions, blocks that change the width, noise injection.
BLOCKS = dict(latent_channels=4, encoder_width=8, decoder_width=16,
              encoder_blocks=(("res", 1), ("stride", (2, 2, 2), 8), ("width", 16), ("stride", (2, 1, 1), 16),
                              ("stride", (2, 1, 1), 24)),
              decoder_blocks=(("noisy", 1), ("width", 24), ("plain_up", (2, 1, 1), 8), ("noisy", 1),
                              ("up", (2, 2, 2), 8), ("plain_up", (2, 1, 1), 8)))
EARLY, PLAIN = VAEConfig(**BLOCKS), PlainVAEConfig(**BLOCKS)


def tiny(config):
    torch.manual_seed(0)
    return build_vae(config)


@torch.no_grad()
def test_a_latent_frame_sees_no_later_pixels():
    vae, video = tiny(EARLY), torch.rand(1, 3, 17, 16, 16) * 2 - 1
    before = vae.encode(video)[0]
    for first_changed, latent_frame in ((1, 1), (9, 2)):
        changed = video.clone()
        changed[:, :, first_changed:] = torch.rand(1, 3, 17 - first_changed, 16, 16)
        after = vae.encode(changed)[0]
        assert torch.equal(after[:, :, :latent_frame], before[:, :, :latent_frame])
        assert (after[:, :, latent_frame] - before[:, :, latent_frame]).abs().max() > 1e-4


@torch.no_grad()
def test_the_first_latent_frame_is_that_of_the_picture_alone():
    vae, video = tiny(EARLY), torch.rand(2, 3, 9, 16, 16) * 2 - 1
    for whole, alone in zip(vae.encode(video), vae.encode(video[:, :, :1])):
        torch.testing.assert_close(whole[:, :, :1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [EARLY, PLAIN])
@pytest.mark.parametrize("frames, latents", [(1, 1), (9, 2), (17, 3), (25, 4)])
@torch.no_grad()
def test_frames_are_8k_plus_1(frames, latents, config):
    vae = tiny(config)
    assert vae.config.stride == (8, 8, 8)
    mean, logvar = vae.encode(torch.zeros(1, 3, frames, 16, 24))
    assert mean.shape == logvar.shape == (1, 4, latents, 2, 3)
    assert vae.decode(mean, torch.zeros(1)).shape == (1, 3, frames, 16, 24)


@torch.no_grad()
def test_a_plain_decoder_does_not_use_t():
    latent = torch.randn(1, 4, 2, 2, 2)

    def decode(vae, t):
        return vae.decode(latent, torch.tensor([t]), torch.Generator().manual_seed(0))

    plain, conditioned = tiny(PLAIN), tiny(EARLY)
    assert type(plain.decoder) is PlainDecoder and type(conditioned.decoder) is Decoder
    assert not [name for name in plain.state_dict() if "time" in name or "scale_shift" in name]
    assert torch.equal(decode(plain, 0.0), decode(plain, 0.2))
    assert (decode(conditioned, 0.0) - decode(conditioned, 0.2)).abs().max() > 1e-4
    assert PLAIN != EARLY                                     # two models, although the blocks are the same


@torch.no_grad()
def test_a_plain_decoder_injects_noise_from_the_generator():
    vae, latent = tiny(PLAIN), torch.randn(1, 4, 2, 2, 2)
    for name, p in vae.named_parameters():
        if "per_channel" in name:
            p.fill_(0.5)
    a, b, c = (vae.decode(latent, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and (a - c).abs().max() > 1e-3


@torch.no_grad()
def test_a_block_that_changes_the_width_is_the_formula():
    """SPEC 1.5: the shortcut is a learned norm over the channels, then a 1x1x1 convolution."""
    torch.manual_seed(0)
    blocks, width = build_blocks((("width", 6),), 4, causal=True, conditioned=True)
    block, x = blocks[0], torch.randn(2, 4, 3, 5, 5)
    torch.nn.init.normal_(block.norm3.weight)
    torch.nn.init.normal_(block.norm3.bias)
    norm = lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    h = block.conv2(F.silu(norm(block.conv1(F.silu(norm(x))))))
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    y = y * block.norm3.weight.reshape(1, 4, 1, 1, 1) + block.norm3.bias.reshape(1, 4, 1, 1, 1)
    y = torch.einsum("oi,bifhw->bofhw", block.conv_shortcut.weight.flatten(1), y)
    y = y + block.conv_shortcut.bias.reshape(1, 6, 1, 1, 1)
    assert width == 6
    torch.testing.assert_close(block(x), y + h, rtol=0, atol=1e-5)
    same = build_blocks((("width", 4),), 4, causal=True, conditioned=False)[0][0]
    torch.testing.assert_close(same(x), x + same.conv2(F.silu(norm(same.conv1(F.silu(norm(x)))))))
    assert not [name for name in same.state_dict() if "norm3" in name or "shortcut" in name]


@torch.no_grad()
def test_resampling_without_a_shortcut():
    """A strided causal convolution, and depth-to-space that drops the first frame (SPEC 1.6, 1.7)."""
    torch.manual_seed(0)
    down, up = (build_blocks((block,), 8, causal, False)[0][0]
                for block, causal in ((("stride", (2, 2, 1), 6), True), (("plain_up", (2, 1, 2), 3), False)))
    x = torch.randn(1, 8, 5, 4, 4)
    assert type(down) is CausalConv3d                       # so that fast_cpu swaps it like the others
    padded = F.pad(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2), (1, 1, 1, 1))
    slow = F.conv3d(padded, down.conv.weight, down.conv.bias)[:, :, ::2, ::2]
    torch.testing.assert_close(down(x), slow, rtol=0, atol=1e-5)
    h, out = up.conv(x), up(x)                                      # (1, 12, 5, 4, 4), channels (c, t, x)
    assert out.shape == (1, 3, 9, 4, 8)
    for c, frame, row, column in ((0, 0, 0, 0), (1, 3, 2, 5), (2, 8, 3, 7)):
        t, q = (frame + 1) % 2, column % 2
        assert out[0, c, frame, row, column] == h[0, c * 4 + t * 2 + q, (frame + 1) // 2, row, column // 2]
