"""Stores pplx-edge vectors with their passages in Qdrant and searches them by cosine.

The client runs in memory here. For a server, replace ":memory:" with its URL; nothing else changes. Qdrant normalizes
vectors itself when the distance is cosine, so the int8 codes can be sent as floats. Its own scalar quantization can
bring the stored vectors back to int8.

    pip install pplx-edge qdrant-client
    python vectors_in_qdrant.py "when do I have to pay the rent?"
"""

import sys

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

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

client = QdrantClient(":memory:")
client.create_collection("passages", vectors_config=VectorParams(size=model.dim, distance=Distance.COSINE))
vectors = model.encode(PASSAGES).astype(np.float32)
points = [
    PointStruct(id=i, vector=vector.tolist(), payload={"text": text})
    for i, (text, vector) in enumerate(zip(PASSAGES, vectors, strict=True))
]
client.upsert("passages", points)

query = model.encode_query([question])[0].astype(np.float32)
for point in client.query_points("passages", query=query.tolist(), limit=3).points:
    print(f"{point.score:.3f}  {point.payload['text']}")
client.close()
