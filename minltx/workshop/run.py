"""The bookkeeping of a training run: optimiser steps, averages, curves, checkpoints and going on after a
stop."""

import json
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minltx.workshop.checkpoint import load_checkpoint, save_checkpoint
from minltx.workshop.muon import optimizers


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
    """One run in one folder. `stage` and `step` say what comes next; `history` holds every logged number."""

    def __init__(self, out, model, settings, seed, digits, device, resume, save_every=100):
        self.out, self.model, self.settings, self.seed, self.device = Path(out), model, settings, seed, device
        self.identity = {"settings": json.loads(json.dumps(asdict(settings))),
                         "seed": seed, "digits": str(digits)}
        self.save_every, self.checkpoint = save_every, self.out / "checkpoint.pt"
        self.stages_done, self.stage, self.step = [], None, 0
        self.history, self.by_t, self.seconds = {}, [[0.0, 0] for _ in range(10)], {}
        self.trained = self.ema = self.pending = self.rival = None
        if resume:
            self.restore()
        elif self.checkpoint.exists():
            raise ValueError(f"{self.checkpoint} exists: go on with --resume, "
                             "or name another folder with --out")

    def restore(self):
        """Read the last checkpoint. ValueError if there is none or it is of another run."""
        model, stored = load_checkpoint(self.checkpoint)
        if "run" not in stored:
            raise ValueError(f"{self.checkpoint} is a finished model, not a run to go on with")
        if stored["run"]["identity"] != self.identity:
            raise ValueError(f"{self.checkpoint} belongs to a run with other settings: repeat its options, "
                             "or name another folder with --out")
        self.model.load_state_dict(model.state_dict())
        state = stored["run"]
        self.stages_done, self.stage, self.step = state["stages_done"], state["stage"], state["step"]
        self.history, self.by_t, self.seconds = state["history"], state["by_t"], state["seconds"]
        if self.stage:
            self.pending = {k: state.get(k) for k in ("optimizers", "ema", "rival", "rival_optimizer")}

    def start(self, modules, lr, adam_lr, rival=None, rival_lr=1e-3):
        """Muon and AdamW for these modules, and an AdamW of its own for a rival (a GAN's discriminator); with
        their state if the run goes on in the middle of a stage."""
        self.optimizers, self.rival = optimizers(modules, lr, adam_lr), rival
        if rival:
            self.rival_optimizer = torch.optim.AdamW(rival.parameters(), rival_lr, betas=(0.5, 0.9))
        self.rates = [lr, adam_lr]
        self.trained = [p for optimizer in self.optimizers for p in optimizer.param_groups[0]["params"]]
        self.ema = None
        if self.pending:
            for optimizer, state in zip(self.optimizers, self.pending["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            if rival:
                rival.load_state_dict(self.pending["rival"])
                self.rival_optimizer.load_state_dict(self.pending["rival_optimizer"])

    def start_ema(self, decay):
        """Keep a running average of the weights from here on; it warms up over the first steps."""
        self.decay = decay
        if self.pending:
            self.ema = [e.to(self.device) for e in self.pending["ema"]]
        else:
            self.ema = [p.detach().clone() for p in self.trained]

    @contextmanager
    def averaged(self):
        """Inside, the model has its averaged weights."""
        def swap():
            for p, e in zip(self.trained, self.ema, strict=True):
                p.data, e.data = e.data, p.data
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
        bar = tqdm(range(start, total), desc=stage, initial=start, total=total, disable=None)
        every = max(1, total // 10)
        for step in bar:
            yield step
            self.seconds[stage] = before + time.perf_counter() - began
            last = " ".join(f"{name} {rows[-1][1]:.4g}" for name, rows in self.history.items()
                            if name.startswith(stage + " "))
            bar.set_postfix_str(last, refresh=False)
            if bar.disable and (step % every == every - 1 or step == total - 1):
                print(f"{stage} {step + 1}/{total}  {self.seconds[stage]:.0f} s  {last}", flush=True)

    def update(self, loss, rate, rival_loss=None):
        """One optimiser step at `rate` times the learning rates, gradients clipped to length 1; and one of
        the rival on its own loss."""
        for optimizer, lr in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * lr
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema is not None:
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1 - decay)
        if rival_loss is not None:
            self.rival_optimizer.zero_grad()
            rival_loss.backward()
            self.rival_optimizer.step()

    def log(self, stage, step, **numbers):
        """Add a point to the curves named "stage number"."""
        for name, value in numbers.items():
            self.history.setdefault(f"{stage} {name}", []).append([step + 1, value])

    def log_by_t(self, t, error):
        """Add samples' errors to the averages over ten ranges of t."""
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
            self.stages_done, self.stage, self.ema = self.stages_done + [self.stage], None, None
        elif done % self.save_every:
            return
        state = {"identity": self.identity, "stages_done": self.stages_done,
                 "stage": self.stage, "step": self.step,
                 "history": self.history, "by_t": self.by_t, "seconds": self.seconds, "ema": self.ema,
                 "optimizers": [o.state_dict() for o in self.optimizers] if self.stage else None,
                 "rival": self.rival.state_dict() if self.stage and self.rival else None,
                 "rival_optimizer": self.rival_optimizer.state_dict() if self.stage and self.rival else None}
        save_checkpoint(self.checkpoint, self.model, run=state)
