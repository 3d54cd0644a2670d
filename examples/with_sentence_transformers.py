"""Uses pplx-edge where a SentenceTransformer is expected.

`EdgeModule` is a module of sentence-transformers whose vectors come from pplx-edge, so `similarity`, the helpers in
`sentence_transformers.util` and libraries that call `encode` work with it. It cannot be trained. The int8 codes are
returned as float32, because most callers expect floats; compare them by cosine.

    pip install pplx-edge sentence-transformers
    python with_sentence_transformers.py "when do I have to pay the rent?"
"""

import sys

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from pplx_edge.integrations.sentence_transformers import EdgeModule

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
    model = SentenceTransformer(modules=[EdgeModule("nano")])
    query = model.encode_query(question, convert_to_tensor=True)
    for hit in semantic_search(query, model.encode_document(PASSAGES, convert_to_tensor=True), top_k=3)[0]:
        print(f"{hit['score']:.3f}  {PASSAGES[hit['corpus_id']]}")
