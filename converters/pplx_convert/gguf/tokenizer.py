"""Write a tokenizer to a GGUF file, if llama.cpp splits text as this tokenizer does."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from pplx_edge import layout
from pplx_edge.spec import ModelSpec

# The pattern of Qwen2, which llama.cpp implements in code. It cannot run a pattern from a file.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IDS_ONLY = "ids only"
WITH_TEXT = "text, without Unicode normalization"


def write_tokenizer(writer: GGUFWriter, directory: Path, spec: ModelSpec) -> str:
    """Write the vocabulary, or only its size, and return what the file takes: text or only ids."""
    stored = json.loads((directory / layout.TOKENIZER).read_text(encoding="utf-8"))
    if not _is_qwen2(stored):
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(spec.vocab_size)
        return IDS_ONLY
    tokens = [f"[PAD{i}]" for i in range(spec.vocab_size)]
    kinds = [TokenType.UNUSED] * spec.vocab_size
    for token, index in stored["model"]["vocab"].items():
        tokens[index], kinds[index] = token, TokenType.NORMAL
    for added in stored["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in stored["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for add in (writer.add_eos_token_id, writer.add_pad_token_id, writer.add_sep_token_id):
        add(spec.sep_id)
    for add in (writer.add_add_bos_token, writer.add_add_eos_token, writer.add_add_sep_token):
        add(False)
    return WITH_TEXT


def _is_qwen2(stored: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is a byte-level BPE that splits text by Qwen2's pattern and adds no tokens."""
    splitter = stored.get("pre_tokenizer") or {}
    first = (splitter.get("pretokenizers") or [{}])[0]
    normalizer, post = stored.get("normalizer") or {"type": "NFC"}, stored.get("post_processor")
    return (
        stored["model"]["type"] == "BPE"
        and first.get("pattern") == {"Regex": _QWEN2}
        and normalizer["type"] == "NFC"
        and (post is None or post["type"] == "ByteLevel")
    )
