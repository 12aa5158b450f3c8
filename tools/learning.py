"""docs/learning.gif: the same four prompts while the transformer learns, from the samples of a run.

    python -m tools.learning runs/toy
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageSequence

from minltx.command import Parser, one_line
from tools.count import ROOT

TITLE = 16      # pixels of height for the line above the videos


def main(folder, out=ROOT / "docs" / "learning.gif"):
    """Every second frame of all samples of stage 2, one after the other, each with its step."""
    paths, pages = sorted(Path(folder, "samples").glob("dit-*.gif")), []
    if not paths:
        raise ValueError(f"there are no samples of stage 2 in {folder}: name the folder of a run")
    last = int(paths[-1].stem.split("-")[1])
    for path in paths:
        step = int(path.stem.split("-")[1])
        with Image.open(path) as video:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
        for frame in frames[::2]:
            page = Image.new("RGB", (frame.width, frame.height + TITLE), "white")
            page.paste(frame, (0, TITLE))
            ImageDraw.Draw(page).text((8, 2), f"step {step:,} of {last:,}", "black")
            pages.append(page)
    pages[0].save(out, save_all=True, append_images=pages[1:], duration=120, loop=0)


if __name__ == "__main__":
    parser = Parser(prog="python -m tools.learning", description=__doc__)
    parser.add_argument("folder", help="of a run")
    parser.add_argument("out", nargs="?", default=ROOT / "docs" / "learning.gif")
    args = parser.parse_args()
    with one_line(parser):
        main(args.folder, args.out)
