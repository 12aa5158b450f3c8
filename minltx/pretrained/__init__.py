"""The released 2 B models in minltx's own classes: load the official weights, sample as released, save again.

    model = load_pretrained("ltx-video-2b-v0.9.5.safetensors")      # an official file, or a diffusers folder
    video = model.generate(text, null_text, seeds=[0])              # text: (embeddings, mask), see t5.py

Nothing in this room is needed to understand the model. The networks are `minltx.dit.DiT` and
`minltx.vae.VideoVAE` themselves; `early` and `stg` add by subclasses what releases have besides the paper.
"""

from minltx.pretrained.model import LTXVideo
from minltx.pretrained.releases import RELEASES
from minltx.pretrained.weights import load_pretrained, save_pretrained

__all__ = ["LTXVideo", "RELEASES", "load_pretrained", "save_pretrained"]
