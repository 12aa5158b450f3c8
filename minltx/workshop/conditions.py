"""Do keyframes, extension, strength and video-to-video do what they promise? Measured on moving digits.

    python -m minltx.workshop.conditions --out docs/results/conditions.json

The rows of given frames compare with the same captions and seeds without them. Digits move in straight lines:
two given frames settle all others, a single one and the caption leave only the speed open.
"""

import argparse
import json
import sys
from dataclasses import replace

import torch

from minltx.data import COLOURS, MovingDigits, caption, draw_digits
from minltx.workshop import metrics, pictures
from minltx.workshop.checkpoint import SHIPPED, load_checkpoint

HALF = 8        # the frame where a clip of 17 is cut: the first or the last nine are given


def centre(video):
    """video (B, 3, F, H, W) -> the digit's centre in every frame, (B, F, 2) pixels."""
    return metrics.centres(metrics.brightness(video))[0]


def off(video, clips, frames):
    """Mean distance in pixels between the digit's place in `video` and in `clips`, over some frames."""
    return (centre(video) - centre(clips))[:, frames].norm(dim=-1).mean().item()


@torch.no_grad()
def measure(model, clips, scenes, seeds, classifier):
    """-> rows of figures by name, and videos to look at. clips (B, 3, 17, H, W) show the scenes."""
    c = model.config.data
    captions, last = [caption(s) for s in scenes], c.frames - 1

    def generate(conditions=(), **more):
        parts = []
        for i in range(0, len(clips), 50):
            part = slice(i, i + 50)
            given = [(video[part], *where) for video, *where in conditions]
            own = {k: v[part] if k in ("start", "captions") else v for k, v in more.items()}
            asked = own.pop("captions", captions[part])
            parts.append(model.generate(asked, seeds[part], conditions=given, **own))
        return torch.cat(parts)

    def read(video, asked=scenes):
        return metrics.adherence(metrics.read_clips(video, c.digits, classifier, c.digit_size), asked)

    def quality(video, frames):
        return metrics.psnr(video[:, :, frames], clips[:, :, frames]).mean().item()

    free, shown = generate(), {"the clip": clips}
    coded = model.vae.decode(model.vae.encode(clips)[0], torch.zeros(len(clips))).clamp(-1, 1)
    rows = {"reconstruction_psnr": quality(coded, slice(None))}
    for name, given, judged in (                       # which frames are given, and which judged elsewhere
            ("first frame", slice(0, 1), slice(last, None)),
            ("keyframe at the end", slice(last, None), slice(0, 1)),
            ("keyframe in the middle", slice(HALF, HALF + 1), slice(0, 1)),
            ("extension forwards", slice(0, HALF + 1), slice(HALF + 1, None)),
            ("extension backwards", slice(HALF, None), slice(0, HALF))):
        video = shown[name] = generate([(clips[:, :, given], given.start, 1.0)])
        rows[name] = {**read(video), "given_psnr": quality(video, given)}
        for label, frames in (("given_off", given), ("rest_off", judged)):
            rows[name][label] = off(video, clips, frames)
            rows[name][f"{label}_without"] = off(free, clips, frames)
    rows["strength"] = {}
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        video = generate([(clips[:, :, :1], 0, strength)])
        rows["strength"][strength] = {**read(video), "given_psnr": quality(video, slice(0, 1)),
                                      "given_off": off(video, clips, slice(0, 1))}
    names = list(COLOURS)
    recoloured = [[replace(s[0], colour=names[(names.index(s[0].colour) + 1) % len(names)])] for s in scenes]
    rows["video_to_video"] = {}
    for change in (0.3, 0.5, 0.7, 0.9, 1.0):
        video = generate(start=clips, change=change, captions=[caption(s) for s in recoloured])
        rows["video_to_video"][change] = {**read(video, recoloured), "off": off(video, clips, slice(None))}
        if change == 0.9:
            shown["another colour, change 0.9"] = video
    return rows, shown


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--checkpoint", default=str(SHIPPED), help="(default: the shipped toy)")
    add("--clips", type=int, default=100, help="held-out clips (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--out", default="conditions.json", help="figures, and a sheet of examples (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        model, stored = load_checkpoint(args.checkpoint)
    except ValueError as error:
        print(f"conditions: {error}", file=sys.stderr)
        return 2
    if (model.config.data.digits, model.config.data.frames) != (1, 17):
        print("conditions: the measurements need a model of one digit and 17 frames", file=sys.stderr)
        return 2
    torch.manual_seed(args.seed)
    held_out = MovingDigits(*draw_digits(1000, seed=2 * args.seed + 1), model.config.data)
    generator = torch.Generator().manual_seed(args.seed)
    scenes = held_out.choose(args.clips, generator, held_out=True)
    clips = held_out.clips(scenes, generator)
    training = MovingDigits(*draw_digits(6000, seed=2 * args.seed), model.config.data)
    classifier = metrics.train_classifier(training, seed=args.seed)
    rows, shown = measure(model, clips, scenes, [2_000_000 + i for i in range(args.clips)], classifier)
    report = {"command": stored.get("command"), "clips": args.clips, "seed": args.seed, "rows": rows}
    pictures.put_in_place(args.out, lambda part: part.write_text(json.dumps(report, indent=1)))
    sheet, labels = torch.cat([video[:2] for video in shown.values()]), [n for n in shown for _ in range(2)]
    pictures.save_video(args.out.removesuffix(".json") + ".png", sheet, labels)
    print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
