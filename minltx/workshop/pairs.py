"""What each change for speed is worth here: the slow and the fast way, in turn, again and again.

A machine that others share is now fast and now slow, so seconds say little; but two ways that are timed one
straight after the other meet the same machine, and the median of the ratios is steady.

    python -m minltx.workshop.pairs            # for this machine's CPU; docs/speed.md has ours
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from minltx import sampler, vae
from minltx.dit import DiT, DiTConfig
from minltx.layers import FeedForward, rms_norm
from minltx.rope import as_pairs, latent_coordinates, rope_tables, rotate, turn_
from minltx.sampler import Guidance, sample_latent
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop.checkpoint import SHIPPED, load_checkpoint

# The released 0.9.5 autoencoder at a quarter of its widths, and a transformer for 1,536 tokens.
QUARTER = VAEConfig(32, 4, 32, (("res", 4), ("down", (1, 2, 2), 64), ("res", 6), ("down", (2, 1, 1), 128),
                                ("res", 6), ("down", (2, 2, 2), 256), ("res", 2), ("down", (2, 2, 2), 512),
                                ("res", 2)),
                    256, (("res", 5), ("up", (2, 2, 2), 128), ("res", 5), ("up", (2, 2, 2), 64), ("res", 5),
                          ("up", (2, 2, 2), 32), ("res", 5)))
MIDDLE = DiTConfig(128, 512, 8, 8, 512)


def milliseconds(function):
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def pair(name, before, after, rounds):
    """Print name, the median milliseconds of both functions and the median ratio after / before."""
    before(), after()                                                           # warm up
    times = []
    for i in range(rounds):                                         # who is first changes: so no one gains
        times.append([milliseconds(f) for f in (before, after)[:: -1 if i % 2 else 1]][:: -1 if i % 2 else 1])
    a, b = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(y / x for x, y in times)
    print(f"| {name} | {a:.3g} | {b:.3g} | {ratio:.2f} |", flush=True)


def with_setting(owner, name, value, function):
    """function, called while owner.name is value."""
    def run():
        kept = getattr(owner, name)
        setattr(owner, name, value)
        function()
        setattr(owner, name, kept)
    return run


def lone_clips(name, model, video, rounds):
    latent, t = model.encode(video)[0], torch.zeros(1)
    functions = {"encode": lambda: model.encode(video), "decode": lambda: model.decode(latent, t)}
    for what, function in functions.items():
        pair(f"lone clip, {name}: {what}", with_setting(vae, "FAST_ON_CPU", False, function),
             with_setting(vae, "FAST_ON_CPU", True, function), rounds)


def guidance_at_once(name, dit, grid, rounds):
    width = dit.config.text_width
    noise, mask = torch.randn(1, dit.config.latent_channels, *grid), torch.ones(1, 8)
    known, null = ((torch.randn(1, 8, width), mask) for _ in range(2))
    run = lambda: sample_latent(dit, noise, torch.linspace(1, 0, 3), known, null, Guidance(3.0))
    pair(f"guidance at once, {name}, {noise[0, 0].numel()} tokens",
         with_setting(sampler, "FEW_TOKENS", 0, run), with_setting(sampler, "FEW_TOKENS", 10**9, run), rounds)


def small_parts(rounds):
    where = latent_coordinates((6, 16, 16), (8, 32, 32), 24.0, True)
    cos, sin = rope_tables(where, 512, MIDDLE.max_position)
    x, pairs, ff = torch.randn(1, 1536, 512), as_pairs(cos, sin), FeedForward(512)
    pair("rotation", lambda: rotate(x, cos, sin), lambda: turn_(x, pairs), rounds)
    mean_square = lambda: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    pair("norm by vector_norm", mean_square, lambda: rms_norm(x), rounds)
    shift, scale = torch.randn(2, 1, 1, 512)
    pair("modulation", lambda: x * (1 + scale) + shift, lambda: torch.addcmul(shift, x, 1 + scale), rounds)
    pair("gate", lambda: x + scale * x, lambda: torch.addcmul(x, scale, x), rounds)
    copied = lambda: ff.linear_2(F.gelu(ff.linear_1(x), approximate="tanh"))
    pair("feed-forward, GELU in place", copied, lambda: ff(x), rounds)


def once_per_sampling(rounds):
    dit, where = DiT(MIDDLE), latent_coordinates((6, 16, 16), MIDDLE.stride, 24.0, True)
    tokens, t, text = torch.randn(1, 1536, 128), torch.full((1, 1), 0.5), torch.randn(1, 256, 512)
    prepared = dit.prepare(where, text)
    pair("prepared once: a step", lambda: dit.forward_tokens(tokens, t, where, text),
         lambda: dit.step(tokens, t, prepared), rounds)
    pair("prepare alone, against a step", lambda: dit.step(tokens, t, prepared),
         lambda: dit.prepare(where, text), rounds)


@torch.no_grad()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="times that each pair is timed (default: 15)")
    rounds = parser.parse_args(argv).rounds
    torch.manual_seed(0)
    toy = load_checkpoint(SHIPPED)[0]
    print("| what | before, ms | after, ms | ratio |\n|---|---|---|---|")
    small_parts(10 * rounds)
    once_per_sampling(rounds)
    for grid in ((5, 4, 4), (5, 8, 8), (5, 16, 16)):
        guidance_at_once("the toy", toy.dit, grid, rounds)
    guidance_at_once("width 512", DiT(MIDDLE), (6, 16, 16), max(rounds // 5, 2))
    lone_clips("the toy", toy.vae, torch.rand(1, 3, 17, 32, 32), 3 * rounds)
    lone_clips("0.9.5 at quarter widths", VideoVAE(QUARTER), torch.rand(1, 3, 17, 128, 192),
               max(rounds // 3, 3))


if __name__ == "__main__":
    main()
