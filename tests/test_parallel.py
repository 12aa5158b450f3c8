"""Several processes are one: the same losses and gradients for the same batches, and one curve across stops
on any number of them. Options that save time or memory change no number, or only by rounding."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import several_processes
import torch
from several_processes import SMALL, randomised, small_cache

from minltx.objectives import Batch, flow_objective
from minltx.toy.data import DIT_STAGE, rng
from minltx.toy.model import ToyModel, load_checkpoint
from minltx.training import __main__ as training
from minltx.training import memory, parallel
from minltx.training.latents import batch_of_latents
from minltx.training.loops import autocast, prepare
from minltx.training.run import Run
from minltx.training.shards import fill, read_parts

CPU = parallel.World(torch.device("cpu"))
pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32",
                                reason="torch without gloo")


def torchrun(processes, *words, code=0):
    """several_processes.py in so many processes -> what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes,
               several_processes.__file__, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert bool(done.returncode) == bool(code), done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds for all of a step's batches."""
    return several_processes.gradients(tmp_path_factory.mktemp("alone"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("kind, processes", [("ddp", 2), ("fsdp", 2), ("fsdp", 3)])
def test_several_processes_have_one_loss_and_one_gradient(alone, tmp_path, kind, processes):
    """In float64, to 1e-8 (norms have float32 statistics): autoencoder, discriminator and transformer, whose
    widths are cut unevenly."""
    torchrun(processes, "gradients", tmp_path, "--parallel", kind)
    found = torch.load(tmp_path / "found.pt")
    for name in ("vae", "dit", "discriminator"):
        assert found[name].keys() == alone[name].keys()
        size = max(g.abs().max() for g in alone[name].values())
        assert size > 0.01
        for key, gradient in alone[name].items():
            assert (found[name][key] - gradient).abs().max() <= 1e-8 * size, key
    for terms in ("vae terms", "dit terms"):
        assert found[terms] == {name: pytest.approx(x, rel=1e-8) for name, x in alone[terms].items()}
    assert found["vae share"] == 1                                   # FSDP cuts the transformer only
    assert found["dit share"] == 1 if kind == "ddp" else found["dit share"] < 1.1 / processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_a_process_holds_whole(tmp_path, kind):
    """As minltx/training/memory.py assumes: under bf16 every process keeps copies of all weights, and sums
    gradients of its batches uncut. After the last batch they are in DDP's buckets, or cut."""
    torchrun(2, "memory", tmp_path, "--parallel", kind)
    found, dit = torch.load(tmp_path / "found.pt"), ToyModel(SMALL.model).dit
    first = dit.patchify_proj, dit.caption_projection[0], dit.time_embedder.linear_1
    assert found["copies"] == memory.copies(dit, "bf16", but=first)
    assert found["before"] == 1 and found["after"] == pytest.approx(1 if kind == "ddp" else 0.5, abs=0.05)
    assert kind == "fsdp" or found["storages"] < found["tensors"] / 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, in one process: its folder and report."""
    out = tmp_path_factory.mktemp("whole")
    return out, several_processes.train(out, [])


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [(("fsdp", 2), (None, 1)), ((None, 1), ("fsdp", 3)),
                                         (("ddp", 3), ("fsdp", 2))])
def test_a_run_is_resumed_by_another_number_of_processes(whole, tmp_path, first, then):
    """Stopped after step 2 of the transformer and resumed, with the state of optimisers and averages: the
    curves and weights of the whole run. (Without that state they differ by 1e-4.)"""
    out, report = whole
    for (kind, processes), options, code in ((first, ["--stop-after", 7], 1), (then, ["--resume"], 0)):
        if kind:
            torchrun(processes, "train", tmp_path, "--parallel", kind, *options, code=code)
        elif code:
            with pytest.raises(SystemExit):
                several_processes.train(tmp_path, [], stop_after=7)
        else:
            several_processes.train(tmp_path, options)
        files = {p.name for p in tmp_path.iterdir()}
        shards = {name for name in files if name.startswith("shards")}
        assert ("checkpoint.pt" in files, "run.json" in files, len(shards)) == (
            (False, True, 1) if kind else (True, False, 0))
    went_on = json.loads((tmp_path / "report.json").read_text())
    for name, rows in report["history"].items():
        assert went_on["history"][name] == [[step, pytest.approx(x, rel=1e-5, abs=1e-6)] for step, x in rows]
    assert went_on["loss_by_t"] == [x and pytest.approx(x, rel=1e-4) for x in report["loss_by_t"]]
    a = load_checkpoint(out / "checkpoint.pt")[0].state_dict()
    if then[0]:
        b = {"model": {name: torch.empty_like(value) for name, value in a.items()}}
        fill(b, read_parts(tmp_path / "run.json"))
        b = b["model"]
    else:
        b = load_checkpoint(tmp_path / "checkpoint.pt")[0].state_dict()
    for name, value in a.items():
        assert (b[name] - value).abs().max() <= 1e-5 * max(1, value.abs().max()), name


def one_step_of(model, settings, world=CPU):
    """The Stage of the transformer, and a function: a batch's number -> its loss with `compute`."""
    run = Run("nowhere", model, settings, 0, "drawn", world)
    stage = prepare(run, model, ["dit", "text"], flow_objective, 0.0, 0.0)
    cache = small_cache()

    def loss(compute, number):
        generator = rng(0, DIT_STAGE, number)
        return compute(batch_of_latents(model, cache, "start", settings, generator), settings, generator)[0]

    return stage, loss


def test_a_step_is_the_mean_of_its_batches():
    """Six batches in one step against each batch's own gradient, averaged by hand."""
    model = randomised(SMALL)
    stage, loss = one_step_of(model, SMALL)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"dit", "text"}              # not the autoencoder
    by_hand = [torch.autograd.grad(loss(partial(flow_objective, model), number), trained.values())
               for number in range(6, 12)]
    numbers = list(CPU.batches(1, 6, stage))
    assert numbers == list(range(6, 12))
    for number in numbers:
        (loss(stage.compute, number) / 6).backward()
    for p, *parts in zip(trained.values(), *by_hand):
        assert (p.grad - sum(parts) / 6).abs().max() <= 1e-8 * max(1, p.grad.abs().max())


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_processes_share_the_batches_of_a_step(size, monkeypatch):
    """Each number belongs to one process; gradients are averaged in a process's last batch only."""
    averaged = []
    monkeypatch.setattr(parallel, "synchronise", lambda stage, now: averaged.append(now))
    worlds = [replace(CPU, rank=rank, size=size) for rank in range(size)]
    numbers = [list(world.batches(2, 6, None)) for world in worlds]
    assert sorted(sum(numbers, [])) == list(range(12, 18)) and {len(own) for own in numbers} == {6 // size}
    expected = [False] * (6 // size - 1) + [True]
    assert averaged == ([] if size == 1 else expected * size)


def test_the_mean_of_a_steps_terms():
    rows = [{"pixel": 1.0, "kl": 0.5}, {"pixel": 2.0, "kl": 0.0}]
    assert CPU.mean(rows) == {"pixel": 1.5, "kl": 0.25}


def one_step(precision="float32", **how):
    """Loss and gradients of one step of the transformer in one process."""
    torch.manual_seed(0)
    settings = replace(SMALL, micro_batches=1, precision=precision)
    model = ToyModel(settings.model)
    for p in model.dit.parameters():
        torch.nn.init.normal_(p, std=0.2)
    run = Run("nowhere", model, settings, 0, "drawn", replace(CPU, **how))
    stage = prepare(run, model, ["dit", "text"], flow_objective, 0.0, 0.0)
    latents = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with autocast(run):
        loss, _, _ = stage.compute(Batch(latents, ["a red 7 moving left"] * 4, 16.0), settings,
                                   torch.Generator().manual_seed(2))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def difference(a, b):
    """The norm of the difference of two sets of gradients over the norm of the second."""
    a, b = (torch.cat([gradients[name].flatten() for name in b]) for gradients in (a, b))
    return ((a - b).norm() / b.norm()).item()


def test_computing_blocks_twice_changes_nothing_but_memory():
    loss, gradients = one_step()
    again, recomputed = one_step(checkpointing=True)
    assert again == loss and difference(recomputed, gradients) == 0

    def kept(checkpointing):
        """Bytes that autograd keeps for the backward pass."""
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: seen.__setitem__(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) or x,
                lambda x: x):
            one_step(checkpointing=checkpointing)
        return sum(seen.values())

    assert kept(True) < 0.6 * kept(False)


def test_bf16_is_the_same_to_its_rounding_and_weights_stay_float32():
    loss, gradients = one_step()
    rounded, theirs = one_step(precision="bf16")
    assert 0 < abs(rounded - loss) / loss < 1e-2 and 1e-4 < difference(theirs, gradients) < 0.1
    assert all(g.dtype == torch.float32 for g in theirs.values())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_optimisers_of_the_settings(tmp_path, kind):
    model = ToyModel(SMALL.model)
    run = Run(tmp_path, model, replace(SMALL, optimizer=kind), 0, "drawn")
    stage = prepare(run, model, ["dit"], flow_objective, 0.02, 0.001)
    names = [type(optimizer).__name__ for optimizer in stage.optimizers]
    assert names == (["Muon", "AdamW"] if kind == "muon" else ["AdamW"])
    assert [o.defaults["lr"] for o in stage.optimizers] == ([0.02, 0.001] if kind == "muon" else [0.001])
    assert {id(p) for p in stage.parameters} == {id(p) for p in model.dit.parameters()}


def test_errors_of_several_processes_name_the_fix(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m minltx.training"):
        parallel.join("fsdp", torch.device("cpu"))
    with pytest.raises(ValueError, match="use --micro-batches 4 or a multiple of it"):
        Run(tmp_path, ToyModel(SMALL.model), SMALL, 0, "drawn", replace(CPU, size=4))


@pytest.mark.parametrize("option, value, says", [("--micro-batches", "0", "use 1 to 100000"),
                                                 ("--token-drop", "1.0", "use 0 to 0.99"),
                                                 ("--prompts", "0", "use 1 to 100000"),
                                                 ("--budget", "-1", "use 0.0001 to 999"),
                                                 ("--preset", "2b", "give --clips FOLDER"),
                                                 ("--clips", "nowhere", "there is no folder nowhere"),
                                                 ("--parallel", "fsdp", "start them with torchrun")])
def test_bad_options_are_refused_before_anything_is_written(tmp_path, capsys, option, value, says):
    with pytest.raises(SystemExit) as stop:
        training.main(["--out", str(tmp_path / "out"), option, value])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and not (tmp_path / "out").exists()
    assert error.startswith("python -m minltx.training: ") and len(error.splitlines()) == 1
