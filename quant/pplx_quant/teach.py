"""Vectors of an outside teacher for English texts of a packed file, written into it.

python -m pplx_quant.teach --packed FILE --tokenizer DIR --teacher DIR [--cap GROUP=N …]

The teacher is a sentence-transformers directory (read offline). It reads what the student reads: a text's ids turned
back into text. Vectors are turned so that their components fall in variance (principal axes through the origin, which
keeps all cosines), cut to `width` and stored with 4 bits a component. A killed run goes on where it stopped.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from pplx_edge.files import replacing_file
from pplx_quant.errors import ConfigError
from pplx_quant.options import run_command
from pplx_quant.packed import PackedCorpus, encode_teacher, write_packed
from pplx_quant.sampling import fits, parse_factor
from pplx_quant.tokenizer import load_tokenizer

SHARD = 4096
ENGLISH = "en"


@dataclass(frozen=True)
class TeachConfig:
    """What is taught. `cap` holds the most texts per side (query, positive) of a group, drawn by the seed."""

    packed: Path
    tokenizer: Path
    teacher: Path
    width: int = 256
    max_tokens: int = 128
    cap: tuple[str, ...] = ()
    max_mb: float = 60.0
    seed: int = 1


def choose_texts(packed: PackedCorpus, caps: tuple[str, ...], seed: int) -> np.ndarray:
    """Numbers of the English texts to be taught, int64 ascending: both sides of each group, up to its cap."""
    limits = [parse_factor(cap) for cap in caps]
    english = packed.lang == packed.info["languages"].index(ENGLISH)
    chosen = np.zeros(len(packed.lengths), bool)
    for number, name in enumerate(packed.groups):
        fitting = [int(value) for pattern, value in limits if fits(name, pattern)]
        rows = packed.pairs[(packed.group == number) & ~packed.held_out]
        for side in (0, 1):
            texts = np.unique(rows[:, side])
            texts = texts[english[texts]]
            order = np.random.default_rng((seed, number, side)).permutation(texts)
            chosen[order[: fitting[-1]] if fitting else order] = True
    return np.flatnonzero(chosen)


def student_views(packed: PackedCorpus, tokenizer: Tokenizer, numbers: np.ndarray, max_tokens: int) -> list[str]:
    """The texts that a student with a window of `max_tokens` sees."""
    ids = [packed.text(int(number), max_tokens).tolist() for number in numbers]
    return tokenizer.decode_batch(ids, skip_special_tokens=False)


def known_words(tokenizer: Tokenizer) -> dict[int, str]:
    """Tokens that are an English-looking word or a piece of one, by id: ASCII letters, at least three."""
    pieces = {token: tokenizer.decode([token]).strip() for token in range(tokenizer.get_vocab_size())}
    return {token: text for token, text in pieces.items() if len(text) > 2 and text.isascii() and text.isalpha()}


def teacher_vectors(config: TeachConfig, texts: Callable[[slice], list[str]], n_texts: int, name: str) -> np.ndarray:
    """Unit vectors float32 `[K, D]` of the teacher, computed in shards that a later call finds again."""
    from sentence_transformers import SentenceTransformer

    work = config.packed.with_name(config.packed.name + ".teacher")
    work.mkdir(exist_ok=True)
    teacher = SentenceTransformer(str(config.teacher), device="cuda" if torch.cuda.is_available() else "cpu")
    teacher.max_seq_length = 512
    shards = []
    for start in tqdm(range(0, n_texts, SHARD), desc=f"teaching {name}", unit="shard", disable=None):
        part = slice(start, min(start + SHARD, n_texts))
        path = work / f"{name}-{start:08d}.npy"
        if not path.exists():
            with torch.autocast(teacher.device.type, torch.bfloat16):
                vectors = teacher.encode(texts(part), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
            with replacing_file(path) as unfinished:
                np.save(unfinished, np.asarray(vectors, np.float32))
        shards.append(np.load(path))
        if len(shards[-1]) != part.stop - part.start:
            raise ConfigError(f"{work}: made with other options; remove it")
    return np.concatenate(shards)


def principal_axes(vectors: np.ndarray, width: int) -> np.ndarray:
    """Orthonormal columns `[D, width]`: the directions of largest second moment, largest first."""
    moments = vectors.T.astype(np.float64) @ vectors
    return np.linalg.eigh(moments)[1][:, ::-1][:, :width].astype(np.float32)


def teach(config: TeachConfig) -> None:
    """Add teacher vectors of texts and of single words to the packed file."""
    packed, tokenizer = PackedCorpus.open(config.packed), load_tokenizer(config.tokenizer)
    numbers, words = choose_texts(packed, config.cap, config.seed), known_words(tokenizer)
    views = partial(student_views, packed, tokenizer, max_tokens=config.max_tokens)
    vectors = teacher_vectors(config, lambda part: views(numbers[part]), len(numbers), "texts")
    word_vectors = teacher_vectors(config, lambda part: list(words.values())[part], len(words), "words")
    if not 2 <= config.width <= vectors.shape[1] or config.width % 2:
        raise ConfigError(f"--width {config.width} must be even and in 2…{vectors.shape[1]}")
    axes = principal_axes(vectors, config.width)
    turned = vectors @ axes
    kept = float((turned**2).sum() / (vectors**2).sum())
    codes, grid = encode_teacher(turned)
    word_codes, word_grid = encode_teacher(word_vectors @ axes)
    taught = np.full(len(packed.lengths), -1, np.int32)
    taught[numbers] = np.arange(len(numbers))
    arrays = {
        **packed.arrays,
        "taught": taught,
        "teacher": codes,
        "teacher_grid": grid,
        "word": np.array(list(words), np.int32),
        "word_teacher": word_codes,
        "word_grid": word_grid,
    }
    info = {**packed.info, "teacher": {"name": config.teacher.name, "texts": len(numbers), "variance_kept": kept}}
    size = write_packed(config.packed, arrays, info)
    print(f"{len(numbers):,} texts taught, {kept:.1%} of variance kept: {size / 1e6:.1f} MB", file=sys.stderr)
    if size > 1e6 * config.max_mb:
        raise ConfigError(f"{config.packed}: {size / 1e6:.1f} MB, limit {config.max_mb:g}; lower --cap or --width")


def main(argv: list[str] | None = None) -> int:
    """Teach; returns the exit status."""
    return run_command(TeachConfig, teach, "Teacher vectors for English texts of a packed file.", argv)


if __name__ == "__main__":
    sys.exit(main())
