"""The bookkeeping of a training run: optimiser steps, averages, curves, checkpoints and going on after a
stop; in one process or in several (`parallel`)."""

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.state_dict as dcs
from tqdm import tqdm

from minltx.workshop import parallel
from minltx.workshop.checkpoint import load_checkpoint, save_checkpoint
from minltx.workshop.muon import optimizers
from minltx.workshop.pictures import put_in_place


def pick_device(name):
    """"cpu", "cuda" or "mps" -> torch.device; None: cuda if there is one.
    ValueError if it is not to be had."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the device {name} is not to be had here ({reason}): use cpu") from None
    return device


class Run:
    """One run in one folder. `stage` and `step` say what comes next; `history` holds every logged number.

    Several processes of one `world` do it together. They write a folder of torch's distributed checkpoint
    (DCP) and run.json, which any number of processes can go on with; one process alone writes checkpoint.pt.
    precision "bf16" runs the losses under bfloat16 autocast. checkpointing and compiled: see
    `parallel.share`.
    """

    def __init__(self, out, model, settings, seed, digits, device, resume, save_every=100, world=None,
                 checkpointing=False, compiled=False):
        self.out, self.model, self.settings, self.seed, self.device = Path(out), model, settings, seed, device
        self.world = world or parallel.World(device)
        self.how = {"checkpointing": checkpointing, "compiled": compiled}
        if settings.micro_batches % self.world.size:
            raise ValueError(f"{settings.micro_batches} micro-batches cannot be shared by {self.world.size} "
                             f"processes: use --micro-batches {self.world.size} or a multiple of it")
        self.identity = {"settings": json.loads(json.dumps(asdict(settings))),
                         "seed": seed, "digits": str(digits)}
        self.save_every = save_every
        self.checkpoint, self.shards = self.out / "checkpoint.pt", self.out / "run.json"
        self.stages_done, self.stage, self.step = [], None, 0
        self.history, self.by_t, self.seconds = {}, [[0.0, 0] for _ in range(10)], {}
        self.trained = self.ema = self.pending = self.rival = self.work = None
        if resume:
            self.restore()
        elif self.checkpoint.exists() or self.shards.exists():
            raise ValueError(f"{self.out} has a checkpoint: go on with --resume, "
                             "or name another folder with --out")

    def restore(self):
        """Read the last checkpoint. ValueError if there is none or it is of another run."""
        if self.shards.exists():
            state = json.loads(self.shards.read_text())
            weights = None
        else:
            model, stored = load_checkpoint(self.checkpoint)
            if "run" not in stored:
                raise ValueError(f"{self.checkpoint} is a finished model, not a run to go on with")
            state, weights = stored["run"], model.state_dict()
        if state["identity"] != self.identity:
            raise ValueError(f"{self.out} holds a run with other settings: repeat its options, "
                             "or name another folder with --out")
        if weights is None:
            weights = {"model": self.model.state_dict()}
            dcp.load(weights, checkpoint_id=self.out / state["folder"])
            weights = weights["model"]
        self.model.load_state_dict(weights)
        self.stages_done, self.stage, self.step = state["stages_done"], state["stage"], state["step"]
        self.history, self.by_t, self.seconds = state["history"], state["by_t"], state["seconds"]
        if self.stage:
            self.pending = state

    def start(self, parts, loss, lr, adam_lr, ema=None, rival=None, rival_lr=1e-3):
        """Train the named parts of the model with loss(model, ...), see `parallel.share`, with optimisers of
        the settings' kind; ema: keep a running average of the weights, which warms up over the first steps;
        rival (a GAN's discriminator): with an AdamW of its own. All with their state if the run goes on in
        the middle of a stage."""
        self.model.zero_grad()
        self.work, self.objective = parallel.share(self.world, self.model, parts, loss, **self.how)
        modules = [self.work.get_submodule(part) for part in parts]
        self.optimizers = optimizers(modules, lr, adam_lr, self.settings.optimizer)
        self.rates, self.decay = [lr, adam_lr][-len(self.optimizers):], ema
        self.trained = [p for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]]
        self.ema = [p.detach().clone() for p in self.trained] if ema is not None else None
        self.rival, self.rival_optimizer = rival, None
        if rival:
            self.rival_optimizer = torch.optim.AdamW(rival.parameters(), rival_lr, betas=(0.5, 0.9))
        self.summed = {}
        if self.pending and "folder" in self.pending:
            self.load_shards(self.out / self.pending["folder"])
        elif self.pending:
            self.load_whole(self.pending)

    def load_whole(self, state):
        """Optimisers, averages and rival of a checkpoint.pt; each process takes its shards of them."""
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                for name, value in stored["state"].get(i, {}).items():
                    if value.shape == p.shape:
                        stored["state"][i][name] = parallel.like_shard(value.to(p.device), p)
            optimizer.load_state_dict(stored)
        for e, stored, p in zip(self.ema or (), state["ema"] or (), self.trained):
            e.copy_(parallel.like_shard(stored.to(p.device), p))
        if self.rival:
            self.rival.load_state_dict(state["rival"])
            self.rival_optimizer.load_state_dict(state["rival_optimizer"])

    def shards_now(self):
        """What else than the model a stage has to keep, as tensors by name, of which a process may hold a
        part only."""
        names = {id(p): name for name, p in self.work.named_parameters()}
        state = {"optimizers": dcs.get_optimizer_state_dict(self.work, self.optimizers)}
        if self.ema is not None:
            state["ema"] = {names[id(p)]: e for p, e in zip(self.trained, self.ema, strict=True)}
        if self.rival:
            state["rival"] = self.rival.state_dict()
            state["rival optimizer"] = dcs.get_optimizer_state_dict(self.rival, self.rival_optimizer)
        return state

    def load_shards(self, folder):
        """The same from a folder of torch's distributed checkpoint, written by any number of processes."""
        state = self.shards_now()
        dcp.load(state, checkpoint_id=folder)                        # into the tensors that are there
        dcs.set_optimizer_state_dict(self.work, self.optimizers, state["optimizers"])
        if self.rival:
            self.rival.load_state_dict(state["rival"])
            dcs.set_optimizer_state_dict(self.rival, self.rival_optimizer, state["rival optimizer"])

    @contextmanager
    def averaged(self):
        """Inside, the model has its averaged weights."""
        @torch.no_grad()
        def swap():
            for p, e in zip(self.trained, self.ema, strict=True):
                kept = p.detach().clone()
                p.copy_(e)
                e.copy_(kept)
        swap()
        try:
            yield
        finally:
            swap()

    def steps(self, stage, total):
        """The steps of a stage that are still to do, under a progress bar or with a line now and then."""
        start = self.step if self.stage == stage else 0
        self.stage, self.step, self.pending = stage, start, None
        began, before = time.perf_counter(), self.seconds.get(stage, 0.0)
        quiet = True if self.world.rank else None
        bar = tqdm(range(start, total), desc=stage, initial=start, total=total, disable=quiet)
        every = max(1, total // 10)
        for step in bar:
            yield step
            self.seconds[stage] = before + time.perf_counter() - began
            last = " ".join(f"{name} {rows[-1][1]:.4g}" for name, rows in self.history.items()
                            if name.startswith(stage + " "))
            bar.set_postfix_str(last, refresh=False)
            if not quiet and bar.disable and (step % every == every - 1 or step == total - 1):
                print(f"{stage} {step + 1}/{total}  {self.seconds[stage]:.0f} s  {last}", flush=True)

    def micro_batches(self, step):
        """The numbers of this process's batches of a step, which decide what is in them."""
        count, world = self.settings.micro_batches, self.world
        own = range(step * count + world.rank, (step + 1) * count, world.size)
        for number in own:
            parallel.synchronise(self.objective, self.work, number == own[-1])
            yield number

    def loss(self, *args):
        """The loss function of `start`, in the settings' precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.objective(*args)

    def backward(self, loss, terms, rival_loss=None):
        """Add one batch's gradients to the step's mean, and its terms to those that `update` returns."""
        share = self.world.size / self.settings.micro_batches             # the processes' sums are averaged
        (share * loss).backward()
        if rival_loss is not None:
            (share * rival_loss).backward()
        for name, term in terms.items():
            self.summed[name] = self.summed.get(name, 0.0) + share * term.item()

    def update(self, rate):
        """One optimiser step at `rate` times the learning rates, gradients clipped to length 1, and one of
        the rival -> the step's mean terms."""
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer, lr in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * lr
            optimizer.step()
            optimizer.zero_grad()
        if self.ema is not None:
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - decay)
        if self.rival:
            self.world.average_gradients(self.rival)
            self.rival_optimizer.step()
            self.rival_optimizer.zero_grad()
        terms, self.summed = self.world.mean(self.summed), {}
        return terms

    def log(self, stage, step, **numbers):
        """Add a point to the curves named "stage number"."""
        for name, value in numbers.items():
            self.history.setdefault(f"{stage} {name}", []).append([step + 1, value])

    def log_by_t(self, t, error):
        """Add samples' errors to the averages over ten ranges of t."""
        t, error = self.world.gather(t), self.world.gather(error)
        for i, e in zip((t * 10).long().clamp(max=9).tolist(), error.tolist()):
            self.by_t[i][0] += e
            self.by_t[i][1] += 1

    def save(self, done, total):
        """After step `done`: a checkpoint now and then, and at the end of the stage."""
        self.step = done
        if done == total:
            if self.ema is not None:
                for p, e in zip(self.trained, self.ema, strict=True):
                    p.data.copy_(e)                       # the averaged weights are the result
            parallel.collect(self.model, self.work, self.device)
            self.stages_done, self.stage = self.stages_done + [self.stage], None
            self.work = self.objective = self.optimizers = self.rival = self.ema = self.trained = None
        elif done % self.save_every:
            return
        state = {"identity": self.identity, "stages_done": self.stages_done,
                 "stage": self.stage, "step": self.step,
                 "history": self.history, "by_t": self.by_t, "seconds": self.seconds}
        if self.world.size > 1:
            return self.save_shards(state)
        if self.stage:
            state |= {"ema": self.ema, "optimizers": [o.state_dict() for o in self.optimizers],
                      "rival": self.rival and self.rival.state_dict(),
                      "rival_optimizer": self.rival and self.rival_optimizer.state_dict()}
        save_checkpoint(self.checkpoint, self.model, run=state)
        self.forget(self.shards)

    def save_shards(self, state):
        """Every process writes its part; run.json, the last file to be put in place, says which folder is
        complete."""
        state["folder"] = f"shards-{len(self.stages_done)}-{self.step}"
        tensors = {"model": (self.work or self.model).state_dict()}
        if self.stage:
            tensors |= self.shards_now()
        dcp.save(tensors, checkpoint_id=self.out / state["folder"])
        if self.world.rank == 0:
            put_in_place(self.shards, lambda part: part.write_text(json.dumps(state)))
            self.forget(self.checkpoint, but=state["folder"])
        self.world.wait()

    def forget(self, file, but=None):
        """Remove an older checkpoint of the other kind, and the shards of older steps."""
        file.unlink(missing_ok=True)
        for folder in self.out.glob("shards-*-*"):
            if folder.is_dir() and folder.name != but:
                shutil.rmtree(folder)
