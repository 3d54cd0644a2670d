"""The commands, in-process on a fake model; what comes out on stdout, on stderr and as exit status."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, run_fixture, session_fixture  # noqa: F401 (fixtures)
from fakes import FakeSession, fake_embedder

import pplx_cli as cli
import pplx_edge
from pplx_cli import published_vectors
from pplx_cli.commands import embed

HELPS = [
    [],
    *([name] for name in cli.COMMANDS),
    *(["models", action] for action in ("list", "pull", "path", "rm")),
]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, command: list[str]):
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    assert "example:\n  " in out
    assert f"pplx-edge {' '.join(command)}".strip() in out.split("example:")[1]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_the_examples_can_be_parsed(run: Run, command: list[str]):
    import shlex

    _, out, _ = run(*command, "--help")
    for line in out.split("example:")[1].strip().splitlines():
        call = line.split("| ")[-1].split(" > ")[0].removeprefix("ls $(").rstrip(")").strip()
        arguments = shlex.split(call)
        assert arguments[0] == "pplx-edge"
        assert cli.build_parser().parse_args(arguments[1:]).run


def test_the_version_is_the_packages(run: Run):
    assert run("--version") == (0, f"pplx-edge {pplx_edge.__version__}\n", "")


@pytest.mark.parametrize("argv", [[], ["fly"], ["embed", "--dim", "0"], ["embed", "--prec", "int8"], ["convert", "x"]])
def test_a_wrong_call_is_one_line_and_status_2(run: Run, argv: list[str]):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("pplx-edge: error: ")
    assert err.count("\n") == 1
    assert "--help" in err


def test_a_misspelled_command_is_answered_with_the_closest_one(run: Run):
    assert run("embd", "x.txt") == (
        2,
        "",
        "pplx-edge: error: unknown command 'embd'; did you mean embed? (see: pplx-edge --help)\n",
    )


def test_three_lines_are_three_vectors_and_the_empty_one_is_zero(run: Run, session: FakeSession, tmp_path: Path):
    output = tmp_path / "x.npy"
    assert run("embed", "-", "--output", output, stdin="hello\n\nworld\n") == (0, "", "")
    codes = np.load(output)
    assert (codes.dtype, codes.shape) == (np.int8, (3, 256))
    assert not codes[1].any()
    assert codes[0].any()
    assert codes[2].any()
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("text", "n_texts"),
    [("", 0), ("\n", 1), ("a", 1), ("a\nb", 2), ("a\r\nb\r\n", 2), ("\ufeffa\n", 1), ("a\u2028b\x0cc", 1)],
)
def test_a_line_is_what_ends_in_a_newline(run: Run, session: FakeSession, tmp_path: Path, text: str, n_texts: int):
    output = tmp_path / "x.npy"
    assert run("embed", "--output", output, stdin=text)[0] == 0
    assert np.load(output).shape == (n_texts, 256)


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [("int8", np.int8, 128), ("binary", np.int8, 128), ("ubinary", np.uint8, 16), ("float32", np.float32, 128)],
)
def test_precision_and_dim_are_the_embedders(run: Run, session, tmp_path: Path, precision: str, dtype, width: int):
    output = tmp_path / "x.npy"
    run("embed", "-o", output, "--precision", precision, "--dim", 128, stdin="one\ntwo\n")
    expected = fake_embedder().encode(["one", "two"], precision, dim=128)
    found = np.load(output)
    assert found.dtype == dtype
    assert found.shape == (2, width)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", ["int8", "ubinary", "float32"])
def test_json_lines_hold_the_same_vectors(run: Run, session: FakeSession, precision: str):
    status, out, err = run("embed", "--precision", precision, stdin="one\n\ntwo\n")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    expected = fake_embedder().encode(["one", "", "two"], precision)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], expected.dtype), expected)


def test_json_lines_in_are_strings_or_objects_with_a_field(run: Run, session: FakeSession, tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('"one"\n{"body": "two\\nlines", "text": 3}\n', encoding="utf-8")
    run("embed", source, "--jsonl", "--field", "body", "-o", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), fake_embedder().encode(["one", "two\nlines"]))


def test_documents_of_chunks_are_encoded_in_context(run: Run, session: FakeSession, tmp_path: Path):
    source = '["one", "", "two"]\n{"text": []}\n{"text": ["three"]}\n'
    assert run("embed", "--contextual", "-o", tmp_path / "x.npy", stdin=source)[0] == 0
    expected = fake_embedder().encode_chunks([["one", "", "two"], [], ["three"]])
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.concatenate(expected))
    assert max(len(batch.spans) for batch in session.batches) > 1
    rows = [json.loads(line) for line in run("embed", "--contextual", stdin=source)[1].splitlines()]
    assert [len(row["embeddings"]) for row in rows] == [3, 0, 1]


def test_several_files_and_stdin_are_read_in_order(run: Run, session: FakeSession, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"text {name}\n", encoding="utf-8")
    run("embed", tmp_path / "a", "-", tmp_path / "b", "-o", tmp_path / "x.npy", stdin="in between")
    np.testing.assert_array_equal(
        np.load(tmp_path / "x.npy"), fake_embedder().encode(["text a", "in between", "text b"])
    )


def test_a_long_input_is_encoded_in_blocks(run: Run, session: FakeSession, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pplx_cli.records._BLOCK_RECORDS", 7)
    texts = [f"text {i}" for i in range(50)]
    run("embed", "-o", tmp_path / "x.npy", stdin="\n".join(texts))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), fake_embedder().encode(texts))


def test_a_text_that_is_too_long_is_named_by_file_and_line(run: Run, session: FakeSession, tmp_path: Path):
    source = tmp_path / "in.txt"
    source.write_text("short\n" + "long " * 600 + "\n", encoding="utf-8")
    status, out, err = run("embed", source, "-o", tmp_path / "x.npy")
    assert (status, out) == (2, "")
    assert err.startswith(f"pplx-edge: error: {source}:2: ")
    assert "limit 512; split it, or pass --truncate" in err
    assert list(tmp_path.iterdir()) == [source]
    status, _, err = run("embed", source, "-o", tmp_path / "x.npy", "--truncate")
    assert status == 0
    assert err.startswith(f"pplx-edge: warning: {source}:1 to {source}:2: 1 of 2 texts were cut")
    assert err.count("\n") == 1
    assert np.load(tmp_path / "x.npy").shape == (2, 256)


def test_the_old_file_stays_until_the_new_one_is_whole(run: Run, session: FakeSession, tmp_path: Path):
    output = tmp_path / "x.npy"
    run("embed", "-o", output, stdin="one\n")
    before = output.read_bytes()
    assert run("embed", "--jsonl", "-o", output, stdin='"one"\nno json\n')[0] == 2
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


def test_the_result_replaces_what_a_link_points_to(run: Run, session: FakeSession, tmp_path: Path):
    (tmp_path / "real.npy").write_bytes(b"old")
    (tmp_path / "link.npy").symlink_to("real.npy")
    run("embed", "-o", tmp_path / "link.npy", stdin="one\n")
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "real.npy").shape == (1, 256)


def test_ctrl_c_ends_with_130_and_leaves_nothing(run: Run, session: FakeSession, tmp_path: Path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "_encode", interrupted)
    assert run("embed", "-o", tmp_path / "x.npy", stdin="one\n") == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def test_info_tells_what_a_checkpoint_is(run: Run, tiny_dirs: dict[str, Path]):
    status, out, err = run("info", tiny_dirs["context-4b"])
    assert (status, err) == (0, "")
    assert "safetensors" in out
    assert "3 layers, hidden 96" in out
    assert "chunks in context" in out
    facts = json.loads(run("info", tiny_dirs["0.6b"], "--json")[1])
    assert facts["spec"]["dim"] == 64
    assert facts["files"]["model.safetensors"] <= facts["bytes"]
    assert facts["parity"] is None


def test_convert_writes_an_artifact_that_info_and_verify_know(run: Run, tiny_dir: Path, tmp_path: Path):
    out_dir = tmp_path / "converted"
    status, out, err = run("convert", tiny_dir, "--to", "onnx-fp32", "--out", out_dir)
    assert (status, out) == (0, f"{out_dir}\n")
    assert "cosine at least" in err
    status, out, _ = run("info", out_dir)
    assert "onnx-fp32" in out
    assert "parity      cosine at least" in out
    status, out, err = run("verify", out_dir)
    assert (status, err) == (0, "")
    assert "as its manifest says (SHA-256)" in out
    assert "not checked: no published vectors" in out
    status, _, err = run("convert", tiny_dir, "--to", "onnx-fp32", "--out", out_dir)
    assert status == 2
    assert "--force" in err
    assert run("convert", tiny_dir, "--to", "onnx-fp32", "--out", out_dir, "--force")[0] == 0
    with (out_dir / "model.onnx_data").open("r+b") as file:
        file.write(b"\xff\xff")
    status, _, err = run("verify", out_dir)
    assert status == 2
    assert "modified" in err


def test_force_never_deletes_what_is_not_a_converted_model(run: Run, tiny_dir: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    status, _, err = run("convert", tiny_dir, "--to", "onnx-fp32", "--out", tmp_path, "--force")
    assert status == 2
    assert "--force replaces only those" in err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_verify_reads_every_weight_of_a_checkpoint(run: Run, tiny_dir: Path):
    status, out, err = run("verify", tiny_dir)
    assert (status, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["ok", "ok", "ok", "not checked"]


def test_verify_finds_that_weights_are_not_the_official_ones(run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path))
    status, out, err = run("verify", tiny_dir, "--as", "pplx-embed-v1-0.6b")
    assert status == 2
    assert out.count("ok: ") == 3
    assert "not the vectors of perplexity-ai/pplx-embed-v1-0.6b for 'What is Deep Learning?'" in err
    assert "not an official model" in run("verify", tiny_dir, "--as", "org/other")[2]


def test_published_vectors_are_told_from_others():
    codes = np.random.default_rng(0).integers(-90, 91, 1024).astype(np.int8)
    wide = codes.astype(int)
    fact = published_vectors.GoldenFact(
        text="",
        first_codes=tuple(wide[:24]),
        total=wide.sum(),
        squares=(wide**2).sum(),
        low=wide.min(),
        high=wide.max(),
    )
    near, far = codes.copy(), codes.copy()
    near[3] += 2
    far[3] += 3
    assert published_vectors.deviations(fact, codes) == []
    assert published_vectors.deviations(fact, near) == []
    assert published_vectors.deviations(fact, far) == ["first codes are off by up to 3"]
    assert any(words.startswith("sum ") for words in published_vectors.deviations(fact, np.roll(codes, 1) + np.int8(1)))
    assert any("squares" in words for words in published_vectors.deviations(fact, codes // 2))
    assert any("least" in words for words in published_vectors.deviations(fact, np.maximum(codes, -50)))


def test_models_are_listed_found_and_refused(run: Run, nano_dir: Path, tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, out, err = run("models", "list")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("nano ")
    assert "not downloaded" in out
    assert json.loads(run("models", "list", "--json")[1].splitlines()[0])["directory"] == str(nano_dir)
    assert run("models", "path", "nano") == (0, f"{nano_dir}\n", "")
    for command in (["path"], ["pull"], ["pull", "--offline"]):
        status, out, err = run("models", *command, "pplx-embed-v1-0.6b")
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
    assert "pplx-edge models pull perplexity-ai/pplx-embed-v1-0.6b" in run("models", "path", "pplx-embed-v1-0.6b")[2]
    assert "nothing to remove" in run("models", "rm", "pplx-embed-v1-0.6b")[2]
    assert run("models", "rm", "nano")[0] == 2


def test_a_benchmark_gets_its_own_options(run: Run, monkeypatch):
    import types

    seen = []
    fake = types.ModuleType("pplx_bench.speed.command")
    fake.add_arguments = lambda parser: parser.add_argument("--rows")  # type: ignore[attr-defined]
    fake.run = lambda args: seen.append(args.rows) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pplx_bench.speed.command", fake)
    assert run("bench", "speed", "--rows", "1x16")[0] == 1
    assert seen == ["1x16"]
    assert "--rows" in run("bench", "speed", "--help")[1]
    status, _, err = run("bench", "speed", "--colums")
    assert status == 2
    assert err.count("\n") == 1
