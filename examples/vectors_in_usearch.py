"""Searches int8 codes with usearch, which stores and compares them as they are.

With the metric "cos", usearch computes the cosine from the int8 codes, so there is nothing to normalize. It returns
distances: 1 minus the cosine, and lower is better.

    pip install pplx-edge usearch
    python vectors_in_usearch.py "when do I have to pay the rent?"
"""

import sys

import numpy as np
import onnxruntime  # noqa: F401  (usearch 2.26 crashes on Linux if onnxruntime is loaded after it)
from usearch.index import Index

import pplx_edge

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]

question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
model = pplx_edge.load("nano")

index = Index(ndim=model.dim, metric="cos", dtype="i8")
index.add(np.arange(len(PASSAGES)), model.encode(PASSAGES))
# index.save("passages.usearch") keeps it on disk, and Index.restore("passages.usearch") opens it again.

for match in index.search(model.encode_query([question])[0], 3):
    print(f"{1 - match.distance:.3f}  {PASSAGES[match.key]}")
