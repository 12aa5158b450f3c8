"""Which digits does a clip show, frame by frame, and does each keep its shape, colour and direction?

    seen = read_clips(video, scenes, classifier, digit_size=22)
    rates(seen, scenes, config)                       figures of all clips together
    faults(seen, scenes, config)                      what is wrong with each clip, by name
    judge_clips(video, scenes, data, classifier)      all of it

Averages over a clip hide what a viewer sees first: a digit that turns into another one. So every frame is
read on its own, by a small classifier that may also answer "none". It is trained on rendered frames only,
never on generated ones, and reports give the same figures for real clips and for their reconstructions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from minltx import require
from minltx.command import Parser
from minltx.files import put_in_place, read_torch
from minltx.toy.data import COLOURS, DIRECTIONS, DataConfig, MovingDigits, load_digits

WINDOW = 24     # the classifier's input: a square of digit_size + 6 pixels, resampled to this many
NONE = 10       # the classifier's answer for what is not a digit
SHIPPED = Path(__file__).with_name("digits.pt")     # written by python -m minltx.evaluation.digits
TWIN = 0.9      # from this overlap on, two clips of a digit show the same drawing


# --- Finding ----------------------------------------------------------------------------------------------

def brightness(video):
    """video (B, 3, F, H, W) in [-1, 1] -> the brightest channel in [0, 1], without what is below 0.15:
    (B, F, H, W)."""
    grey = ((video + 1) / 2).clamp(0, 1).amax(dim=1)
    return torch.where(grey > 0.15, grey, torch.zeros_like(grey))


def colour_masks(video):
    """Masks (B, 6, F, H, W) of 0 and 1: for each of COLOURS, where the video is nearest to it."""
    palette = F.normalize(torch.tensor(list(COLOURS.values()), dtype=torch.float32), dim=1)
    nearest = torch.einsum("kc,bcfhw->bkfhw", palette, (video + 1) / 2).argmax(dim=1)
    return F.one_hot(nearest, len(COLOURS)).movedim(-1, 1).float()


def centres(grey):
    """grey (n, F, H, W) -> centre of brightness (n, F, 2) as (x, y) in pixels, and the mass (n, F)."""
    mass = grey.sum(dim=(2, 3))
    x = (grey.sum(dim=2) * (torch.arange(grey.shape[3]) + 0.5)).sum(-1) / mass.clamp_min(1e-6)
    y = (grey.sum(dim=3) * (torch.arange(grey.shape[2]) + 0.5)).sum(-1) / mass.clamp_min(1e-6)
    return torch.stack([x, y], dim=-1), mass


def windows(grey, centre, digit_size):
    """Cut a window around a centre: grey (n, H, W), centre (n, 2) -> (n, 1, 24, 24)."""
    height, width = grey.shape[1:]
    side, theta = digit_size + 6, torch.zeros(len(grey), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = side / width, 2 * centre[:, 0] / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = side / height, 2 * centre[:, 1] / height - 1
    grid = F.affine_grid(theta, (len(grey), 1, WINDOW, WINDOW), align_corners=False)
    return F.grid_sample(grey[:, None], grid, align_corners=False)


# --- The classifier ---------------------------------------------------------------------------------------

class DigitClassifier(nn.Module):
    """Grey windows (n, 1, 24, 24) in [0, 1] -> scores (n, 11): ten digits and NONE."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 36, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, NONE + 1))

    def forward(self, windows):
        return self.layers(windows - 0.5)


def spoil(grey, centre, labels, generator):
    """Turn frames of digits into frames that show none: grey (n, H, W), centre (n, 2), labels (n,) -> the
    same shape, and which really changed (n,).

    In turn: half of the digit, cut along a random line; a blend with the next one of another name; the halves
    of both on the two sides of that line; a large hole; strokes without shape (pieces of several digits)."""
    n, H, W = grey.shape
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]                   # (n, H, W) each
    angle = 2 * torch.pi * torch.rand(n, 1, 1, generator=generator)
    side = (dx * angle.cos() + dy * angle.sin() > 0).float()
    shift = (centre - centre.roll(-1, 0)).round().long()
    other = torch.stack([torch.roll(g, (s[1].item(), s[0].item()), (0, 1))
                         for g, s in zip(grey.roll(-1, 0), shift)])     # the next digit, at this one's centre
    hole = ((dx.abs() < 6) & (dy.abs() < 6)).float()
    mixed = torch.stack([grey * side, (grey + other) / 2, grey * side + other * (1 - side), grey * (1 - hole),
                         (grey * side).maximum(other.flip(1) * (1 - side))])
    kind = torch.arange(n) % len(mixed)
    found = mixed[kind, torch.arange(n)]
    alike = (labels == labels.roll(-1, 0)) & ((kind == 1) | (kind == 2))
    changed = (found - grey).abs().sum((1, 2)) > 0.25 * grey.sum((1, 2))
    return found, changed & ~alike


def train_classifier(data, steps=700, seed=0, batch=128):
    """A `DigitClassifier` for the digits of `data` (a MovingDigits).

    It is trained on single rendered frames, slightly blurred, dimmed and shifted, because reconstructions are
    blurred and tracks are not exact. A quarter of them is spoilt, and is to be called NONE."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = DigitClassifier().train()
        optimizer = torch.optim.AdamW(classifier.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in tqdm(range(steps), desc="digit classifier", disable=None):
            scenes = [scene[:1] for scene in data.choose(batch, generator)]
            labels = torch.tensor([scene[0].digit for scene in scenes])
            grey = brightness(data.clips(scenes, generator, still=True))[:, 0]             # (B, H, W)
            few = batch // 4
            bad, changed = spoil(grey[:few], centres(grey[:few, None])[0][:, 0], labels[:few], generator)
            grey[:few] = torch.where(changed[:, None, None], bad, grey[:few])
            labels[:few] = torch.where(changed, NONE, labels[:few])
            centre = centres(grey[:, None])[0][:, 0] + torch.randn(batch, 2, generator=generator)
            view = windows(grey, centre, data.config.digit_size)
            soft = F.avg_pool2d(view, 3, stride=1, padding=1)
            mix, gain = torch.rand(2, batch, 1, 1, 1, generator=generator)
            view = (soft.lerp(view, mix) * (0.7 + 0.3 * gain)).clamp(0, 1)
            loss = F.cross_entropy(classifier(view), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return classifier.eval()


@torch.no_grad()
def classifier_for(data, seed=0):
    """The shipped classifier if it reads the digits of `data`, of which it must get 99 % right; or one that
    is trained on them."""
    classifier, generator = DigitClassifier().eval(), torch.Generator().manual_seed(seed)
    classifier.load_state_dict({k: v.float() for k, v in read_torch(SHIPPED).items()})
    scenes = [scene[:1] for scene in data.choose(500, generator)]
    seen = read_clips(data.clips(scenes, generator, still=True), scenes, classifier, data.config.digit_size)
    if rates(seen, scenes, data.config)["digit"] >= 0.99:
        return classifier
    with torch.enable_grad():
        return train_classifier(data, seed=seed)


# --- Reading ----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Reading:
    """What B clips of K digits show in each of F frames. A digit is looked for in the colour that its caption
    names; a single one in all the light, whatever its colour."""

    scores: torch.Tensor    # log-probabilities of the digits and NONE, (B, K, F, 11)
    colour: torch.Tensor    # whether the named colour is among the K strongest, (B, K, F)
    track: torch.Tensor     # centre of brightness (x, y) in pixels, (B, K, F, 2)
    mass: torch.Tensor      # light, as pixels of full brightness, (B, K, F)
    outside: torch.Tensor   # share of it that is outside of the window, (B, K, F)
    view: torch.Tensor      # the window, (B, K, F, 24, 24)

    @property
    def label(self):
        """The digit, or NONE: (B, K, F)."""
        return self.scores.argmax(-1)


@torch.no_grad()
def read_clips(video, scenes, classifier, digit_size):
    """video (B, 3, F, H, W) in [-1, 1], and what it should show, B lists of K MovingDigits -> Reading. Raises
    ValueError for other shapes, and for another number of lists."""
    require.shape("video", video, "B", 3, "F", "H", "W")
    require.require(len(scenes) == len(video), "the number of scenes", len(scenes), f"{len(video)}, one each")
    video, names = video.cpu(), list(COLOURS)
    grey, masks, K, frames = brightness(video), colour_masks(video), len(scenes[0]), video.shape[2]
    named = torch.tensor([[names.index(x.colour) for x in scene] for scene in scenes])    # (B, K)
    strongest = (grey[:, None] * masks).sum((3, 4)).topk(K, dim=1).indices                # (B, K, F)
    colour = (strongest[:, None] == named[:, :, None, None]).any(2)                       # (B, K, F)
    own = grey[:, None] if K == 1 else grey[:, None] * masks[torch.arange(len(video))[:, None], named]
    flat = own.flatten(0, 1)                                                              # (B*K, F, H, W)
    track, mass = centres(flat)
    view = windows(flat.flatten(0, 1), track.flatten(0, 1), digit_size)                   # (B*K*F, 1, 24, 24)
    inside = view.sum((1, 2, 3)) * ((digit_size + 6) / WINDOW) ** 2
    scores = classifier(view).log_softmax(-1)
    shape = len(video), K, frames
    return Reading(scores.view(*shape, -1), colour, track.view(*shape, 2), mass.view(shape),
                   1 - inside.view(shape) / mass.view(shape).clamp_min(1e-6),
                   view.view(*shape, WINDOW, WINDOW))


def visible(seen, digit_size):
    """Whether there is light in every frame: (B, K)."""
    return seen.mass.amin(-1) >= 0.02 * digit_size**2


def velocity_of(track, seconds):
    """A straight line fitted to tracks (..., F, 2) over so many seconds -> its velocity (..., 2) in pixels
    per second, and the distance of every frame from the line (..., F)."""
    frames = track.shape[-2]
    time = torch.linspace(-0.5, 0.5, frames)[:, None]
    middle = track.mean(-2, keepdim=True)
    slope = (time * (track - middle)).sum(-2) / time.square().sum().clamp_min(1e-6)
    return slope / max(seconds, 1e-6), (track - middle - time * slope[..., None, :]).norm(dim=-1)


def read_direction(travel, least=3.0):
    """travel (2,), pixels (x, y) over the clip -> its direction, or None if that is less than `least` pixels
    in all, or not at least twice as far along one axis as along the other."""
    x, y = travel.tolist()
    if max(abs(x), abs(y)) < max(least, 2 * min(abs(x), abs(y))):
        return None
    most = max(abs(x), abs(y)) - 1e-6
    return next(name for name, (dx, dy) in DIRECTIONS.items() if dx * x + dy * y >= most)


def overlap(a, b):
    """Of two drawings (..., 24, 24): the light that they share, over the light of either; 1 = the same."""
    return torch.minimum(a, b).sum((-2, -1)) / torch.maximum(a, b).sum((-2, -1)).clamp_min(1e-6)


def jitter_of(track):
    """How far each inner frame's centre is from the middle of its neighbours': (..., F, 2) -> (..., F-2)."""
    return (track[..., 1:-1, :] - (track[..., :-2, :] + track[..., 2:, :]) / 2).norm(dim=-1)


# --- Judging ----------------------------------------------------------------------------------------------

def duration(frames, config):
    """Seconds from the first to the last frame."""
    return (frames - 1) / config.fps


def rates(seen, scenes, config):
    """Figures of all clips together; config is the data's, which says what is usual.

    Shares of clips in which, for all digits of the caption: `every_frame` shows the right digit; the clip as
    a whole does (`digit`: by the mean log-probability); every frame has the right `colour`; the `direction`
    is right; and all of these (`all`). Shares of frames: `frames` with the right digit, `illegible` ones.
    `overlap` of the first with the last frame. `speed` relative to the data's mean, and its standard
    deviation `speed_spread` in px/s; `bend` and `jitter`, the root mean square distances from a straight line
    and from the neighbours' middle, in pixels. Of diversity: `ink`, pixels of light; `start_spread`, the
    standard deviation of where digits start; `twins`, the share of pairs of one digit that are one drawing.
    """
    named = torch.tensor([[x.digit for x in scene] for scene in scenes])                  # (B, K)
    right, here = seen.label == named[:, :, None], visible(seen, config.digit_size)       # (B, K, F), (B, K)
    velocity, off = velocity_of(seen.track, duration(seen.track.shape[2], config))
    speed, usual = velocity.norm(dim=-1), sum(config.speed) / 2
    travel = velocity * duration(seen.track.shape[2], config)
    ways = torch.tensor([[read_direction(v) == x.direction for v, x in zip(clip, scene)]
                         for clip, scene in zip(travel, scenes)])
    ok = {"every_frame": right.all(-1), "digit": seen.scores.mean(2).argmax(-1) == named,
          "colour": seen.colour.all(-1), "direction": ways}
    ok = {name: (x & here).all(-1) for name, x in ok.items()}                             # (B,) each
    ok["all"] = ok["every_frame"] & ok["colour"] & ok["direction"]
    jitter = jitter_of(seen.track)
    return {**{name: x.float().mean().item() for name, x in ok.items()},
            "frames": right.float().mean().item(), "illegible": (seen.label == NONE).float().mean().item(),
            "overlap": overlap(seen.view[:, :, 0], seen.view[:, :, -1]).mean().item(),
            "speed": speed.mean().item() / usual, "speed_spread": speed.std(correction=0).item(),
            "bend": off.square().mean().sqrt().item(),
            "jitter": jitter.square().mean().sqrt().item() if jitter.numel() else 0.0,
            "ink": seen.mass.mean().item(),
            "start_spread": seen.track[:, :, 0].std(0, correction=0).mean().item(),
            "twins": twins(seen, named)}


def twins(seen, named):
    """Of all pairs of different clips that name the same digit, the share whose drawings overlap by TWIN."""
    middle = seen.view[:, :, seen.view.shape[2] // 2].flatten(0, 1)                       # (B*K, 24, 24)
    pairs = torch.combinations(torch.arange(len(middle)))
    pairs = pairs[named.flatten()[pairs[:, 0]] == named.flatten()[pairs[:, 1]]]
    if not len(pairs):
        return 0.0
    return (overlap(middle[pairs[:, 0]], middle[pairs[:, 1]]) > TWIN).float().mean().item()


def judge_clips(video, scenes, data, classifier):
    """video (B, 3, F, H, W) of the kind of `data` (a MovingDigits) -> `rates`, with the share of clips that
    have any fault (`faulty`), and the shares of each (`faults`). Raises ValueError as `read_clips` does."""
    seen = read_clips(data.digits_alone(video.cpu()), scenes, classifier, data.config.digit_size)
    found = faults(seen, scenes, data.config)
    names = sorted(set().union(*found))
    return {**rates(seen, scenes, data.config), "faulty": sum(map(bool, found)) / len(found),
            "faults": {name: sum(name in one for one in found) / len(found) for name in names}}


# What is wrong with a clip, by name: from which value on. Real clips stay far below (tests/test_digits.py).
LIMITS = {"flickers": 0.1,      # change of the light against the neighbours', as a share
          "bends": 1.0,         # pixels from a straight line
          "jumps": 0.75,        # pixels from the middle of the neighbours
          "stops": 0.5,         # a quarter of the clip is slower than the whole by more than this share
          "crowded": 0.1}       # share of the light that is outside of the digit's window


def faults(seen, scenes, config):
    """What is wrong with each clip -> B sets of names: "wrong digit" (in most frames), "morphs" (another
    digit in some), "illegible" (two frames or more), "vanishes", "wrong colour", "wrong way", "speed" (a
    tenth outside of the data's range) and those of LIMITS."""
    named = torch.tensor([[x.digit for x in scene] for scene in scenes])[:, :, None]
    velocity, off = velocity_of(seen.track, duration(seen.track.shape[2], config))
    speed, label = velocity.norm(dim=-1), seen.label
    low, high = config.speed
    wrong, none = (label != named) & (label != NONE), label == NONE
    usual = seen.mass.median(-1, keepdim=True).values.clamp_min(1e-6)
    middle = (seen.mass[..., :-2] + seen.mass[..., 2:]) / 2
    quarter = max(1, (seen.track.shape[2] - 1) // 4)
    part = (seen.track[..., quarter:, :] - seen.track[..., :-quarter, :]).norm(dim=-1)
    expected = speed[..., None] * quarter / config.fps
    found = {
        "wrong digit": wrong.float().mean(-1) > 0.5, "morphs": wrong.any(-1) & ~wrong.all(-1),
        "illegible": none.sum(-1) >= 2, "vanishes": (seen.mass < 0.3 * usual).any(-1) | (usual[..., 0] < 1),
        "wrong colour": ~seen.colour.all(-1), "speed": (speed < 0.9 * low) | (speed > 1.1 * high),
        "flickers": ((seen.mass[..., 1:-1] - middle).abs() / usual).amax(-1) > LIMITS["flickers"],
        "bends": off.amax(-1) > LIMITS["bends"], "jumps": jitter_of(seen.track).amax(-1) > LIMITS["jumps"],
        "stops": (part < (1 - LIMITS["stops"]) * expected).any(-1),
        "crowded": seen.outside.amax(-1) > LIMITS["crowded"]}
    travel = velocity * duration(seen.track.shape[2], config)
    found["wrong way"] = torch.tensor([[read_direction(v) != x.direction for v, x in zip(clip, scene)]
                                       for clip, scene in zip(travel, scenes)])
    return [{name for name, x in found.items() if x[b].any()} for b in range(len(scenes))]


if __name__ == "__main__":
    Parser(prog="python -m minltx.evaluation.digits", description="Train the classifier.").parse_args()
    drawn = MovingDigits(*load_digits("drawn", 0)[0], DataConfig())
    weights = train_classifier(drawn, steps=2000).state_dict()
    put_in_place(SHIPPED, lambda part: torch.save({k: v.half() for k, v in weights.items()}, part))
