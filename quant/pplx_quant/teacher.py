"""Teachers: Hugging Face encoders with mean pooling, whose token states and vectors a student learns.

A teacher directory has `config.json`, weights and `tokenizer.json` (multilingual-e5-small, all-MiniLM-L6-v2). Texts get
the teacher's prompt in front; its tokens count for the pooled vector, but no student token is aligned to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplx_edge.errors import CheckpointError
from pplx_quant.tokenizer import load_tokenizer


@dataclass(frozen=True)
class TeacherCall:
    """The result of a call: `layers` float32 `[L, B, T, D]` of the selected layers, and unit vectors `[B, D]`.

    `spans` are the characters of each token without the prompt, int64 `[T, 2]` for each text; empty for other tokens.
    """

    layers: Tensor
    vectors: Tensor
    spans: list[np.ndarray]


class Teacher:
    """An encoder in evaluation mode. Raises CheckpointError if the directory is not one that transformers opens.

    With `bfloat16`, weights and states have this type, which costs 0.1 % of the variance of multilingual-e5-small's
    last states and less of earlier ones.
    """

    def __init__(self, folder: Path, device: torch.device | None = None, max_tokens: int = 512, bfloat16: bool = False):
        from transformers import AutoModel

        self.device = device or torch.device("cpu")
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        # Matrix products are faster than torch's own attention on processors that multiply bfloat16.
        attention = {"attn_implementation": "eager"} if bfloat16 and self.device.type == "cpu" else {}
        try:
            model = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True, **attention)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: not a teacher that transformers opens ({error})") from error
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.no_padding()
        self.max_tokens = min(max_tokens, int(model.config.max_position_embeddings))
        self.tokenizer.enable_truncation(self.max_tokens)
        self.pad_id = int(model.config.pad_token_id or 0)

    @property
    def width(self) -> int:
        """The dimensions of a state."""
        return int(self.model.config.hidden_size)

    @property
    def n_layers(self) -> int:
        """The number of layers; there is one more state than layers."""
        return int(self.model.config.num_hidden_layers)

    def tokenize(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[list[list[int]], list[np.ndarray]]:
        """Return the ids of each text after its prompt, and the spans of `TeacherCall`."""
        encoded = self.tokenizer.encode_batch([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        ids, spans = [], []
        for item, prompt in zip(encoded, prompts, strict=True):
            offsets = np.array(item.offsets, np.int64).reshape(-1, 2)
            special = np.array(item.special_tokens_mask, bool)
            offsets[special] = 0
            ids.append(item.ids)
            spans.append(np.maximum(offsets - len(prompt), 0))
        return ids, spans

    def __call__(self, texts: Sequence[str], prompts: Sequence[str], layers: Sequence[int]) -> TeacherCall:
        """Encode texts, each after its prompt; `layers` are numbers of states, 0 for the embeddings, or none."""
        ids, spans = self.tokenize(texts, prompts)
        rows = torch.full((len(ids), max(map(len, ids))), self.pad_id)
        mask = torch.zeros_like(rows)
        for number, row in enumerate(ids):
            rows[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
        rows, mask = rows.to(self.device), mask.to(self.device)
        with torch.no_grad():
            found = self.model(input_ids=rows, attention_mask=mask, output_hidden_states=True).hidden_states
            kept = torch.stack([found[layer].float() for layer in layers]) if layers else found[0][:0]
            weights = mask[:, :, None].float()
            vectors = (found[-1].float() * weights).sum(dim=1) / weights.sum(dim=1)
        return TeacherCall(kept, torch.nn.functional.normalize(vectors, dim=1), spans)

    def embeddings(self, texts: Sequence[str], prompts: Sequence[str]) -> TeacherCall:
        """Return a call with the embeddings alone, which costs little; its vectors are their means."""
        ids, spans = self.tokenize(texts, prompts)
        rows = torch.full((len(ids), max(map(len, ids))), self.pad_id)
        for number, row in enumerate(ids):
            rows[number, : len(row)] = torch.tensor(row)
        with torch.no_grad():
            states = self.model.embeddings(input_ids=rows.to(self.device)).float()
        return TeacherCall(states[None], states.mean(dim=1), spans)
