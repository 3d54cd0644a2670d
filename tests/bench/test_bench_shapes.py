"""The benchmark's checkpoints: true names, sizes and sharding, the same bytes for the same seed, reused if current."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pplx_bench import shapes, workdir
from pplx_bench.shapes import SHAPES, as_bfloat16, make_checkpoint, random_blocks, shape_config, write_checkpoint
from pplx_edge.errors import InputError, StorageError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.weights.checkpoint import Checkpoint


@pytest.mark.parametrize(
    ("name", "n_parameters", "n_tensors"), [("0.6b", 596_049_920, 310), ("4b", 4_022_468_096, 398)]
)
def test_shapes_are_the_familys(name: str, n_parameters: int, n_tensors: int) -> None:
    spec = ModelSpec.from_config(shape_config(name))
    assert spec.n_parameters == n_parameters
    assert len(spec.tensor_shapes()) == n_tensors
    assert (spec.sep_id, spec.vocab_size, spec.max_tokens) == (151643, 151936, 32768)


def test_layers_cut_the_model_and_nothing_else() -> None:
    assert ModelSpec.from_config(shape_config("0.6b", 2)).layer_shapes() == (
        ModelSpec.from_config(shape_config("0.6b")).layer_shapes()
    )
    with pytest.raises(InputError, match="1 to 28"):
        shape_config("0.6b", 29)


def test_checkpoint_opens_and_holds_what_the_seed_says(tmp_path: Path) -> None:
    opened = Checkpoint.open(make_checkpoint(tmp_path, "tiny", seed=3))
    for name, shape in opened.spec.tensor_shapes().items():
        expected = np.concatenate(list(random_blocks(name, shape, 3))).reshape(shape)
        np.testing.assert_array_equal(opened.read(name), expected)
        if name.endswith("norm.weight"):
            assert (expected == 1).all()
        else:
            assert expected.std() == pytest.approx(0.02, rel=0.1)


def test_tokenizer_is_whole(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "tiny")
    spec = ModelSpec.from_directory(directory)
    tokenizer = Tokenizer.open(directory, spec)
    (row,) = tokenizer.text_rows(["any text"])
    assert 0 < len(row) <= len("any text")
    assert tokenizer.text_rows(["<|endoftext|>"])[0].ids.tolist() == [spec.sep_id]


def test_blocks_do_not_change_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(random_blocks("x.weight", (64, 33), 1)))
    monkeypatch.setattr(shapes, "_BLOCK_VALUES", 100)
    np.testing.assert_array_equal(np.concatenate(list(random_blocks("x.weight", (64, 33), 1))), whole)


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    config = shape_config("tiny")
    write_checkpoint(tmp_path, config, "BF16", seed=0, max_shard_bytes=200_000)
    opened = Checkpoint.open(tmp_path)
    assert len(opened.files) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == 2 * opened.spec.n_parameters
    name = "layers.1.mlp.down_proj.weight"
    (block,) = random_blocks(name, opened.spec.tensor_shapes()[name], 0)
    np.testing.assert_allclose(opened.read(name).ravel(), block, rtol=2**-8)


def test_bfloat16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0]  # two exact ties, to even downwards and upwards
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(as_bfloat16(values), expected)


def test_a_checkpoint_is_reused_only_while_it_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_checkpoint(tmp_path, "tiny", seed=1) / "model.safetensors"
    first = weights.stat()
    assert make_checkpoint(tmp_path, "tiny", seed=1) == weights.parent
    assert weights.stat().st_ino == first.st_ino
    make_checkpoint(tmp_path, "tiny", seed=2)
    assert weights.stat().st_ino != first.st_ino
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], dtype="BF16"))
    make_checkpoint(tmp_path, "tiny", seed=2)
    assert weights.stat().st_size < first.st_size


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        (partial / "half").write_text("x", encoding="utf-8")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        workdir.prepared(tmp_path / "thing", {"a": 1}, fail, n_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--work"):
        workdir.prepared(tmp_path / "thing", {}, lambda partial: None, n_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "bench_fingerprint_probe.py"
    module.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    first = workdir.fingerprint(module.stem)
    assert workdir.fingerprint(module.stem) == first
    module.write_text("x = 2\n", encoding="utf-8")
    assert workdir.fingerprint(module.stem) != first
