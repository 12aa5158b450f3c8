"""Captions for the released models: T5-XXL through transformers, and a file that keeps what it said.

    python -m minltx.pretrained.t5 FOLDER "a lighthouse in a storm" --out words.safetensors

FOLDER holds text_encoder/ and tokenizer/, as the released repositories do. The encoder has 4.8 B parameters,
more than twice the transformer's; with the file, sampling does not need it (SPEC 7).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from minltx.pretrained import store
from minltx.pretrained.releases import NEGATIVE, RELEASES


def load_t5(folder, dtype=torch.float32, device="cpu"):
    """A folder with text_encoder/ and tokenizer/ -> (tokenizer, encoder).
    ValueError names what is missing."""
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError:
        raise ValueError("T5 needs packages: pip install transformers sentencepiece") from None
    for part in ("text_encoder", "tokenizer"):
        if not (Path(folder) / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}: "
                             "the released repositories hold text_encoder and tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
        encoder = T5EncoderModel.from_pretrained(Path(folder) / "text_encoder", dtype=dtype,
                                                 use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load T5 from {folder}: {str(error).splitlines()[0]}") from None
    return tokenizer, encoder.to(device).eval()


@torch.no_grad()
def encode_prompts(prompts, tokenizer, encoder, tokens=256, lowercase=False, mask_in_encoder=True):
    """Prompts -> embeddings (B, tokens, 4096), mask (B, tokens) with 1 = keep.

    Padded to `tokens`, 128 in 0.9.0 and 0.9.1 and 256 later, and cut off beyond; lowercase as these two did.
    mask_in_encoder=False lets T5 look at padding too, as diffusers' LTXPipeline does (SPEC 7).
    """
    prompts = [text.strip().lower() if lowercase else text.strip() for text in prompts]
    batch = tokenizer(prompts, padding="max_length", max_length=tokens, truncation=True,
                      add_special_tokens=True, return_tensors="pt")
    device = next(encoder.parameters()).device
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    text = encoder(ids, attention_mask=mask if mask_in_encoder else None).last_hidden_state
    return text, mask.to(text.dtype)


def save_embeddings(path, prompts, text, mask):
    """Keep prompts, embeddings (B, L, width) and mask (B, L) in one safetensors file."""
    store.write(path, {"text": text, "mask": mask}, {"prompts": json.dumps(list(prompts))})


def load_embeddings(path, prompts=None):
    """The file of `save_embeddings` -> embeddings, mask, prompts;
    or those of the prompts asked for, in that order.

    ValueError for a foreign file and for a prompt that it does not hold.
    """
    stored, kept = store.open_file(path), store.metadata(path).get("prompts")
    if kept is None or not {"text", "mask"} <= set(stored.keys()):
        raise ValueError(f"{path} holds no embeddings: write it with python -m minltx.pretrained.t5")
    text, mask, kept = stored.get_tensor("text"), stored.get_tensor("mask"), json.loads(kept)
    for prompt in prompts or ():
        if prompt not in kept:
            raise ValueError(f"{path} does not hold {prompt!r}, only {', '.join(map(repr, kept))}: "
                             "embed it with python -m minltx.pretrained.t5")
    rows = [kept.index(prompt) for prompt in prompts or kept]
    return text[rows], mask[rows], [kept[row] for row in rows]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("folder", help="holds text_encoder/ and tokenizer/")
    add("prompts", nargs="+", metavar="PROMPT")
    add("--out", default="words.safetensors", help="(default: %(default)s)")
    add("--release", choices=RELEASES, default="0.9.5", help="decides length and case (default: %(default)s)")
    add("--negative", default=NEGATIVE, help="stored too, for guidance (default: %(default)s)")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    try:
        sampling = RELEASES[args.release].sampling
        tokenizer, encoder = load_t5(args.folder, getattr(torch, args.dtype), args.device)
        prompts = [*args.prompts, args.negative]
        text, mask = encode_prompts(prompts, tokenizer, encoder, sampling.text_tokens, sampling.lowercase)
        save_embeddings(args.out, prompts, text, mask)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"minltx.pretrained.t5: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(prompts)} prompts of {text.shape[1]} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
