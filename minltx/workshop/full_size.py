"""One real forward pass of the full-width networks in float32: does it run, how long, in how much memory?

    python -m minltx.workshop.full_size --out docs/results/full_size.json

Weights are random (the released ones are not needed to know): the 2 B transformer on a small grid, then the
0.9.5 VAE on a clip of one frame. Some 8 GB of memory are needed, one network at a time.
"""

import argparse
import json
import resource
import sys
import time

import torch

from minltx.dit import DiT, DiTConfig
from minltx.vae import VAEConfig, VideoVAE
from minltx.workshop import pictures


def timed(work):
    """-> what work() returns, seconds."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def peak_gib():
    """The most memory that this process has held so far, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2 ** (30 if sys.platform == "darwin" else 20)


def run_dit(grid):
    """Build the transformer and run it once -> figures."""
    dit = DiT(DiTConfig()).eval()
    torch.nn.init.normal_(dit.proj_out.weight, std=0.02)                # as made, it predicts zero
    latent, text = torch.randn(1, 128, *grid), torch.randn(1, 16, 4096)
    v, seconds = timed(lambda: dit(latent, torch.tensor([0.5]), text))
    return {"parameters": sum(p.numel() for p in dit.parameters()), "seconds": seconds,
            "finite": bool(v.isfinite().all()), "std": v.std().item(), "peak_gib": peak_gib()}


def run_vae(pixels):
    """Build the VAE, encode a picture and decode it -> figures."""
    vae = VideoVAE(VAEConfig()).eval()
    (mean, _), encode = timed(lambda: vae.encode(torch.rand(1, 3, 1, pixels, pixels) * 2 - 1))
    video, decode = timed(lambda: vae.decode(mean, torch.tensor([0.05])))
    return {"parameters": sum(p.numel() for p in vae.parameters()), "encode_seconds": encode,
            "decode_seconds": decode, "finite": bool(video.isfinite().all()), "std": video.std().item(),
            "latent": list(mean.shape), "video": list(video.shape)}


@torch.no_grad()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="full_size.json", help="(default: %(default)s)")
    parser.add_argument("--grid", type=int, nargs=3, default=(2, 4, 4), help="latent frames, rows, columns")
    parser.add_argument("--pixels", type=int, default=256, help="side of the picture (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "grid": list(args.grid),
              "pixels": args.pixels, "dit": run_dit(args.grid), "vae": run_vae(args.pixels)}
    pictures.put_in_place(args.out, lambda part: part.write_text(json.dumps(report, indent=1) + "\n"))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
