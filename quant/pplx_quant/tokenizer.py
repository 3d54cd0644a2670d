"""A multilingual byte-level BPE tokenizer, trained on a data folder.

python -m pplx_quant.tokenizer --data DIR --out DIR [--vocab-size N] [--seed N]
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pplx_edge import layout
from pplx_quant.data import file_key, list_files, read_pairs, read_texts
from pplx_quant.errors import TrainError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
# Qwen2's pattern, with combining marks kept inside words (Devanagari, Thai, Tamil, …).
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def new_tokenizer() -> Tokenizer:
    """An untrained byte-level BPE: NFC, single digits, no token added around a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def read_by_language(folder: Path) -> dict[str, list[str]]:
    """Texts of a data folder by language: paragraphs, and queries and positives of pairs within one language."""
    texts: dict[str, list[str]] = {}
    for kind in ("text", "text2"):
        for path in list_files(folder, kind):
            texts.setdefault(file_key(path), []).extend(text for text, _ in read_texts(path)[0])
    for path in list_files(folder, "pairs"):
        for pair in read_pairs(path)[0]:
            if "-" not in pair.lang.removesuffix("-Hant"):
                texts.setdefault(pair.lang, []).extend((pair.query, pair.positive))
    return texts


def sample_texts(texts: dict[str, list[str]], n_chars: int, exponent: float, seed: int) -> Iterator[str]:
    """About `n_chars` characters of text, each language with a share proportional to its size ** `exponent`.

    A language whose share exceeds what it has is repeated, so that small languages get tokens of their own.
    """
    sizes = {lang: sum(map(len, rows)) for lang, rows in texts.items()}
    total = sum(size**exponent for size in sizes.values())
    generator = random.Random(seed)
    for lang in sorted(texts):
        rows = sorted(texts[lang])
        generator.shuffle(rows)
        wanted = n_chars * sizes[lang] ** exponent / total
        while wanted > 0:
            for row in rows:
                yield row
                wanted -= len(row)
                if wanted <= 0:
                    break


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids; `<|endoftext|>` is 0 and `<|mask|>` is 1."""
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=48,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise TrainError(f"text too small: {tokenizer.get_vocab_size()} of {vocab_size} tokens could be formed")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` that adds nothing to it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / layout.TOKENIZER))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "sep_token": END_OF_TEXT,
        "mask_token": MASK,
    }
    (folder / layout.TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder; TrainError when there is none or it is damaged."""
    path = folder / layout.TOKENIZER
    if not path.is_file():
        raise TrainError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TrainError(f"{path}: not a tokenizer ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Train a tokenizer and write it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pplx_quant.tokenizer", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of text.*, text2.* and pairs.*.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write tokenizer.json into")
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--max-tokens", type=int, default=8192, help="model_max_length to declare")
    parser.add_argument("--chars", type=int, default=100_000_000, help="characters to sample")
    parser.add_argument("--exponent", type=float, default=0.7, help="share of a language ~ size ** exponent")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        texts = sample_texts(read_by_language(args.data), args.chars, args.exponent, args.seed)
        save_tokenizer(train_tokenizer(texts, args.vocab_size), args.out, args.max_tokens)
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
