"""Do keyframes, extension, strength and video-to-video work? Measured on moving digits.

    python -m minltx.evaluation.conditions --out docs/results/conditions.json

Each row with given frames is compared with the same captions and seeds without them. Digits move in straight
lines: two given frames determine all others; after a single one and the caption only the speed is open.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minltx.command import SEED, Parser, new_file, one_line, whole
from minltx.evaluation.digits import brightness, centres, classifier_for, judge_clips
from minltx.evaluation.metrics import psnr
from minltx.evaluation.report import reconstruct
from minltx.files import put_in_place
from minltx.toy import load_toy
from minltx.toy.data import COLOURS, MovingDigits, describe, load_digits
from minltx.toy.model import SHIPPED, ToyModel, read_checkpoint
from minltx.video.files import save_video

HALF, LAST = 8, 16    # a clip of 17 frames is cut at frame 8: the first or the last nine are given
GIVEN = {             # name: the frames that are given, the frames that are judged elsewhere
    "first frame": (slice(0, 1), slice(LAST, None)),
    "keyframe at the end": (slice(LAST, None), slice(0, 1)),
    "keyframe in the middle": (slice(HALF, HALF + 1), slice(0, 1)),
    "extension forwards": (slice(0, HALF + 1), slice(HALF + 1, None)),
    "extension backwards": (slice(HALF, None), slice(0, HALF))}


def distance(video, clips, frames):
    """Mean distance in pixels between the digits of two videos (B, 3, F, H, W), over some frames."""
    a, b = (centres(brightness(x))[0] for x in (video, clips))                            # (B, F, 2) each
    return (a - b)[:, frames].norm(dim=-1).mean().item()


def next_colour(scene):
    """The same scene in the next of COLOURS."""
    names = list(COLOURS)
    return [replace(x, colour=names[(names.index(x.colour) + 1) % len(names)]) for x in scene]


@dataclass
class Experiment:
    """A model, and held-out clips (B, 3, 17, H, W) of scenes, which it completes from parts of them; and the
    data and the classifier that judge the result."""

    model: ToyModel
    data: MovingDigits
    classifier: torch.nn.Module
    clips: torch.Tensor
    scenes: list

    def generate(self, given=None, strength=1.0, scenes=None, **how):
        """Sample every scene, in batches of 50, with some frames of its clip given (a slice) -> videos.
        how: `start`, a video to change, and other arguments of `ToyModel.generate`."""
        captions, start, parts = [describe(s) for s in scenes or self.scenes], how.pop("start", None), []
        for i in range(0, len(self.clips), 50):
            part = slice(i, i + 50)
            seeds = [2_000_000 + i for i in range(len(self.clips))][part]
            conditions = [(self.clips[part, :, given], given.start, strength)] if given else ()
            parts.append(self.model.generate(captions[part], seeds, conditions=conditions,
                                             start=None if start is None else start[part], **how))
        return torch.cat(parts)

    def accuracy(self, video, scenes=None):
        return judge_clips(video, scenes or self.scenes, self.data, self.classifier)

    def psnr(self, video, frames):
        return psnr(video[:, :, frames], self.clips[:, :, frames]).mean().item()


def measure_given(experiment):
    """Keyframes and extension -> rows of figures by name, videos by name."""
    rows, videos, clips = {}, {}, experiment.clips
    free = experiment.generate()
    for name, (given, elsewhere) in GIVEN.items():
        video = videos[name] = experiment.generate(given)
        rows[name] = {**experiment.accuracy(video), "given_psnr": experiment.psnr(video, given)}
        for label, frames in (("given_off", given), ("rest_off", elsewhere)):
            rows[name][label] = distance(video, clips, frames)
            rows[name][f"{label}_without"] = distance(free, clips, frames)
    return rows, videos


def measure_strength(experiment):
    """A first frame of growing strength -> {strength: figures}."""
    rows, first = {}, slice(0, 1)
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        video = experiment.generate(first, strength)
        rows[strength] = {**experiment.accuracy(video), "given_psnr": experiment.psnr(video, first),
                          "given_off": distance(video, experiment.clips, first)}
    return rows


def measure_change(experiment):
    """Video-to-video: noise up to t = change, and the caption names the next colour -> {change: figures},
    and the videos at 0.9."""
    rows, scenes = {}, [next_colour(scene) for scene in experiment.scenes]
    for change in (0.3, 0.5, 0.7, 0.9, 1.0):
        video = experiment.generate(scenes=scenes, start=experiment.clips, change=change)
        rows[change] = {**experiment.accuracy(video, scenes),
                        "off": distance(video, experiment.clips, slice(None))}
        if change == 0.9:
            shown = video
    return rows, shown


def measure(experiment):
    """-> all rows of figures by name, and videos by name."""
    clips = experiment.clips
    rows = {"reconstruction_psnr": psnr(reconstruct(experiment.model.vae, clips), clips).mean().item()}
    given, videos = measure_given(experiment)
    rows |= given | {"strength": measure_strength(experiment)}
    rows["video_to_video"], changed = measure_change(experiment)
    return rows, {"the clip": clips, **videos, "another colour, change 0.9": changed}


def set_up(checkpoint, count, seed):
    """The model of a checkpoint with `count` held-out clips. Raises ValueError for a model of other clips,
    and if the file is missing or damaged."""
    model = load_toy(checkpoint)
    if (model.config.data.digits, model.config.data.frames) != (1, 17):
        raise ValueError("the measurements need a model of one digit and 17 frames")
    torch.manual_seed(seed)
    training, held_out = (MovingDigits(*digits, model.config.data) for digits in load_digits("drawn", seed))
    generator = torch.Generator().manual_seed(seed)
    scenes = held_out.choose(count, generator, held_out=True)
    clips = held_out.clips(scenes, generator)
    return Experiment(model, held_out, classifier_for(training, seed), clips, scenes)


def options():
    parser = Parser(prog="python -m minltx.evaluation.conditions", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", default=str(SHIPPED), help="(default: the shipped toy)")
    add("--clips", type=whole(2, 10_000), default=100, help="held-out clips (default: %(default)s)")
    add("--seed", type=SEED, default=0)
    add("--out", type=new_file(".json"), default="conditions.json",
        help="figures; examples go to a .png (default: %(default)s)")
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser):
        compare(args)
    return 0


def compare(args):
    """Measure, print and write. Raises ValueError if the picture's name is taken by a folder."""
    picture = Path(args.out).with_suffix(".png")
    if picture.is_dir():
        raise ValueError(f"the examples go to {picture}, which is a folder: name another file with --out")
    experiment = set_up(args.checkpoint, args.clips, args.seed)
    rows, videos = measure(experiment)
    command = read_checkpoint(args.checkpoint).get("command")
    report = {"command": command, "clips": args.clips, "seed": args.seed, "rows": rows}
    put_in_place(args.out, lambda part: part.write_text(json.dumps(report, indent=1)))
    sheet, labels = torch.cat([video[:2] for video in videos.values()]), [n for n in videos for _ in range(2)]
    save_video(picture, sheet, labels)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
