"""Words to vectors: the toy's caption encoder, trained along with the transformer it serves.

The 2 B model reads T5-XXL's 4096-wide output; the toy has 25 words and learns them itself. Either way the
transformer gets a sequence (B, L, width) and a mask (B, L), 1 = keep.
"""

import torch
from torch import nn

from minltx.data import COLOURS, DIRECTIONS
from minltx.layers import Attention, FeedForward, rms_norm

NOTHING = "<nothing>"  # the caption of nothing: what guidance steers away from
WORDS = ["<pad>", NOTHING, "a", "and", "moving", *COLOURS, *map(str, range(10)), *DIRECTIONS]
MAX_WORDS = 16


def tokenize(captions):
    """Captions -> word ids (B, L), mask (B, L), L the longest caption. "" is the caption of nothing.

    ValueError for an unknown word (it lists the vocabulary) or for more than 16 words.
    """
    rows = [text.lower().replace(",", " ").replace(".", " ").split() for text in captions]
    for row in rows:
        for word in row:
            if word not in WORDS[2:]:
                raise ValueError(f"unknown word {word!r}: the toy knows only: {', '.join(WORDS[2:])}")
        if len(row) > MAX_WORDS:
            raise ValueError(f"a caption of {len(row)} words is too long: use at most {MAX_WORDS}")
    rows = [row or [NOTHING] for row in rows]
    length = max(map(len, rows))
    ids = torch.tensor([[WORDS.index(w) for w in row] + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).float()


class CaptionEncoder(nn.Module):
    """Word ids (B, L) and mask (B, L) -> (B, L, width): one transformer block, so words find their digit."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Parameter(0.5 * torch.randn(MAX_WORDS, width))
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, ids, mask):
        x = self.words(ids) + self.positions[: ids.shape[1]]                              # (B, L, width)
        x = x + self.attention(rms_norm(x), mask=mask)
        return x + self.feed_forward(rms_norm(x))
