"""Embeds a long text file in chunks, each in the context of the text around it, and finds passages in it.

The vectors are appended to BOOK.jsonl as they are computed. If the program is interrupted (or stopped by --limit),
running it again continues after the last chunk in that file, with the same vectors as without the interruption.
Memory use depends on the model's window, not on the length of the book.

    pip install pplx-edge
    python late_chunking_of_a_book.py book.txt "who inherits the house?"
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

import pplx_edge

parser = argparse.ArgumentParser(description="Find passages in a long text.")
parser.add_argument("book", type=Path, help="text file, UTF-8")
parser.add_argument("question")
parser.add_argument("--limit", type=int, help="encode at most this many new chunks in this run")
args = parser.parse_args()

model = pplx_edge.load("nano")
store = Path(f"{args.book}.jsonl")
# A line without its line break was cut short by an interruption, so it is dropped.
lines = store.read_text().splitlines(keepends=True) if store.exists() else []
rows = [json.loads(line) for line in lines if line.endswith("\n")]
store.write_text("".join(lines[: len(rows)]))

position = rows[-1]["position"] if rows else None
chunks = model.encode_stream(args.book, resume=position)
print(f"{len(rows)} chunks were already encoded")
with store.open("a") as file:
    for chunk in itertools.islice(chunks, args.limit):
        row = {"start": chunk.start, "stop": chunk.stop, "line": chunk.line, "position": chunk.position}
        rows.append(row | {"codes": chunk.codes.tolist()})
        file.write(json.dumps(rows[-1]) + "\n")
        file.flush()
print(f"{len(rows)} chunks are encoded now")
if not rows:
    parser.exit(1, "there is nothing to search\n")

codes = np.array([row["codes"] for row in rows], np.int8)
scores = pplx_edge.similarity(model.encode_query([args.question]), codes)[0]
text = args.book.read_text(encoding="utf-8-sig")
for i in np.argsort(-scores)[:3]:
    passage = " ".join(text[rows[i]["start"] : rows[i]["stop"]].split())
    print(f"{scores[i]:.3f}  line {rows[i]['line']}: {passage}")
