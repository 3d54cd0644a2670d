"""The stock transformers Qwen3 model of a checkpoint, truly bidirectional: where several peers begin."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention


def load_stock(checkpoint: Path, dtype: torch.dtype) -> Qwen3Model:
    """The stock model with sdpa attention and no causal mask, in evaluation mode."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "qwen3", "architectures": ["Qwen3Model"], "is_causal": False}
    stock = Qwen3Config.from_dict(config)
    model = Qwen3Model.from_pretrained(checkpoint, config=stock, dtype=dtype, attn_implementation="sdpa")
    for module in model.modules():
        if isinstance(module, Qwen3Attention):
            module.is_causal = False  # transformers before 5.2 do not read it from the config
    return model.eval()


class States(nn.Module):
    """ids and mask `[B, T]` to the last hidden states `[B, T, D]`, in the form that exporters trace.

    The mask becomes one of keys, `[B, 1, 1, T]`, handed through as it is, so that no causal mask is ever traced.
    """

    def __init__(self, model: Qwen3Model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        T = input_ids.shape[1]
        lowest = torch.finfo(torch.float32).min
        visible = (1.0 - attention_mask[:, None, None, :].float()) * lowest  # [B, 1, 1, T]
        positions = torch.arange(T, device=input_ids.device)[None]
        return self.model(
            input_ids=input_ids, attention_mask=visible, position_ids=positions, use_cache=False
        ).last_hidden_state


def require_bidirectional(model: Qwen3Model) -> None:
    """Raises RuntimeError when the first token's state does not depend on the last token."""
    ids = torch.arange(8)[None]
    changed = ids.clone()
    changed[0, -1] = 9
    with torch.inference_mode():
        first, second = (model(input_ids=each, use_cache=False).last_hidden_state[0, 0] for each in (ids, changed))
    if torch.equal(first, second):
        raise RuntimeError("the stock model runs causally here; transformers>=5.2 is needed")
