"""Runs every program in examples/ in a child process and checks its result."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

RENT = "The rent is due on the first day of each month."
TRAIN = "The train from Berlin to Munich takes about four hours."
TOPICS = {
    "the bakery": "The baker preheats the oven to 220 degrees before the bread goes in.",
    "the railway": "The night train from Berlin to Munich takes about nine hours.",
    "the cats": "The two cats slept on the sofa for most of the day.",
    "the flat": "The rent of the flat is due on the first day of each month.",
}


def require(*modules: str) -> None:
    """Skip the test if one of the modules is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def run(program: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run an example without network access to the model hub and require exit status 0."""
    command = [sys.executable, str(EXAMPLES / program), *map(str, args)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done


def ranking(output: str) -> list[str]:
    """Return the passages of lines like `0.446  The train …`, best first."""
    return [line.split(maxsplit=1)[1] for line in output.splitlines() if line.split()[0].replace(".", "").isdigit()]


def write_pdf(path: Path, pages: list[str]) -> Path:
    """Write a PDF with one line of text per page."""
    n_pages = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(n_pages))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {n_pages} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        content = f"BT /F1 12 Tf 40 700 Td ({text}) Tj ET"
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 800 800] {resources} /Contents {5 + 2 * i} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    path.write_text(f"{data}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}")
    return path


def test_each_example_is_short_and_has_a_docstring() -> None:
    for name in PROGRAMS:
        source = (EXAMPLES / name).read_text()
        assert 20 <= len(source.splitlines()) <= 60, name
        assert source.startswith('"""'), name
        docstring = source.split('"""')[1]
        assert "pip install" in docstring, name
        assert f"python {name}" in docstring, name


def test_readme_lists_the_examples_that_exist() -> None:
    rows = [line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("| [")]
    assert sorted(row.split("[")[1].split("]")[0] for row in rows) == PROGRAMS


def test_each_example_is_run_by_a_test() -> None:
    source = Path(__file__).read_text()
    assert [name for name in PROGRAMS if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("vectors_in_usearch.py", "usearch"),
        ("vectors_in_qdrant.py", "qdrant_client"),
        ("with_langchain.py", "langchain_core"),
        ("with_sentence_transformers.py", "sentence_transformers"),
    ],
)
def test_right_passage_comes_first(program: str, module: str) -> None:
    require(module)
    assert ranking(run(program).stdout)[0] == TRAIN
    assert ranking(run(program, "when is", "the rent due?").stdout)[0] == RENT


def test_lancedb(tmp_path: Path) -> None:
    require("lancedb")
    assert ranking(run("vectors_in_lancedb.py", tmp_path).stdout)[0] == TRAIN
    assert ranking(run("vectors_in_lancedb.py", tmp_path, "when is the rent due?").stdout)[0] == RENT


def test_faiss_finds_the_passage_by_cosine_and_by_hamming_distance() -> None:
    require("faiss")
    cosine, hamming = run("vectors_in_faiss.py").stdout.split("binary vectors")
    assert ranking(cosine)[0] == TRAIN
    assert ranking(hamming)[0] == TRAIN
    scores = [float(line.split()[0]) for line in cosine.splitlines()[1:]]
    assert all(-1 <= score <= 1 for score in scores)


def test_rag_puts_the_right_page_first_in_the_prompt(tmp_path: Path) -> None:
    require("pypdfium2")
    pdf = write_pdf(tmp_path / "topics.pdf", list(TOPICS.values()))
    other = write_pdf(tmp_path / "other.pdf", ["Lists can be sorted in place with the sort method."])
    prompt = run("rag_over_pdfs.py", "How hot is the oven?", pdf, other, "--dry-run", "--top", 1).stdout
    assert f"[{pdf}, page 1]" in prompt
    assert TOPICS["the bakery"] in prompt
    assert prompt.rstrip().endswith("Question: How hot is the oven?")


def test_rag_sends_the_prompt_to_the_server(tmp_path: Path) -> None:
    require("pypdfium2")
    requests = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "220 degrees"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    pdf = write_pdf(tmp_path / "bakery.pdf", [TOPICS["the bakery"]])
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1/"
            output = run("rag_over_pdfs.py", "How hot?", pdf, "--server", url, "--llm", "tiny").stdout
        finally:
            server.shutdown()
            thread.join()
    [(path, body)] = requests
    assert output == "220 degrees\n"
    assert path == "/v1/chat/completions"
    assert body["model"] == "tiny"
    assert TOPICS["the bakery"] in body["messages"][0]["content"]


def test_book_resumes_with_the_same_vectors(tmp_path: Path) -> None:
    chapters = [f"Chapter {i}: {topic}\n\n{(text + ' ') * 8}" for i, (topic, text) in enumerate(TOPICS.items(), 1)]
    whole, resumed = tmp_path / "whole.txt", tmp_path / "resumed.txt"
    for book in (whole, resumed):
        book.write_text("\n\n".join(chapters))
    question = "how long does the train take to Munich?"

    output = run("late_chunking_of_a_book.py", whole, question).stdout.splitlines()
    assert "night train from Berlin to Munich" in output[2]
    n_chunks = int(output[1].split()[0])
    assert n_chunks >= 3

    run("late_chunking_of_a_book.py", resumed, question, "--limit", 2)
    with Path(f"{resumed}.jsonl").open("a") as file:
        file.write('{"start": 1')  # as an interruption in the middle of a line leaves it
    again = run("late_chunking_of_a_book.py", resumed, question).stdout.splitlines()
    assert again[0] == "2 chunks were already encoded"
    assert again[1:] == output[1:]
    assert Path(f"{resumed}.jsonl").read_text() == Path(f"{whole}.jsonl").read_text()


def test_deduplication_drops_only_the_repeated_line(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("Lunch is served at noon.\n\nThe server is backed up every night.\n")
    second.write_text("Cats sleep most of the day.\nLunch will be served at noon.\n")
    done = run("semantic_deduplication.py", first, second)
    assert done.stdout.splitlines() == [
        "Lunch is served at noon.",
        "The server is backed up every night.",
        "Cats sleep most of the day.",
    ]
    assert f"{second}:2 repeats {first}:1: Lunch will be served at noon." in done.stderr
    assert "3 of 4 lines kept" in done.stderr
