"""Calls of client packages, each in a process of its own: `python client_calls.py NAME URL TEXT…` prints the vectors.

Each function is what a user of that package would write.
"""

import json
import os
import sys
from collections.abc import Sequence


def litellm(url: str, texts: Sequence[str]) -> object:
    from litellm import embedding

    reply = embedding(model="openai/nano", input=list(texts), api_base=url, api_key="unused")
    return [each["embedding"] for each in reply.data]


def langchain_openai(url: str, texts: Sequence[str]) -> object:
    from langchain_openai import OpenAIEmbeddings

    # By default, this class sends ids of OpenAI's own tokenizer to any server; this option makes it send text.
    model = OpenAIEmbeddings(model="nano", base_url=url, api_key="unused", check_embedding_ctx_length=False)
    return [*model.embed_documents(list(texts)), model.embed_query(texts[0])]


def langchain_perplexity(url: str, texts: Sequence[str]) -> object:
    os.environ["PERPLEXITY_BASE_URL"] = url.removesuffix("/v1")
    from langchain_perplexity import PerplexityEmbeddings

    model = PerplexityEmbeddings(model="pplx-embed-v1-0.6b", api_key="unused")
    return [*model.embed_documents(list(texts)), model.embed_query(texts[0])]


def llama_index(url: str, texts: Sequence[str]) -> object:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    model = OpenAILikeEmbedding(model_name="nano", api_base=url, api_key="unused")
    return [*model.get_text_embedding_batch(list(texts)), model.get_query_embedding(texts[0])]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2], sys.argv[3:])))
