"""Graphs as other people make them: traced from the torch model by torch's own exporter, padded rows in."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from pplx_edge.models.qwen3_torch import Qwen3Encoder, mean_pool
from pplx_edge.weights.checkpoint import Checkpoint


def torch_encoder(directory: Path) -> Qwen3Encoder:
    """The torch reference with a checkpoint's weights, in evaluation mode."""
    checkpoint = Checkpoint.open(directory)
    encoder = Qwen3Encoder(checkpoint.spec).eval()
    encoder.load_state_dict({name: torch.tensor(checkpoint.read(name)) for name in checkpoint.spec.tensor_shapes()})
    return encoder


class _Official(nn.Module):
    """The official outputs over padded rows; `states_only` drops the pooled ones, as community copies do."""

    def __init__(self, encoder: Qwen3Encoder, states_only: bool):
        super().__init__()
        self.encoder, self.states_only = encoder, states_only

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        states = self.encoder.masked_states(input_ids, attention_mask)
        if self.states_only:
            return (states,)
        means = mean_pool(states, attention_mask)
        codes = torch.round(127 * torch.tanh(means)).to(torch.int8)
        return states, means, codes, torch.where(means >= 0, 1, -1).to(torch.int8)


def export_official_graph(directory: Path, target: Path, *, states_only: bool = False) -> Path:
    """Writes `target` as an ONNX graph with free batch and sequence sizes."""
    names = ["last_hidden_state", "pooler_output", "pooler_output_int8", "pooler_output_binary"]
    ids = torch.ones(2, 7, dtype=torch.int64)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, 5:] = 0
    free = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=1, max=512)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Official(torch_encoder(directory), states_only),
            (ids, mask),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=names[:1] if states_only else names,
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            dynamo=True,
            verbose=False,
        )
    return target
