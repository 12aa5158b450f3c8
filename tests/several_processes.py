"""What test_parallel.py runs in one process and, under torchrun, in several.

    torchrun --nproc-per-node 2 tests/several_processes.py gradients OUT --parallel fsdp
    torchrun --nproc-per-node 2 tests/several_processes.py memory OUT --parallel ddp
    torchrun --nproc-per-node 2 tests/several_processes.py train OUT --stop-after 5 --resume
"""

import argparse
import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import train_tiny    # noqa: E402
from minltx.data import DataConfig, MovingDigits, caption, draw_digits    # noqa: E402
from minltx.dit import DiTConfig    # noqa: E402
from minltx.losses import LossConfig    # noqa: E402
from minltx.vae import VAEConfig    # noqa: E402
from minltx.workshop import parallel    # noqa: E402
from minltx.workshop.checkpoint import ModelConfig, ToyModel    # noqa: E402

# Widths that two and three processes cut unevenly.
SMALL = train_tiny.Settings(ModelConfig(
    data=DataConfig(frames=9, speed=(10.0, 20.0)),
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("down", (2, 2, 2), 16), ("res", 1)),
                  decoder_blocks=(("res", 1), ("up", (2, 2, 2), 8), ("up", (2, 2, 2), 8))),
    dit=DiTConfig(latent_channels=4, width=30, depth=2, heads=3, text_width=20, stride=(4, 8, 8))),
    vae_phases=((1, 4, 2), (9, 2, 2)), bank=16, dit_steps=8, dit_batch=2, micro_batches=6, token_drop=0.2)


def gradients(out, world):
    """Losses and gradients of one step of both stages in float64, whole, from rank 0 into a file."""
    torch.manual_seed(0)
    found = {}
    for stage in ("vae", "dit"):
        settings = replace(SMALL, loss=LossConfig(adversarial=0.1))
        model = ToyModel(settings.model).double()
        for p in model.parameters():
            if p.ndim:
                torch.nn.init.normal_(p, std=0.2)
        data = MovingDigits(*draw_digits(50, 0), settings.model.data)
        video, scenes = data.batch(4, torch.Generator().manual_seed(0))
        run = train_tiny.Run(out / stage, model, settings, 0, "drawn", world.device, False, world=world)
        if stage == "vae":
            _, rival = train_tiny.rivals(settings, data, 0, "cpu")
            rival.double()
            run.start(["vae"], lambda model, *args: train_tiny.vae_step(model.vae, *args, None, rival),
                      0.0, 0.0, rival=rival, rival_lr=0.0)
        else:
            run.start(["dit", "text"], train_tiny.dit_step, 0.0, 0.0)
        bank = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for number in run.micro_batches(0):
            generator = train_tiny.rng(0, 2, number)
            if stage == "vae":
                clip, _ = data.batch(2, generator)
                loss, terms = run.loss(clip.double(), settings, 1.0, generator)
                run.backward(loss, {**terms, "loss": loss}, terms["discriminator"])
            else:
                latents, some, condition = train_tiny.batch_of_latents(model, data, bank, scenes, "start",
                                                                       settings, generator)
                loss, _, _ = run.loss(latents, [caption(s) for s in some], condition, settings, generator)
                run.backward(loss, {"loss": loss})
        names = {id(p): name for name, p in run.work.named_parameters()}
        found[stage] = {names[id(p)]: parallel.full(p.grad).clone() for p in run.trained}
        held = sum(p.grad.to_local().numel() if hasattr(p.grad, "to_local") else p.grad.numel()
                   for p in run.trained)
        found[f"{stage} share"] = held / sum(g.numel() for g in found[stage].values())
        if stage == "vae":
            world.average_gradients(rival)
            found["rival"] = {name: p.grad.clone() for name, p in rival.named_parameters()}
            run.rival = None
        found[f"{stage} terms"] = run.update(0.0)
    if world.rank == 0:
        torch.save(found, out / "found.pt")
    return found


def memory(out, world):
    """Bytes of bf16 weights that autograd keeps, of gradients before a step's last batch and after it, and
    whether these lie in buckets: of the transformer in bf16, on rank 0, into a file."""
    model = ToyModel(SMALL.model)
    settings = replace(SMALL, precision="bf16", micro_batches=2 * world.size)
    run = train_tiny.Run(out / "dit", model, settings, 0, "drawn", world.device, False, world=world)
    run.start(["dit"], lambda model, *inputs: model.dit(*inputs).square().mean(), 0.0, 0.0)
    inputs = torch.randn(1, 4, 2, 4, 4), torch.rand(1), torch.randn(1, 7, 20)
    shapes, saved, gradients = {p.shape for p in model.dit.parameters() if p.ndim == 2}, {}, []

    def keep(x):
        if x.dtype == torch.bfloat16 and (x.shape in shapes or x.T.shape in shapes):
            saved[x.untyped_storage().data_ptr()] = x.clone()
        return x

    for _ in run.micro_batches(0):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = run.loss(*inputs)
        run.backward(loss, {})
        # FSDP2's parameters are two: a rank's part, and the whole one that a forward pass reads.
        leaves = run.trained + [x for x in gc.get_objects() if type(x) is torch.nn.Parameter]
        found = [p.grad for p in leaves if p.grad is not None]
        found = [x.to_local() if hasattr(x, "to_local") else x for x in found]
        gradients.append({x.data_ptr(): x for x in found if x.nbytes})
    whole = sum(p.nbytes for p in model.dit.parameters())
    before, after = (sum(x.nbytes for x in some.values()) / whole for some in gradients)
    storages = {x.untyped_storage().data_ptr() for x in gradients[-1].values()}
    if world.rank == 0:
        torch.save({"copies": sum(x.nbytes for x in saved.values()), "before": before, "after": after,
                    "storages": len(storages), "tensors": len(gradients[-1])}, out / "found.pt")


def train(out, options, stop_after=None):
    """train_tiny.main on the small settings, saved every second step; stop after so many steps in all."""
    init, original, steps = train_tiny.Run.__init__, train_tiny.Run.update, []
    toy, judge = train_tiny.PRESETS["toy"], train_tiny.metrics.train_classifier

    def update(self, rate):
        if len(steps) == stop_after:
            raise KeyboardInterrupt
        steps.append(rate)
        return original(self, rate)

    train_tiny.Run.__init__ = lambda self, *args, **more: init(self, *args, **{**more, "save_every": 2})
    train_tiny.Run.update = update
    train_tiny.PRESETS["toy"] = SMALL
    train_tiny.metrics.train_classifier = lambda data, seed: train_tiny.metrics.DigitClassifier().eval()
    try:
        return train_tiny.main(["--out", str(out), "--prompts", "2", *options])
    finally:
        train_tiny.Run.__init__, train_tiny.Run.update = init, original
        train_tiny.PRESETS["toy"], train_tiny.metrics.train_classifier = toy, judge


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["gradients", "memory", "train"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--parallel")
    parser.add_argument("--stop-after", type=int)
    args, options = parser.parse_known_args()
    if args.task == "train":
        train(args.out, options + (["--parallel", args.parallel] if args.parallel else []), args.stop_after)
    else:
        task = {"gradients": gradients, "memory": memory}[args.task]
        task(args.out, parallel.join(args.parallel, torch.device("cpu")))
        parallel.leave()
