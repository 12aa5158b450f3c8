"""Words to vectors: the toy's caption encoder, trained together with the transformer.

The 2 B model reads T5-XXL's embeddings of width 4096; the toy has 25 words and learns them itself. Trained on
your own clips, it learns the words of their captions instead. Either way the transformer gets a sequence (B,
L, width) and a mask (B, L), 1 = keep.
"""

import re
from collections import Counter
from difflib import get_close_matches

import torch
from torch import nn

from minltx import require
from minltx.layers import Attention, FeedForward, rms_norm
from minltx.toy.data import COLOURS, DIRECTIONS

NULL = "<nothing>"     # the word of the null caption "", which says nothing
BLANK = "_"            # for a word of the digits' vocabulary that is left open: it keeps its place, unread
UNKNOWN = "<unknown>"  # of a learned vocabulary: every word that is not in it
WORDS = ["<pad>", NULL, "a", "and", "moving", *COLOURS, *map(str, range(10)), *DIRECTIONS]
MAX_WORDS, MAX_LEARNED = 16, 64     # words in a caption: about digits; with a learned vocabulary
VOCABULARY = 4096                   # most words of a learned vocabulary
SPECIAL = ("<pad>", NULL, UNKNOWN)  # its first ones
THING = f"a ({'|'.join(COLOURS)}) [0-9]"
MOVING, STILL = (re.compile(f"{thing}( and {thing})*") for thing in (
    f"{THING} moving ({'|'.join(DIRECTIONS)})", THING))


def split_words(caption):
    """A caption -> its words in lower case, without punctuation."""
    return re.sub(r"[,.;:!?()\"]", " ", caption.lower()).split()


def is_word(word):
    """Can it be a word of a vocabulary? Others, such as control characters, are unknown."""
    return 0 < len(word) <= 60 and word.isprintable() and word not in SPECIAL


def learn_words(captions):
    """Captions -> a vocabulary of their words, the most frequent first, at most `VOCABULARY` in all."""
    counts = Counter(word for text in captions for word in split_words(text))
    found = sorted(filter(is_word, counts), key=lambda word: (-counts[word], word))
    return [*SPECIAL, *found][:VOCABULARY]


def most_words(words):
    """How many words of a caption an encoder with this vocabulary reads."""
    return MAX_LEARNED if UNKNOWN in words else MAX_WORDS


def nearest_words(word, words):
    """The known words that are spelled most like this one, at most three, or all if there are few."""
    known = [known for known in words if not known.startswith("<")]
    return get_close_matches(word, known, n=3, cutoff=0.5) or known[:12]


def tokenize(captions, words=WORDS):
    """Captions -> word ids (B, L), mask (B, L), L the longest caption. "" is the null caption; about digits,
    "_" masks a word.

    With a learned vocabulary, other words become <unknown>, and those after the 64th are left out. With that
    of the digits, raises ValueError for an unknown word (it lists the vocabulary) and for more than 16 words.
    Raises ValueError without captions.
    """
    require.require(captions, "captions", captions, "at least one")
    index, most, rows = {word: i for i, word in enumerate(words)}, most_words(words), []
    for text in captions:
        row = split_words(text)
        for word in row if UNKNOWN not in index else ():
            if word not in [*words[2:], BLANK]:
                raise ValueError(f"unknown word {word!r}: the toy knows only: {', '.join(words[2:])}")
        if len(row) > most and UNKNOWN not in index:
            raise ValueError(f"a caption of {len(row)} words is too long: use at most {most}")
        ids = [index.get(word, index.get(UNKNOWN, 0)) for word in row[:most]]
        rows.append(ids if any(ids) else [index[NULL]])
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).float()                                                        # (B, L) each


def caption_warnings(caption, words, still):
    """What of a caption was not in training, one line each."""
    if UNKNOWN not in words:
        form, example = (STILL, "a red 7") if still else (MOVING, "a red 7 moving left")
        if not caption or form.fullmatch(" ".join(split_words(caption))):
            return []
        return [f"{caption!r} is not of the form of the captions in training, such as {example!r}"]
    row = split_words(caption)
    lines = [f"the word {word!r} is unknown and says nothing here; the nearest known words: "
             f"{', '.join(nearest_words(word, words))} (all: --words)" for word in row if word not in words]
    if len(row) > MAX_LEARNED:
        lines.append(f"a caption is read up to its word number {MAX_LEARNED}, and one has {len(row)}")
    return lines


def motion_alone(caption):
    """"a red 7 moving left" -> "a _ _ moving left": what a clip does, without what it shows. "", the null
    caption, if nothing moves or nothing is shown."""
    words = split_words(caption)
    left = [BLANK if word in COLOURS or word.isdigit() else word for word in words]
    return " ".join(left) if "moving" in words and left != words else ""


class CaptionEncoder(nn.Module):
    """Word ids (B, L) and mask (B, L) -> (B, L, width): one transformer block, which binds words together.

    words: the vocabulary. <unknown> starts as zeros: until it is trained, it adds nothing. Raises ValueError
    if the heads do not divide the width."""

    def __init__(self, width, heads=4, words=WORDS):
        super().__init__()
        require.require(width % heads == 0, "text_width", width, f"a multiple of {heads}")
        self.words = nn.Embedding(len(words), width)
        if UNKNOWN in words:
            nn.init.zeros_(self.words.weight[words.index(UNKNOWN)])
        self.positions = nn.Parameter(0.5 * torch.randn(most_words(words), width))
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
