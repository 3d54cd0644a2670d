"""Questions that people would ask of three real manuals, and how often pplx-search shows the right section.

The manuals are documentation in Debian packages. Their text is not part of this repository: `manuals.json` names the
packages, and has the questions with the sections that answer them, which were marked by reading. A mark is
`FILE#HEADING`, or `FILE#HEADING > HEADING` where the last heading alone is ambiguous; the text between it and the next
heading of any level is the section. `FILE#` is the text before the first heading.

A hit shows a section if they share at least half of the shorter one. All manuals are in one index, as on a person's
machine. Every question has an answer there, so "nothing relevant" is always wrong; the app decides it for hybrid search
alone.
"""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench.workdir import say
from pplx_edge import Embedder
from pplx_edge.errors import InputError
from pplx_edge.text.structure import Heading, Structure
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive
from pplx_search.indexer import Indexer
from pplx_search.query.relevance import judge
from pplx_search.settings import options_for, settings_of
from pplx_search.store import Hit, Query, Store

QUESTIONS_FILE = Path(__file__).with_name("manuals.json")
ALL = "all"
HYBRID, WORDS, VECTORS = "hybrid", "words only", "vectors only"
K = 10
_PERMALINK = "¶"  # after each heading of a page made by Sphinx

Figures = dict[str, Any]
Spans = dict[bytes, list[tuple[int, int]]]  # start and stop of sections, by the path of the file
SYSTEMS: Mapping[str, Callable[[str, np.ndarray], Query]] = {
    HYBRID: lambda text, codes: Query(words=text, codes=codes, k=K),
    WORDS: lambda text, codes: Query(words=text, k=K),
    VECTORS: lambda text, codes: Query(codes=codes, k=K),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manual:
    """A manual: the folder of its pages below that of the unpacked packages, and the hash of those that were marked."""

    name: str
    package: str
    version: str
    folder: str
    include: str
    sha256: str

    def digest(self, unpacked: Path) -> str:
        """Return the hash of the names and contents of all pages. Raises InputError if there are none."""
        folder = unpacked / self.folder
        pages = sorted(path for path in folder.rglob(self.include) if path.is_file())
        if not pages:
            raise InputError(
                f"{folder}: no {self.include} of the manual {self.name}; in {unpacked}, run: "
                f"apt-get download {self.package} && dpkg-deb -x {self.package}_*.deb ."
            )
        found = hashlib.sha256()
        for path in pages:
            found.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about a manual, and the marks of the sections that answer it."""

    manual: str
    lang: str
    question: str
    right: tuple[str, ...]


def add_options(group: Any) -> None:
    """Add the arguments of this measurement."""
    add = group.add_argument
    add("manuals", type=Path, metavar="DIR", help="Folder in which the Debian packages of the manuals were unpacked.")
    add(
        "--questions",
        type=Path,
        default=QUESTIONS_FILE,
        metavar="FILE",
        help="Manuals and questions as .json (default: 60 questions about the manuals of three Debian packages).",
    )
    add("--home", type=Path, metavar="DIR", help="Keep the index in this folder, and continue with one that is there.")
    add("--model", default=BUILT_IN, metavar="MODEL", help="Model of the index.")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the figures of each system and manual, and of each system for all manuals."""
    manuals, questions = read_questions(args.questions)
    unpacked = args.manuals.absolute()
    changed = [manual.name for manual in manuals if manual.digest(unpacked) != manual.sha256]
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        home = args.home or work / "index"
        say(f"indexing {len(manuals)} manuals")
        _index(manuals, unpacked, home, args.model, model)
        codes = model.encode_query([each.question for each in questions], show_progress=False)
        with Store.open(home) as store:
            folders = {manual.name: unpacked / manual.folder for manual in manuals}
            right = _right_spans(store, questions, folders)
            about = {"model": args.model, "chunks": store.n_chunks(), "changed": changed}
            for system, ask in SYSTEMS.items():
                answers = [store.answer(ask(each.question, row)) for each, row in zip(questions, codes, strict=True)]
                ranks = [rank_of(answer.hits, spans) for answer, spans in zip(answers, right, strict=True)]
                declined = [not judge(answer, home).relevant for answer in answers] if system == HYBRID else None
                for name in [*folders, ALL]:
                    of_manual = [i for i, each in enumerate(questions) if name in (ALL, each.manual)]
                    yield about | {"system": system, "manual": name} | _figures(of_manual, questions, ranks, declined)


def read_questions(path: Path) -> tuple[list[Manual], list[Question]]:
    """Return the manuals and questions of a file. Raises InputError if it is invalid."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        manuals = [Manual(**each) for each in fields["manuals"]]
        questions = [Question(**each | {"right": tuple(each["right"])}) for each in fields["questions"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not a file of manuals and questions ({error}); write it like manuals.json"
        ) from error
    names = {manual.name for manual in manuals}
    for each in questions:
        if each.manual not in names or not each.right:
            raise InputError(
                f"{path}: question {each.question!r} needs one of the manuals {', '.join(sorted(names))} and at least "
                f"one right section; found {each.manual!r} and {len(each.right)}"
            )
    return manuals, questions


def sections(text: str) -> list[tuple[tuple[str, ...], int, int]]:
    """Return the headings above each section of a Markdown text, from the outermost one, and its start and stop."""
    found: list[tuple[tuple[str, ...], int, int]] = []
    above: list[Heading] = []
    headings = Structure(text).headings
    starts = [0, *(heading.start for heading in headings)]
    stops = [*starts[1:], len(text)]
    for heading, start, stop in zip([None, *headings], starts, stops, strict=True):
        if heading is not None:
            above = [*(each for each in above if each.level < heading.level), heading]
        titles = tuple(each.title.removesuffix(_PERMALINK).strip() for each in above)
        found.append((titles, start, start + len(text[start:stop].rstrip())))
    return found


def rank_of(hits: Sequence[Hit], right: Spans) -> int | None:
    """Return the 1-based rank of the first hit that shows a right section, or None if no hit does."""
    shown = (rank for rank, hit in enumerate(hits, start=1) if any(_shows(hit, *s) for s in right.get(hit.path, ())))
    return next(shown, None)


def _shows(hit: Hit, start: int, stop: int) -> bool:
    shared = min(hit.stop, stop) - max(hit.start, start)
    return shared > 0 and 2 * shared >= min(hit.stop - hit.start, stop - start)


def _index(manuals: Sequence[Manual], unpacked: Path, home: Path, name: str, model: Embedder) -> None:
    """Index the pages of all manuals, each manual as a collection. Raises InputError if a page cannot be read."""
    options = options_for(model)
    with Store.open(home, write=True) as store:
        for manual in manuals:
            store.collections.add(manual.name, {"include": [manual.include]})
            store.collections.add_root(manual.name, os.fsencode(unpacked / manual.folder))
        indexer = Indexer(store, model, options, settings_of(name, model, options))
        if not indexer.generation.serving:
            raise InputError(f"{home}: the index was made with another model or other options; name an empty --home")
        report = indexer.update()
    if report.failed:
        raise InputError(f"{unpacked}: {report.failed:,} pages of the manuals cannot be read; unpack them again")


def _right_spans(store: Store, questions: Sequence[Question], folders: Mapping[str, Path]) -> list[Spans]:
    """Return where the right sections of each question are. Raises InputError if one is missing."""
    text_ids = {document.path: document.text_id for document in store.documents()}
    cut: dict[bytes, list[tuple[tuple[str, ...], int, int]]] = {}
    found: list[Spans] = []
    for each in questions:
        spans: Spans = {}
        for mark in each.right:
            file, _, wanted = mark.partition("#")
            path = os.fsencode(folders[each.manual] / file)
            if path not in cut:
                cut[path] = sections(store.read(text_ids[path])) if path in text_ids else []
            titles = tuple(wanted.split(" > ")) if wanted else ()
            matching = [s[1:] for s in cut[path] if (s[0][-len(titles) :] == titles if titles else not s[0])]
            if not matching:
                raise InputError(
                    f"{folders[each.manual]}: no section {mark!r}; get the version of the manual that was marked"
                )
            spans.setdefault(path, []).extend(matching)
        found.append(spans)
    return found


def _figures(
    indices: Sequence[int], questions: Sequence[Question], ranks: Sequence[int | None], declined: Sequence[bool] | None
) -> Figures:
    n_within = {k: sum((ranks[i] or K + 1) <= k for i in indices) for k in (1, 3, K)}
    return {
        "questions": len(indices),
        "first": n_within[1],
        "first 3": n_within[3],
        "first 10": n_within[K],
        "declined": None if declined is None else sum(declined[i] for i in indices),
        "ranks": {questions[i].question: ranks[i] for i in indices},
    }
