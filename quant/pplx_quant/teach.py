"""Add vectors of a teacher model to a packed file, for its English texts (`lang` en). The file is replaced.

python -m pplx_quant teach --packed FILE --tokenizer DIR --teacher DIR [--cap GROUP=N …]

The teacher is a sentence-transformers directory. It encodes the texts that the student sees, decoded from their ids.
The vectors are rotated to their principal axes, cut to the first `--width` of them, and stored with 4 bits per
component; the command prints how much of their variance is kept. Repeat it to continue after an interruption. The
training commands use the vectors with `--teacher-weight`.
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
from pplx_quant.corpus import PackedCorpus, encode_teacher, write_packed
from pplx_quant.errors import ConfigError
from pplx_quant.options import option, required
from pplx_quant.sampling import matches, parse_factor
from pplx_quant.tokenizer import load_tokenizer

SHARD = 4096
ENGLISH = "en"


@dataclass(frozen=True)
class TeachConfig:
    """Options of `teach`."""

    packed: Path = required("Packed file to add the vectors to.")
    tokenizer: Path = required("Directory of the tokenizer that the file was packed with.")
    teacher: Path = required("Directory of a sentence-transformers model.")
    width: int = option(256, "Dimensions to keep.")
    max_tokens: int = option(128, "Cut texts to this many tokens of the student.")
    cap: tuple[str, ...] = option(
        (), "Encode at most N random queries and N random passages of a group.", metavar="GROUP=N"
    )
    max_mb: float = option(
        60.0, "Exit with an error if the packed file, which is written all the same, gets larger than this many MB."
    )
    seed: int = option(1, "Seed of the random choices.")


def choose_texts(packed: PackedCorpus, caps: tuple[str, ...], seed: int) -> np.ndarray:
    """Return the ids of the English texts to encode, int64 ascending: both sides of each group, up to its cap."""
    limits = [parse_factor(cap) for cap in caps]
    english = packed.lang == packed.info["languages"].index(ENGLISH)
    chosen = np.zeros(len(packed.lengths), bool)
    for number, name in enumerate(packed.groups):
        fitting = [int(value) for pattern, value in limits if matches(name, pattern)]
        rows = packed.pairs[(packed.group == number) & ~packed.held_out]
        for side in (0, 1):
            texts = np.unique(rows[:, side])
            texts = texts[english[texts]]
            order = np.random.default_rng((seed, number, side)).permutation(texts)
            chosen[order[: fitting[-1]] if fitting else order] = True
    return np.flatnonzero(chosen)


def student_views(packed: PackedCorpus, tokenizer: Tokenizer, numbers: np.ndarray, max_tokens: int) -> list[str]:
    """Return the texts that a student with a limit of `max_tokens` sees."""
    ids = [packed.text(int(number), max_tokens).tolist() for number in numbers]
    return tokenizer.decode_batch(ids, skip_special_tokens=False)


def known_words(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the tokens that look like an English word or a part of one, by id: at least three ASCII letters."""
    pieces = {token: tokenizer.decode([token]).strip() for token in range(tokenizer.get_vocab_size())}
    return {token: text for token, text in pieces.items() if len(text) > 2 and text.isascii() and text.isalpha()}


def teacher_vectors(config: TeachConfig, texts: Callable[[slice], list[str]], n_texts: int, name: str) -> np.ndarray:
    """Return the unit vectors float32 `[K, D]` of the teacher, computed in shards that are kept on disk."""
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
            raise ConfigError(f"{work}: made with other options; delete it")
    return np.concatenate(shards)


def principal_axes(vectors: np.ndarray, width: int) -> np.ndarray:
    """Return orthonormal columns `[D, width]`: the directions of largest second moment, largest first."""
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
    print(f"{len(numbers):,} texts encoded, {kept:.1%} of the variance kept: {size / 1e6:.1f} MB", file=sys.stderr)
    if size > 1e6 * config.max_mb:
        raise ConfigError(f"{config.packed}: {size / 1e6:.1f} MB, limit {config.max_mb:g}; lower --cap or --width")
