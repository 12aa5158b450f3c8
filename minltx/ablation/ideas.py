"""An idea: the one thing that a level of an ablation changes. It is applied from outside the chapters.

An idea of one's own is a class in one's own file. It is either a subclass of a chapter's module, which then
replaces that module (`class NoGates(Block)`), or a subclass of `Idea` that overrides what differs.
"""

import hashlib
import importlib
import importlib.util
import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minltx.dit import DiT
from minltx.flow import sample_t
from minltx.layers import swap_class
from minltx.losses import Critics, Discriminator
from minltx.objectives import flow_objective, vae_objective
from minltx.toy.captions import CaptionEncoder
from minltx.toy.model import ToyModel
from minltx.vae import Decoder, Encoder

# What is trained in each stage. "decoder": a new decoder for a frozen encoder; "both": VAE and transformer.
PARTS = {"vae": ("vae",), "decoder": ("vae.decoder",), "dit": ("dit", "text"), "both": ("",)}
HOOKS = ("encoder", "decoder", "build", "vae_objective", "flow_objective", "draw_t", "seen_fps",
         "discriminator")


class Idea:
    """The default, which changes nothing. Subclasses override what differs.

    stage: what is trained and judged, a key of PARTS. changes: fields of `training.settings.Settings` with
    other values; a dot leads into a nested field: {"loss.dwt": 0.0}.
    """

    stage = "dit"
    changes = {}

    def __init__(self, changes=None):
        self.changes = {**self.changes, **(changes or {})}

    def build(self, config):
        """`ModelConfig` -> the model to train. Its weights are drawn in the order of ToyModel, which other
        networks may change; so all of them are drawn again."""
        state = torch.get_rng_state()
        model = ToyModel(config)
        torch.set_rng_state(state)
        model.vae.encoder, model.vae.decoder = self.encoder(config.vae), self.decoder(config.vae)
        model.dit, model.text = DiT(config.dit), CaptionEncoder(config.dit.text_width)
        return self.change(model)

    def encoder(self, config):
        """`VAEConfig` -> the VAE's encoder."""
        return Encoder(config)

    def decoder(self, config):
        """`VAEConfig` -> the VAE's decoder."""
        return Decoder(config)

    def change(self, model):
        """Replace modules of a new model, in place, and return it."""
        return model

    def vae_objective(self, vae, video, recipe, generator, foreground=None, critics=Critics()):
        """The loss of stage 1 and its terms by name, see `objectives.vae_objective`."""
        return vae_objective(vae, video, recipe, generator, foreground, critics)

    def flow_objective(self, model, batch, recipe, generator):
        """The loss of stage 2, t (B,) and error (B,), see `objectives.flow_objective`."""
        batch = replace(batch, fps=self.seen_fps(batch.fps, model.config.data))
        own = type(self).draw_t is not Idea.draw_t            # otherwise with the recipe's offset
        return flow_objective(model, batch, recipe, generator, self.draw_t if own else None)

    def draw_t(self, count, tokens, generator=None):
        """Training times (count,) of stage 2, see `flow.sample_t`; here without the settings' time_offset."""
        return sample_t(count, tokens, generator)

    def seen_fps(self, fps, config):
        """The frame rate by which coordinates count, in training and in sampling; config: the data's."""
        return fps

    def discriminator(self, width):
        """The discriminator of stage 1, used where loss.adversarial is not 0; see `losses.Discriminator`."""
        return Discriminator(width)

    @property
    def classes(self):
        """The classes that define this idea; none for a mere change of settings."""
        return [] if type(self) is Idea else [type(self)]


def swap(model, old, new):
    """`layers.swap_class`, also for modules that another idea has swapped before: they become both."""
    for kind in {type(module) for module in model.modules()}:
        if issubclass(kind, old) and not issubclass(kind, new):
            swap_class(model, kind, new if kind is old else type(new.__name__, (new, kind), {}))
    return model


class Swap(Idea):
    """Every module of the class `old` becomes a `new` one, in the parts that the stage trains."""

    old = new = None

    def change(self, model):
        """Swap them in place. Raises ValueError if these parts have no module of the class `old`."""
        for part in PARTS[self.stage]:
            swap(model.get_submodule(part), self.old, self.new)
        if not any(isinstance(module, self.new) for module in model.modules()):
            raise ValueError(f"{self.new.__name__} replaces {self.old.__name__}, which stage {self.stage} "
                             "does not train: set `stage`, or write a subclass of Idea")
        return model

    @property
    def classes(self):
        return [self.new]


def idea_of(cls, changes=None):
    """An `Idea` subclass, or a subclass of a chapter's module, which is swapped in -> the idea.

    changes: settings that change too. Raises ValueError for other classes.
    """
    bases = cls.__mro__[1:] if isinstance(cls, type) else ()
    if Idea in bases:
        try:
            return cls(changes) if changes else cls()
        except Exception as error:    # a class of the user's can fail in any way
            raise ValueError(f"{cls.__name__} cannot be created: {explain(error)}") from error
    old = next((base for base in bases if base.__module__.startswith("minltx.")), None)
    if old is None or nn.Module not in bases:
        raise ValueError(f"{getattr(cls, '__name__', type(cls).__name__)} is not an idea: it must be a "
                         "subclass of Idea, or of a module of the chapters, such as minltx.dit.Block")
    stage = getattr(cls, "stage", "vae" if old.__module__ == "minltx.vae" else "dit")
    return type(cls.__name__, (Swap,), {"stage": stage, "old": old, "new": cls})(changes)


def combine(ideas):
    """Several ideas as one, for a grid: all their changes of settings, and of the model one after the other.

    Raises ValueError if two of them override the same other hook.
    """
    changes = {path: value for idea in ideas for path, value in idea.changes.items()}
    ideas = [idea for idea in ideas if idea.classes]
    for hook in HOOKS:
        kinds = {type(idea) for idea in ideas}
        owners = [kind.__name__ for kind in kinds if getattr(kind, hook) is not getattr(Idea, hook)]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(sorted(owners))} cannot be combined: both override {hook}")

    def change(self, model):
        for idea in ideas:
            model = idea.change(model)
        return model

    kinds = tuple(dict.fromkeys(type(idea) for idea in ideas)) or (Idea,)
    own = {"change": change, "classes": [cls for idea in ideas for cls in idea.classes]}
    combined = object.__new__(type("Combined", kinds, own))
    for idea in ideas:
        vars(combined).update(vars(idea))       # in place of an __init__, which may need arguments
    combined.changes = changes
    return combined


# --- Ideas as text: for the process of a run, and to recognise a finished run -------------------------------

def reference(cls):
    """A class -> "module:name", or "/folder/mine.py:name" of a class from a file."""
    return f"{cls.__module__}:{cls.__name__}"


def load(references, changes):
    """The idea that consists of the referenced classes, with these changes of settings."""
    return combine([*(idea_of(load_class(text)) for text in references), Idea(changes)])


def identity(idea):
    """The plain values, for a report, that distinguish two ideas; of a file's class also the file's hash."""
    names = []
    for cls in idea.classes:
        if cls.__module__.endswith(".py"):
            file = Path(cls.__module__)
            names.append(f"{file.name}:{cls.__name__} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}")
        else:
            names.append(cls.__name__)
    return {"idea": names, "changes": json.loads(json.dumps(idea.changes))}


def identity_in(run):
    """The identity of the idea in a run's spec or report."""
    return {"idea": run["idea"], "changes": run["changes"]}


def load_class(text):
    """The inverse of `reference`. Raises ValueError if the file or the class does not exist."""
    place, _, name = text.rpartition(":")
    module = load_file(place) if place.endswith(".py") else importlib.import_module(place)
    if not hasattr(module, name):
        known = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        raise ValueError(f"{place} has no class {name!r}: it has {', '.join(known) or 'none'}")
    return getattr(module, name)


def load_file(path):
    """Execute a Python file once -> its module, which is named by the file's whole path. Raises ValueError
    if the file does not exist, or fails."""
    path = Path(path).resolve()
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    if not path.is_file():
        raise ValueError(f"the file {path} does not exist: name FILE.py:CLASS")
    spec = importlib.util.spec_from_file_location(str(path), path)
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))                            # its own imports of files next to it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[str(path)]
        raise ValueError(f"{path.name} cannot be imported: {explain(error)}") from error
    return module


def explain(error):
    """An exception in one line, with the place in the user's file where it happened."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sys.modules]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{where}"
