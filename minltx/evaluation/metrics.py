"""Does the video show what its caption says, and does a reconstruction look and move like its original?

`read_clips` finds the digits of a clip by colour, tracks their centre of brightness, and a small classifier
says which digit each is. The classifier is trained on rendered clips only, never on generated ones; reports
give its accuracy on held-out digits next to the figures that depend on it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minltx.losses import feature_distance, haar_dwt
from minltx.toy.data import COLOURS, DIRECTIONS, MovingDigit

WINDOW = 24  # the classifier's input: a square of digit_size + 6 pixels, resampled to this many
UNKNOWN = MovingDigit(None, None, None)


def psnr(video, reference):
    """Peak signal-to-noise ratio in dB of every frame, (B, F); both (B, 3, F, H, W) in [-1, 1]."""
    error = (video - reference).square().mean(dim=(1, 3, 4))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def motion_ratio(video, reference):
    """Energy of frame differences over the reference's: 1 = moves as much, 0 = frozen.
    (B, 3, F, H, W) each."""
    energy = [(x[:, :, 1:] - x[:, :, :-1]).square().mean() for x in (video, reference)]
    return (energy[0] / energy[1]).item()


def detail_ratio(video, reference):
    """Energy of the seven high wavelet bands over the reference's: 1 = as much fine detail, 0 = smooth."""
    energy = [haar_dwt(x).unflatten(1, (3, 8))[:, :, 1:].square().mean() for x in (video, reference)]
    return (energy[0] / energy[1]).item()


class DigitClassifier(nn.Module):
    """Grey windows (n, 1, 24, 24) in [0, 1] -> scores (n, 10)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64 * 36, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))

    def forward(self, windows):
        return self.layers(windows - 0.5)


def digit_distance(classifier):
    """The toy's perceptual loss: (output, video) -> scalar; (B, 3, F, H, W) in [-1, 1] each.

    It compares the features of the frozen classifier's two convolutions in the brightest channel."""
    classifier.requires_grad_(False).eval()

    def features(video):
        x = video.amax(dim=1).flatten(0, 1)[:, None] / 2                                # (B*F, 1, H, W)
        fine = classifier.layers[:2](x)
        return [fine, classifier.layers[2:5](fine)]

    return lambda output, video: feature_distance(features, output, video)


def lpips_distance(device):
    """LPIPS (VGG) for real video: (output, video) -> its mean over all frames. Raises ValueError if the
    optional package is not installed."""
    try:
        from lpips import LPIPS
    except ImportError:
        raise ValueError("the perceptual loss lpips needs two packages: pip install lpips torchvision, "
                         "or use digits") from None
    network = LPIPS(net="vgg").to(device).requires_grad_(False).eval()
    return lambda output, video: network(output.movedim(1, 2).flatten(0, 1),
                                         video.movedim(1, 2).flatten(0, 1)).mean()


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


def read_direction(track, least):
    """track (F, 2) -> the direction of a straight line fitted to it, or None if that moves less than `least`
    pixels in all, or not at least twice as far along one axis as along the other."""
    time = torch.linspace(-0.5, 0.5, len(track))[:, None]
    x, y = ((time * track).sum(0) / time.square().sum()).tolist() if len(track) > 1 else (0.0, 0.0)
    if max(abs(x), abs(y)) < max(least, 2 * min(abs(x), abs(y))):
        return None
    most = max(abs(x), abs(y)) - 1e-6
    return next(name for name, (dx, dy) in DIRECTIONS.items() if dx * x + dy * y >= most)


@torch.no_grad()
def read_clips(video, digits, classifier, digit_size):
    """The digits that a video shows: (B, 3, F, H, W) -> B lists of `digits` MovingDigits.

    The digit is the classifier's mean log-probability over the frames; the colour that of most of the light.
    A digit that is absent in any frame is `UNKNOWN`; a direction that is not clear is None.
    """
    grey, masks = brightness(video), colour_masks(video)
    B, frames = grey.shape[:2]
    ranked = (grey[:, None] * masks).sum(dim=(2, 3, 4)).topk(digits).indices           # (B, digits), by light
    found = [[] for _ in range(B)]
    for colour in ranked.T:
        own = grey if digits == 1 else grey * masks[torch.arange(B), colour]              # (B, F, H, W)
        track, mass = centres(own)
        scores = classifier(windows(own.flatten(0, 1), track.flatten(0, 1), digit_size)).log_softmax(-1)
        digit = scores.unflatten(0, (B, frames)).mean(1).argmax(-1)                       # (B,)
        for b in range(B):
            visible = mass[b].min() >= 0.02 * digit_size**2
            seen = (digit[b].item(), list(COLOURS)[colour[b]], read_direction(track[b], 3.0))
            found[b].append(MovingDigit(*seen) if visible else UNKNOWN)
    return found


def adherence(found, scenes):
    """Shares of clips in which all digits, all colours, all directions, and all three, match the caption.

    With several digits in a clip, each is compared with the one of its colour.
    """
    right = {"digit": 0, "colour": 0, "direction": 0, "all": 0}
    for seen, scene in zip(found, scenes, strict=True):
        if len(scene) == 1:
            pairs = list(zip(scene, seen, strict=True))
        else:
            pairs = [(x, next((y for y in seen if y.colour == x.colour), UNKNOWN)) for x in scene]
        ok = {name: all(getattr(x, name) == getattr(y, name) for x, y in pairs)
              for name in ("digit", "colour", "direction")}
        ok["all"] = all(ok.values())
        right = {name: right[name] + ok[name] for name in right}
    return {name: count / len(scenes) for name, count in right.items()}


def caption_accuracy(video, scenes, config, classifier):
    """`adherence` of a video (B, 3, F, H, W) to its scenes; config is the data's."""
    return adherence(read_clips(video.cpu(), config.digits, classifier, config.digit_size), scenes)


def train_classifier(data, steps=700, seed=0, batch=128):
    """A `DigitClassifier` for the digits of `data` (a MovingDigits).

    It is trained on single rendered frames, slightly blurred, dimmed and shifted, because reconstructions are
    blurred and tracks are not exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = DigitClassifier().train()
        optimizer = torch.optim.AdamW(classifier.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(steps):
            scenes = [scene[:1] for scene in data.choose(batch, generator)]
            grey = brightness(data.clips(scenes, generator, still=True))                  # (B, 1, H, W)
            centre = centres(grey)[0][:, 0] + torch.randn(batch, 2, generator=generator)
            view = windows(grey[:, 0], centre, data.config.digit_size)
            soft = F.avg_pool2d(view, 3, stride=1, padding=1)
            mix, gain = torch.rand(2, batch, 1, 1, 1, generator=generator)
            view = (soft.lerp(view, mix) * (0.7 + 0.3 * gain)).clamp(0, 1)
            loss = F.cross_entropy(classifier(view), torch.tensor([scene[0].digit for scene in scenes]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return classifier.eval()
