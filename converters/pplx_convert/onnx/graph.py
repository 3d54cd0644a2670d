"""The encoder as an ONNX graph, built directly from the spec and the weights, without tracing.

The inputs and outputs are those of the official graphs. Internally, the graph drops padding at the start and restores
it at the end. Every linear layer and norm sees the real tokens of all rows as one matrix `[S, ...]`. Attention sees one
row at a time, or all rows at once if they have the same length, so it never needs a mask. The result of a row therefore
does not depend on other rows or on padding, and padding costs no computation.

The graph consists of sections: the embedding, the layers, and the final norm. The complete model combines them; parity
checks run them one by one, so only one layer has to be in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from pplx_convert.onnx.builder import UNUSED, GraphBuilder, WeightFile
from pplx_convert.onnx.weights import Activations, WeightFormat
from pplx_convert.tensors import layer_tensors
from pplx_edge.backends.onnx_session import PACKED_STATES, ROW_MEANS
from pplx_edge.models.rotary import rotary_tables
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import CODE_BOUNDS, INT8_SCALE
from pplx_edge.weights.checkpoint import Checkpoint

TABLE = "embed_tokens.weight"
FINAL_NORM = "norm.weight"
COS, SIN = "rotary.cos", "rotary.sin"


@dataclass(frozen=True, slots=True)
class Packing:
    """The names of the values that describe the S real tokens in B rows.

    `places` int64 `[S]` are indices in the flattened input `[B * T]`, `positions` int64 `[S, 1]` are positions in the
    row, and `starts` and `lengths` int64 `[B]` locate the rows. `is_full` bool is true if there is no padding.
    """

    places: str
    positions: str
    starts: str
    lengths: str
    is_full: str


@dataclass(frozen=True, slots=True)
class Residual:
    """The residual stream `[S, D]`, and a pending term that the next norm adds in a fused operator."""

    states: str
    pending: str = ""


class EncoderGraph:
    """Builds the graph of one model. The weights must already be stored under their checkpoint names."""

    def __init__(self, spec: ModelSpec, weight_format: WeightFormat, builder: GraphBuilder):
        self.spec, self.weight_format, self.g = spec, weight_format, builder

    def packing(self, mask: str) -> Packing:
        """Return the locations of the real tokens, computed from the attention mask `[B, T]`."""
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
        """Return the embeddings of the real tokens."""
        flat = self.g.node("Reshape", input_ids, self.g.constant([-1]))
        return Residual(self.weight_format.embed(self.g, TABLE, self.g.node("Gather", flat, packing.places)))

    def layer(self, index: int, x: Residual, packing: Packing) -> Residual:
        """Add one layer: pre-norm attention and MLP, each added to the residual stream."""
        prefix = f"layers.{index}."
        normed, states = self.norm(x, prefix + "input_layernorm.weight")
        attended = self.attention(normed, prefix + "self_attn.", packing)
        normed, states = self.norm(Residual(states, attended), prefix + "post_attention_layernorm.weight")
        return Residual(states, self.mlp(normed, prefix + "mlp."))

    def norm(self, x: Residual, weight: str) -> tuple[str, str]:
        """Return the normalized residual stream, and the stream itself including the pending term."""
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
        """Add bidirectional grouped-query attention within each row, `[S, D]` to `[S, D]`.

        The activation scale is not applied to q and k, because the norm that follows cancels it.
        """
        g, spec = self.g, self.spec
        prepared = self.weight_format.prepare(g, x)
        q = self.heads(prepared, prefix, "q", spec.q_size, packing)  # [S, 1, H * d]
        k = self.heads(prepared, prefix, "k", spec.kv_size, packing)  # [S, 1, K * d]
        v = self.scaled(self.weight_format.linear(g, prepared, prefix + "v_proj.weight"), prepared.scale)
        # Query heads that share a key head become additional queries of that head: [S, G, K * d] is reshaped to
        # [S * G, K * d], because q_proj is stored group by group. Keys and values are therefore never repeated.
        q, k, v = (g.node("Reshape", value, g.constant([1, -1, spec.kv_size])) for value in (q, k, v))
        mixed = self.per_row_attention(q, k, v, packing)
        mixed = g.node("Reshape", mixed, g.constant([-1, spec.q_size]))  # [S, H * d]
        prepared = self.weight_format.prepare(g, mixed)
        return self.scaled(self.weight_format.linear(g, prepared, prefix + "o_proj.weight"), prepared.scale)

    def heads(self, x: Activations, prefix: str, which: str, size: int, packing: Packing) -> str:
        """Return queries or keys after projection, per-head normalization and rotation, `[S, 1, size]`.

        Each token is passed to the rotation as a separate row, because the operator rejects rows longer than its table.
        """
        g, spec = self.g, self.spec
        projected = self.weight_format.linear(g, x, f"{prefix}{which}_proj.weight")
        per_head = g.node("Reshape", projected, g.constant([-1, spec.head_dim]))  # [S * heads, d]
        weight = f"{prefix}{which}_norm.weight"
        normed = g.node(
            "SimplifiedLayerNormalization", per_head, weight, axis=-1, epsilon=spec.rms_norm_eps, stash_type=1
        )
        tokens = g.node("Reshape", normed, g.constant([-1, 1, size]))
        return g.fused("RotaryEmbedding", tokens, packing.positions, COS, SIN, interleaved=0)

    def per_row_attention(self, q: str, k: str, v: str, packing: Packing) -> str:
        """Add attention within each row: one call if all rows have the same length, otherwise one call per row."""
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
        """Add SwiGLU, `[S, D]` to `[S, D]`. The scale of `up` is applied at the end, as one factor per token."""
        g = self.g
        prepared = self.weight_format.prepare(g, x)
        gate = self.scaled(self.weight_format.linear(g, prepared, prefix + "gate_proj.weight"), prepared.scale)
        gate = g.fused("QuickGelu", gate, alpha=1.0)
        inner = g.node("Mul", gate, self.weight_format.linear(g, prepared, prefix + "up_proj.weight"))
        again = self.weight_format.prepare(g, inner)
        down = self.weight_format.linear(g, again, prefix + "down_proj.weight")
        if not prepared.scale:
            return down
        return self.scaled(down, g.node("Mul", prepared.scale, again.scale))

    def scaled(self, x: str, scale: str) -> str:
        """Return x multiplied by a factor per token, or x if there is no factor."""
        return self.g.node("Mul", x, scale) if scale else x

    def padded(self, states: str, input_ids: str, packing: Packing) -> str:
        """Return packed states `[S, D]` as padded states `[B, T, D]`, zeros at padding."""
        g, dim = self.g, self.spec.hidden_size
        shape = g.node("Concat", g.node("Shape", input_ids), g.constant([dim]), axis=0)
        flat = g.node(
            "Concat", g.node("Reshape", g.node("Size", input_ids), g.constant([1])), g.constant([dim]), axis=0
        )
        zeros = g.node("ConstantOfShape", flat)
        places = g.node("Unsqueeze", packing.places, g.constant([1]))
        return g.node("Reshape", g.node("ScatterND", zeros, places, states), shape, outputs=("last_hidden_state",))

    def pooled(self, states: str, packing: Packing) -> str:
        """Return the mean of each row, float32 `[B, D]`; zeros for a row without tokens."""

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

        The runtime's tanh is an approximation, so a code near a bound may be off by one. Comparing the mean with the
        bounds on both sides gives the same code as `pplx_edge.vectors.codes.int8_codes`.
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


def whole_model(spec: ModelSpec, weight_format: WeightFormat, builder: GraphBuilder) -> onnx.ModelProto:
    """Return the complete model, with the official inputs and outputs, and the packed token states as an output."""
    graph = EncoderGraph(spec, weight_format, builder)
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


def embedding_section(spec: ModelSpec, weight_format: WeightFormat, stored: GraphBuilder) -> onnx.ModelProto:
    """Return the embedding section as a model: `input_ids`, `attention_mask` to `residual` `[S, D]`."""
    builder = stored.with_weights((TABLE,))
    graph = EncoderGraph(spec, weight_format, builder)
    x = graph.embed("input_ids", graph.packing("attention_mask"))
    builder.node("Identity", x.states, outputs=("residual",))
    return builder.model(_TOKEN_INPUTS, [_states_info("residual", spec)], "embedding")


def layer_section(spec: ModelSpec, weight_format: WeightFormat, stored: GraphBuilder, index: int) -> onnx.ModelProto:
    """Return one layer as a model: `attention_mask`, `residual_in` (and `pending_in`) to `residual`, `pending`."""
    builder = stored.with_weights((f"layers.{index}.", COS, SIN))
    graph = EncoderGraph(spec, weight_format, builder)
    pending = "pending_in" if index else ""
    x = graph.layer(index, Residual("residual_in", pending), graph.packing("attention_mask"))
    builder.node("Identity", x.states, outputs=("residual",))
    builder.node("Identity", x.pending, outputs=("pending",))
    inputs = [_TOKEN_INPUTS[1], _states_info("residual_in", spec)] + ([_states_info(pending, spec)] if pending else [])
    return builder.model(inputs, [_states_info("residual", spec), _states_info("pending", spec)], f"layer_{index}")


def final_section(spec: ModelSpec, weight_format: WeightFormat, stored: GraphBuilder) -> onnx.ModelProto:
    """Return the final norm as a model: `residual_in`, `pending_in` to the packed token states."""
    builder = stored.with_weights((FINAL_NORM,))
    states, _ = EncoderGraph(spec, weight_format, builder).norm(Residual("residual_in", "pending_in"), FINAL_NORM)
    builder.node("Identity", states, outputs=(PACKED_STATES,))
    inputs = [_states_info("residual_in", spec), _states_info("pending_in", spec)]
    return builder.model(inputs, [_states_info(PACKED_STATES, spec)], "final_norm")


def store_weights(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    builder: GraphBuilder,
    file: WeightFile,
    step: Callable[[], None],
) -> None:
    """Write every tensor of a checkpoint to the data file, quantized or unchanged. Calls `step` after each layer."""
    spec = checkpoint.spec
    weight_format.store_table(builder, file, TABLE, checkpoint)
    for index in range(spec.n_layers):
        for name, weight in layer_tensors(checkpoint, index):
            if weight.ndim == 1:
                builder.weight(name, weight, file)
            else:
                weight_format.store(builder, file, name, weight)
        step()
    builder.weight(FINAL_NORM, checkpoint.read(FINAL_NORM), file)
    for name, table in zip((COS, SIN), rotary_tables(spec.max_tokens, spec), strict=True):
        builder.weight(name, table, file)


def tensor(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Return the description of an input or output. A string in the shape names a variable dimension."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


_TOKEN_INPUTS = [tensor(name, TensorProto.INT64, ("batch", "sequence")) for name in ("input_ids", "attention_mask")]


def _states_info(name: str, spec: ModelSpec) -> onnx.ValueInfoProto:
    return tensor(name, TensorProto.FLOAT, ("tokens", spec.hidden_size))
