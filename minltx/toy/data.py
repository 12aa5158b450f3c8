"""Moving digits with captions: videos that cost nothing and whose right answer is known.

A clip shows one or two coloured digits that drift in a straight line over black, and its caption says so:
"a red 7 moving left", "a red 7 moving left and a blue 3 moving up". Two digits never cover each other. They
are named from the upper left to the lower right (by x + y, as the clip begins), so a place in the frame tells
which of them is meant. A still image is a clip of one frame with the caption "a red 7". Everything follows
from a seed. The digits are drawn from the fonts that come with matplotlib, bent a little differently each
time; real ones are in `minltx.toy.mnist`.

One combination of digit, colour and direction in six is never shown in training, so that a prompt can ask
for something new.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from minltx import require

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1),
           "yellow": (1, 1, 0), "cyan": (0, 1, 1), "magenta": (1, 0, 1)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y grows downwards
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique",
         "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmss10",
         "cmtt10", "cmb10")


@dataclass(frozen=True)
class DataConfig:
    """What a clip looks like. Sizes in pixels, speeds in pixels per second, `digits`: how many in a clip, of
    different colours. Raises ValueError for values that no clip can have."""

    frames: int = 17
    size: int = 32
    digit_size: int = 22
    digits: int = 1
    fps: float = 16.0
    speed: tuple = (5.0, 9.0)

    def __post_init__(self):
        require.whole("frames", self.frames, 1, 10**6)
        require.row("size", self.clip_shape[1:], 2, require.whole, 1, 10**5)
        require.whole("digits", self.digits, 0, len(COLOURS))
        require.whole("digit_size", self.digit_size, 0, min(self.clip_shape[1:]))
        require.number("fps", self.fps, 0.001, 1000)
        require.row("speed", self.speed, 2, require.number, 0, 1e6)

    @property
    def clip_shape(self):
        """(frames, height, width) of a clip; `size` is one number or (height, width)."""
        return self.frames, *(self.size if isinstance(self.size, tuple) else (self.size, self.size))


@dataclass(frozen=True)
class MovingDigit:
    """One moving digit, as a caption describes it."""

    digit: int
    colour: str
    direction: str

    @property
    def held_out(self):
        """True for the one combination in six that training never shows; every word of it is shown often."""
        index = self.digit + list(COLOURS).index(self.colour) + list(DIRECTIONS).index(self.direction)
        return index % 6 == 0


ALL_DIGITS = [MovingDigit(d, c, m) for d in range(10) for c in COLOURS for m in DIRECTIONS]


def caption(things, still=False):
    """MovingDigits -> "a red 7 moving left and a blue 3 moving up"; for a still, "a red 7 and a blue 3"."""
    return " and ".join(f"a {x.colour} {x.digit}" + ("" if still else f" moving {x.direction}")
                        for x in things)


def draw_digits(count, seed):
    """Font digits with random slant, turn, size and stroke -> (count, 28, 28) in [0, 1], labels (count,)."""
    import matplotlib    # for its fonts; Pillow comes with it
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 40)
        for stroke in (0, 1):
            for digit in range(10):
                image = Image.new("L", (64, 64))
                ImageDraw.Draw(image).text((32, 32), str(digit), 255, font, anchor="mm", stroke_width=stroke)
                glyphs.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(64, 64))
    glyphs = torch.stack(glyphs).float() / 255
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(glyphs), (count,), generator=generator)
    turn, slant, wide, high = (torch.rand(4, count, generator=generator) * 2 - 1) * torch.tensor(
        [[0.2], [0.25], [0.2], [0.1]])                                                   # each (count,)
    theta = torch.stack([turn.cos() * (1 + wide), slant - turn.sin(), torch.zeros(count),
                         turn.sin(), turn.cos() * (1 + high), torch.zeros(count)], dim=1).reshape(count, 2, 3)
    grid = F.affine_grid(theta, (count, 1, 56, 56), align_corners=False)
    images = F.grid_sample(glyphs[pick, None], grid, align_corners=False)                 # (count, 1, 56, 56)
    return F.avg_pool2d(images, 2)[:, 0], pick % 10


def fit_digits(images, digit_size):
    """Cut digits out, scale the longer side to digit_size: (n, h, w) -> (n, 1, S, S), S = digit_size + 2."""
    ink = images > 0.2
    boxes = []
    for axis, length in ((1, images.shape[2]), (2, images.shape[1])):
        line = ink.any(dim=axis).float()                                                  # (n, length)
        boxes.append((line.argmax(1), length - line.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = boxes
    side = torch.maximum(x1 - x0, y1 - y0) / digit_size * (digit_size + 2)              # pixels of the source
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = side / images.shape[2], (x0 + x1) / images.shape[2] - 1
    theta[:, 1, 1], theta[:, 1, 2] = side / images.shape[1], (y0 + y1) / images.shape[1] - 1
    grid = F.affine_grid(theta, (len(images), 1, 2 * digit_size + 4, 2 * digit_size + 4), align_corners=False)
    sprites = F.avg_pool2d(F.grid_sample(images[:, None], grid, align_corners=False), 2)  # (n, 1, S, S)
    # A lens: without this slight blur the bilinear shifts of `render` would flicker between sharp and soft.
    lens = torch.tensor([1.0, 2.0, 1.0])
    return F.conv2d(sprites, (lens[:, None] * lens / 16)[None, None], padding=1)          # (n, 1, S, S)


def render(sprites, colours, centres, size):
    """Paint digits on black. The brighter one wins where two overlap.

    sprites (B, K, S, S) in [0, 1], colours (B, K, 3), centres (B, K, F, 2) as (x, y) in pixels from the top
    left corner -> video (B, 3, F, size, size) in [-1, 1].
    """
    B, K, frames, _ = centres.shape
    S = sprites.shape[-1]
    theta = torch.zeros(B * K * frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size / S
    theta[:, :, 2] = ((size - 2 * centres) / S).reshape(-1, 2)
    grid = F.affine_grid(theta, (B * K * frames, 1, size, size), align_corners=False)
    sprites = sprites.reshape(B * K, 1, S, S).repeat_interleave(frames, 0)
    grey = F.grid_sample(sprites, grid, align_corners=False)
    grey = grey.reshape(B, K, 1, frames, size, size)
    brightest = grey.max(dim=1, keepdim=True).indices.expand(-1, -1, 3, -1, -1, -1)       # (B, 1, 3, F, H, W)
    return (grey * colours[..., None, None, None]).gather(1, brightest)[:, 0] * 2 - 1     # (B, 3, F, H, W)


class MovingDigits:
    """An endless, seeded set of clips over one bank of digits.

    images (n, h, w) in [0, 1] and labels (n,) come from `draw_digits` or from `minltx.toy.mnist`. `on_black`
    has the same digits on black, from which a classifier learns: here it is this set itself. Raises
    ValueError if one of the ten digits has no image, or if digits move further than the frame has room.
    """

    def __init__(self, images, labels, config):
        room = config.size - config.digit_size
        self.distance = [s * (config.frames - 1) / config.fps for s in config.speed]    # pixels over the clip
        if self.distance[1] > room:
            raise ValueError(f"a digit that moves {self.distance[1]:.0f} pixels leaves a frame with {room} "
                             "pixels of room: use a lower speed, fewer frames or a larger size")
        self.config, self.on_black = config, self
        self.sprites = fit_digits(images, config.digit_size)[:, 0]                        # (n, S, S)
        self.of_label = [torch.nonzero(labels == d)[:, 0] for d in range(10)]
        absent = [d for d, rows in enumerate(self.of_label) if len(rows) == 0]
        if absent:
            raise ValueError(f"there is no picture of {', '.join(map(str, absent))} among these digits: "
                             "use a set with all ten")

    def like(self, images, labels, config):
        """The same kind of clips, of other digits or in another shape."""
        return MovingDigits(images, labels, config)

    @staticmethod
    def digits_alone(video):
        """What the judge reads of a video (B, 3, F, H, W): here all of it."""
        return video

    def choose(self, count, generator, held_out=False):
        """The scenes of `count` clips: lists of moving digits, of different colours within one clip."""
        pool = [x for x in ALL_DIGITS if x.held_out == held_out]
        scenes = []
        while len(scenes) < count:
            picks = torch.randint(len(pool), (self.config.digits,), generator=generator)
            scene = [pool[i] for i in picks]
            if len({x.colour for x in scene}) == len(scene):
                scenes.append(scene)
        return scenes

    def clips(self, scenes, generator, still=False):
        """Scenes -> video (B, 3, F, H, W) in [-1, 1], with random digits of those names, places and speeds.
        With `still`, their first frames only."""
        c, shape = self.config, (len(scenes), len(scenes[0]))
        sprites = torch.stack([torch.stack([self.sprites[self.of_label[x.digit][
            torch.randint(len(self.of_label[x.digit]), (1,), generator=generator)]][0] for x in scene])
            for scene in scenes])                                                         # (B, K, S, S)
        colours = torch.tensor([[COLOURS[x.colour] for x in scene] for scene in scenes]).float()
        heading = torch.tensor([[DIRECTIONS[x.direction] for x in scene] for scene in scenes]).float()
        low, high = self.distance
        travel = heading * (low + (high - low) * torch.rand(*shape, 1, generator=generator))  # (B, K, 2)
        centres = self.place(travel, generator)[:, :, : 1 if still else c.frames]         # (B, K, F, 2)
        return render(sprites, colours, centres, c.size)

    def place(self, travel, generator):
        """Where digits are in every frame: travel (B, K, 2), pixels over the clip -> centres (B, K, F, 2).

        Inside the frame, by increasing x + y in the first one, and apart: a clip in which the squares around
        two digits overlap in any frame gets new places. Raises ValueError if there seems to be no room."""
        c = self.config
        room = c.size - c.digit_size - travel.abs()                                       # (B, K, 2)
        path = travel[:, :, None] * torch.linspace(0, 1, c.frames)[:, None]               # (B, K, F, 2)
        start, bad = torch.empty_like(travel), torch.ones(len(travel), dtype=torch.bool)
        for _ in range(1000):
            places = torch.rand(*travel[bad].shape, generator=generator)                  # (bad, K, 2)
            order = places.sum(-1, keepdim=True).argsort(dim=1)                           # (bad, K, 1)
            places = places.gather(1, order.expand_as(places))      # so that most pass the last test below
            start[bad] = c.digit_size / 2 + room[bad] * places - travel[bad].clamp(max=0)
            centres = start[:, :, None] + path
            gaps = (centres[:, :, None] - centres[:, None]).abs().amax(-1).amin(-1)       # (B, K, K)
            bad = (gaps < c.digit_size + 3).triu(1).any((1, 2)) | (start.sum(-1).diff(dim=1) < 0).any(1)
            if not bad.any():
                return centres
        raise ValueError(f"{travel.shape[1]} digits of {c.digit_size} pixels do not find room in a frame of "
                         f"{c.size}: use fewer or smaller ones, a lower speed or a larger size")

    def batch(self, count, generator, held_out=False):
        """`count` fresh clips -> (video (B, 3, F, H, W), scenes); the generator decides what they show."""
        scenes = self.choose(count, generator, held_out)
        return self.clips(scenes, generator), scenes


VAE_STAGE, LATENTS, DIT_STAGE, EVALUATION = range(4)    # who draws random numbers


def rng(seed, stage, step):
    """The random numbers of one step of one stage, and of nothing else: a stopped run resumes exactly."""
    return torch.Generator().manual_seed((seed * 8 + stage) * 2**26 + step)


def load_digits(source, seed):
    """"drawn", "mnist" (downloaded) or a folder of IDX files -> (images, labels), (held-out ones)."""
    from minltx.toy import mnist

    if source == "drawn":
        return draw_digits(6000, seed=2 * seed), draw_digits(1000, seed=2 * seed + 1)
    return mnist.read_folder(mnist.download() if source == "mnist" else source)


def describe(scene, still=False):
    """The caption of a scene: digits get one for stills and one for clips, a clip of a folder has its own."""
    return scene if isinstance(scene, str) else caption(scene, still)
