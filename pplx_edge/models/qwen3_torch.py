"""The bidirectional Qwen3 encoder in PyTorch, used for training and as the reference for parity.

Parameters have the names of the checkpoint, so `load_state_dict` accepts its tensors unchanged.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from pplx_edge.spec import ModelSpec

PRODUCT_TOKENS = 512  # longest row whose attention is computed by matrix products in training on the CPU


class RMSNorm(nn.Module):
    """RMS normalization, `x / sqrt(mean(x²) + eps) * weight` over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 `[T, head_dim]`, for half-split rotation; both halves use `theta^(-2i/head_dim)`."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None] * theta**-exponents  # [T, head_dim/2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x `[B, heads, T, head_dim]`."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, grouped: bool | None = None) -> Tensor:
    """Return the attention `[B, H, T, d]` of q `[B, H, T, d]` over k and v `[B, K, T, d]`, whose heads are shared.

    With `grouped`, the kernel reads each shared head once. Only flash attention can, which needs a CUDA GPU, half
    precision and no mask; other kernels get repeated heads. None chooses by these rules. Short rows that are trained on
    the CPU are multiplied by `attend_by_products`.
    """
    if grouped is None and q.requires_grad and q.device.type == "cpu" and q.shape[2] <= PRODUCT_TOKENS:
        return attend_by_products(q, k, v, visible)
    if grouped is None:
        grouped = visible is None and q.is_cuda and q.dtype != torch.float32
    if not grouped:
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))  # [B, H, T, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=grouped)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Return the same as `attend`, by matrix products that keep all scores `[B, H, T, T]` in memory.

    The backward pass of torch's own attention does not use the matrix units of a CPU. At 120 tokens, it takes 30 % of
    a training step with bfloat16 on AMX.
    """
    (B, H, T, d), K = q.shape, k.shape[1]
    scores = torch.bmm((q * d**-0.5).reshape(B * K, H // K * T, d), k.reshape(B * K, T, d).transpose(1, 2))
    scores = scores.view(B, H, T, T)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    return torch.bmm(shares.view(B * K, H // K * T, T), v.reshape(B * K, T, d)).view(B, H, T, d)


class Attention(nn.Module):
    """Grouped-query attention without a causal mask; q and k are normalized per head before the rotation."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.q_proj = nn.Linear(spec.hidden_size, spec.q_size, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, spec.kv_size, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, spec.kv_size, bias=False)
        self.o_proj = nn.Linear(spec.q_size, spec.hidden_size, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps)
        self.k_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, self.spec.n_heads, self.spec.head_dim)).transpose(
            1, 2
        )  # [B, H, T, d]
        k = self.k_norm(self.k_proj(x).view(B, T, self.spec.n_kv_heads, self.spec.head_dim)).transpose(
            1, 2
        )  # [B, K, T, d]
        v = self.v_proj(x).view(B, T, self.spec.n_kv_heads, self.spec.head_dim).transpose(1, 2)  # [B, K, T, d]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = attend(q, k, v, visible)  # [B, H, T, d]
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, self.spec.q_size))


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Encoder(nn.Module):
    """The encoder, from token ids to final hidden states.

    Set `recompute_blocks` to recompute activations in the backward pass, which saves memory in training but takes time.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.recompute_blocks = False
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.n_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, from the first to the last."""
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the states `[B, T, D]` of int64 ids `[B, T]`. Tokens are visible where the mask `[B, T]` is 1.

        If the mask is None, all tokens are visible. Positions count from the first column; the padding side does not
        matter, because rotary attention depends only on distances. States at padding are unspecified. Every row must
        have at least one real token, otherwise its states are NaN. A mask of ones on the CPU is the same as None; on
        other devices its values are not read, because that would wait for the device.
        """
        if attention_mask is None or (attention_mask.device.type == "cpu" and bool(attention_mask.all())):
            return self._states(input_ids, None)
        return self.masked_states(input_ids, attention_mask)

    def masked_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Do the same as `forward`, but always apply the mask, without control flow on its values, for graph export."""
        return self._states(input_ids, attention_mask.bool()[:, None, None, :])

    def _states(self, input_ids: Tensor, visible: Tensor | None) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        cos, sin = rotary_table(positions, self.spec.head_dim, self.spec.rope_theta)
        x = self.embed_tokens(input_ids)
        for block in self.layers:
            if self.recompute_blocks and self.training:
                x = recompute(block, x, cos, sin, visible, use_reentrant=False)
            else:
                x = block(x, cos, sin, visible)
        return self.norm(x)


def mean_pool(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean state of the real tokens of each row, float32 `[B, D]`; zeros for a row without any."""
    mask = attention_mask[:, :, None].float()
    return (states.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
