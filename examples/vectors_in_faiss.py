"""Searches pplx-edge vectors with FAISS: int8 codes by cosine, and binary vectors by Hamming distance.

The int8 codes are not of unit length, so their inner product is not the cosine. Convert them to float32 and normalize
them before adding them to an inner-product index. Queries need the same treatment.

    pip install pplx-edge faiss-cpu
    python vectors_in_faiss.py "when do I have to pay the rent?"
"""

import sys

import faiss
import numpy as np

import pplx_edge

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]


def unit(codes: np.ndarray) -> np.ndarray:
    """Return the codes as float32 vectors of length 1."""
    vectors = codes.astype(np.float32)
    faiss.normalize_L2(vectors)  # in place; a zero vector stays zero
    return vectors


question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
model = pplx_edge.load("nano")

cosine_index = faiss.IndexFlatIP(model.dim)
cosine_index.add(unit(model.encode(PASSAGES)))
scores, ids = cosine_index.search(unit(model.encode_query([question])), 3)
print("int8 codes, cosine:")
for score, i in zip(scores[0], ids[0], strict=True):
    print(f"  {score:.3f}  {PASSAGES[i]}")

# Packed bits need no normalization and take 1/32 of the memory of float32 vectors. The dimension counts bits.
binary_index = faiss.IndexBinaryFlat(model.dim)
binary_index.add(model.encode(PASSAGES, "ubinary"))
distances, ids = binary_index.search(model.encode_query([question], "ubinary"), 3)
print("binary vectors, Hamming distance:")
for distance, i in zip(distances[0], ids[0], strict=True):
    print(f"  {distance:5d}  {PASSAGES[i]}")
