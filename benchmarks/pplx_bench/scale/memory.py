"""Memory of the driver over synthetic corpora of growing size, with hashes in place of a model."""

import json
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.options import list_of
from pplx_bench.scale.stubs import HashEncoder, texts
from pplx_bench.workdir import require_free, say
from pplx_kit.options import positive
from pplx_scale.corpus import embed_corpus
from pplx_scale.workers import Workers

Figures = dict[str, Any]
_FILE_BYTES = 64 << 20
_ROW_WORDS = 700


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument(
        "--gb",
        type=list_of(float),
        default=[0.5, 1.0, 2.0],
        metavar="GB,GB",
        help="Sizes of the corpora, in GB of text.",
    )
    group.add_argument("--workers", type=positive, default=2, metavar="N", help="Actors.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the memory of this process before and while it embeds a corpus of each size, smallest first."""
    require_free(work, int(2.5e9 * max(args.gb)))
    source = work / "in"
    source.mkdir()
    n_bytes = number = 0
    lines = [json.dumps({"text": text}) + "\n" for text in texts(2000, _ROW_WORDS)]
    for size in sorted(args.gb):
        while n_bytes < size * 1e9:
            n_bytes += _write_file(source / f"{number:04}.jsonl", lines, number)
            number += 1
        say(f"{n_bytes / 1e9:.2f} GB")
        started = machine.rss()
        with _Watch() as watch:
            report = embed_corpus(
                source,
                work / f"out-{size}",
                open_encoder=HashEncoder,
                workers=Workers(least=args.workers, most=args.workers, rows_per_file=20_000),
            )
        yield {
            "bytes": n_bytes,
            "rows": report.rows,
            "seconds": report.seconds,
            "before": started,
            "first": watch.samples[len(watch.samples) // 10],
            "last": watch.samples[-len(watch.samples) // 10],
            "peak": max(watch.samples),
        }


def _write_file(path: Path, lines: list[str], number: int) -> int:
    """Write rows until the file is large enough. The texts of a file begin with its number, so that all differ."""
    n_bytes = row = 0
    with path.open("w", encoding="utf-8") as file:
        while n_bytes < _FILE_BYTES:
            line = lines[row % len(lines)].replace('{"text": "', f'{{"text": "{number}-{row} ', 1)
            n_bytes += file.write(line)
            row += 1
    return n_bytes


class _Watch:
    """Samples the resident set of this process twice a second."""

    def __enter__(self) -> "_Watch":
        self.samples, self._ended = [machine.rss()], threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            self.samples.append(machine.rss())
            time.sleep(0)
