"""A run in its folder: resuming, logging, saving. What a step does is in `loops`."""

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from torch import nn
from tqdm import tqdm

from minltx.files import clear_leftovers, put_in_place
from minltx.toy.model import read_checkpoint, save_checkpoint
from minltx.toy.stored import check_tensors
from minltx.training.endings import Diverged, Interrupt
from minltx.training.parallel import World, like_shard
from minltx.training.settings import from_stored, stored
from minltx.training.shards import fill, read_parts, write_parts


@dataclass
class Stage:
    """What one stage trains, and with what: all that a checkpoint has to hold.

    With FSDP a process holds only a shard of each parameter, and of everything that has its shape.
    """

    model: nn.Module                            # these two come from `parallel.parallelize`:
    compute: Callable                           # the model to train, and its objective
    optimizers: list
    average: list | None = None                 # a running average of the parameters
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None

    @property
    def parameters(self):
        """All parameters of the optimizers, in their order."""
        return [p for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]]

    def add_discriminator(self, discriminator, lr):
        """Also train a discriminator, with its own AdamW; if it is None, nothing changes."""
        if discriminator is not None:
            self.discriminator = discriminator
            self.discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), lr, betas=(0.5, 0.9))

    @torch.no_grad()
    def swap_average(self):
        """Exchange the parameters and their average."""
        for p, mean in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(mean)
            mean.copy_(kept)


class Run:
    """One run in one folder. `stages_done` and `history`, every logged number, can be read.

    A single process writes checkpoint.pt. Several processes of one `world` write a folder with a file each,
    and run.json. Any number of processes can resume either. Raises ValueError if the folder has a run and
    `resume` is False, or with `resume` has none, a damaged one, or one of other settings, seed or source.
    """

    save_every = 100    # steps

    def __init__(self, out, model, settings, seed, source, world=None, resume=False):
        self.out, self.model, self.settings, self.seed = Path(out), model, settings, seed
        self.world = world or World()
        self.device = self.world.device
        if settings.micro_batches % self.world.size:
            raise ValueError(f"{settings.micro_batches} micro-batches cannot be shared by {self.world.size} "
                             f"processes: use --micro-batches {self.world.size} or a multiple of it")
        self.identity = {"settings": stored(settings), "seed": seed, "digits": str(source)}
        self.checkpoint, self.shards = self.out / "checkpoint.pt", self.out / "run.json"
        self.note = self.out / "diverged.txt"   # why the run stopped, until a later step is saved
        self.stages_done = []                   # their names
        self.stage_name, self.stage, self.step, self.total = None, None, 0, 0
        self.history, self.by_t, self.seconds = {}, [[0.0, 0] for _ in range(10)], {}
        self.page = None                        # a `page.Page`, if the run is to be watched
        self.interrupt = Interrupt()
        self.pending = None                     # a checkpoint in the middle of a stage, until that is loaded
        if resume:
            self.restore()
        elif self.checkpoint.exists() or self.shards.exists():
            raise ValueError(f"{self.out} has a checkpoint: go on with --resume, "
                             "or name another folder with --out")
        if self.world.rank == 0:
            clear_leftovers(self.out)

    # --- The steps of a stage -----------------------------------------------------------------------------

    def steps(self, name, total, stage):
        """The steps of a stage that are still to do, with a progress bar, or a line now and then.

        A stage that was stopped in the middle goes on with its optimisers' and averages' state.
        """
        start = self.step if self.stage_name == name else 0
        if self.pending:
            self.load(stage)
        self.stage_name, self.stage, self.step, self.total, self.pending = name, stage, start, total, None
        began, before = time.perf_counter(), self.seconds.get(name, 0.0)
        quiet = True if self.world.rank else None
        bar = tqdm(range(start, total), desc=name, initial=start, total=total, disable=quiet)
        every = max(1, total // 10)
        for step in self.interrupt.between_steps(bar, self.world.size):
            yield step
            self.seconds[name] = before + time.perf_counter() - began
            last = " ".join(f"{key} {rows[-1][1]:.4g}" for key, rows in self.history.items()
                            if key.startswith(name + " "))
            bar.set_postfix_str(last, refresh=False)
            if not quiet and bar.disable and (step % every == every - 1 or step == total - 1):
                left = (time.perf_counter() - began) / (step + 1 - start) * (total - step - 1)
                print(f"{name} {step + 1}/{total}  {self.seconds[name]:.0f} s, {left:.0f} s left  {last}",
                      flush=True)

    def log(self, step, **numbers):
        """Add a point to the curves named "stage number"."""
        for name, value in numbers.items():
            self.history.setdefault(f"{self.stage_name} {name}", []).append([step + 1, value])

    def check_finite(self, step, numbers):
        """Raises Diverged if one of a step's numbers, by name, is NaN or infinite; --resume repeats why. No
        later state is saved than the one before."""
        bad = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            line = f"the training diverged: stage {self.stage_name}, step {step + 1}: {', '.join(bad)}"
            if self.world.rank == 0:
                put_in_place(self.note, lambda part: part.write_text(line + "\n"))
            if self.page:
                self.page.say(line, live=False)
            raise Diverged(f"{line}; the last checkpoint is kept")

    def log_by_t(self, t, error):
        """Add the errors of samples to the averages over ten ranges of t; both (B,)."""
        t, error = self.world.gather(t), self.world.gather(error)
        for i, e in zip((t * 10).long().clamp(max=9).tolist(), error.tolist()):
            self.by_t[i][0] += e
            self.by_t[i][1] += 1

    def check_weights(self):
        """Raises Diverged if anything that a checkpoint would hold is not finite, in any process."""
        s = self.stage
        held = [*s.model.state_dict().values(), *(s.average or ())]
        held += s.discriminator.state_dict().values() if s.discriminator else ()
        held += [x for optimizer in s.optimizers for own in optimizer.state.values() for x in own.values()]
        finite = all(local_part(x).isfinite().all() for x in held if torch.is_tensor(x))
        self.check_finite(self.step - 1, self.world.mean([{"a weight": 0.0 if finite else math.nan}]))

    # --- Saving -------------------------------------------------------------------------------------------

    def save(self, done):
        """After step `done`: write a checkpoint every `save_every` steps, before the last one, and when the
        user stops the run. Raises KeyboardInterrupt then."""
        self.step = done
        if self.page:
            self.page.step()
        if done < self.total and (done % self.save_every == 0 or self.interrupt.noted):
            self.check_weights()
            self.write()
            self.stop_if_asked()

    def finish(self):
        """The stage is complete and its result is in the model."""
        self.check_weights()
        self.stages_done, self.stage_name, self.stage = self.stages_done + [self.stage_name], None, None
        self.write()
        self.stop_if_asked()

    def stop_if_asked(self):
        """After a checkpoint: raises KeyboardInterrupt if the user has stopped the run."""
        if self.interrupt.noted:
            if self.page:
                self.page.say("stopped and saved: the same command with --resume goes on", live=False)
            raise KeyboardInterrupt

    def finished(self, stages):
        """The report of this run, if these stages are done and judged; otherwise None."""
        try:
            report = json.loads((self.out / "report.json").read_text())
        except (OSError, ValueError):
            return None                                                     # missing or damaged: judge again
        own = isinstance(report, dict) and report.get("history") == self.history    # not of an earlier run
        return report if own and not self.pending and set(stages) <= set(self.stages_done) else None

    def write(self):
        """The checkpoint of this moment, in place of the last one."""
        state = {"identity": self.identity, "stages_done": self.stages_done, "stage": self.stage_name,
                 "step": self.step, "history": self.history, "by_t": self.by_t, "seconds": self.seconds}
        if self.world.size > 1:
            return self.write_shards(state)
        if self.stage:
            s = self.stage
            state |= {"ema": s.average, "optimizers": [o.state_dict() for o in s.optimizers],
                      "rival": s.discriminator and s.discriminator.state_dict(),
                      "rival_optimizer": s.discriminator and s.discriminator_optimizer.state_dict()}
        save_checkpoint(self.checkpoint, self.model, run=state)
        self.forget(self.shards)
        self.note.unlink(missing_ok=True)

    def write_shards(self, state):
        """Every process writes its part; run.json, the last file to be put in place, says which folder is
        complete."""
        folder = f"shards-{len(self.stages_done)}-{self.step}"
        tensors = {"model": (self.stage or self).model.state_dict()}
        if self.stage:
            tensors |= tensors_of(self.stage)
        write_parts(self.shards, folder, tensors, state, self.world)
        if self.world.rank == 0:
            self.forget(self.checkpoint, but=folder)
            self.note.unlink(missing_ok=True)

    def forget(self, file, but=None):
        """Remove an older checkpoint of the other kind, and the shards of older steps."""
        file.unlink(missing_ok=True)
        for folder in self.out.glob("shards-*-*"):
            if folder.is_dir() and folder.name != but:
                shutil.rmtree(folder)

    # --- Resuming -----------------------------------------------------------------------------------------

    def restore(self):
        """Read the last checkpoint into the model and this run. Raises ValueError as the class does."""
        if self.note.exists() and self.world.rank == 0:
            print(f"{self.out}: {self.note.read_text().strip()}; it goes on from the last checkpoint")
        parts, file = None, None
        if self.shards.exists():
            parts = read_parts(self.shards)
            state = parts[0]["state"]
        else:
            file = read_checkpoint(self.checkpoint)
            if "run" not in file:
                raise ValueError(f"{self.checkpoint} is a finished model, not a run that can be resumed")
            state = file["run"]
        self.take_state(state)
        try:
            if parts:
                fill({"model": self.model.state_dict()}, parts)
            else:
                check_tensors(self.model, file["model"])
                self.model.load_state_dict(file["model"])
        except (ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.out} holds a run of another model ({sentence(error)}): "
                             "name another folder with --out") from None
        self.pending = {**state, "parts": parts} if self.stage_name else None

    def take_state(self, state):
        """Take the plain values of a checkpoint. Raises ValueError if they are of another run, or wrong."""
        try:
            settings, variants = from_stored(state["identity"]["settings"])
            same = not variants and state["identity"] | {"settings": settings} == self.identity
            numbers = [*state["seconds"].values(), *(x for row in state["by_t"] for x in row),
                       *(x for rows in state["history"].values() for row in rows for x in row)]
            right = (isinstance(state["step"], int) and len(state["by_t"]) == 10
                     and isinstance(state["stages_done"], list) and not any(map(math.isnan, numbers))
                     and all(len(row) == 2 for row in [*state["by_t"], *sum(state["history"].values(), [])]))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.out} holds a damaged run ({sentence(error)})") from None
        if not same:
            raise ValueError(f"{self.out} holds a run with other settings: repeat its options, "
                             "or name another folder with --out")
        if not right:
            raise ValueError(f"{self.out} holds a damaged run: its curves are not numbers")
        self.stages_done, self.stage_name, self.step = state["stages_done"], state["stage"], state["step"]
        self.history, self.by_t, self.seconds = state["history"], state["by_t"], state["seconds"]

    def load(self, stage):
        """A stage's state from the checkpoint. Raises ValueError if it does not fit."""
        try:
            if self.pending["parts"]:
                self.load_shards(stage)
            else:
                self.load_whole(stage)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self.out} holds a stage that does not fit ({sentence(error)}): "
                             "name another folder with --out") from None

    def load_whole(self, stage):
        """A stage's state from a checkpoint.pt; each process takes its shards of it."""
        state = self.pending
        for optimizer, saved in zip(stage.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved["state"])
        for mean, saved in zip(stage.average or (), state["ema"] or (), strict=True):
            mean.copy_(like_shard(fitting(saved, mean).to(mean.device), mean))
        if stage.discriminator:
            # In older files the discriminator is its list of layers.
            rival = {k if k.startswith("layers.") else f"layers.{k}": v for k, v in state["rival"].items()}
            check_tensors(stage.discriminator, rival)
            stage.discriminator.load_state_dict(rival)
            load_optimizer(stage.discriminator_optimizer, state["rival_optimizer"]["state"])

    def load_shards(self, stage):
        """The same from the files of any number of processes."""
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        state = tensors_of(stage)
        fill(state, self.pending["parts"])                                  # into the tensors that are there
        set_optimizer_state_dict(stage.model, stage.optimizers, state["optimizers"])
        if stage.discriminator:
            stage.discriminator.load_state_dict(state["rival"])
            set_optimizer_state_dict(stage.discriminator, stage.discriminator_optimizer,
                                     state["rival optimizer"])


def sentence(error):
    """The first line of an error, shortened; its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def fitting(x, target):
    """x, a tensor out of a file, if it has the shape of another one and is finite. Raises ValueError."""
    if not torch.is_tensor(x) or x.shape != target.shape or not x.isfinite().all():
        raise ValueError(f"a tensor of the shape {tuple(target.shape)} is missing, or is not finite")
    return x


def load_optimizer(optimizer, saved):
    """Give an optimizer the stored state of each parameter, by its number; each process takes its part.

    A state's tensors have the shape of the parameter, or are single numbers. Raises ValueError.
    """
    state = {}
    for number, p in enumerate(optimizer.param_groups[0]["params"]):
        for name, x in saved.get(number, {}).items():
            single = torch.is_tensor(x) and x.ndim == 0
            x = fitting(x, x if single else p)
            state.setdefault(number, {})[name] = x if single else like_shard(x.to(p.device), p)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def local_part(x):
    """The part of a tensor that this process holds."""
    return x.to_local() if hasattr(x, "to_local") else x


def tensors_of(stage):
    """A stage's state without the model, as tensors by name; a process may hold only a part of each."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    names = {id(p): name for name, p in stage.model.named_parameters()}
    state = {"optimizers": get_optimizer_state_dict(stage.model, stage.optimizers)}
    if stage.average is not None:
        state["ema"] = {names[id(p)]: mean for p, mean in zip(stage.parameters, stage.average, strict=True)}
    if stage.discriminator:
        state["rival"] = stage.discriminator.state_dict()
        state["rival optimizer"] = get_optimizer_state_dict(stage.discriminator,
                                                            stage.discriminator_optimizer)
    return state
