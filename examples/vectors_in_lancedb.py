"""Stores pplx-edge vectors with their passages in LanceDB and searches them by cosine.

LanceDB compares float vectors, so the int8 codes are converted to float32 on the way in. With the metric "cosine"
there is nothing to normalize. The result's `_distance` is 1 minus the cosine. The table stays in FOLDER.

    pip install pplx-edge lancedb
    python vectors_in_lancedb.py FOLDER "when do I have to pay the rent?"
"""

import sys

import lancedb
import numpy as np

import pplx_edge

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]

if len(sys.argv) < 2:
    sys.exit("usage: vectors_in_lancedb.py FOLDER [QUESTION]")
question = " ".join(sys.argv[2:]) or "how long is the train ride to Munich?"
model = pplx_edge.load("nano")

vectors = model.encode(PASSAGES).astype(np.float32)
rows = [{"text": text, "vector": vector} for text, vector in zip(PASSAGES, vectors, strict=True)]
table = lancedb.connect(sys.argv[1]).create_table("passages", rows, mode="overwrite")

query = model.encode_query([question])[0].astype(np.float32)
for row in table.search(query).distance_type("cosine").limit(3).to_list():
    print(f"{1 - row['_distance']:.3f}  {row['text']}")
