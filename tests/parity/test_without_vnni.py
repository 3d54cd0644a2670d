"""On x86 processors without VNNI the plain int8 kernel saturates; the session must notice and still give the codes.

The processor is emulated by the user mode of qemu (Debian: qemu-user), where that is installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pplx_convert import convert

from pplx_edge.backends import onnx_options
from pplx_edge.embedder import load

TEXTS = ["what is machine learning?", "the quick brown fox", "a", "機械学習とは何ですか。"]
QEMU = shutil.which("qemu-x86_64")
_SCRIPT = """
import sys
import numpy as np
from pplx_edge import load
from pplx_edge.backends.onnx_options import needs_wide_int8
assert needs_wide_int8(), "the emulated processor was expected to saturate"
np.save(sys.argv[2], load(sys.argv[1], threads=1).encode(sys.argv[3:]))
"""


@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64")
def test_a_haswell_gives_the_same_codes(tiny_dir: Path, tmp_path: Path) -> None:
    artifact = convert(tiny_dir, tmp_path / "int8", "onnx-int8")
    command = [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", _SCRIPT]
    subprocess.run([*command, str(artifact.directory), str(tmp_path / "codes.npy"), *TEXTS], check=True, timeout=600)
    emulated, here = np.load(tmp_path / "codes.npy"), load(artifact.directory, threads=1).encode(TEXTS)
    assert np.abs(emulated.astype(int) - here).max() <= 2  # float kernels differ in their last bits


def test_a_processor_that_saturates_is_given_the_wide_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(onnx_options, "_is_exact", lambda options: next(answers))
    onnx_options.needs_wide_int8.cache_clear()
    try:
        options = onnx_options.session_options()
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    finally:
        onnx_options.needs_wide_int8.cache_clear()


def test_this_processor_multiplies_int8_exactly_as_configured() -> None:
    assert onnx_options._is_exact(onnx_options.session_options(threads=1))
