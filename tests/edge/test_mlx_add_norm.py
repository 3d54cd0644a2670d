"""The fused kernel of the residual stream: its source compiled as C++, and the proof that turns it on."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from pplx_edge.backends import mlx_proof  # noqa: E402
from pplx_edge.backends.mlx_session import open_session  # noqa: E402
from pplx_edge.models import mlx_add_norm, qwen3_mlx  # noqa: E402
from pplx_edge.models.qwen3_mlx import StreamNorm  # noqa: E402

EPS = 1e-6
N_ROWS = 3
COMPILER = shutil.which("g++")

# Metal on a processor: every thread of a threadgroup is a thread, and rows are computed one after the other.
SHIM = """
#include <barrier>
#include <cmath>
#include <cstdio>
#include <deque>
#include <thread>
#include <vector>
#define threadgroup static
typedef unsigned uint;
typedef _Float16 T;
struct uint3 { uint x; };
namespace mem_flags { int mem_threadgroup; }
namespace metal::precise { float rsqrt(float value) { return 1 / std::sqrt(value); } }
std::barrier<> all(THREADS);
std::deque<std::barrier<>> simd;
float slots[THREADS];
thread_local uint me;
void threadgroup_barrier(int) { all.arrive_and_wait(); }
float simd_sum(float value) {
    slots[me] = value;
    simd[me / 32].arrive_and_wait();
    float total = 0;
    for (uint i = 0; i < 32; ++i) total += slots[me / 32 * 32 + i];
    simd[me / 32].arrive_and_wait();
    return total;
}
void kernel_body(const float* x, const T* y, const float* weight, const float* eps, float* stream, T* normed,
                 uint3 thread_position_in_threadgroup, uint3 threadgroup_position_in_grid,
                 uint thread_index_in_simdgroup, uint simdgroup_index_in_threadgroup) {
SOURCE
}
int main() {
    std::vector<float> x(ROWS * DIM), weight(DIM), eps(1), stream(ROWS * DIM);
    std::vector<T> y(ROWS * DIM), normed(ROWS * DIM);
    if (fread(x.data(), 4, x.size(), stdin) != x.size() || fread(y.data(), 2, y.size(), stdin) != y.size() ||
        fread(weight.data(), 4, DIM, stdin) != DIM || fread(eps.data(), 4, 1, stdin) != 1) return 1;
    for (uint i = 0; i < THREADS / 32; ++i) simd.emplace_back(32);
    for (uint row = 0; row < ROWS; ++row) {
        std::vector<std::thread> threads;
        for (uint i = 0; i < THREADS; ++i) threads.emplace_back([&, i] {
            me = i;
            kernel_body(x.data(), y.data(), weight.data(), eps.data(), stream.data(), normed.data(), {i}, {row},
                        i % 32, i / 32);
        });
        for (auto& thread : threads) thread.join();
    }
    fwrite(stream.data(), 4, stream.size(), stdout);
    fwrite(normed.data(), 2, normed.size(), stdout);
}
"""


@pytest.fixture(autouse=True)
def on_the_processor() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def sample(dim: int) -> tuple[Any, Any, StreamNorm]:
    """Return a stream, a float16 term, and a norm with random weights."""
    rng = np.random.default_rng(dim)
    norm = StreamNorm(dim, EPS)
    norm.weight = mx.array(rng.uniform(0.5, 2, dim).astype(np.float32))
    x, y = (mx.array(rng.standard_normal((N_ROWS, dim)).astype(np.float32)) for _ in range(2))
    return x * 100, y.astype(mx.float16), norm


@pytest.mark.skipif(COMPILER is None, reason="needs g++")
def test_the_source_of_the_kernel_computes_what_mlx_computes(tmp_path: Path) -> None:
    dim = 300  # so that a thread has two values or one
    x, y, norm = sample(dim)
    constants = mlx_add_norm.constants(dim) | {"ROWS": N_ROWS}
    program = tmp_path / "kernel.cpp"
    program.write_text(SHIM.replace("SOURCE", mlx_add_norm.SOURCE))
    defines = [f"-D{name}={value}u" for name, value in constants.items()]
    command = [str(COMPILER), "-std=c++20", "-pthread", *defines, str(program), "-o", str(tmp_path / "kernel")]
    built = subprocess.run(command, capture_output=True, text=True)
    if "_Float16" in built.stderr:
        pytest.skip("this compiler has no float16")
    assert built.returncode == 0, built.stderr
    arrays = (np.array(x), np.array(y), np.array(norm.weight), np.array([EPS], np.float32))
    raw = b"".join(array.tobytes() for array in arrays)
    found = subprocess.run([str(tmp_path / "kernel")], input=raw, capture_output=True, check=True).stdout
    size = N_ROWS * dim
    expected_sum, expected_normed = (np.array(array) for array in norm.add(x, y, mx.float16))
    np.testing.assert_array_equal(np.frombuffer(found[: 4 * size], np.float32).reshape(N_ROWS, dim), expected_sum)
    ours = np.frombuffer(found[4 * size :], np.float16).reshape(N_ROWS, dim)
    np.testing.assert_array_max_ulp(ours, expected_normed, maxulp=1)


@pytest.mark.parametrize(
    ("dim", "expected"),
    [(64, (64, 1)), (70, (96, 1)), (512, (256, 2)), (1000, (256, 4)), (1024, (256, 4)), (2560, (256, 10))],
)
def test_every_value_of_a_row_has_a_thread(dim: int, expected: tuple[int, int]) -> None:
    found = mlx_add_norm.constants(dim)
    assert (found["THREADS"], found["PER_THREAD"]) == expected
    assert found["THREADS"] % 32 == 0
    assert found["THREADS"] * found["PER_THREAD"] >= dim


def test_without_the_kernel_the_sum_and_its_norm_are_those_of_the_definition() -> None:
    x, y, norm = sample(96)
    total, normed = norm.add(x, y, mx.float16)
    expected = np.array(x, np.float64) + np.array(y, np.float64)
    np.testing.assert_allclose(np.array(total), expected, rtol=1e-6)
    root = np.sqrt(np.square(expected).mean(axis=1, keepdims=True) + EPS)
    np.testing.assert_allclose(np.array(normed), expected / root * np.array(norm.weight), rtol=2e-3, atol=1e-6)
    assert norm.add(x, None, mx.float16)[0] is x


# The proof


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Plays a GPU on which the kernel is `wrong` by a factor, and takes a share of the time of separate kernels."""
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mlx_proof, "_DIMS", (64,))
    monkeypatch.setattr(mlx_proof.mx, "device_info", lambda: {"architecture": "applegpu_g15s"})

    def give(share: float = 0.7, wrong: float = 1.0, build: str = "25B78") -> None:
        def kernel(x: Any, y: Any, weight: Any, eps: float, dtype: Any) -> tuple[Any, Any]:
            total = x + y
            return total, (mx.fast.rms_norm(total, weight, eps) * wrong).astype(dtype)

        monkeypatch.setattr(mlx_proof, "fused_add_norm", kernel)
        monkeypatch.setattr(qwen3_mlx, "fused_add_norm", kernel)
        monkeypatch.setattr(mlx_proof, "_seconds", lambda *, fused: share if fused else 1.0)
        monkeypatch.setattr(mlx_proof, "macos_version", lambda: ("26.1", build))

    return give


def fused(directory: Path) -> bool:
    """Return whether a session on this machine uses the kernel in every norm of the stream."""
    model = open_session(directory).model
    (found,) = {module.fused for module in model.modules() if isinstance(module, StreamNorm)}
    return found


def test_the_kernel_is_off_until_proven_and_again_on_another_build(gpu, tiny_dir: Path) -> None:
    gpu()
    assert not fused(tiny_dir)
    assert mlx_proof.prove() == {
        "proven": True,
        "error_ulp": 0,
        "time_share": 0.7,
        "note": "the fused kernel takes 70% of the time and is on",
    }
    assert fused(tiny_dir)
    gpu(build="25C56")
    assert not fused(tiny_dir)


@pytest.mark.parametrize(
    ("share", "wrong", "note"), [(0.97, 1.0, "97% of the time and is off"), (0.5, 1.02, "wrong here, by")]
)
def test_a_slow_or_wrong_kernel_stays_off(gpu, tiny_dir: Path, share: float, wrong: float, note: str) -> None:
    gpu(share, wrong)
    assert note in mlx_proof.prove()["note"]
    assert not fused(tiny_dir)


def test_a_kernel_that_does_not_compile_stays_off_and_a_damaged_record_counts_as_none(gpu, monkeypatch) -> None:
    gpu()
    mlx_proof.prove()
    assert mlx_proof.is_proven()
    for content in ("{", "[]", '{"proven": "yes"}'):
        mlx_proof._file().write_text(content)
        assert not mlx_proof.is_proven()

    def fail(*_: object) -> None:
        raise RuntimeError("no such function")

    monkeypatch.setattr(mlx_proof, "fused_add_norm", fail)
    assert "cannot be used here (no such function)" in mlx_proof.prove()["note"]
    assert json.loads(mlx_proof._file().read_text())["proven"] is False


def test_nothing_is_tested_without_a_gpu() -> None:
    assert mlx_proof.prove() == {"proven": False, "note": ""}
    assert not mlx_proof.is_proven()


@pytest.mark.apple
def test_the_kernel_on_this_gpu_computes_what_mlx_computes() -> None:
    mx.set_default_device(mx.gpu)
    for dtype in (mx.bfloat16, mx.float16):
        for dim in (96, 512, 1000, 1024, 2560):
            assert mlx_proof.largest_error(dim, dtype) <= 1
    assert "error_ulp" in mlx_proof.findings()
