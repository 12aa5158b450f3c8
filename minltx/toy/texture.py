"""A second world: the same digits, drifting over a moving grey photograph.

Flat digits on black have no fine detail, so they cannot show whether a loss or a discriminator adds any. Here
every clip has texture and a camera that pans, and keeps its caption. The photograph is grey and the six
colours are pure, so the digits can be taken out again exactly: see `TexturedDigits.digits_alone`. A judge
that reads digits on black reads these.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from minltx.toy.data import MovingDigits

PAN = 8.0                       # the camera's highest speed, in pixels per second
BRIGHTEST = 0.7                 # of the photographs, so that all six colours stand out
HELD_OUT = 0.3                  # the lowest part of every photograph, which only held-out clips show
LEAST = 32                      # pixels on each side of a photograph
PICTURES = (".png", ".jpg", ".jpeg")


# --- Photographs ------------------------------------------------------------------------------------------

def sample_pictures():
    """The pictures among matplotlib's sample data -> arrays (h, w): a portrait photograph, a scan of a head,
    the heights of a mountain range."""
    from matplotlib import get_data_path
    from PIL import Image

    folder = Path(get_data_path()) / "sample_data"
    with Image.open(folder / "grace_hopper.jpg") as portrait:
        pictures = [np.asarray(portrait.convert("L"))]
    with gzip.open(folder / "s1045.ima.gz") as scan:
        pictures.append(np.frombuffer(scan.read(), np.uint16).reshape(256, 256))
    with np.load(folder / "jacksboro_fault_dem.npz") as relief:
        pictures.append(relief["elevation"])
    return pictures


def folder_pictures(folder):
    """The photographs of a folder -> arrays (h, w). Raises ValueError if it holds none that can be read."""
    from PIL import Image

    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}: name one with photographs")
    pictures = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in PICTURES:
            try:
                with Image.open(path) as picture:
                    pictures.append(np.asarray(picture.convert("L")))
                if min(pictures[-1].shape) < LEAST:
                    raise ValueError(f"it is smaller than {LEAST}x{LEAST} pixels")
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{path} cannot be read as a picture ({error}): "
                                 "replace or remove it") from None
    if not pictures:
        raise ValueError(f"there is no photograph in {folder}: add {', '.join(PICTURES)}")
    return pictures


def load_photographs(folder=None):
    """A folder's photographs, or without one matplotlib's -> two lists of tensors (h, w) from 0 to BRIGHTEST:
    for training and held out. Every picture is cut in two: no held-out clip shows what a training clip
    shows. Raises ValueError as `folder_pictures` does."""
    training, held_out = [], []
    for picture in folder_pictures(folder) if folder else sample_pictures():
        grey = torch.from_numpy(picture.astype(np.float32))
        low, high = (np.quantile(picture, share).item() for share in (0.01, 0.99))
        grey = BRIGHTEST * ((grey - low) / max(high - low, 1e-6)).clamp(0, 1)             # (h, w)
        cut = round(len(grey) * (1 - HELD_OUT))
        training.append(grey[:cut])
        held_out.append(grey[cut:])
    return training, held_out


def shrink(picture, side):
    """(h, w) -> the same picture whose shorter side has `side` pixels, averaged over areas, then slightly
    blurred as digits are (see `data.fit_digits`), so that panning does not make it flicker."""
    factor = side / min(picture.shape)
    size = [max(side, round(length * factor)) for length in picture.shape]
    small = F.interpolate(picture[None, None], size, mode="area" if factor < 1 else "bilinear")
    lens = torch.tensor([1.0, 2.0, 1.0])
    padded = F.pad(small, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (lens[:, None] * lens / 16)[None, None])[0, 0]                # (h', w')


# --- Clips ------------------------------------------------------------------------------------------------

class TexturedDigits(MovingDigits):
    """`MovingDigits` over moving photographs, a list of tensors (h, w) in [0, 1].

    The digits of a batch are those that MovingDigits would draw with the same generator.
    """

    def __init__(self, images, labels, config, photographs):
        super().__init__(images, labels, config)
        pan = PAN * (config.frames - 1) / config.fps
        self.photographs, self.on_black = photographs, MovingDigits(images, labels, config)
        # Each picture from far and from near: its shorter side is seen whole, or a part of it.
        self.scenery = [shrink(picture, round(config.size + pan) + more) for picture in photographs
                        for more in (2, config.size)]

    def like(self, images, labels, config):
        return TexturedDigits(images, labels, config, self.photographs)

    @staticmethod
    def digits_alone(video):
        """(B, 3, F, H, W) in [-1, 1] -> the same with what is grey made black: what remains is the digits."""
        light = (video + 1) / 2
        return (light - light.amin(dim=1, keepdim=True)) * 2 - 1

    def clips(self, scenes, generator, still=False):
        video = super().clips(scenes, generator, still)                                   # (B, 3, F, H, W)
        light = (video + 1) / 2
        cover = light.amax(dim=1, keepdim=True)                                           # (B, 1, F, H, W)
        ground = self.grounds(len(scenes), video.shape[2], generator)[:, None]            # (B, 1, F, H, W)
        return (light + (1 - cover) * ground) * 2 - 1

    def grounds(self, count, frames, generator):
        """`count` panned crops of the photographs -> (count, F, H, W) in [0, 1]."""
        c, grounds = self.config, []
        seconds = torch.linspace(0, (c.frames - 1) / c.fps, c.frames)[:frames, None]
        for pick in torch.randint(len(self.scenery), (count,), generator=generator):
            picture = self.scenery[pick]
            angle, speed, *where = torch.rand(4, generator=generator)
            heading = torch.stack([(angle * 2 * torch.pi).cos(), (angle * 2 * torch.pi).sin()])
            way = heading * speed * PAN * seconds                                         # (F, 2), x and y
            low = -way.amin(dim=0)
            room = torch.tensor([picture.shape[1], picture.shape[0]]) - c.size - low - way.amax(dim=0)
            corner = low + torch.stack(where) * room + way                                # (F, 2)
            grounds.append(crops(picture, corner, c.size))
        return torch.stack(grounds)


def crops(picture, corners, size):
    """Squares of a picture (h, w) whose top left corners (F, 2) are x and y in pixels -> (F, size, size)."""
    sides = torch.tensor([picture.shape[1], picture.shape[0]])
    theta = torch.zeros(len(corners), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size / sides
    theta[:, :, 2] = (2 * corners + size) / sides - 1
    grid = F.affine_grid(theta, (len(corners), 1, size, size), align_corners=False)
    return F.grid_sample(picture.expand(len(corners), 1, -1, -1), grid, align_corners=False)[:, 0]


def clips_named(digits, world, photos=None):
    """In words, from which digits and over what a run's clips are made: a resumed run must have the same."""
    return digits if world == "black" else f"{digits} on {photos or 'photographs'}"


def make_world(world, photos, digits, other_digits, config):
    """"black" or "texture" (over photographs, of the folder `photos` or matplotlib's) -> the clips of the
    digits (images, labels), those of other digits. Raises ValueError for a folder without photographs."""
    if world == "black":
        if photos:
            raise ValueError("--photos is for --world texture: add it, or leave out --photos")
        return MovingDigits(*digits, config), MovingDigits(*other_digits, config)
    training, held_out = load_photographs(photos)
    return TexturedDigits(*digits, config, training), TexturedDigits(*other_digits, config, held_out)
