"""Draw docs/architecture.png: from a caption and noise to a video, with shapes of the toy and the 2 B model.

    python -m tools.architecture

Shapes and parameter counts come from the configs; the small pictures are what the shipped toy samples.
"""

import math

import numpy as np
import torch
from PIL import Image

from minltx.command import Parser
from minltx.course.diagrams import BLUE, GREY, INK, ORANGE, Page
from minltx.dit import DiT, DiTConfig
from minltx.pretrained import RELEASES
from minltx.sampler import Sampling, sample_latent, seeded_noise
from minltx.toy import load_toy
from minltx.toy.model import STEPS
from minltx.vae import VAEConfig, VideoVAE
from tools.count import ROOT

CAPTION, SEED = "a red 7 moving left", 3
FULL_CLIP = (121, 512, 768)          # of the 2 B model: frames, height, width
TOY, FULL = BLUE, ORANGE


def shapes(vae, dit, clip, words, steps):
    """What the picture says about one model, by name."""
    def cross(*numbers):
        return "×".join(f"{n:,}" for n in numbers)

    def count(module):
        n = sum(p.numel() for p in module.parameters())
        return f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.0f} M" if n >= 1e7 else f"{n / 1e6:.1f} M"

    latent, c = vae.latent_shape(*clip), dit.config
    return {"clip": f"{clip[0]} frames of {cross(*clip[1:])}", "text": cross(words, c.text_width),
            "video": cross(3, *clip), "picture": cross(3, 1, *clip[1:]), "latent": cross(*latent),
            "given": cross(latent[0], 1, *latent[2:]), "tokens": cross(math.prod(latent[1:]), latent[0]),
            "encoder": count(vae.encoder), "decoder": count(vae.decoder), "steps": f"{steps} steps",
            "dit": f"{c.depth} blocks, width {c.width:,}, {count(dit)}"}


def sampled(toy):
    """The toy's noise, latent and video for CAPTION, each (frames, height, width, 3) in [0, 1]."""
    noise = seeded_noise(toy.vae.latent_shape(*toy.config.data.clip_shape), [SEED])
    text, null = toy.embed([CAPTION]), toy.embed(toy.negative([CAPTION]))
    latent = sample_latent(toy.dit, noise, text, null, toy.sampling())
    parts = (noise, 5), (latent, 5), (toy.generate([CAPTION], [SEED])[:, :, ::8], 2)
    return [(x[0, :3].movedim(0, -1) / scale + 0.5).clamp(0, 1).numpy() for x, scale in parts]


def draw_inputs(d, both, noise, picture):
    """The left third: a caption, perhaps a picture, noise."""
    d.box(1, 49, 17, 8, "caption", (f"“{CAPTION}”", INK), face="white")
    d.box(22, 48, 17, 10, "text encoder", ("trained with the DiT", TOY), ("T5-XXL, frozen", FULL))
    d.arrow((18, 53), (22, 53))
    d.arrow((39, 53), (50, 53), (50, 37), (55, 37))
    d.lines(43.8, 54.5, both("text")[0])
    d.lines(43.8, 51.3, both("text")[1])
    d.frames(5, 31, 9, picture)
    d.lines(9.5, 29, ("a picture (optional)", INK), *both("picture"))
    d.box(22, 30, 17, 11, "VAE encoder", ("vae.py, patchify.py", GREY), *both("encoder"))
    d.arrow((14, 35.5), (22, 35.5))
    d.arrow((39, 35.5), (45, 35.5), (45, 14), (55, 14))
    d.lines(35.5, 27.5, ("its latent, with t = 0,", INK), ("is the first tokens", INK), *both("given"))
    d.frames(4, 9, 8, noise)
    d.lines(9, 7, ("noise: t = 1", INK), *both("latent"))
    d.arrow((17, 11), (55, 11))


def draw_loop(d, both):
    """The middle: the sampler's loop of tokens, transformer and Euler step."""
    d.box(55, 7, 21, 11, "tokens z", ("each with its own t", INK), *both("tokens"))
    d.box(52, 22, 27, 39, "")
    d.lines(65.5, 58.5, ("DiT", INK), size=12.5, weight="bold")
    d.lines(65.5, 56, ("dit.py, layers.py, rope.py", GREY), *both("dit"))
    for start, y, *words in ((18, 25, "self-attention", "RoPE, modulated by t"),
                             (31, 34, "cross-attention", "to the text"),
                             (40, 43, "feed-forward", "modulated by t")):
        d.box(55, y, 21, 6, words[0], (words[1], GREY), face="white")
        d.arrow((65.5, start), (65.5, y))
    d.arrow((79, 46), (90, 46), (90, 18))
    d.lines(84.5, 47.5, ("velocity v", INK))
    d.lines(90, 56, ("training compares v", GREY), ("with noise − latent:", GREY), ("objectives.py", GREY))
    d.box(82, 7, 16, 11, "Euler step", ("sampler.py, flow.py", GREY), ("z + (t′ − t) v", INK))
    d.arrow((76, 12.5), (82, 12.5))
    d.arrow((90, 7), (90, 3.5), (65.5, 3.5), (65.5, 7))
    for x, line in zip((71, 79.5, 87), [("until t = 0:", INK), *both("steps")]):
        d.lines(x, 1.7, line)


def draw_outputs(d, both, latent, video):
    """The right: latent, decoder, video."""
    d.arrow((98, 12.5), (104, 12.5))
    d.frames(104, 9, 8, latent)
    d.lines(109.5, 7, ("latent: t = 0", INK), *both("latent"))
    d.arrow((109.5, 21), (109.5, 29))
    how = Sampling
    d.lines(100.3, 26.7, (f"+ noise {how.decode_noise},", INK), ("un-normalised;", INK),
            (f"decoder’s t = {how.decode_t}", INK))
    d.box(101, 29, 17, 11, "VAE decoder", ("vae.py, patchify.py", GREY), *both("decoder"))
    d.arrow((109.5, 40), (109.5, 45))
    d.lines(109.5, 49, *both("video"))
    d.frames(101, 51, 5.4, video, 5.8, 0)


def draw():
    """The whole picture -> Page."""
    model, d, release = load_toy(), Page(120, 66, dpi=150), RELEASES["0.9.5"].sampling
    with torch.device("meta"):
        full = shapes(VideoVAE(VAEConfig()), DiT(DiTConfig()), FULL_CLIP, release.text_tokens, release.steps)
    toy = shapes(model.vae, model.dit, model.config.data.clip_shape, len(CAPTION.split()), STEPS)

    def both(name):
        return (toy[name], TOY), (full[name], FULL)

    d.lines(18, 63.8, ("channels×frames×height×width of a clip:", GREY))
    d.lines(55, 63.8, (f"the toy, {toy['clip']}", TOY))
    d.lines(93, 63.8, (f"the 2 B model, {full['clip']}", FULL))
    noise, latent, video = sampled(model)
    draw_inputs(d, both, noise, video[:1])
    draw_loop(d, both)
    draw_outputs(d, both, latent, video)
    d.figure.canvas.draw()
    return d


def main():
    Parser(prog="python -m tools.architecture", description=__doc__).parse_args()
    page = Image.fromarray(np.asarray(draw().figure.canvas.buffer_rgba())).convert("RGB")
    page.quantize(128).save(ROOT / "docs" / "architecture.png", optimize=True)


if __name__ == "__main__":
    main()
