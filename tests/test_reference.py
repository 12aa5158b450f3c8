"""The networks against a second, slow implementation of SPEC's formulas: every row of every table."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from test_dit import TINY as TINY_DIT
from test_vae import tiny

from minltx.dit import DiT
from minltx.rope import latent_coordinates, rope_tables
from minltx.toy.captions import CaptionEncoder, tokenize
from minltx.toy.data import MovingDigit, caption


def randomise(network, std=0.2):
    torch.manual_seed(3)
    for p in network.parameters():
        if p.ndim > 0:                                              # the time multiplier stays 1000
            torch.nn.init.normal_(p, std=std)
    return network, dict(network.named_parameters())


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def sinusoid(t):
    angles = t * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()])


def embed_time(p, name, t):
    return linear(p, f"{name}.linear_2", F.silu(linear(p, f"{name}.linear_1", sinusoid(t))))


def rms(x, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def attention(p, name, x, context, heads, tables=None):
    """One sample: x (N, D), context (M, D)."""
    q = rms(linear(p, f"{name}.to_q", x), 1e-5) * p[f"{name}.q_norm.weight"]
    k = rms(linear(p, f"{name}.to_k", context), 1e-5) * p[f"{name}.k_norm.weight"]
    v = linear(p, f"{name}.to_v", context)
    if tables is not None:
        cos, sin = tables
        turn = lambda a: torch.stack([-a[:, 1::2], a[:, ::2]], dim=2).flatten(1)
        q, k = q * cos + turn(q) * sin, k * cos + turn(k) * sin
    d = q.shape[1] // heads
    parts = []
    for qh, kh, vh in zip(q.split(d, 1), k.split(d, 1), v.split(d, 1)):
        parts.append((qh @ kh.T / d**0.5).softmax(-1) @ vh)
    return linear(p, f"{name}.to_out", torch.cat(parts, dim=1))


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_the_transformer_step_by_step():
    """SPEC 3.2 for one sample, with one time per token and a padded caption."""
    dit, p = randomise(DiT(replace(TINY_DIT, width=52, heads=2)))    # 52 mod 6 = 4 channels never rotate
    grid, D = (2, 2, 3), 52
    latent, t, text = torch.randn(1, 4, *grid), torch.rand(1, *grid), torch.randn(1, 5, 32)
    mask = torch.tensor([[1.0, 1, 1, 0, 0]])

    h = linear(p, "patchify_proj", latent[0].reshape(4, 12).T)
    e = torch.stack([embed_time(p, "time_embedder", 1000 * x) for x in t.flatten()])                # (N, D)
    m = linear(p, "time_modulation", F.silu(e)).reshape(12, 6, D)
    c = linear(p, "caption_projection.2", gelu(linear(p, "caption_projection.0", text[0, :3])))  # kept words
    tables = rope_tables(latent_coordinates(grid, (8, 8, 8), 12.5, True), D, (2.0, 64.0, 64.0), 100.0)
    for i in range(2):
        b = f"blocks.{i}"
        s = p[f"{b}.scale_shift_table"] + m
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (s[:, j] for j in range(6))
        a = rms(h, 1e-6) * (1 + scale_a) + shift_a
        h = h + gate_a * attention(p, f"{b}.attn1", a, a, 2, tables)
        h = h + attention(p, f"{b}.attn2", h, c, 2)
        a = rms(h, 1e-6) * (1 + scale_f) + shift_f
        h = h + gate_f * linear(p, f"{b}.ff.linear_2", gelu(linear(p, f"{b}.ff.linear_1", a)))
    s = p["scale_shift_table"] + e[:, None]
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    slow = linear(p, "proj_out", h * (1 + s[:, 1]) + s[:, 0]).T.reshape(1, 4, *grid)
    torch.testing.assert_close(dit(latent, t, text, mask, fps=12.5), slow, rtol=1e-4, atol=1e-4)


def convolve(p, name, x):
    """Not causal: one copy of each edge frame, zeros in space."""
    x = F.pad(torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2), (1, 1, 1, 1))
    return F.conv3d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"])


def voxels(row):
    return row[None, :, None, None, None]


def test_the_decoder_step_by_step():
    """SPEC 1.5, 1.6 and 2.1: the order shift, scale; a timestep embedder per group; t times 1000."""
    vae = tiny(decoder_blocks=(("res", 2), ("up", (2, 2, 2), 8), ("up", (2, 1, 1), 8), ("up", (2, 1, 1), 8)))
    decoder, p = randomise(vae.decoder)
    latent, t = torch.randn(1, 4, 2, 2, 2), 0.13
    norm = lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    x = convolve(p, "conv_in", latent)
    time = embed_time(p, "up_blocks.0.time_embedder", 1000 * t).reshape(4, 16)
    for j in range(2):
        b = f"up_blocks.0.res_blocks.{j}"
        s = p[f"{b}.scale_shift_table"] + time
        h = convolve(p, f"{b}.conv1", F.silu(norm(x) * (1 + voxels(s[1])) + voxels(s[0])))
        x = x + convolve(p, f"{b}.conv2", F.silu(norm(h) * (1 + voxels(s[3])) + voxels(s[2])))
    for block in decoder.up_blocks[1:]:
        x = block(x)                                          # test_vae.py compares these with their formula
    s = p["last_scale_shift_table"] + embed_time(p, "last_time_embedder", 1000 * t).reshape(2, 8)
    x = convolve(p, "conv_out", F.silu(norm(x) * (1 + voxels(s[1])) + voxels(s[0])))[0]
    slow = torch.zeros(1, 3, 9, 16, 16)
    for c in range(3):
        for row in range(4):
            for column in range(4):
                slow[0, c, :, row::4, column::4] = x[c * 16 + column * 4 + row]
    torch.testing.assert_close(vae.decode(latent, torch.tensor([t])), slow, rtol=1e-4, atol=1e-4)


def test_padding_a_caption_changes_nothing():
    torch.manual_seed(0)
    encoder = CaptionEncoder(32)
    short = caption([MovingDigit(7, "red", "left")])
    long = caption([MovingDigit(7, "red", "left"), MovingDigit(3, "blue", "up")])
    alone, together = encoder(*tokenize([short])), encoder(*tokenize([short, long]))
    torch.testing.assert_close(together[0, :5], alone[0], rtol=0, atol=1e-5)
