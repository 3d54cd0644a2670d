"""Answers a question from PDF files with a local language model (retrieval-augmented generation).

Any server with an OpenAI-compatible API will do, such as llama.cpp, Ollama, LM Studio or vLLM. Use --dry-run to print
the prompt without a server.

    pip install 'pplx-edge[search]'
    python rag_over_pdfs.py "When does the lease end?" lease.pdf letters.pdf --dry-run
    python rag_over_pdfs.py "When does the lease end?" lease.pdf --server http://localhost:11434/v1 --llm llama3.2
"""

import argparse
import json
import urllib.request

import numpy as np
import pypdfium2

import pplx_edge


def pages_of(path: str) -> list[tuple[str, int]]:
    """Return the text and number of each page."""
    with pypdfium2.PdfDocument(path) as pdf:
        texts = [page.get_textpage().get_text_range().replace("\r\n", "\n") for page in pdf]
    return [(text + "\n\n", number) for number, text in enumerate(texts, start=1)]


def ask(server: str, llm: str, prompt: str) -> str:
    """Send the prompt to the server and return its answer."""
    body = json.dumps({"model": llm, "messages": [{"role": "user", "content": prompt}]}).encode()
    request = urllib.request.Request(f"{server.rstrip('/')}/chat/completions", body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)["choices"][0]["message"]["content"]


parser = argparse.ArgumentParser(description="Answer a question from PDF files.")
parser.add_argument("question")
parser.add_argument("pdfs", nargs="+", metavar="PDF")
parser.add_argument("--model", default="nano", help="embedding model (default: nano)")
parser.add_argument("--server", default="http://localhost:8080/v1", help="base URL of the LLM server")
parser.add_argument("--llm", default="default", help="model name to send to the server")
parser.add_argument("--top", type=int, default=4, help="number of passages in the prompt (default: 4)")
parser.add_argument("--dry-run", action="store_true", help="print the prompt instead of sending it")
args = parser.parse_args()

model = pplx_edge.load(args.model)
passages, codes = [], []
for path in args.pdfs:
    pages = pages_of(path)
    text = "".join(page for page, _ in pages)
    for chunk in model.encode_stream(pages):  # each chunk is encoded in the context of its document
        passages.append(f"[{path}, page {chunk.page}]\n{text[chunk.start : chunk.stop]}")
        codes.append(chunk.codes)
if not passages:
    parser.error("the PDFs contain no text; scanned pages need OCR first")
scores = pplx_edge.similarity(model.encode_query([args.question]), np.stack(codes))[0]
context = "\n\n".join(passages[i] for i in np.argsort(-scores)[: args.top])
prompt = f"Answer the question using only these passages. Cite file and page.\n\n{context}\n\nQuestion: {args.question}"
print(prompt if args.dry_run else ask(args.server, args.llm, prompt))
