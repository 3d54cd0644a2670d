"""Held-out pairs as retrieval tasks, read as `pplx-edge bench` and `validate` read them."""

import numpy as np
import pytest
from training_samples import sample_pairs

from pplx_bench.retrieval.beir import read_task
from pplx_quant.commands import main
from pplx_quant.corpus import PackedCorpus
from pplx_quant.validation import BeirFolder


def test_questions_are_held_out_and_their_passages_are_there(text_file, tmp_path, capsys):
    out = tmp_path / "tasks"
    argv = ["held-out", "--data", str(text_file), "--out", str(out), "--groups", "sample", "--questions", "9"]
    assert main([*argv, "--pool", "30"]) == 0
    assert "9 questions, 30 passages" in capsys.readouterr().out
    task, packed = read_task(out / "sample"), PackedCorpus.open(text_file)
    assert (len(task.queries), len(task.corpus)) == (9, 30)
    positive_of = {pair["query"]: pair["positive"] for pair in sample_pairs(120)}
    texts = {passage.id: passage.text for passage in task.corpus}
    held = {packed.string(number) for number in packed.pairs[packed.held_out, 0]}
    for query in task.queries:
        assert query.text in held
        (right,) = task.relevant(query.id)
        assert texts[right] == positive_of[query.text]
    assert len(BeirFolder.read(out / "sample").queries) == 9
    assert np.unique(list(texts)).size == 30


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--groups", "other", "no group 'other'"),
        ("--out", ".", "name a new folder"),
        ("--data", "packed_file", "pack again with --keep-text"),
    ],
)
def test_bad_input_is_named(text_file, packed_file, tmp_path, capsys, option: str, value: str, message: str):
    options = {"--data": str(text_file), "--out": str(tmp_path / "tasks"), "--groups": "sample"}
    options[option] = str(packed_file) if value == "packed_file" else value
    assert main(["held-out", *(part for pair in options.items() for part in pair)]) == 2
    assert message in capsys.readouterr().err
