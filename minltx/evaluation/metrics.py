"""How close a video is to its original, in pixels, motion, detail and a network's features."""

import torch

from minltx import require
from minltx.losses import feature_distance, haar_dwt


def check_pair(video, reference):
    """Raises ValueError unless both are videos (B, 3, F, H, W) of one shape; a single reference is enough."""
    require.shape("video", video, "B", 3, "F", "H", "W")
    require.shape("reference", reference, (1, len(video)), *video.shape[1:])


def psnr(video, reference):
    """Peak signal-to-noise ratio in dB of every frame, (B, F); both (B, 3, F, H, W) in [-1, 1]. Raises
    ValueError for other shapes."""
    check_pair(video, reference)
    error = (video - reference).square().mean(dim=(1, 3, 4))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def motion_ratio(video, reference):
    """Energy of frame differences over the reference's: 1 = moves as much, 0 = frozen.
    (B, 3, F, H, W) each. Raises ValueError for other shapes."""
    check_pair(video, reference)
    energy = [(x[:, :, 1:] - x[:, :, :-1]).square().mean() for x in (video, reference)]
    return (energy[0] / energy[1]).item()


def detail_ratio(video, reference):
    """Energy of the seven high wavelet bands over the reference's: 1 = as much fine detail, 0 = smooth.
    (B, 3, F, H, W) each. Raises ValueError for other shapes."""
    check_pair(video, reference)
    energy = [haar_dwt(x).unflatten(1, (3, 8))[:, :, 1:].square().mean() for x in (video, reference)]
    return (energy[0] / energy[1]).item()


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
