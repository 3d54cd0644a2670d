"""Train a multilingual byte-level BPE tokenizer on a data folder.

python -m pplx_quant tokenizer --data DIR --out DIR [options]

Trains on paragraphs (text.* files) and on both sides of pairs in one language. The special tokens are `<|endoftext|>`
(separator, padding and end) and `<|mask|>`, which `diffuse` needs.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pplx_edge import layout
from pplx_quant.data import TEXT_KINDS, list_files, read_pairs, read_texts, text_language
from pplx_quant.errors import TrainError
from pplx_quant.options import option, required

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
# The pattern of Qwen2, with combining marks kept inside words (Devanagari, Thai, Tamil, …).
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def new_tokenizer(lowercase: bool = False) -> Tokenizer:
    """Return an untrained byte-level BPE with NFC normalization and single digits, which adds no tokens to a text.

    With `lowercase`, texts are lower-cased, so that a vocabulary holds one form of each word instead of several.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    nfc = normalizers.NFC()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), nfc]) if lowercase else nfc
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
    """Return the texts of a data folder by language: paragraphs, and both sides of monolingual pairs."""
    texts: dict[str, list[str]] = {}
    for kind in TEXT_KINDS:
        for path in list_files(folder, kind, required=kind == TEXT_KINDS[0]):
            texts.setdefault(text_language(path), []).extend(text for text, _ in read_texts(path)[0])
    for path in list_files(folder, "pairs"):
        for pair in read_pairs(path)[0]:
            if "-" not in pair.lang.removesuffix("-Hant"):
                texts.setdefault(pair.lang, []).extend((pair.query, pair.positive))
    return texts


def sample_texts(texts: dict[str, list[str]], n_chars: int, exponent: float, seed: int) -> Iterator[str]:
    """Yield about `n_chars` characters of text, with a share proportional to size ** `exponent` for each language.

    The texts of a language are repeated if its share is larger than its size, so that small languages get own tokens.
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


def train_tokenizer(texts: Iterator[str], vocab_size: int, lowercase: bool = False) -> Tokenizer:
    """Return a tokenizer with exactly `vocab_size` ids; `<|endoftext|>` is 0 and `<|mask|>` is 1."""
    tokenizer = new_tokenizer(lowercase)
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
        found = tokenizer.get_vocab_size()
        raise TrainError(f"not enough text: it gives {found} of {vocab_size} tokens; lower --vocab-size")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write `tokenizer.json`, and a `tokenizer_config.json` that adds no tokens to texts."""
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
    """Return the tokenizer in a directory. Raises TrainError if there is none or it is damaged."""
    path = folder / layout.TOKENIZER
    if not path.is_file():
        raise TrainError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TrainError(f"{path}: not a tokenizer ({error})") from error


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of `tokenizer`."""

    data: Path = required("Folder of text.*, text2.*, text3.* and pairs.*.jsonl.gz files.")
    out: Path = required("Directory to write the tokenizer to.")
    vocab_size: int = option(32768, "Number of tokens.")
    lowercase: bool = option(False, "Lower-case texts before they are tokenized, in training and in use.")
    max_tokens: int = option(8192, "Longest text that tokenizer_config.json declares (model_max_length).")
    chars: int = option(100_000_000, "Number of characters to train on.")
    exponent: float = option(0.7, "The share of a language is proportional to its size to this power.")
    seed: int = option(1, "Seed of the sample.")


def write_tokenizer(config: TokenizerConfig) -> None:
    """Train a tokenizer and write it."""
    texts = sample_texts(read_by_language(config.data), config.chars, config.exponent, config.seed)
    tokenizer = train_tokenizer(texts, config.vocab_size, config.lowercase)
    save_tokenizer(tokenizer, config.out, config.max_tokens)
