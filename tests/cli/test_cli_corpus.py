"""`pplx-edge corpus embed`: its options, and what it says without Ray."""

import sys
from pathlib import Path

import pytest

from pplx_cli import main

pytest.importorskip("pyarrow")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pplx_scale.pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.usefixtures("without_ray")
def test_without_ray_the_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["corpus", "embed", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "ray is not installed; needs: pip install 'pplx-edge[scale]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "4-2"], "'4-2': the second number is smaller"),
        (["--workers", "x"], "'x' is not a whole number above 0"),
        (["--precision", "int4"], "invalid choice: 'int4'"),
        (["--rows-per-file", "0"], "'0' is not a whole number above 0"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["corpus", "embed", "in", "--out", "out", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunk-tokens", "64"], "--chunk-tokens is an option of --late-chunking"),
        (["--late-chunking", "--truncate"], "leave one out"),
    ],
)
def test_options_that_contradict_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("ray")
    assert main(["corpus", "embed", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
