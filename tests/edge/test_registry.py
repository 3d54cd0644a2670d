"""The table of backends: one entry and one module add a backend to the library and to the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, run_fixture  # noqa: F401 (fixture)
from kernels import needs_kernels
from numpy_backend import NUMPY

import pplx_edge
from pplx_edge import backends
from pplx_edge.backends import default_backend, native_library
from pplx_edge.errors import ArtifactError, InputError, MissingExtra
from pplx_edge.preparation import resolve_model
from pplx_edge.registry import BACKENDS, NATIVE, ONNX, Backend, all_formats, backend_of_format
from pplx_edge.types import SessionOptions
from pplx_edge.weights.artifact import Artifact

TEXTS = ["a first text", "and a second, longer text"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def real_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chooses a backend as on a machine of a user, which is a 64-bit Linux machine here."""
    monkeypatch.setattr(backends, "default_backend", default_backend)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    backends._meets_requirement.cache_clear()


@pytest.fixture
def registered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend that is registered by its entry alone."""
    monkeypatch.setitem(BACKENDS, "numpy", NUMPY)
    return NUMPY


def test_every_format_belongs_to_one_backend():
    assert len(set(all_formats())) == len(all_formats())
    for backend in BACKENDS.values():
        assert all(backend_of_format(format) is backend for format in backend.formats)
        assert backend.default_format in backend.formats


def test_every_option_of_a_session_belongs_to_a_backend():
    options = {name for backend in BACKENDS.values() for name in backend.options}
    assert options == set(SessionOptions.__dataclass_fields__)


@pytest.mark.parametrize("wanted", [{"backend": "numpy"}, {"artifact_format": "numpy-fp32"}])
def test_a_registered_backend_converts_and_loads_checkpoints(
    wanted: dict[str, str], registered: Backend, cache: Path, tiny_dir: Path
):
    exact = pplx_edge.load(tiny_dir, artifact_format="onnx-fp32").encode(TEXTS, "float32")
    with pplx_edge.load(tiny_dir, **wanted) as model:  # type: ignore[arg-type]
        assert model.session.backend == "numpy"
        np.testing.assert_allclose(model.encode(TEXTS, "float32"), exact, atol=1e-4)
        fingerprint = model.fingerprint
    (converted,) = (path for path in (cache / "artifacts").iterdir() if "numpy-fp32" in path.name)
    artifact = Artifact.open(converted)
    assert (artifact.format, artifact.revision, artifact.fingerprint) == ("numpy-fp32", 7, fingerprint)
    assert artifact.made_by == "pplx-edge numpy converter 7"
    assert artifact.parity["min_cosine"] == 1
    resolved = resolve_model(converted)
    assert (resolved.backend, resolved.directory, resolved.artifact) == (registered, converted, artifact)


def test_the_command_line_knows_a_registered_backend(registered: Backend, tiny_dir: Path, tmp_path: Path, run: Run):
    out = tmp_path / "converted"
    status, _, err = run("convert", str(tiny_dir), "--to", "numpy-fp32", "--out", str(out))
    assert status == 0, err
    assert json.loads(run("info", str(out), "--json")[1])["format"] == "numpy-fp32"
    assert run("verify", str(out))[0] == 0
    status, vectors, err = run("embed", "--model", str(out), "--backend", "numpy", stdin=TEXTS[0])
    assert (status, len(json.loads(vectors)["embedding"])) == (0, 64), err
    facts = json.loads(run("doctor", "--no-test", "--json")[1])
    assert facts["backends"]["numpy"] == {"usable": True, "why": "", "versions": {"numpy": np.__version__}}
    status, _, err = run("embed", "--backend", "nmupy", stdin=TEXTS[0])
    assert status == 2
    assert "numpy" in err


def test_the_record_alone_says_what_is_refused(
    registered: Backend, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match="memory_mb is not an option of the numpy backend; its options are threads"):
        pplx_edge.load(tiny_dir, backend="numpy", memory_mb=100)
    directory = resolve_model(tiny_dir, backend="numpy").directory
    with pytest.raises(ArtifactError, match="contains numpy-fp32, which the onnx backend does not open"):
        pplx_edge.load(directory, backend="onnx")
    monkeypatch.setitem(BACKENDS, "numpy", replace(NUMPY, revision=8))
    with pytest.raises(ArtifactError, match="numpy-fp32 revision 7, but this release opens revision 8"):
        pplx_edge.load(directory)
    monkeypatch.setitem(BACKENDS, "numpy", replace(NUMPY, package="no_such_package", extra="mine"))
    with pytest.raises(MissingExtra, match=r"the numpy backend needs: pip install 'pplx-edge\[mine\]'"):
        pplx_edge.load(directory)
    monkeypatch.delitem(BACKENDS, "numpy")
    with pytest.raises(ArtifactError, match="contains numpy-fp32, which no backend of this release opens"):
        pplx_edge.load(directory)
    with pytest.raises(InputError, match="unknown backend 'numpy': choose auto or one of onnx, native, mlx, coreml"):
        pplx_edge.load(tiny_dir, backend="numpy")


def test_ready_made_files_are_opened_without_conversion(
    registered: Backend, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
):
    monkeypatch.setitem(BACKENDS, "numpy", replace(NUMPY, ready_made=("*.weights",)))
    (tmp_path / "model.weights").touch()
    assert resolve_model(tmp_path).backend.name == "numpy"
    assert resolve_model(tmp_path).directory == tmp_path
    assert not cache.exists()


@needs_kernels
@pytest.mark.usefixtures("real_default", "cache")
def test_a_checkpoint_runs_on_our_kernels_where_they_can_run(tiny_dir: Path, tmp_path: Path):
    model = pplx_edge.load(tiny_dir)
    assert model.session.backend == NATIVE.name
    graph = resolve_model(tiny_dir, artifact_format=ONNX.default_format)
    assert graph.backend is ONNX
    same = pplx_edge.load(graph.directory, threads=1, memory_mb=50)
    assert same.session.backend == NATIVE.name
    np.testing.assert_array_equal(same.encode(TEXTS), model.encode(TEXTS))
    assert pplx_edge.load(graph.directory, backend="onnx").session.backend == ONNX.name


@pytest.mark.usefixtures("real_default", "cache")
@pytest.mark.parametrize("problem", ["no library", "old processor"])
def test_without_kernels_a_checkpoint_runs_on_onnx_and_one_line_says_so(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
):
    reason = "this installation has no CPU kernels"
    if problem == "no library":
        monkeypatch.setenv(native_library.LIBRARY_VARIABLE, str(tmp_path / "nothing.so"))
    else:
        reason = "no fast path for this processor"
        only_scalar = type("Library", (), {"instruction_sets": ["scalar"]})()
        monkeypatch.setattr(native_library, "load_library", lambda: only_scalar)
    with pytest.warns(
        UserWarning, match=f"the native backend cannot be used: .*{reason}.*; models run on onnx"
    ) as said:
        model = pplx_edge.load(tiny_dir)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert model.session.backend == ONNX.name
    assert resolve_model(tiny_dir).backend is ONNX  # without another warning, which would be an error
    backends._meets_requirement.cache_clear()
