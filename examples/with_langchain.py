"""Uses pplx-edge as the embeddings of LangChain.

`EdgeEmbeddings` can be passed to any LangChain vector store. InMemoryVectorStore compares by cosine. For a store that
uses the inner product, set `normalize=True`, because the int8 codes are not of unit length.

    pip install pplx-edge langchain-core
    python with_langchain.py "when do I have to pay the rent?"
"""

import sys

from langchain_core.vectorstores import InMemoryVectorStore

from pplx_edge.integrations.langchain import EdgeEmbeddings

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
    store = InMemoryVectorStore(EdgeEmbeddings("nano"))
    store.add_texts(PASSAGES)
    for document, score in store.similarity_search_with_score(question, k=3):
        print(f"{score:.3f}  {document.page_content}")
