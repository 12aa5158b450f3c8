"""Words to vectors: the toy's caption encoder, trained together with the transformer.

The 2 B model reads T5-XXL's embeddings of width 4096; the toy has 25 words and learns them itself. Either way
the transformer gets a sequence (B, L, width) and a mask (B, L), 1 = keep.
"""

import torch
from torch import nn

from minltx import require
from minltx.layers import Attention, FeedForward, rms_norm
from minltx.toy.data import COLOURS, DIRECTIONS

NULL = "<nothing>"     # the word of the null caption "", which guidance steers away from
WORDS = ["<pad>", NULL, "a", "and", "moving", *COLOURS, *map(str, range(10)), *DIRECTIONS]
MAX_WORDS = 16


def tokenize(captions):
    """Captions -> word ids (B, L), mask (B, L), L the longest caption. "" is the null caption.

    Raises ValueError for an unknown word (it lists the vocabulary), for more than 16 words, and without
    captions.
    """
    require.require(captions, "captions", captions, "at least one")
    rows = [text.lower().replace(",", " ").replace(".", " ").split() for text in captions]
    for row in rows:
        for word in row:
            if word not in WORDS[2:]:
                raise ValueError(f"unknown word {word!r}: the toy knows only: {', '.join(WORDS[2:])}")
        if len(row) > MAX_WORDS:
            raise ValueError(f"a caption of {len(row)} words is too long: use at most {MAX_WORDS}")
    rows = [row or [NULL] for row in rows]
    length = max(map(len, rows))
    ids = torch.tensor([[WORDS.index(w) for w in row] + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).float()                                                        # (B, L) each


class CaptionEncoder(nn.Module):
    """Word ids (B, L) and mask (B, L) -> (B, L, width): one transformer block, which binds words together.
    Raises ValueError if the heads do not divide the width."""

    def __init__(self, width, heads=4):
        super().__init__()
        require.require(width % heads == 0, "text_width", width, f"a multiple of {heads}")
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Parameter(0.5 * torch.randn(MAX_WORDS, width))
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, ids, mask):
        x = self.words(ids) + self.positions[: ids.shape[1]]                              # (B, L, width)
        x = x + self.attention(rms_norm(x), mask=mask)
        return x + self.feed_forward(rms_norm(x))


class StoredText(nn.Module):
    """Captions that T5 embedded before: a table in place of an encoder. It is not part of a checkpoint."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def fill(self, text, mask, captions):
        """Store embeddings (n, L, width) and masks (n, L) under n captions."""
        self.rows = {c: pair for c, *pair in zip(captions, text.float(), mask.float(), strict=True)}

    def check(self, caption):
        """Raises ValueError for a caption without an embedding."""
        if caption not in self.rows:
            raise ValueError(f"the caption {caption!r} has no embedding: embed it too, with "
                             "python -m minltx.pretrained.t5")

    def forward(self, captions, device):
        """Captions -> (B, L, width), mask (B, L). Raises ValueError for a caption without an embedding."""
        for caption in captions:
            self.check(caption)
        return tuple(torch.stack(x).to(device) for x in zip(*(self.rows[caption] for caption in captions)))
