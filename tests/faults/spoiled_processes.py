"""The training of tests/several_processes.py, in which the batch number `--at` of process 1 holds a NaN.

    torchrun --nproc-per-node 2 tests/faults/spoiled_processes.py OUT --stage dit --at 5 --parallel fsdp
"""

import argparse
import os
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import several_processes    # noqa: E402

from minltx.training import loops    # noqa: E402

BATCH = {"vae": "short_clips", "dit": "batch_of_latents"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=BATCH)
    parser.add_argument("--at", type=int)
    args, options = parser.parse_known_args()
    name = BATCH[args.stage]
    at = args.at if os.environ["RANK"] == "1" else 10**9
    with mock.patch.object(loops, name, several_processes.spoiled_at(at, getattr(loops, name))):
        several_processes.train(args.out, options)
