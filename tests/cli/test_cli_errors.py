"""Bad input and a full disk, as the user meets them: one line on stderr, status 2, nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_weights, tiny_config, write_json, write_weights
from command_line import spawn

from pplx_edge.spec import ModelSpec

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def quiet_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own and no hub; the cache's directory."""
    cache = tmp_path_factory.getbasetemp() / "cache"  # one for all tests, so that a model is converted once
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return cache


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to write to."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def fails(*argv: object, stdin: bytes = b"one\n", **options) -> str:
    """The one line that a command which must fail says."""
    result = spawn(*argv, stdin=stdin, **options)
    said = result.stderr.decode()
    assert result.returncode == 2, said
    assert said.startswith("pplx-edge: error: "), said
    assert said.count("\n") == 1, said
    assert result.stdout == b""
    return said


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# A broken model


def truncate_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)


def slide_window(directory: Path) -> None:
    write_json(directory / "config.json", tiny_config(use_sliding_window=True))


def lose_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def poison_weights(directory: Path) -> None:
    weights = random_weights(ModelSpec.from_directory(directory))
    weights["layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    write_weights(directory, weights)


BROKEN = [
    (truncate_weights, "model.safetensors: truncated: tensor "),
    (slide_window, "use_sliding_window=true: not implemented"),
    (lose_tokenizer, "tokenizer.json: not found"),
    (poison_weights, "tensor layers.1.mlp.down_proj.weight contains NaN or infinity"),
]


@pytest.mark.parametrize(("harm", "says"), BROKEN, ids=[harm.__name__ for harm, _ in BROKEN])
@pytest.mark.parametrize("command", ["embed", "convert", "verify"])
def test_a_broken_model(make_checkpoint: Make, place: Path, quiet_surroundings: Path, harm, says: str, command: str):
    model = make_checkpoint()
    harm(model)
    before = everything_in(quiet_surroundings) if quiet_surroundings.exists() else []
    calls = {
        "embed": ("embed", "--model", model, "-o", place / "x.npy"),
        "convert": ("convert", model, "--to", "onnx-int8", "--out", place / "out"),
        "verify": ("verify", model),
    }
    if command == "verify":
        result = spawn(*calls[command])
        assert result.returncode == 2
        assert says in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1
    else:
        assert says in fails(*calls[command])
    assert everything_in(place) == []
    after = everything_in(quiet_surroundings) if quiet_surroundings.exists() else []
    assert [name for name in after if "partial" in name] == []
    assert len(set(after) - set(before)) <= 1  # at most the empty directory of artifacts


def test_weights_that_overflow(make_checkpoint: Make, place: Path):
    model = make_checkpoint(name="hot")
    weights = random_weights(ModelSpec.from_directory(model))
    weights["norm.weight"][:] = 3e38
    weights["embed_tokens.weight"] *= 1e4
    write_weights(model, weights)
    said = fails("embed", "--model", model, "--format", "onnx-fp32", "-o", place / "x.npy")
    assert "NaN or infinity" in said
    assert everything_in(place) == []


# An unknown model


@pytest.mark.parametrize("offline", [["--offline"], []])
def test_an_unknown_model_without_network(place: Path, offline: list[str]):
    said = fails("embed", "--model", "someone/unheard-of", "-o", place / "x.npy", *offline)
    assert "pplx-edge models pull someone/unheard-of" in said
    assert everything_in(place) == []


def test_a_misspelt_model(place: Path):
    assert "did you mean nano?" in fails("embed", "--model", "nanno", "-o", place / "x.npy")


# Bad texts


def test_a_line_of_40_000_tokens(tiny_dir: Path, place: Path):
    source = place.parent / "long.txt"
    source.write_text("short\n" + "Fuchs " * 40_000 + "\n", encoding="utf-8")
    said = fails("embed", source, "--model", tiny_dir, "-o", place / "x.npy")
    assert f"{source}:2: " in said
    assert "tokens, limit 512; split it, or pass --truncate" in said
    assert everything_in(place) == []


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"fine\n\xff\xfe bad\n", [], ":2: not UTF-8: byte 0xff at position 0"),
        (b'"fine"\n{"text": "a"\n', ["--jsonl"], ":2: not JSON: "),
        (b'{"text": "a"}\n{"title": "b"}\n', ["--jsonl"], ":2: no field 'text' in this object, it has title"),
        (b'{"text": 7}\n', ["--jsonl"], ":1: a string is needed, found int"),
        (b'"\\ud800"\n', ["--jsonl"], ":1: an escaped lone surrogate"),
        (b'["a", 1]\n', ["--contextual"], ":1: a list of strings is needed"),
        (b'"a"\n', ["--contextual"], ":1: a list of strings is needed, found str"),
        (b"[" * 100_000 + b"\n", ["--jsonl"], ":1: not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tiny_dir: Path, place: Path, content: bytes, options: list[str], says: str
):
    source = place.parent / "in.txt"
    source.write_bytes(content)
    assert f"{source}{says}" in fails("embed", source, *options, "--model", tiny_dir, "-o", place / "x.npy")
    assert everything_in(place) == []


def test_an_input_that_cannot_be_opened(tiny_dir: Path, place: Path):
    missing = place.parent / "missing.txt"
    assert f"{missing}: No such file or directory" in fails(
        "embed", missing, "--model", tiny_dir, "-o", place / "x.npy"
    )
    assert f"{place}: Is a directory" in fails("embed", place, "--model", tiny_dir, "-o", place / "x.npy")
    assert everything_in(place) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_input_that_may_not_be_read(tiny_dir: Path, place: Path):
    source = place.parent / "secret.txt"
    source.touch(mode=0)
    assert f"{source}: Permission denied" in fails("embed", source, "--model", tiny_dir, "-o", place / "x.npy")


# A place that cannot take the result


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gone/x.npy", "does not exist; create it first"),
        ("x.csv", "neither .npy nor .jsonl"),
        ("dir.npy", "exists and is not a plain file"),
    ],
)
def test_an_output_that_cannot_be_written(tiny_dir: Path, place: Path, name: str, says: str):
    (place / "dir.npy").mkdir()
    assert says in fails("embed", "--model", tiny_dir, "-o", place / name)
    assert everything_in(place) == ["dir.npy"]


def small_files() -> None:
    """Limits each file of a process, as a full disk would; the signal is off, so that writing fails instead."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("name", ["x.npy", "x.jsonl"])
def test_a_file_that_finds_no_room(tiny_dir: Path, place: Path, name: str):
    assert spawn("embed", "--model", tiny_dir, stdin=b"x\n").returncode == 0  # converted, before room is short
    lines = b"".join(b"text %d\n" % i for i in range(3000))
    said = fails("embed", "--model", tiny_dir, "-o", place / name, stdin=lines, preexec_fn=small_files)
    assert f"{place / name}: the disk is full and nothing was written" in said
    assert everything_in(place) == []


def test_a_conversion_that_finds_no_room(tiny_dir: Path, place: Path):
    said = fails("convert", tiny_dir, "--to", "onnx-int8", "--out", place / "out", preexec_fn=small_files)
    assert "the disk is full and nothing was written" in said
    assert everything_in(place) == []


@pytest.fixture
def full_disk(place: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = shutil.which("mount")
    if sys.platform != "linux" or os.geteuid() != 0 or mount is None:
        pytest.skip("only root on Linux can mount one")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(tiny_dir: Path, full_disk: Path):
    (full_disk / "x.npy").write_bytes(b"the old result")
    lines = b"".join(b"text %d\n" % i for i in range(3000))
    said = fails("embed", "--model", tiny_dir, "-o", full_disk / "x.npy", stdin=lines)
    assert "the disk is full" in said
    said = fails("convert", tiny_dir, "--to", "onnx-int8", "--out", full_disk / "out")
    assert "the disk is full" in said
    assert everything_in(full_disk) == ["x.npy"]
    assert (full_disk / "x.npy").read_bytes() == b"the old result"


# Stdout and signals


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_stdout_without_room(tiny_dir: Path):
    with open("/dev/full", "wb") as full:
        result = spawn("embed", "--model", tiny_dir, stdin=b"one\n", capture_output=False, stdout=full, stderr=-1)
    assert result.returncode == 2
    assert result.stderr == b"pplx-edge: error: standard output: No space left on device\n"


def running(*argv: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pplx_cli", *map(str, argv)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits it if it is ignored
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_goes_away_is_no_error(tiny_dir: Path):
    process = running("embed", "--model", tiny_dir)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"".join(b"text %d\n" % i for i in range(5000)))
    process.stdin.close()
    assert json.loads(process.stdout.readline())["index"] == 0
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(tiny_dir: Path, place: Path, number: signal.Signals, status: int):
    process = running("embed", "--model", tiny_dir, "-o", place / "x.npy")
    assert process.stdin
    process.stdin.write(b"text\n" * 5000)
    process.stdin.flush()
    while not everything_in(place):  # until the unfinished file is there
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate()
    assert (process.returncode, said) == (status, b"")
    assert everything_in(place) == []
