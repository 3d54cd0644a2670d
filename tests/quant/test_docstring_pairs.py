"""Pairs from documented Python code."""

import gzip

import pytest

from pplx_quant.commands import main
from pplx_quant.data import read_pairs
from pplx_quant.docstring_pairs import license_of, package_pairs, pairs_of_source, summary_of

SOURCE = '''
class Cache:
    """Keeps what was computed. Entries leave
    in the order of their age.

    A second paragraph with enough words to be a description of its own.
    """

    def dropOldest(self, n_entries):
        """Drop the oldest entries of the cache, and
        return how many are left."""
        for key in sorted(self.ages)[:n_entries]:
            del self.entries[key]
        return len(self.entries)

    def empty(self):
        """Nothing but a docstring is in this method's body."""


def undocumented(x):
    return x + 1
'''


def test_a_summary_asks_for_the_code_without_its_docstring():
    pairs = {pair.query: pair.positive for pair in pairs_of_source(SOURCE, "docstrings.mine")}
    assert pairs["Drop the oldest entries of the cache, and return how many are left."] == (
        "def dropOldest(self, n_entries):\n"
        "    for key in sorted(self.ages)[:n_entries]:\n"
        "        del self.entries[key]\n"
        "    return len(self.entries)"
    )
    assert pairs["Keeps what was computed."].startswith("class Cache:\n\n    def dropOldest")
    assert "order of their age" not in pairs["Keeps what was computed."]
    assert pairs["cache"].startswith("Keeps what was computed.")
    assert not any("Nothing but a docstring" in query for query in pairs)


def test_a_form_feed_ends_no_line():
    expected = [pair.positive for pair in pairs_of_source(SOURCE, "s")]
    assert [pair.positive for pair in pairs_of_source("x = 1\n\f\n" + SOURCE, "s")] == expected


def test_a_summary_is_the_first_sentence():
    assert summary_of("Adds i.e. sums\nnumbers. Then more.\n\nAnd more.") == "Adds i.e. sums numbers."
    assert summary_of("No end") == "No end"


@pytest.mark.parametrize("source", ["def f(:", "\0", "x = '" + "a" * 10])
def test_a_file_that_does_not_parse_gives_nothing(source):
    assert list(pairs_of_source(source, "s")) == []


def test_a_package_is_read_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "left_alone"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n" + SOURCE)
    (package / "tests" / "test_more.py").write_text(SOURCE.replace("oldest", "newest"))
    monkeypatch.syspath_prepend(tmp_path)
    queries = [pair.query for pair in package_pairs("left_alone")]
    assert len(queries) == len(set(queries)) == 3
    assert not any("newest" in query for query in queries)


def test_the_file_is_a_file_of_pairs(tmp_path, capsys):
    path = tmp_path / "pairs.docstrings.jsonl.gz"
    assert main(["docstring-pairs", "--out", str(path), "--package", "json", "wave_of_the_hand"]) == 2
    assert "wave_of_the_hand: not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["docstring-pairs", "--out", str(path), "--package", "hypothesis"]) == 0
    assert "MPL-2.0" in capsys.readouterr().err
    pairs, report = read_pairs(path)
    assert len(pairs) == report.n_rows > 100
    assert pairs[0].source == "docstrings.hypothesis"
    with gzip.open(path) as stream:
        assert stream.read(1) == b"{"


def test_licences_are_named():
    assert license_of("numpy").startswith("BSD")
    assert license_of("stdlib") == "PSF-2.0"
    assert license_of("not_there") == "not stated"
