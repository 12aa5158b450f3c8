"""Given pictures as the releases prepare them: cropped, blurred a little, compressed as H.264 and back.

The models were trained on frames of compressed videos. A clean picture is unlike them, and the sampler
continues it with a still video (SPEC 6.2).
"""

import io

import numpy as np
import torch
import torch.nn.functional as F

CRF = 29     # of H.264: 0 is the best quality, 51 the strongest compression


def crop(image, height, width):
    """A PIL image cut to the aspect of height x width around its middle, at its own resolution."""
    if image.width * height > width * image.height:
        w, h = int(image.height * (width / height)), image.height
    else:
        w, h = image.width, int(image.width / (width / height))
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def blur(picture):
    """Gaussian blur of a picture (3, H, W): 3 x 3 pixels, sigma 1, edges reflected."""
    weights = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).square() / 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2                           # (3, 3)
    return F.conv2d(F.pad(picture[:, None], (1, 1, 1, 1), "reflect"), kernel[None, None])[:, 0]


def compress(picture, crf=CRF):
    """A picture (3, H, W) in [0, 1], as one frame of H.264 and decoded again; odd sides lose a pixel. Raises
    ValueError if the package av is not installed."""
    try:
        import av
    except ImportError:
        raise ValueError("given pictures are compressed as in the release, which needs the package av: "
                         "pip install av, or use them as they are with --clean") from None
    pixels = (picture.movedim(0, 2) * 255).byte().numpy()                                 # (H, W, 3)
    pixels = np.ascontiguousarray(pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    with av.open(io.BytesIO(file.getvalue())) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")              # (H, W, 3)
    return torch.from_numpy(decoded).movedim(2, 0) / 255                                  # (3, H, W)


def as_released(image, height, width, resize=False):
    """A PIL image -> (3, H, W) in [-1, 1], in the aspect of height x width and its own resolution, which
    `LTXVideo.generate` resizes; with `resize`, as for video-to-video, of that size at once. Raises ValueError
    as `compress` does."""
    image = crop(image.convert("RGB"), height, width)
    image = image.resize((width, height)) if resize else image
    picture = torch.from_numpy(np.array(image)).movedim(2, 0) / 255                       # (3, H, W)
    return compress(blur(picture)) * 2 - 1
