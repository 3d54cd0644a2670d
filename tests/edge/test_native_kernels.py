"""The CPU kernels: the same bits on every instruction set, with any number of threads, in any batch.

The scalar instruction set is the oracle: plain C++ that computes one lane after another. Tests marked `emulated` build
for other processors and run under emulators.
"""

import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from kernel_builds import KERNELS, KernelBuild, build_kernels, write_rows
from tokenizers import Tokenizer

from pplx_convert.native.converter import write_file
from pplx_edge.backends.native_library import NativeLibrary
from pplx_edge.backends.native_session import NativeSession
from pplx_edge.errors import ArtifactError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import SessionOptions, TokenRow
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.weights import native_file
from pplx_edge.weights.checkpoint import Checkpoint

# Rows of one and a few tokens, around the sizes of blocks (48 tokens, 64 and 256 keys), and one without tokens.
LENGTHS = (1, 2, 5, 0, 17, 48, 49, 65, 130, 257)
SHAPES = {
    "0.6b": tiny_config("0.6b"),
    "4b": tiny_config("4b"),
    # Sizes that fill no block: a head of 24, an odd number of columns of 64, six queries per key head.
    "odd": tiny_config(
        "0.6b", head_dim=24, hidden_size=88, intermediate_size=136, num_attention_heads=6, num_key_value_heads=1
    ),
}
MODELS = [*SHAPES, *(f"{name}-int4" for name in SHAPES)]


@pytest.fixture(scope="module")
def build(request: pytest.FixtureRequest) -> Callable[..., KernelBuild]:
    """Compiles a variant of the kernels in pytest's cache."""
    assert request.config.cache
    base = request.config.cache.mkdir("kernels")
    return lambda variant, *emulator: build_kernels(variant, base / variant, emulator)


@pytest.fixture(scope="module")
def native(build: Callable[..., KernelBuild]) -> KernelBuild:
    return build("native")


@pytest.fixture(scope="module")
def library(native: KernelBuild) -> NativeLibrary:
    return NativeLibrary(native.library)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files of tiny random checkpoints, in the directories of these."""
    base, files = tmp_path_factory.mktemp("models"), {}
    for seed, (name, config) in enumerate(SHAPES.items()):
        directory = write_checkpoint(base / name, config, seed=seed)
        for variant, n_bits in ((name, 8), (f"{name}-int4", 4)):
            files[variant] = directory / f"{variant}.native"
            write_file(Checkpoint.open(directory), files[variant], bits=n_bits)
    return files


@pytest.fixture(scope="module")
def open_model(library: NativeLibrary, models: dict[str, Path]) -> Callable[..., NativeSession]:
    def opened(name: str = "0.6b", isa: str = "", **options: int) -> NativeSession:
        spec = ModelSpec.from_directory(models[name].parent)
        return NativeSession(library, spec, models[name], SessionOptions(**options), isa)

    return opened


def random_rows(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[TokenRow]:
    """Rows of random ids, each with a span over the whole row, over a part of it, and an empty one."""
    rng = np.random.default_rng(seed)
    return [TokenRow(rng.integers(0, 400, n), ((0, n), (n // 3, n - n // 4), (n, n))) for n in lengths]


def bits(states: np.ndarray) -> np.ndarray:
    return states.view(np.uint32)


def test_every_thread_takes_part_in_every_call(native: KernelBuild):
    """Tasks that wait for each other: the program ends only if no thread misses a call."""
    assert native.program("team", 20000).stdout == "20000 rounds\n"


def test_products_are_exact(native: KernelBuild):
    """Random shapes and codes, ±127 among them, between inaccessible pages."""
    done = native.program("products", 300).stdout.splitlines()
    assert len(done) >= len(native.instruction_sets())
    assert all(line.endswith("300 products, 0 wrong") for line in done)


@pytest.mark.parametrize("name", MODELS)
def test_every_instruction_set_and_thread_count_gives_the_bits_of_the_oracle(
    name: str, library: NativeLibrary, open_model: Callable[..., NativeSession]
):
    batch = collate(random_rows(), 0)
    oracle = open_model(name, "scalar", threads=1)
    states, means = oracle.packed_states(batch), oracle.span_means(batch)
    assert np.isfinite(states).all()
    assert library.instruction_sets[-1] == "scalar"
    for isa in library.instruction_sets:
        for threads in (1, 2, 3, 8) if isa != "scalar" else (4,):
            session = open_model(name, isa, threads=threads)
            assert session.isa == isa
            np.testing.assert_array_equal(bits(session.packed_states(batch)), bits(states))
            np.testing.assert_array_equal(bits(session.span_means(batch)), bits(means))


@pytest.mark.parametrize("name", ["0.6b", "0.6b-int4"])
def test_a_row_has_the_same_bits_in_any_batch(name: str, open_model: Callable[..., NativeSession]):
    session = open_model(name, threads=2)
    rows = random_rows()
    together = session.span_means(collate(rows, 0)).reshape(len(rows), 3, -1)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = session.span_means(collate([rows[i] for i in order], 0)).reshape(len(rows), 3, -1)
    np.testing.assert_array_equal(bits(shuffled), bits(together[order]))
    for row, means in zip(rows, together, strict=True):
        if len(row):
            np.testing.assert_array_equal(bits(session.span_means(collate([row], 0))), bits(means))


def test_means_are_those_of_the_states(open_model: Callable[..., NativeSession]):
    session, batch = open_model(), collate(random_rows(), 0)
    states, means = session.token_states(batch), session.span_means(batch)
    for span, mean in zip(batch.spans, means, strict=True):
        tokens = states[span.row, span.start : span.stop].astype(np.float64)
        expected = tokens.mean(axis=0).astype(np.float32) if span.n_tokens else np.zeros(session.spec.dim, np.float32)
        np.testing.assert_array_equal(mean, expected)


def test_padding_on_the_left_changes_nothing(open_model: Callable[..., NativeSession]):
    session, batch = open_model(), collate(random_rows((3, 40)), 0)
    flipped = type(batch)(
        np.roll(batch.input_ids[:1], 37, axis=1), np.roll(batch.attention_mask[:1], 37, axis=1), batch.spans[:3]
    )
    np.testing.assert_array_equal(session.span_means(flipped), session.span_means(batch)[:3])


def test_layers_one_by_one_give_the_bits_of_the_whole(open_model: Callable[..., NativeSession]):
    session, batch = open_model("4b"), collate(random_rows(), 0)
    *_, last = session.layer_states(batch)
    np.testing.assert_array_equal(bits(last), bits(session.packed_states(batch)))


@pytest.mark.parametrize("name", ["0.6b", "0.6b-int4"])
def test_weights_that_do_not_fit_pairs_are_multiplied_exactly(
    name: str, models: dict[str, Path], library: NativeLibrary, tmp_path: Path
):
    """AVX2 has a faster product for weights whose neighbors never add up to more than 128."""
    spec = ModelSpec.from_directory(models[name].parent)
    image = bytearray(models[name].read_bytes())
    _, _, _, codes, _, sums, *_ = native_file.directory(spec, 4 if "int4" in name else 8)  # of the first q, k and v
    values = np.random.default_rng(5).integers(-127, 128, codes.n_bytes).astype(np.int8)
    image[codes.offset : codes.offset + codes.n_bytes] = values.tobytes()
    stored = codes.shaped(values.view(np.uint8) if "int4" in name else values)
    image[sums.offset : sums.offset + sums.n_bytes] = native_file.unpacked(stored).sum(axis=1, dtype=np.int32).tobytes()
    path = tmp_path / "any.native"
    path.write_bytes(image)
    batch = collate(random_rows(), 0)
    states = [NativeSession(library, spec, path, isa=isa).packed_states(batch) for isa in library.instruction_sets]
    for other in states[:-1]:
        np.testing.assert_array_equal(bits(other), bits(states[-1]))


@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_four_bits_give_the_bits_of_the_int8_codes_that_they_stand_for(
    name: str, models: dict[str, Path], library: NativeLibrary, tmp_path: Path
):
    path = models[f"{name}-int4"]
    spec = ModelSpec.from_directory(path.parent)
    stored = native_file.stored_tensors(native_file.map_model(path, spec, 4), spec)
    image = bytearray(models[name].read_bytes())
    for tensor in native_file.directory(spec):
        values = stored[tensor.kind, tensor.layer]
        if values.dtype == np.uint8:
            values = native_file.panels(native_file.unpacked(values))
        image[tensor.offset : tensor.offset + tensor.n_bytes] = np.ascontiguousarray(values).tobytes()
    (tmp_path / "wide.native").write_bytes(image)
    batch = collate(random_rows(), 0)
    expected = NativeSession(library, spec, tmp_path / "wide.native").packed_states(batch)
    np.testing.assert_array_equal(bits(NativeSession(library, spec, path).packed_states(batch)), bits(expected))


def test_results_do_not_depend_on_the_modes_of_the_processor(open_model: Callable[..., NativeSession]):
    torch = pytest.importorskip("torch")
    session, batch = open_model(threads=2), collate(random_rows(), 0)
    before = session.packed_states(batch)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        np.testing.assert_array_equal(bits(session.packed_states(batch)), bits(before))
    finally:
        torch.set_flush_denormal(False)


def test_a_state_that_is_not_finite_spoils_its_row_only(
    models: dict[str, Path], library: NativeLibrary, tmp_path: Path
):
    image = bytearray(models["0.6b"].read_bytes())
    scales_at = int(np.frombuffer(image, np.uint64, 1, 128 + 48 + 32)[0])
    image[scales_at + 4 * 7 : scales_at + 4 * 8] = np.float32(np.inf).tobytes()  # the scale of token 7
    path = tmp_path / "infinite.native"
    path.write_bytes(image)
    good, bad = np.arange(10, 30), np.array([3, 7, 5])
    batch = collate([TokenRow(ids, ((0, len(ids)),)) for ids in (good, bad)], 0)
    spec = ModelSpec.from_directory(models["0.6b"].parent)
    for isa in library.instruction_sets:
        means = NativeSession(library, spec, path, isa=isa).span_means(batch)
        assert np.isfinite(means[0]).all()
        assert np.isnan(means[1]).all()


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([400], {}, "not in the vocabulary of 400"),
        ([-1], {}, "not in the vocabulary"),
        ([1 << 40], {}, "not in the vocabulary"),
        ([1] * 513, {}, "this model reads up to 512"),
        ([1] * 512, {"memory_mb": 1, "threads": 1}, "do not fit into memory_mb 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    ids: list[int], options: dict[str, int], message: str, open_model: Callable[..., NativeSession]
):
    session = open_model(**options)
    with pytest.raises(InputError, match=message):
        session.span_means(collate([TokenRow(np.array(ids), ((0, 1),))], 0))


@pytest.mark.parametrize("name", ["0.6b", "0.6b-int4"])
def test_a_memory_limit_divides_batches_and_changes_no_bit(name: str, open_model: Callable[..., NativeSession]):
    rows = random_rows([40] * 12)
    session = open_model(name, threads=1)
    whole = session.span_means(collate(rows, 0))
    two_rows = session.model_bytes + session.buffer_bytes(2, 80)
    limited = open_model(name, threads=1, memory_mb=-(-two_rows // 1_000_000))
    assert limited.buffer_bytes(12, 480) > two_rows - session.model_bytes
    np.testing.assert_array_equal(bits(limited.span_means(collate(rows, 0))), bits(whole))
    np.testing.assert_array_equal(
        bits(limited.packed_states(collate(rows, 0))), bits(session.packed_states(collate(rows, 0)))
    )


def test_a_memory_limit_below_the_model_is_refused(
    library: NativeLibrary, make_checkpoint: Callable[..., Path], tmp_path: Path
):
    checkpoint = Checkpoint.open(make_checkpoint(vocab_size=20_000))
    write_file(checkpoint, tmp_path / "model.native")
    with pytest.raises(InputError, match="memory_mb 1 is too little: this model needs at least"):
        NativeSession(library, checkpoint.spec, tmp_path / "model.native", SessionOptions(memory_mb=1))


def test_an_unknown_instruction_set_is_refused(open_model: Callable[..., NativeSession]):
    with pytest.raises(InputError, match=r"avx9 is not available: choose one of .*scalar"):
        open_model(isa="avx9")


@pytest.mark.parametrize("name", ["0.6b", "0.6b-int4"])
def test_damaged_files_are_refused_in_one_line(name: str, native: KernelBuild, models: dict[str, Path]):
    out = native.program("fuzz", models[name], 3000).stdout
    refused = int(out.split(",")[1].split()[0])
    assert refused > 2000


def test_a_truncated_file_and_a_folder_are_refused(models: dict[str, Path], library: NativeLibrary, tmp_path: Path):
    spec, whole = ModelSpec.from_directory(models["0.6b"].parent), models["0.6b"].read_bytes()
    for size in (0, 127, 128, 500, len(whole) - 1):
        (tmp_path / "cut.native").write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"too short|bytes instead|do not fit"):
            NativeSession(library, spec, tmp_path / "cut.native")
    with pytest.raises(ArtifactError, match=r"regular file|directory"):
        NativeSession(library, spec, tmp_path)


def test_sessions_share_the_threads(open_model: Callable[..., NativeSession]):
    """Several models called from several threads at once, with different numbers of threads."""
    batch = collate(random_rows(), 0)
    sessions = [open_model(name, threads=threads) for name in ("0.6b", "4b-int4") for threads in (1, 2, 5)]
    expected = [session.packed_states(batch) for session in sessions]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if (bits(sessions[i].packed_states(batch)) != bits(expected[i])).any():
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i % len(sessions),)) for i in range(2 * len(sessions))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


_WHILE_COMPUTING = """
import os, signal, sys, threading, time
import numpy as np
from pathlib import Path
from pplx_edge.backends.native_library import NativeLibrary
from pplx_edge.backends.native_session import NativeSession
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import SessionOptions, TokenRow

library, model = NativeLibrary(Path(sys.argv[1])), Path(sys.argv[2])
session = NativeSession(library, ModelSpec.from_directory(model.parent), model, SessionOptions(threads=3))
batch = collate([TokenRow(np.arange(n) % 400, ((0, n),)) for n in (300, 200, 512)], 0)
expected = session.packed_states(batch)
same = lambda: (session.packed_states(batch) == expected).all()
"""
_FORKS = """
stop = threading.Event()
def compute():
    while not stop.is_set():
        session.packed_states(batch)
workers = [threading.Thread(target=compute) for _ in range(2)]
for worker in workers: worker.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if same() and same() else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for worker in workers: worker.join()
assert same()
print("done")
"""
_SIGNALS = """
caught = []
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(caught) < 20:
    assert same()
signal.setitimer(signal.ITIMER_REAL, 0)
interrupted = 0
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
main = threading.main_thread().ident
while interrupted < 5:
    threading.Timer(0.002, signal.pthread_kill, (main, signal.SIGINT)).start()
    try:
        for _ in range(1000): session.packed_states(batch)
    except KeyboardInterrupt:
        interrupted += 1
assert same()
print("done")
"""


@pytest.mark.parametrize("program", [_FORKS, _SIGNALS], ids=["fork", "signals"])
def test_the_process_stays_usable(program: str, native: KernelBuild, models: dict[str, Path]):
    """Forks, signals and interrupts while other threads compute."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        _WHILE_COMPUTING + program,
        str(native.library),
        str(models["0.6b"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=dict(os.environ))
    assert done.stdout == "done\n", done.stderr


def test_a_compiler_too_old_for_an_instruction_set_leaves_out_that_one_only(tmp_path: Path):
    """A compiler that rejects the flag of AMX builds the library with all others."""
    if (found := shutil.which("c++")) is None or shutil.which("cmake") is None or platform.machine() != "x86_64":
        pytest.skip("there is no compiler for x86 here")
    compiler = tmp_path / "old-compiler"
    compiler.write_text(
        "#!/bin/sh\nfor a; do test $a = -mamx-int8 && echo \"error: unrecognized option '$a'\" >&2 && exit 1; done\n"
        f'exec {found} "$@"\n'
    )
    compiler.chmod(0o755)
    environment = dict(os.environ) | {"CXX": str(compiler)}
    configure = ["cmake", "-S", KERNELS, "-B", tmp_path, "-G", "Ninja", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"]
    done = subprocess.run(configure, capture_output=True, text=True, check=True, env=environment)
    warning = " ".join(done.stderr.split())
    assert "too old for the instruction set amx, which is left out (error: unrecognized option '-mamx-int8')" in warning
    subprocess.run(["ninja", "-C", tmp_path], capture_output=True, check=True)
    library = NativeLibrary(next(tmp_path.glob("libpplx_kernels.*")))
    assert library.build_info.endswith("instruction sets avx512,avxvnni,avx2,scalar")


_INNER_LOOPS = {  # the instruction of the inner loops of each set
    "isa_avx512": "vpdpbusd",
    "isa_avx2": "vpmaddubsw",
    "isa_avx2wide": "vpmaddwd",
    "isa_avxvnni": "vpdpbusd",
}


@pytest.mark.parametrize("name", _INNER_LOOPS)
def test_inner_loops_do_not_spill(name: str, native: KernelBuild):
    """In loops of products, registers hold all sums: none is kept on the stack."""
    if shutil.which("objdump") is None or not (objects := list(native.directory.rglob(f"{name}.cpp.o"))):
        pytest.skip("there is no objdump here, or this is not x86")
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", objects[0]], capture_output=True, text=True, check=True
    ).stdout
    loops = _loops_with(text, _INNER_LOOPS[name])
    assert len(loops) >= 5
    assert not [line for loop in loops for line in loop if "(%rsp" in line and ("ymm" in line or "zmm" in line)]


def _loops_with(disassembly: str, instruction: str) -> list[list[str]]:
    """Return the innermost loops that contain an instruction: from the target of a jump backwards to the jump."""
    lines = [line.strip() for line in disassembly.splitlines() if ":\t" in line]
    at = {int(line.split(":")[0], 16): i for i, line in enumerate(lines)}
    loops = []
    for i, line in enumerate(lines):
        words = line.split("\t")[1].split()
        if words[0].startswith("j") and len(words) > 1 and not words[1].startswith("*"):
            start = at.get(int(words[1], 16), i + 1)
            body = lines[start : i + 1]
            jumps = [other for other in body[:-1] if other.split("\t")[1].startswith("j")]
            if start <= i and not jumps and any(instruction in other for other in body):
                loops.append(body)
    return loops


@pytest.mark.slow
def test_a_thousand_texts_have_the_same_codes_everywhere(nano_dir: Path, library: NativeLibrary, tmp_path: Path):
    """nano's codes of 1,000 texts, on every instruction set, with 1 to 8 threads, in batches of different sizes."""
    write_file(Checkpoint.open(nano_dir), tmp_path / "model.native")
    spec, tokenizer = ModelSpec.from_directory(nano_dir), Tokenizer.from_file(str(nano_dir / "tokenizer.json"))
    pages = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
    words = " ".join(page.read_text(encoding="utf-8") for page in pages).split()
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 25, 1000), 300)
    texts = [" ".join(words[i : i + n]) for n, i in zip(lengths, rng.integers(0, len(words) - 300, 1000), strict=True)]
    ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    rows = [TokenRow(row, ((0, len(row)),)) for row in ids]

    def codes(isa: str, threads: int, order: Sequence[int], batch: int) -> np.ndarray:
        session = NativeSession(library, spec, tmp_path / "model.native", SessionOptions(threads=threads), isa)
        result = np.empty((len(rows), spec.dim), np.int8)
        for at in range(0, len(order), batch):
            some = list(order[at : at + batch])
            result[some] = int8_codes(session.span_means(collate([rows[i] for i in some], 0)))
        return result

    expected = codes(library.instruction_sets[0], 1, range(1000), 1)
    for isa in library.instruction_sets[:-1]:
        for threads in range(1, 9):
            np.testing.assert_array_equal(codes(isa, threads, rng.permutation(1000), 5 * threads), expected)
    sample = range(0, 1000, 20)  # the oracle is slow
    np.testing.assert_array_equal(codes("scalar", 1, sample, 10)[sample], expected[sample])


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("variant", "emulator", "expected"),
    [
        ("emulated", (), ["amx", "avx512", "avxvnni", "avx2", "scalar"]),
        ("sanitized", (), None),
        ("aarch64", ("qemu-aarch64", "-cpu", "max"), ["i8mm", "dotprod", "scalar"]),
        ("aarch64", ("qemu-aarch64", "-cpu", "neoverse-n1"), ["dotprod", "scalar"]),
        ("aarch64", ("qemu-aarch64", "-cpu", "cortex-a72"), ["scalar"]),
    ],
)
def test_other_processors_give_the_same_bits(
    variant: str,
    emulator: tuple[str, ...],
    expected: list[str] | None,
    build: Callable[..., KernelBuild],
    native: KernelBuild,
    models: dict[str, Path],
    tmp_path: Path,
):
    """AMX, AVX-VNNI and AVX512-VNNI in plain C++, Arm's products under qemu, and this machine's with sanitizers."""
    other = build(variant, *emulator)
    assert other.instruction_sets() == (expected or native.instruction_sets())
    assert "wrong" in other.program("products", 60).stdout
    rows = write_rows(tmp_path / "rows", [row.ids for row in random_rows()])
    for name, model in models.items():
        oracle = native.states(model, rows, "scalar")
        for isa in other.instruction_sets():
            np.testing.assert_array_equal(other.states(model, rows, isa, threads=3), oracle, err_msg=f"{name} {isa}")
    for name in ("0.6b", "0.6b-int4"):
        other.program("fuzz", models[name], 300)
