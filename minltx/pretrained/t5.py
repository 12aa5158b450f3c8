"""Captions for the released models: T5-XXL through transformers, and a file that keeps its output.

    python -m minltx.pretrained.t5 FOLDER "a lighthouse in a storm" --out words.safetensors
    python -m minltx.pretrained.t5 FOLDER --clips CLIPS --out words.safetensors     # to train on these clips

FOLDER holds text_encoder/ and tokenizer/, as the released repositories do. The encoder has 4.8 B parameters,
more than twice as many as the transformer; with the file, sampling does not need it (SPEC 7).
"""

import json
from pathlib import Path

import torch

from minltx import require
from minltx.caption_files import captions_in
from minltx.command import Parser, device_name, new_file, one_line, pick_device
from minltx.pretrained import store
from minltx.pretrained.fields import Fields
from minltx.pretrained.releases import NEGATIVE, RELEASES


def load_t5(folder, dtype=torch.float32, device="cpu"):
    """A folder with text_encoder/ and tokenizer/ -> (tokenizer, encoder). Raises ValueError, which names what
    is missing."""
    for part in ("text_encoder", "tokenizer"):
        if not (Path(folder) / part).is_dir() or not any((Path(folder) / part).iterdir()):
            raise ValueError(f"{folder} has no folder {part}, or it is empty: name the folder of a released "
                             "repository, which holds text_encoder and tokenizer, before the prompts")
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError:
        raise ValueError("T5 needs packages: pip install transformers sentencepiece") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer", local_files_only=True,
                                                  trust_remote_code=False)
        encoder = T5EncoderModel.from_pretrained(Path(folder) / "text_encoder", dtype=dtype,
                                                 use_safetensors=True, local_files_only=True)
    except Exception as error:      # the library's errors are of many kinds
        raise ValueError(f"cannot load T5 from {folder}: {store.sentence(error)}") from None
    return tokenizer, encoder.to(device).eval()


@torch.no_grad()
def encode_prompts(prompts, tokenizer, encoder, tokens=256, lowercase=False, mask_in_encoder=True):
    """Prompts -> embeddings (B, tokens, 4096), mask (B, tokens) with 1 = keep.

    Padded or truncated to `tokens`: 128 in 0.9.0 and 0.9.1, which also use lower case, and 256 later. With
    mask_in_encoder=False, T5 attends to padding too, as in diffusers' LTXPipeline (SPEC 7). Raises ValueError
    for a single text, and without prompts.
    """
    require.require(prompts and not isinstance(prompts, str), "prompts", prompts, "a list of texts")
    prompts = [text.strip().lower() if lowercase else text.strip() for text in prompts]
    batch = tokenizer(prompts, padding="max_length", max_length=tokens, truncation=True,
                      add_special_tokens=True, return_tensors="pt")
    device = next(encoder.parameters()).device
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    text = encoder(ids, attention_mask=mask if mask_in_encoder else None).last_hidden_state
    return text, mask.to(text.dtype)


def save_embeddings(path, prompts, text, mask, tokens=None, lowercase=False):
    """Store prompts, embeddings (B, L, width) and mask (B, L) in one safetensors file, and how they were
    made: padded to how many tokens (default: L), in lower case or not. Raises ValueError for other shapes."""
    require.shape("text", text, len(prompts), "L", "width")
    require.shape("mask", mask, *text.shape[:2])
    tokens = text.shape[1] if tokens is None else tokens
    kept = {"prompts": list(prompts), "tokens": tokens, "lowercase": lowercase}
    store.write(path, {"text": text, "mask": mask}, {"minltx": json.dumps(kept)})


def load_embeddings(path, prompts=None, tokens=None, lowercase=None):
    """The file of `save_embeddings` -> embeddings, mask, prompts: all, or those of `prompts`, in order.

    Raises ValueError for a foreign file, for a prompt that it does not hold, and if tokens and lowercase are
    given and it was made differently, that is, for another release.
    """
    stored, kept = store.open_file(path), store.metadata(path).get("minltx")
    if kept is None or set(stored.keys()) != {"text", "mask"}:
        raise ValueError(f"{path} does not hold embeddings: write it with python -m minltx.pretrained.t5")
    kept = Fields(store.parse_json(kept, path), path)
    known = kept.listed("prompts", lambda x: isinstance(x, str), "prompts", ())
    text, mask = stored.get_tensor("text"), stored.get_tensor("mask")
    if text.ndim != 3 or mask.shape != text.shape[:2] or len(text) != len(known):
        raise ValueError(f"{path}: embeddings {tuple(text.shape)} and mask {tuple(mask.shape)} do not fit "
                         f"{len(known)} prompts: write it again")
    if not text.is_floating_point() or not text.isfinite().all() or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{path}: embeddings are finite floating-point numbers and masks are 0 or 1, but "
                         "not here: write it again")
    made = kept.count("tokens"), kept.flag("lowercase")
    if made[0] < text.shape[1]:
        raise ValueError(f"{path} says {made[0]} tokens and holds {text.shape[1]}: write it again")
    if tokens is not None and made != (tokens, lowercase):
        words = [f"{n} tokens{' in lower case' * lower}" for n, lower in (made, (tokens, lowercase))]
        raise ValueError(f"{path} was written for another release, with {words[0]}; this release has "
                         f"{words[1]}: write it again with --release")
    for prompt in prompts or ():
        if prompt not in known:
            raise ValueError(f"{path} does not hold {prompt!r}, only {', '.join(map(repr, known))}: "
                             "embed it with python -m minltx.pretrained.t5")
    rows = [known.index(prompt) for prompt in prompts or known]
    return text[rows], mask[rows], [known[row] for row in rows]


def options():
    parser = Parser(prog="python -m minltx.pretrained.t5", description=__doc__)
    add = parser.add_argument
    add("folder", help="holds text_encoder/ and tokenizer/")
    add("prompts", nargs="*", type=str, metavar="PROMPT")
    add("--clips", metavar="FOLDER", help="also embed the captions of these clips, and the null caption")
    add("--out", type=new_file(".safetensors"), default="words.safetensors", help="(default: %(default)s)")
    add("--release", choices=RELEASES, default="0.9.5", help="decides length and case (default: %(default)s)")
    add("--negative", type=str, default=NEGATIVE, help="stored too, for guidance (default: %(default)s)")
    add("--device", type=device_name, default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    with one_line(parser):
        sampling = RELEASES[args.release].sampling
        if not args.prompts and not args.clips:
            raise ValueError("there is nothing to embed: give prompts, or --clips FOLDER")
        captions = ["", *captions_in(args.clips)] if args.clips else []
        prompts = list(dict.fromkeys([*args.prompts, *captions, args.negative]))                   # each once
        t5 = load_t5(args.folder, getattr(torch, args.dtype), pick_device(args.device))
        parts = [encode_prompts(prompts[i : i + 16], *t5, sampling.text_tokens, sampling.lowercase)
                 for i in range(0, len(prompts), 16)]
        text, mask = map(torch.cat, zip(*parts))
        save_embeddings(args.out, prompts, text, mask, sampling.text_tokens, sampling.lowercase)
    print(f"{args.out}: {len(prompts)} prompts of {text.shape[1]} tokens")


if __name__ == "__main__":
    main()
