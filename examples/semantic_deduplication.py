"""Finds lines that say nearly the same thing, within one file or across several.

Each line is compared with the lines kept so far. If the cosine with one of them reaches the threshold, the line is
reported as its near-duplicate on stderr; otherwise it is kept and printed on stdout. The right threshold depends on
the model and the text: start with the default and read what is reported.

    pip install pplx-edge
    python semantic_deduplication.py questions.txt more-questions.txt --threshold 0.8 > unique.txt
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import pplx_edge

parser = argparse.ArgumentParser(description="Print the lines of files without near-duplicates.")
parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
parser.add_argument("--threshold", type=float, default=0.8, help="cosine of a near-duplicate (default: 0.8)")
args = parser.parse_args()

lines, places = [], []
for path in args.files:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            lines.append(line.strip())
            places.append(f"{path}:{number}")

model = pplx_edge.load("nano")
vectors = model.encode(lines).astype(np.float32)
vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)  # codes are not of unit length

kept: list[int] = []
kept_vectors = np.empty_like(vectors)
for i, vector in enumerate(vectors):
    scores = kept_vectors[: len(kept)] @ vector
    if kept and scores.max() >= args.threshold:
        first = kept[int(scores.argmax())]
        print(f"{scores.max():.2f}  {places[i]} repeats {places[first]}: {lines[i]}", file=sys.stderr)
        continue
    kept_vectors[len(kept)] = vector
    kept.append(i)
    print(lines[i])
print(f"{len(kept)} of {len(lines)} lines kept", file=sys.stderr)
