"""Score mined negatives with teachers, so that `triplet` can distill the scores.

python -m pplx_quant score --data PACKED --negatives FILE --teacher DIR … --out FILE [options]

A teacher's score is the cosine of its vectors, each text after the teacher's prompt for queries or passages. Scores of
a teacher are brought to mean 0 and variance 1 over all candidates, because cosines of some models lie between 0.7 and
1; those of several teachers are averaged with `--weight`. The result, float32 `[N, 1 + n]`, has the score of the
positive and of each negative for each pair of the packed file, NaN where there is none. Vectors are kept on disk in
shards: repeat the command to continue after an interruption.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pplx_edge.files import replacing_file
from pplx_quant.corpus import PackedCorpus, writing_file
from pplx_quant.errors import ConfigError
from pplx_quant.hardware import DEVICES, PRECISIONS, choose_device, uses_bfloat16
from pplx_quant.negatives import read_negatives
from pplx_quant.options import option, required
from pplx_quant.teach import student_views
from pplx_quant.teacher import Teacher
from pplx_quant.tokenizer import load_tokenizer

SHARD = 1024


@dataclass(frozen=True)
class ScoreConfig:
    """Options of `score`."""

    data: Path = required("Packed file.")
    out: Path = required("File of scores to write.")
    teacher: tuple[Path, ...] = required("Directories of teachers: Hugging Face encoders with mean pooling.")
    negatives: Path | None = option(None, "File of hard negatives; without it, those that came with the pairs.")
    prompt: tuple[str, ...] = option((), "Prompts for queries and for passages, two for each teacher; none if empty.")
    weight: tuple[float, ...] = option((), "Weight of each teacher; 1 if empty.")
    tokenizer: Path | None = option(None, "Directory of the tokenizer, for a packed file without texts.")
    max_tokens: int = option(256, "Cut texts to this many tokens of a teacher.")
    batch: int = option(32, "Texts in one call of a teacher.")
    device: str = option("auto", "Device: auto, cpu, cuda, mps.")
    precision: str = option("auto", "Precision: float32, bfloat16, or auto: bfloat16 where it is fast.")

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision {self.precision} must be one of {', '.join(PRECISIONS)}")
        if self.prompt and len(self.prompt) != 2 * len(self.teacher):
            raise ConfigError(f"--prompt needs two values for each of the {len(self.teacher)} teachers")
        if self.weight and (len(self.weight) != len(self.teacher) or min(self.weight) <= 0):
            raise ConfigError(f"--weight needs a positive value for each of the {len(self.teacher)} teachers")
        if self.device not in DEVICES:
            raise ConfigError(f"--device {self.device} must be one of {', '.join(DEVICES)}")


def candidates_of(packed: PackedCorpus, negatives: np.ndarray) -> np.ndarray:
    """Return the text ids of the positive and the negatives of each pair, int64 `[N, 1 + n]`; -1 for none.

    A pair without negatives has no candidates.
    """
    found = np.concatenate([packed.pairs[:, 1:], negatives], axis=1).astype(np.int64)
    found[negatives.max(axis=1) < 0] = -1
    return found


def standardized(scores: np.ndarray) -> np.ndarray:
    """Return scores with mean 0 and variance 1 over all that are not NaN."""
    return (scores - np.nanmean(scores)) / max(float(np.nanstd(scores)), 1e-9)


def cosines(
    vectors: Callable[[np.ndarray, int], np.ndarray], queries: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Return the cosine of each query with its candidates, float32 `[N, C]`, NaN where a candidate is -1.

    `vectors(texts, side)` returns unit vectors of ascending text ids as queries (side 0) or passages (side 1).
    """
    rows = np.flatnonzero(candidates[:, 0] >= 0)
    asked, query_of = np.unique(queries[rows], return_inverse=True)
    known, place = np.unique(candidates[rows], return_inverse=True)
    place = place.reshape(len(rows), -1) - (known[0] < 0)
    passages = vectors(known[known >= 0], 1)
    found = np.einsum("nd,ncd->nc", vectors(asked, 0)[query_of], passages[np.maximum(place, 0)])
    scores = np.full(candidates.shape, np.nan, np.float32)
    scores[rows] = np.where(candidates[rows] >= 0, found, np.nan)
    return scores


def encode_with_shards(
    config: ScoreConfig,
    teacher: Teacher,
    texts: Callable[[np.ndarray], list[str]],
    numbers: np.ndarray,
    prompt: str,
    work: Path,
) -> np.ndarray:
    """Return the unit vectors float32 `[K, D]` of texts, computed in shards that are kept in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in tqdm(range(0, len(numbers), SHARD), desc=work.name, unit="shard", disable=None):
        part, path = numbers[start : start + SHARD], work / f"{start:08d}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                if not np.array_equal(kept["numbers"], part):
                    raise ConfigError(f"{work}: made with other options; delete it")
                shards.append(kept["vectors"])
            continue
        strings = texts(part)
        order = np.argsort([len(text) for text in strings], kind="stable")
        vectors = np.empty((len(part), teacher.width), np.float32)
        for first in range(0, len(order), config.batch):
            rows = order[first : first + config.batch]
            call = teacher([strings[row] for row in rows], [prompt] * len(rows), [])
            vectors[rows] = call.vectors.cpu().numpy()
        with replacing_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, numbers=part, vectors=vectors)
        shards.append(vectors)
    return np.concatenate(shards)


def score(config: ScoreConfig) -> None:
    """Write the scores of all teachers."""
    packed = PackedCorpus.open(config.data)
    negatives = read_negatives(config.negatives, packed)
    if not packed.has_text and config.tokenizer is None:
        raise ConfigError(f"{config.data}: contains no texts; pack with --keep-text, or give --tokenizer")
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)

    def texts(numbers: np.ndarray) -> list[str]:
        if packed.has_text:
            return [packed.string(number) for number in numbers.tolist()]
        assert tokenizer is not None
        return student_views(packed, tokenizer, numbers, packed.info["max_text"])

    candidates = candidates_of(packed, negatives)
    weights = config.weight or (1.0,) * len(config.teacher)
    prompts = config.prompt or ("", "") * len(config.teacher)
    total = np.zeros(candidates.shape, np.float32)
    for number, folder in enumerate(config.teacher):
        device = choose_device(config.device)
        teacher = Teacher(folder, device, config.max_tokens, uses_bfloat16(config.precision, device))
        work = config.out.with_name(f"{config.out.name}.{number}-{folder.name}")

        def vectors(numbers: np.ndarray, side: int, teacher=teacher, work=work, number=number) -> np.ndarray:
            prompt = prompts[2 * number + side]
            return encode_with_shards(config, teacher, texts, numbers, prompt, work / f"side-{side}")

        total += weights[number] * standardized(cosines(vectors, packed.pairs[:, 0], candidates))
    with writing_file(config.out) as partial, partial.open("wb") as file:
        np.save(file, total / sum(weights))
    known = np.isfinite(total)
    first = np.nanargmax(np.where(known, total, -np.inf), axis=1)[known[:, 0]] == 0
    print(f"{int(known[:, 0].sum()):,} pairs scored; {first.mean():.1%} have the positive first", file=sys.stderr)
