"""The encoder as an ONNX graph, authored from the spec and the weights; nothing is traced.

Inputs and outputs are those of the official graphs. Inside, padding is dropped at the entrance and put back at the
exit: every linear layer and norm sees the real tokens of all rows as one matrix `[S, ...]`, and attention sees one row
at a time (or all at once when they are equally long), so that it never needs a mask. A row's result therefore does not
depend on its batch-mates or its padding, and no work is spent on padding.

The graph is made of sections (embedding, one a layer, final norm). The whole model strings them together; parity
checks run them one by one, so that only one layer need be in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from pplx_convert.heads import grouped_heads
from pplx_convert.onnx.builder import UNUSED, GraphBuilder, WeightFile
from pplx_convert.onnx.numerics import Activations, Numerics
from pplx_edge.backends.onnx_session import PACKED_STATES, ROW_MEANS
from pplx_edge.models.qwen3_numpy import rotary_angles
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import CODE_BOUNDS, INT8_SCALE
from pplx_edge.weights.checkpoint import Checkpoint

TABLE = "embed_tokens.weight"
FINAL_NORM = "norm.weight"
COS, SIN = "rotary.cos", "rotary.sin"


@dataclass(frozen=True, slots=True)
class Packing:
    """Names of what describes the real tokens: S of them in B rows.

    `places` int64 `[S]` in the flattened `[B * T]` input, `positions` int64 `[S, 1]` within the row, `starts` and
    `lengths` int64 `[B]`, `is_full` bool: no padding, so all rows have T tokens.
    """

    places: str
    positions: str
    starts: str
    lengths: str
    is_full: str


@dataclass(frozen=True, slots=True)
class Residual:
    """The residual stream `[S, D]` with the last addition still to be made, so that the next norm can fuse it."""

    states: str
    pending: str = ""


class EncoderGraph:
    """Authors the graph of one model. Weights must have been stored under their checkpoint names before."""

    def __init__(self, spec: ModelSpec, numerics: Numerics, builder: GraphBuilder):
        self.spec, self.numerics, self.g = spec, numerics, builder

    def packing(self, mask: str) -> Packing:
        """Where the real tokens are, from the attention mask `[B, T]`."""
        g = self.g
        flat = g.node("Reshape", mask, g.constant([-1]))
        places = g.node("Squeeze", g.node("NonZero", flat), g.constant([0]))  # [S]
        lengths = g.node("ReduceSum", mask, g.constant([1]), keepdims=0)  # [B]
        starts = g.node("CumSum", lengths, g.constant(0), exclusive=1)
        within = g.node("Sub", g.node("CumSum", mask, g.constant(1)), g.constant(1))  # [B, T]
        positions = g.node("Gather", g.node("Reshape", within, g.constant([-1])), places)
        is_full = g.node("Equal", g.node("Size", places), g.node("Size", mask))
        return Packing(places, g.node("Unsqueeze", positions, g.constant([1])), starts, lengths, is_full)

    def embed(self, input_ids: str, packing: Packing) -> Residual:
        """The embedding of the real tokens."""
        flat = self.g.node("Reshape", input_ids, self.g.constant([-1]))
        return Residual(self.numerics.embed(self.g, TABLE, self.g.node("Gather", flat, packing.places)))

    def layer(self, index: int, x: Residual, packing: Packing) -> Residual:
        """One layer: attention and MLP, each normalised before and added after."""
        prefix = f"layers.{index}."
        normed, states = self.norm(x, prefix + "input_layernorm.weight")
        attended = self.attention(normed, prefix + "self_attn.", packing)
        normed, states = self.norm(Residual(states, attended), prefix + "post_attention_layernorm.weight")
        return Residual(states, self.mlp(normed, prefix + "mlp."))

    def norm(self, x: Residual, weight: str) -> tuple[str, str]:
        """The normalised residual stream and the stream itself, with the pending addition made."""
        g, eps = self.g, self.spec.rms_norm_eps
        if not x.pending:
            return g.node(
                "SimplifiedLayerNormalization", x.states, weight, axis=-1, epsilon=eps, stash_type=1
            ), x.states
        total = g.fresh("residual")
        outputs = ("", UNUSED, UNUSED, total)
        normed = g.fused("SkipSimplifiedLayerNormalization", x.states, x.pending, weight, outputs=outputs, epsilon=eps)
        return normed, total

    def attention(self, x: str, prefix: str, packing: Packing) -> str:
        """Bidirectional grouped-query attention within each row, `[S, D]` to `[S, D]`.

        q and k are taken without the activation scale: the norm that follows divides it out again.
        """
        g, spec = self.g, self.spec
        prepared = self.numerics.prepare(g, x)
        q = self.heads(prepared, prefix, "q", spec.q_size, packing)  # [S, 1, H * d]
        k = self.heads(prepared, prefix, "k", spec.kv_size, packing)  # [S, 1, K * d]
        v = self.scaled(self.numerics.linear(g, prepared, prefix + "v_proj.weight"), prepared.scale)
        # Query heads that share a key head become further queries of that head: [S, G, K * d] is [S * G, K * d],
        # because q_proj was stored group by group. So keys and values are never repeated.
        q, k, v = (g.node("Reshape", value, g.constant([1, -1, spec.kv_size])) for value in (q, k, v))
        mixed = self.per_row_attention(q, k, v, packing)
        mixed = g.node("Reshape", mixed, g.constant([-1, spec.q_size]))  # [S, H * d]
        prepared = self.numerics.prepare(g, mixed)
        return self.scaled(self.numerics.linear(g, prepared, prefix + "o_proj.weight"), prepared.scale)

    def heads(self, x: Activations, prefix: str, which: str, size: int, packing: Packing) -> str:
        """Projected, normalised per head and rotated queries or keys, `[S, 1, size]`.

        Each token goes to the rotation as a row of its own, as the operator refuses rows longer than its table.
        """
        g, spec = self.g, self.spec
        projected = self.numerics.linear(g, x, f"{prefix}{which}_proj.weight")
        per_head = g.node("Reshape", projected, g.constant([-1, spec.head_dim]))  # [S * heads, d]
        weight = f"{prefix}{which}_norm.weight"
        normed = g.node(
            "SimplifiedLayerNormalization", per_head, weight, axis=-1, epsilon=spec.rms_norm_eps, stash_type=1
        )
        tokens = g.node("Reshape", normed, g.constant([-1, 1, size]))
        return g.fused("RotaryEmbedding", tokens, packing.positions, COS, SIN, interleaved=0)

    def per_row_attention(self, q: str, k: str, v: str, packing: Packing) -> str:
        """Attention of each row to itself: in one call when rows are equally long, else row by row."""
        spec = self.spec
        n_queries = spec.heads_per_kv

        def multi_head(g: GraphBuilder, q: str, k: str, v: str) -> str:
            return g.fused("MultiHeadAttention", q, k, v, num_heads=spec.n_kv_heads)

        def equal_rows(g: GraphBuilder) -> list[str]:
            n_rows = g.node("Shape", packing.lengths)  # [1]
            shape = g.node("Concat", n_rows, g.constant([-1, spec.kv_size]), axis=0)
            split = [g.node("Reshape", value, shape) for value in (q, k, v)]
            return [g.node("Reshape", multi_head(g, *split), g.constant([1, -1, spec.kv_size]))]

        def one_row(g: GraphBuilder) -> list[str]:
            row = g.node("Reshape", "row", g.constant([1]))
            start, length = g.node("Gather", packing.starts, row), g.node("Gather", packing.lengths, row)
            stop = g.node("Add", start, length)
            q_start, q_stop = (g.node("Mul", at, g.constant(n_queries)) for at in (start, stop))
            q_row = g.node("Slice", q, q_start, q_stop, g.constant([1]))
            k_row, v_row = (g.node("Slice", value, start, stop, g.constant([1])) for value in (k, v))
            done = g.node("SequenceInsert", "done_before", multi_head(g, q_row, k_row, v_row))
            return [g.node("Identity", "going_on"), done]

        def row_by_row(g: GraphBuilder) -> list[str]:
            rows = helper.make_tensor_sequence_value_info("done_before", TensorProto.FLOAT, None)
            carried = [
                helper.make_tensor_value_info("row", TensorProto.INT64, []),
                helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
                rows,
            ]
            none = g.node("SequenceEmpty", dtype=TensorProto.FLOAT)
            count = g.node("Size", packing.lengths)
            done = g.node("Loop", count, g.constant(True, np.bool_), none, body=g.branch(one_row, carried))
            return [g.node("ConcatFromSequence", done, axis=1)]

        g = self.g
        return g.node("If", packing.is_full, then_branch=g.branch(equal_rows), else_branch=g.branch(row_by_row))

    def mlp(self, x: str, prefix: str) -> str:
        """SwiGLU, `[S, D]` to `[S, D]`. The scale of `up` waits until the end, where it is one factor a token."""
        g = self.g
        prepared = self.numerics.prepare(g, x)
        gate = self.scaled(self.numerics.linear(g, prepared, prefix + "gate_proj.weight"), prepared.scale)
        gate = g.fused("QuickGelu", gate, alpha=1.0)
        inner = g.node("Mul", gate, self.numerics.linear(g, prepared, prefix + "up_proj.weight"))
        again = self.numerics.prepare(g, inner)
        down = self.numerics.linear(g, again, prefix + "down_proj.weight")
        if not prepared.scale:
            return down
        return self.scaled(down, g.node("Mul", prepared.scale, again.scale))

    def scaled(self, x: str, scale: str) -> str:
        """x times a factor per token, or x when there is none."""
        return self.g.node("Mul", x, scale) if scale else x

    def padded(self, states: str, input_ids: str, packing: Packing) -> str:
        """Packed states `[S, D]` back in their places: `[B, T, D]`, zeros at padding."""
        g, dim = self.g, self.spec.hidden_size
        shape = g.node("Concat", g.node("Shape", input_ids), g.constant([dim]), axis=0)
        flat = g.node(
            "Concat", g.node("Reshape", g.node("Size", input_ids), g.constant([1])), g.constant([dim]), axis=0
        )
        zeros = g.node("ConstantOfShape", flat)
        places = g.node("Unsqueeze", packing.places, g.constant([1]))
        return g.node("Reshape", g.node("ScatterND", zeros, places, states), shape, outputs=("last_hidden_state",))

    def pooled(self, states: str, packing: Packing) -> str:
        """Mean of each row, float32 `[B, D]`; a row without tokens gives zeros."""

        def one_row(g: GraphBuilder) -> list[str]:
            row = g.node("Reshape", "pooled_row", g.constant([1]))
            start, length = g.node("Gather", packing.starts, row), g.node("Gather", packing.lengths, row)
            tokens = g.node("Slice", states, start, g.node("Add", start, length), g.constant([0]))
            total = g.node("ReduceSum", tokens, g.constant([0]), keepdims=0)
            count = g.node("Cast", g.node("Max", length, g.constant([1])), to=TensorProto.FLOAT)
            return [g.node("Identity", "pooling_on"), g.node("Div", total, count)]

        g = self.g
        carried = [
            helper.make_tensor_value_info("pooled_row", TensorProto.INT64, []),
            helper.make_tensor_value_info("pooling_on", TensorProto.BOOL, []),
        ]
        body, count = g.branch(one_row, carried), g.node("Size", packing.lengths)
        return g.node("Loop", count, g.constant(True, np.bool_), body=body, outputs=(ROW_MEANS,))

    def quantized(self, means: str) -> None:
        """Add the official quantized outputs: `round(127 * tanh(mean))`, and ±1 where zero counts as positive.

        The runtime's tanh is an approximation, so its code may be off by one next to a bound: it is compared with the
        bounds on both sides of it, which makes it the code of `pplx_edge.vectors.codes.int8_codes`.
        """
        g = self.g
        scaled = g.node("Mul", g.node("Tanh", means), g.constant(INT8_SCALE, np.float32))
        near = g.node("Cast", g.node("Round", scaled), to=TensorProto.INT32)
        place = g.node("Add", near, g.constant(INT8_SCALE, np.int32))
        infinity = np.float32(np.inf)
        least = g.node("Gather", g.constant([-infinity, *CODE_BOUNDS], np.float32), place)
        next_least = g.node("Gather", g.constant([*CODE_BOUNDS, infinity], np.float32), place)
        up, down = g.node("GreaterOrEqual", means, next_least), g.node("Less", means, least)
        up, down = (g.node("Cast", step, to=TensorProto.INT32) for step in (up, down))
        codes = g.node("Sub", g.node("Add", near, up), down)
        g.node("Cast", codes, to=TensorProto.INT8, outputs=("pooler_output_int8",))
        signs = g.node(
            "Where",
            g.node("GreaterOrEqual", means, g.constant(0, np.float32)),
            *(g.constant(sign, np.int8) for sign in (1, -1)),
        )
        g.node("Identity", signs, outputs=("pooler_output_binary",))


def whole_model(spec: ModelSpec, numerics: Numerics, builder: GraphBuilder) -> onnx.ModelProto:
    """The complete model over stored weights, with the official inputs and outputs and the packed token states."""
    graph = EncoderGraph(spec, numerics, builder)
    packing = graph.packing("attention_mask")
    x = graph.embed("input_ids", packing)
    for index in range(spec.n_layers):
        x = graph.layer(index, x, packing)
    states, _ = graph.norm(x, FINAL_NORM)
    states = builder.node("Identity", states, outputs=(PACKED_STATES,))
    graph.padded(states, "input_ids", packing)
    graph.quantized(graph.pooled(states, packing))
    dim = spec.hidden_size
    outputs = [
        _states_info(PACKED_STATES, spec),
        tensor("last_hidden_state", TensorProto.FLOAT, ("batch", "sequence", dim)),
        tensor(ROW_MEANS, TensorProto.FLOAT, ("batch", dim)),
        tensor("pooler_output_int8", TensorProto.INT8, ("batch", dim)),
        tensor("pooler_output_binary", TensorProto.INT8, ("batch", dim)),
    ]
    return builder.model(_TOKEN_INPUTS, outputs, "pplx-embed")


def embedding_section(spec: ModelSpec, numerics: Numerics, stored: GraphBuilder) -> onnx.ModelProto:
    """The first section alone: `input_ids`, `attention_mask` to `residual` `[S, D]`."""
    builder = stored.with_weights((TABLE,))
    graph = EncoderGraph(spec, numerics, builder)
    x = graph.embed("input_ids", graph.packing("attention_mask"))
    builder.node("Identity", x.states, outputs=("residual",))
    return builder.model(_TOKEN_INPUTS, [_states_info("residual", spec)], "embedding")


def layer_section(spec: ModelSpec, numerics: Numerics, stored: GraphBuilder, index: int) -> onnx.ModelProto:
    """One layer alone: `attention_mask`, `residual_in` (and `pending_in`) to `residual`, `pending`."""
    builder = stored.with_weights((f"layers.{index}.", COS, SIN))
    graph = EncoderGraph(spec, numerics, builder)
    pending = "pending_in" if index else ""
    x = graph.layer(index, Residual("residual_in", pending), graph.packing("attention_mask"))
    builder.node("Identity", x.states, outputs=("residual",))
    builder.node("Identity", x.pending, outputs=("pending",))
    inputs = [_TOKEN_INPUTS[1], _states_info("residual_in", spec)] + ([_states_info(pending, spec)] if pending else [])
    return builder.model(inputs, [_states_info("residual", spec), _states_info("pending", spec)], f"layer_{index}")


def final_section(spec: ModelSpec, numerics: Numerics, stored: GraphBuilder) -> onnx.ModelProto:
    """The final norm alone: `residual_in`, `pending_in` to the packed token states."""
    builder = stored.with_weights((FINAL_NORM,))
    states, _ = EncoderGraph(spec, numerics, builder).norm(Residual("residual_in", "pending_in"), FINAL_NORM)
    builder.node("Identity", states, outputs=(PACKED_STATES,))
    inputs = [_states_info("residual_in", spec), _states_info("pending_in", spec)]
    return builder.model(inputs, [_states_info(PACKED_STATES, spec)], "final_norm")


def store_weights(
    checkpoint: Checkpoint, numerics: Numerics, builder: GraphBuilder, file: WeightFile, step: Callable[[], None]
) -> None:
    """Quantises (or copies) every tensor of a checkpoint into the data file, one at a time; `step` after each layer."""
    spec = checkpoint.spec
    numerics.store_table(builder, file, TABLE, checkpoint)
    for index in range(spec.n_layers):
        for name in spec.layer_shapes():
            full_name = f"layers.{index}.{name}"
            weight = grouped_heads(name, checkpoint.read(full_name), spec)
            if weight.ndim == 1:
                builder.weight(full_name, weight, file)
            else:
                numerics.store(builder, file, full_name, weight)
        step()
    builder.weight(FINAL_NORM, checkpoint.read(FINAL_NORM), file)
    angles = rotary_angles(spec.max_tokens, spec)
    builder.weight(COS, np.cos(angles), file)
    builder.weight(SIN, np.sin(angles), file)


def tensor(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """The description of an input or output; a string names a free size."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


_TOKEN_INPUTS = [tensor(name, TensorProto.INT64, ("batch", "sequence")) for name in ("input_ids", "attention_mask")]


def _states_info(name: str, spec: ModelSpec) -> onnx.ValueInfoProto:
    return tensor(name, TensorProto.FLOAT, ("tokens", spec.hidden_size))
