"""The self-test of `doctor`: the built-in model on each backend, in a process each, against the same vectors.

A process of its own gives each backend a clean peak of memory, and lets one that crashes or hangs cost only itself.
`python -m pplx_cli.self_test` is that process: a request as JSON on stdin, the measurement in the file it names.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import backends
from pplx_edge.embedder import load
from pplx_edge.errors import EdgeError
from pplx_edge.files import replacing_file
from pplx_edge.registry import BACKENDS, EXACT_FORMAT, ONNX, entry
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.findings import Verdict
from pplx_kit.host import peak_rss
from pplx_kit.terminal import printable

PROGRAM = ("-m", __name__)  # what Python runs in the child
BUDGET_SECONDS = 28.0  # all processes together; what is left of half a minute is for starting and ending
_ENDING_SECONDS = 1.0  # of a process that is told to end, before it is killed
_LEAST_SECONDS = 2.0  # with less left, a process is not started
_SHARE_OF_ENCODING = 0.5  # of a process's time: parity takes as much at most, the timed pass as much again
_TERMINATED = 143

N_TEXTS = 32
_SENTENCE_CHARS = range(20, 200)


@cache
def texts() -> tuple[str, ...]:
    """Return the texts that every backend encodes: one to four of the sentences that conversions are compared on.

    Short texts come first, because a slow backend has time only for the first texts.
    """
    from pplx_convert.parity import PROBE_TEXTS

    sentences = [text for text in PROBE_TEXTS if len(text) in _SENTENCE_CHARS]
    return tuple(" ".join(sentences[(5 * i + j) % len(sentences)] for j in range(1 + i // 8)) for i in range(N_TEXTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A backend with a format (None: the checkpoint as it is), and the least cosine of its int8 codes that is sound."""

    backend: str
    format: str | None
    least_cosine: float

    @property
    def label(self) -> str:
        return self.format or f"{self.backend}, as stored"

    @property
    def is_default(self) -> bool:
        """True for the trial of the backend that `load` selects on this machine."""
        return self is not REFERENCE and self.backend == backends.default_backend().name


REFERENCE = Trial(backend=ONNX.name, format=EXACT_FORMAT, least_cosine=1.0)


def trials() -> list[Trial]:
    """Return the reference, and for each backend the trial of what `load` opens by default."""
    return [REFERENCE] + [
        Trial(
            backend=backend.name,
            format=None if backend.opens_checkpoints else backend.default_format,
            least_cosine=backend.self_test_cosine,
        )
        for backend in BACKENDS.values()
        if backend.formats
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The result of a child process: the int8 codes of the first `n_texts` texts, the device, and the cost.

    `open_seconds` includes a conversion if the model was not converted yet. `tokens_per_second` is measured on texts
    that were already encoded once, so it does not include preparation. `note` is what was found out about
    kernels, and `warnings` are those that a user would see.
    """

    device: str
    codes: list[list[int]]
    n_texts: int
    n_tokens: int
    open_seconds: float
    tokens_per_second: float
    peak_bytes: int
    note: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a trial: OK, WRONG if it failed, NOTE if it did not finish.

    `why` is the reason for a verdict other than OK. `min_cosine` and `largest_step` are None if nothing was compared.
    """

    trial: Trial
    verdict: Verdict
    why: str = ""
    measured: Measurement | None = None
    min_cosine: float | None = None
    largest_step: int | None = None


def run_trials(usable: Sequence[str], report: Callable[[str], None], budget: float) -> list[Outcome]:
    """An outcome for each trial whose backend is usable, the reference's first, in `budget` seconds at most."""
    until = time.monotonic() + budget
    chosen = [trial for trial in trials() if trial.backend in usable]
    chosen.sort(key=lambda trial: (trial is not REFERENCE, not trial.is_default))
    outcomes: list[Outcome] = []
    for i, trial in enumerate(chosen):
        report(f"self-test: {trial.label}")
        left = until - time.monotonic()
        measured = run_trial(trial, left / (len(chosen) - i), left)
        reference = outcomes[0].measured if outcomes else None
        outcomes.append(measured if isinstance(measured, Outcome) else judged(trial, measured, reference))
    return outcomes


def judged(trial: Trial, measured: Measurement, reference: Measurement | None) -> Outcome:
    """Return the outcome of comparing the codes with those of the reference, within the tolerance of the trial."""
    if trial is REFERENCE:
        return Outcome(trial=trial, verdict=Verdict.OK, measured=measured)
    if reference is None:
        why = f"nothing to compare with: {REFERENCE.label} gave no vectors"
        return Outcome(trial=trial, verdict=Verdict.NOTE, why=why, measured=measured)
    n = min(measured.n_texts, reference.n_texts)
    ours, theirs = (np.array(one.codes[:n], np.float64) for one in (measured, reference))
    cosine = float(paired_cosines(ours, theirs).min())
    sound = cosine >= trial.least_cosine
    return Outcome(
        trial=trial,
        verdict=Verdict.OK if sound else Verdict.WRONG,
        why="" if sound else f"cosine {cosine:.5f} with {REFERENCE.label}, at least {trial.least_cosine} is expected",
        measured=measured,
        min_cosine=cosine,
        largest_step=int(np.abs(ours - theirs).max()),
    )


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Return whether the default backend passed its trial and no other trial failed."""
    default_works = any(outcome.trial.is_default and outcome.verdict == Verdict.OK for outcome in outcomes)
    return default_works and all(outcome.verdict != Verdict.WRONG for outcome in outcomes)


def run_trial(trial: Trial, seconds: float, limit: float) -> Measurement | Outcome:
    """Run a trial in a child process for about `seconds`, and return its measurement.

    Returns an outcome instead if the child fails, or takes longer than `limit` seconds.
    """
    if limit < _LEAST_SECONDS:
        return Outcome(trial=trial, verdict=Verdict.NOTE, why="no time was left for it")
    with tempfile.TemporaryDirectory(prefix="pplx-edge-doctor-") as folder:
        result, said = Path(folder) / "result.json", Path(folder) / "stderr"
        request = {"model": BUILT_IN, "backend": trial.backend, "format": trial.format, "seconds": seconds}
        with said.open("wb") as stderr:  # a file: what a process that is ended leaves behind may hold a pipe open
            command = [sys.executable, *PROGRAM]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            asked = json.dumps(request | {"result": str(result)}).encode()
            child.communicate(asked, timeout=limit - _ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            _end(child)
            if result.is_file():
                return Measurement(**json.loads(result.read_text(encoding="utf-8")))
            why = f"not done after {limit:.0f} s; a first conversion may take that long: run doctor again"
            return Outcome(trial=trial, verdict=Verdict.NOTE, why=why)
        except BaseException:
            _end(child)
            raise
        if child.returncode or not result.is_file():
            why = _ending(child.returncode, said.read_text(encoding="utf-8", errors="replace"))
            return Outcome(trial=trial, verdict=Verdict.WRONG, why=why)
        found = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        return Outcome(trial=trial, verdict=Verdict.WRONG, why=found["error"])
    return Measurement(**found)


def measure(
    model: str, backend: str, format: str | None, seconds: float, early: Callable[[Measurement], None] = lambda _: None
) -> Measurement:
    """Encode as many of the texts as there is time for, and return the measurement.

    The first text is encoded once without being counted, because the first call of a backend includes preparation. Then
    the number of texts is doubled while the speed so far allows it. Finally, all of them are encoded once more to
    measure the speed. `early` gets the measurement before the device is known, because Core ML may take minutes to say
    which devices it uses.
    """
    proof = BACKENDS[backend].proof
    note = entry(proof)()["note"] if proof else ""
    started = time.monotonic()
    with load(model, backend=backend, artifact_format=format) as embedder:
        open_seconds = time.monotonic() - started
        lengths = [embedder.tokenizer.count(text) for text in texts()]
        embedder.encode(texts()[:1], show_progress=False)
        allowed = max(0.0, seconds - (time.monotonic() - started)) * _SHARE_OF_ENCODING
        codes: list[np.ndarray] = []
        pace, spent, done = 0.0, 0.0, 0
        while done < len(texts()):
            group = slice(done, max(1, 2 * done))
            n_tokens = sum(lengths[group])
            if pace and spent + n_tokens / pace > allowed:
                break
            taken, found = _timed(lambda group=group: embedder.encode(texts()[group], show_progress=False))
            codes.extend(found)
            pace, spent, done = n_tokens / taken, spent + taken, done + len(texts()[group])
        n_tokens = sum(lengths[:done])
        if n_tokens / pace <= allowed:
            taken, _ = _timed(lambda: embedder.encode(texts()[:done], show_progress=False))
            pace = n_tokens / taken
        measured = Measurement(
            device="device not known yet",
            codes=[row.tolist() for row in codes],
            n_texts=done,
            n_tokens=n_tokens,
            open_seconds=round(open_seconds, 3),
            tokens_per_second=round(pace, 1),
            peak_bytes=peak_rss(),
            note=note,
        )
        early(measured)
        return replace(measured, device=embedder.session.device)


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Provide a list that receives the warnings for users, each once, instead of stderr."""
    said: list[str] = []

    def record(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and str(message) not in said:
            said.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = record
        yield said


def main() -> int:
    """The process of one trial."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that an unfinished conversion is deleted
    request = json.load(sys.stdin)
    result = Path(request.pop("result"))

    def write(found: dict[str, Any]) -> None:
        with replacing_file(result) as new:
            new.write_text(json.dumps(found), encoding="utf-8")

    with recorded_warnings() as said:

        def write_measured(found: Measurement) -> None:
            write(asdict(found) | {"warnings": said})

        try:
            write_measured(measure(**request, early=write_measured))
        except EdgeError as error:
            write({"error": str(error)})
    return 0


def _timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    found = work()
    return max(time.perf_counter() - started, 1e-6), found


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a process, by force when it does not go."""
    child.terminate()
    try:
        child.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _ending(status: int, said: str) -> str:
    """Return a sentence on how a child process without a result ended."""
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    how = f"crashed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"{how} ({printable(last)})"


if __name__ == "__main__":
    sys.exit(main())
