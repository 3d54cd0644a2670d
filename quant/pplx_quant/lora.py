"""Low-rank adapters (LoRA, arXiv 2106.09685): train a small part of a large model, and merge it into its weights.

`add` freezes a model and gives each of its linear layers two matrices, whose product is added to its weight. Parameters
of the model keep their names. `merged_weights` returns the weights that a plain model needs, so every checkpoint is in
the layout of the family; a run also keeps its adapters, and adds them to the weights of `--init` when it continues.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "lora."


class LoraLinear(nn.Linear):
    """A Linear whose frozen weight `[N, K]` has `scale * b @ a` added, for `lora_a` `[r, K]` and `lora_b` `[N, r]`."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def forward(self, input: Tensor) -> Tensor:
        """Return the product `[..., N]` of inputs `[..., K]`."""
        return super().forward(input) + self.lora_scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return the weight with the adapter added, `[N, K]`."""
        return self.weight + self.lora_scale * (self.lora_b @ self.lora_a)


def add(model: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Freeze a model and add adapters of a rank to its linear layers, which change nothing yet.

    The scale is `alpha / rank`. The first matrix is random and depends only on the seed, the second is zero.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if type(module) is nn.Linear:
            rows, columns = module.weight.shape
            bound = math.sqrt(3 / columns)
            first = (2 * torch.rand(rank, columns, generator=generator) - 1) * bound
            module.__class__ = LoraLinear
            module.register_parameter("lora_a", nn.Parameter(first.to(module.weight.device)))
            module.register_parameter("lora_b", nn.Parameter(torch.zeros(rows, rank, device=module.weight.device)))
            module.__dict__["lora_scale"] = alpha / rank


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of all adapters by name; none for a model without."""
    return {name: weight for name, weight in model.named_parameters() if name.endswith((".lora_a", ".lora_b"))}


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model by the names of one without adapters, with its adapters merged."""
    weights = {name: weight for name, weight in model.state_dict().items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            weights[f"{name}.weight"] = module.merged()
    return weights
