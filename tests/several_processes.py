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
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from minltx.dit import DiTConfig    # noqa: E402
from minltx.evaluation import report    # noqa: E402
from minltx.evaluation.digits import DigitClassifier    # noqa: E402
from minltx.losses import LossConfig    # noqa: E402
from minltx.objectives import flow_objective, vae_objective    # noqa: E402
from minltx.toy.data import DIT_STAGE, DataConfig, MovingDigits, draw_digits, rng    # noqa: E402
from minltx.toy.model import ModelConfig, ToyModel    # noqa: E402
from minltx.training import __main__ as training    # noqa: E402
from minltx.training import parallel    # noqa: E402
from minltx.training.endings import end    # noqa: E402
from minltx.training.latents import LatentCache, batch_of_latents    # noqa: E402
from minltx.training.loops import autocast, build_critics, prepare    # noqa: E402
from minltx.training.run import Run    # noqa: E402
from minltx.training.settings import PRESETS, Settings    # noqa: E402
from minltx.vae import VAEConfig    # noqa: E402

# Widths that two and three processes cut unevenly.
SMALL = Settings(model=ModelConfig(
    data=DataConfig(frames=9, speed=(10.0, 20.0)),
    vae=VAEConfig(latent_channels=4, patch=2, encoder_width=8, decoder_width=16,
                  encoder_blocks=(("down", (2, 2, 2), 16), ("down", (2, 2, 2), 16), ("res", 1)),
                  decoder_blocks=(("res", 1), ("up", (2, 2, 2), 8), ("up", (2, 2, 2), 8))),
    dit=DiTConfig(latent_channels=4, width=30, depth=2, heads=3, text_width=20, stride=(4, 8, 8))),
    vae_phases=((1, 4, 2), (9, 2, 2)), latents=16, dit_steps=8, dit_batch=2, micro_batches=6, token_drop=0.2)


def randomised(settings):
    """A model in float64 in which every gradient is large enough to compare."""
    torch.manual_seed(0)
    model = ToyModel(settings.model).double()
    for p in model.parameters():
        if p.ndim:
            torch.nn.init.normal_(p, std=0.2)
    return model


def small_cache(dtype=torch.float64):
    """Random latents of four clips."""
    data = MovingDigits(*draw_digits(50, 0), SMALL.model.data)
    latents = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return LatentCache(data, latents.to(dtype), data.choose(4, torch.Generator().manual_seed(0)))


def vae_gradients(settings, world):
    """One step of the first stage without its optimisers -> its Stage and the mean terms."""
    model, cache, rows = randomised(settings), small_cache(), []
    critics = build_critics(settings, cache.data, 0, "cpu")
    critics.discriminator.double()
    stage = prepare(Run("nowhere", model, settings, 0, "drawn", world), model, ["vae"],
                    lambda model, *args: vae_objective(model.vae, *args), 0.0, 0.0)
    for number in world.batches(0, settings.micro_batches, stage):
        generator = rng(0, DIT_STAGE, number)
        video = cache.data.batch(2, generator)[0].double()
        loss, terms = stage.compute(video, settings, generator, 1.0, critics)
        (world.size / settings.micro_batches * (loss + terms["discriminator"])).backward()
        rows.append({name: term.item() for name, term in {**terms, "loss": loss}.items()})
    world.average_gradients(critics.discriminator)
    return stage, world.mean(rows), critics.discriminator


def dit_gradients(settings, world):
    """The same of the second stage."""
    model, cache, rows = randomised(settings), small_cache(), []
    run = Run("nowhere", model, settings, 0, "drawn", world)
    stage = prepare(run, model, ["dit", "text"], flow_objective, 0.0, 0.0)
    for number in world.batches(0, settings.micro_batches, stage):
        generator = rng(0, DIT_STAGE, number)
        batch = batch_of_latents(model, cache, "start", settings, generator)
        loss, _, _ = stage.compute(batch, settings, generator)
        (world.size / settings.micro_batches * loss).backward()
        rows.append({"loss": loss.item()})
    return stage, world.mean(rows), None


def gradients(out, world):
    """Terms and gradients of one step of both stages in float64, whole, from rank 0 into a file."""
    settings, found = replace(SMALL, loss=LossConfig(adversarial=0.1)), {}
    for name, step in (("vae", vae_gradients), ("dit", dit_gradients)):
        stage, found[f"{name} terms"], discriminator = step(settings, world)
        names = {id(p): name for name, p in stage.model.named_parameters()}
        found[name] = {names[id(p)]: parallel.to_full_tensor(p.grad).clone() for p in stage.parameters}
        held = sum(p.grad.to_local().numel() if hasattr(p.grad, "to_local") else p.grad.numel()
                   for p in stage.parameters)
        found[f"{name} share"] = held / sum(g.numel() for g in found[name].values())
        if discriminator:
            found["discriminator"] = {name: p.grad.clone() for name, p in discriminator.named_parameters()}
    if world.rank == 0:
        torch.save(found, out / "found.pt")
    return found


def memory(out, world):
    """Bytes of bf16 weights that autograd keeps, of gradients before a step's last batch and after it, and
    whether these are in buckets: of the transformer in bf16, on rank 0, into a file."""
    model = ToyModel(SMALL.model)
    settings = replace(SMALL, precision="bf16", micro_batches=2 * world.size)
    run = Run(out / "dit", model, settings, 0, "drawn", world)
    stage = prepare(run, model, ["dit"], lambda model, *inputs: model.dit(*inputs).square().mean(), 0.0, 0.0)
    inputs = torch.randn(1, 4, 2, 4, 4), torch.rand(1), torch.randn(1, 7, 20)
    shapes, saved, gradients = {p.shape for p in model.dit.parameters() if p.ndim == 2}, {}, []

    def keep(x):
        if x.dtype == torch.bfloat16 and (x.shape in shapes or x.T.shape in shapes):
            saved[x.untyped_storage().data_ptr()] = x.clone()
        return x

    for _ in world.batches(0, settings.micro_batches, stage):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), autocast(run):
            loss = stage.compute(*inputs)
        loss.backward()
        # FSDP2's parameters are two: a rank's part, and the whole one that a forward pass reads.
        leaves = stage.parameters + [x for x in gc.get_objects() if type(x) is torch.nn.Parameter]
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
    """python -m minltx.training with the small settings, saved every second step; stopped after so many steps
    in all, before the next is saved."""
    save, steps = Run.save, []

    def save_or_stop(self, done):
        if len(steps) == stop_after:
            raise KeyboardInterrupt
        steps.append(done)
        save(self, done)

    classifier = DigitClassifier().eval()
    with mock.patch.multiple(Run, save_every=2, save=save_or_stop), mock.patch.dict(PRESETS, toy=SMALL), \
            mock.patch.object(report, "classifier_for", lambda data, seed: classifier):
        return training.main(["--out", str(out), "--prompts", "2", *options])


def spoiled_at(call, original):
    """A function like `original` whose result is spoiled at its call number `call`, counted from 0: the first
    number of its video or of its batch's latent is NaN."""
    calls = []

    def function(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(1)
        if len(calls) == call + 1:
            x = result if torch.is_tensor(result) else result.latent
            x[(0,) * x.ndim] = float("nan")
        return result

    return function


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
    end(0)                              # as python -m minltx.training does
