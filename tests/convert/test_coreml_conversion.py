"""Core ML conversions: their files evaluated against the NumPy reference, and faults that the figures must show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_weights, sample_rows, save_tensors, tiny_config, write_checkpoint

pytest.importorskip("coremltools")

from coreml_models import FP16_LIMITS, SHORT, converted, parity

from pplx_convert import ConvertOptions, convert
from pplx_convert.coreml import converter as coreml_convert
from pplx_convert.coreml.evaluation import evaluate_program
from pplx_convert.coreml.graph import EncoderGraph
from pplx_convert.coreml.mil import Var, mb, proto
from pplx_convert.coreml.mil_ops import HANDLERS
from pplx_convert.coreml.mil_oracle import MilProgram
from pplx_convert.coreml.package import MODEL_FILE, WEIGHT_FILE, WEIGHT_FOLDER, data_folder
from pplx_convert.coreml.palettes import palettized
from pplx_convert.parity import ParityReport
from pplx_edge import layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.errors import InputError, ParityError
from pplx_edge.registry import COREML, ParityLimits
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import Artifact, sha256

# Formats of tiny random models. Their weights are as hard to round as noise is.
LIMITS = {
    "coreml-fp16": ParityLimits(min_cosine=0.9999, mean_cosine=0.99995, largest_step=4),
    "coreml-int8": ParityLimits(min_cosine=0.995, mean_cosine=0.998, largest_step=32),
    "coreml-pal8": ParityLimits(min_cosine=0.995, mean_cosine=0.998, largest_step=32),
    "coreml-pal6": ParityLimits(min_cosine=0.99, mean_cosine=0.995, largest_step=40),
    "coreml-pal4": ParityLimits(min_cosine=0.9, mean_cosine=0.95, largest_step=127),
}
ROWS = [TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows((16, 1, 5, 8, 9, 13))]


@pytest.fixture(scope="module")
def artifact(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model in float16 with two short functions: read only."""
    return converted(tiny_dir, tmp_path_factory.mktemp("coreml") / "fp16")


def weight_file(artifact: Artifact, package: str = layout.COREML_PACKAGE) -> Path:
    return data_folder(artifact.path(package)) / WEIGHT_FOLDER / WEIGHT_FILE


def saved_model(artifact: Artifact, package: str = layout.COREML_PACKAGE) -> Any:
    model = proto.Model_pb2.Model()
    model.ParseFromString((data_folder(artifact.path(package)) / MODEL_FILE).read_bytes())
    return model


# Formats


@pytest.mark.parametrize("format", COREML.formats)
def test_every_format_converts_within_its_limits(
    make_checkpoint: Callable[..., Path], tmp_path: Path, format: str
) -> None:
    source = make_checkpoint(max_position_embeddings=48)
    artifact = convert(source, tmp_path / "out", format, limits=LIMITS[format])
    assert artifact.weights["lengths"] == [32, 48]  # the model's own limit is a function too
    assert len(artifact.parity["layer_cosines"]) == 2 + 2
    artifact.verify()


@pytest.mark.slow
@pytest.mark.parametrize("format", COREML.formats)
def test_nano_converts_to_every_format(nano_dir: Path, tmp_path: Path, format: str) -> None:
    convert(nano_dir, tmp_path / "out", format)


@pytest.mark.parametrize("model", ["4b", "context-0.6b"])
def test_other_shapes_of_the_family_convert(tiny_dirs: dict[str, Path], tmp_path: Path, model: str) -> None:
    converted(tiny_dirs[model], tmp_path / "out")
    parity(tiny_dirs[model], tmp_path / "out", ROWS).require(FP16_LIMITS)


@pytest.mark.parametrize(
    ("format", "operator", "bits"),
    [
        ("coreml-int8", "constexpr_blockwise_shift_scale", 8),
        ("coreml-pal8", "constexpr_lut_to_dense", 8),
        ("coreml-pal6", "constexpr_lut_to_dense", 6),
        ("coreml-pal4", "constexpr_lut_to_dense", 4),
    ],
)
def test_compressed_weights_are_compressed_on_disk(
    tmp_path: Path, artifact: Artifact, format: str, operator: str, bits: int
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 1}
    wide = write_checkpoint(tmp_path / "wide", tiny_config("0.6b", **sizes))
    whole, small = (converted(wide, tmp_path / name, name, (8,)) for name in ("coreml-fp16", format))
    model = saved_model(small)
    function = model.mlProgram.functions[io.function_name(8)]
    operations = function.block_specializations[function.opset].operations
    assert sum(operation.type == operator for operation in operations) == 7  # every matrix of the layer
    overhead = 1.12 if format == "coreml-pal8" else 1.06  # palettes of 256 values weigh a little in so small a matrix
    assert weight_file(small).stat().st_size < weight_file(whole).stat().st_size * bits / 16 * overhead
    table = small.path(layout.COREML_TABLE).stat().st_size
    assert table < 0.55 * whole.path(layout.COREML_TABLE).stat().st_size


def test_palettes_of_few_values_are_exact_and_of_many_are_near_the_best() -> None:
    rng = np.random.default_rng(0)
    few = rng.choice(np.array([-1, 0.5, 2], np.float32), (32, 40))
    indices, palettes = palettized(few, 4)
    np.testing.assert_array_equal(palettes[0][indices], few)
    normal = rng.standard_normal((32, 4096), dtype=np.float32)
    indices, palettes = palettized(normal, 4)
    # The least squared error of 16 values for a normal distribution is 0.009497 (Max, 1960).
    assert np.mean((palettes[0][indices] - normal) ** 2) < 0.0097


# Files


def test_functions_share_every_weight(artifact: Artifact) -> None:
    model = saved_model(artifact)
    offsets = {}
    for length in SHORT:
        function = model.mlProgram.functions[io.function_name(length)]
        values = [op.attributes["val"] for op in function.block_specializations[function.opset].operations]
        offsets[length] = {
            value.blobFileValue.offset for value in values if value.WhichOneof("value") == "blobFileValue"
        }
    a, b = offsets.values()
    assert len(a & b) > 20
    assert len(a - b) == len(b - a) == 2  # cos and sin of their positions


def test_seven_functions_weigh_little_more_than_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 768, "intermediate_size": 2304, "head_dim": 64, "num_hidden_layers": 1}
    source = write_checkpoint(tmp_path / "wide", tiny_config("0.6b", **sizes, max_position_embeddings=2048))
    one, seven = (converted(source, tmp_path / str(len(n)), lengths=n) for n in ((128,), io.LENGTHS))
    files = [list(artifact.path(layout.COREML_PACKAGE).rglob("*.*")) for artifact in (one, seven)]
    a, b = (sum(path.stat().st_size for path in found if path.is_file()) for found in files)
    assert a < b < 1.1 * a


def test_inputs_and_outputs_are_described_with_their_types(artifact: Artifact) -> None:
    model = saved_model(artifact)
    half, single = (getattr(proto.FeatureTypes_pb2.ArrayFeatureType, name) for name in ("FLOAT16", "FLOAT32"))
    described = {function.name: function for function in model.description.functions}
    function = described[io.function_name(16)]
    shapes = {
        item.name: (list(item.type.multiArrayType.shape), item.type.multiArrayType.dataType)
        for item in (*function.input, *function.output)
    }
    assert shapes == {
        io.INPUT_EMBEDS: ([1, 16, 64], half),
        io.KEY_BIAS: ([1, 1, 1, 16], half),
        io.SPAN_WEIGHTS: ([1, io.MAX_SPANS, 16], single),
        io.TOKEN_STATES: ([1, 16, 64], single),
        io.SPAN_MEANS: ([1, io.MAX_SPANS, 64], single),
    }
    assert model.description.defaultFunctionName == io.function_name(16)


def test_coremltools_reads_what_was_written(artifact: Artifact) -> None:
    from coremltools.converters.mil.frontend.milproto import load
    from coremltools.libmodelpackage import ModelPackage

    assert ModelPackage.isValid(str(artifact.path(layout.COREML_PACKAGE)))
    model = saved_model(artifact)
    program = load.load(model, model.specificationVersion, str(weight_file(artifact).parent))
    assert set(program.functions) == set(model.mlProgram.functions)  # shapes and types were inferred once more


def test_converting_twice_gives_the_same_bytes(tiny_dir: Path, tmp_path: Path, artifact: Artifact) -> None:
    again = converted(tiny_dir, tmp_path / "again")
    assert again.files == artifact.files


def test_all_files_may_be_read_by_everyone(artifact: Artifact) -> None:
    modes = {path.stat().st_mode & 0o777 for path in artifact.directory.rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_a_checkpoint_of_another_order_gives_another_package(tmp_path: Path, artifact: Artifact) -> None:
    other = converted(write_checkpoint(tmp_path / "other", seed=7), tmp_path / "out")
    assert sha256(weight_file(other)) != sha256(weight_file(artifact))


# Evaluation


@pytest.mark.parametrize("half", [False, True])
def test_both_forms_of_attention_agree(artifact: Artifact, half: bool) -> None:
    spec = ModelSpec.from_directory(artifact.directory)
    embedded = coreml_convert.open_table(artifact.directory, spec).rows(ROWS[2].ids)
    program = MilProgram.open(artifact.path(layout.COREML_PACKAGE))
    inputs = io.row_inputs(embedded, 8, [(0, 5), (1, 3)])
    fused, unfused = (program.run(io.function_name(8, form), inputs, half=half) for form in io.FORMS)
    tolerance = 2e-2 if half else 2e-4  # the unfused form has a float16 constant for the scale of the scores
    np.testing.assert_allclose(unfused[io.SPAN_MEANS], fused[io.SPAN_MEANS], atol=tolerance)
    np.testing.assert_allclose(unfused[io.TOKEN_STATES][0, :5], fused[io.TOKEN_STATES][0, :5], atol=2 * tolerance)


def test_the_unfused_form_has_no_fused_operator(artifact: Artifact) -> None:
    functions = saved_model(artifact).mlProgram.functions
    assert set(functions) == {io.function_name(length, form) for length in SHORT for form in io.FORMS}
    for name, function in functions.items():
        types = {op.type for op in function.block_specializations[function.opset].operations}
        assert ("scaled_dot_product_attention" in types, "exp" in types) == (
            (False, True) if name.endswith(io.UNFUSED) else (True, False)
        )


def test_rows_longer_than_any_function_are_refused(artifact: Artifact) -> None:
    (ids,) = sample_rows((17,))
    states = coreml_convert.evaluate(artifact.directory, [TokenRow(ids, ())])
    with pytest.raises(InputError, match=r"17 tokens.*16"):
        next(states)


def test_probe_texts_are_cut_to_the_longest_function(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint(max_position_embeddings=1024)
    limits = LIMITS["coreml-fp16"]
    options = ConvertOptions(max_tokens=32)
    artifact = convert(source, tmp_path / "out", "coreml-fp16", limits=limits, options=options)
    assert artifact.weights["lengths"] == [32]
    assert evaluate_program(artifact.directory, source)["reference"]["min_cosine"] > limits.min_cosine


def test_parity_out_of_limits_leaves_nothing(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint(max_position_embeddings=16)
    impossible = ParityLimits(min_cosine=1.0, mean_cosine=1.0, largest_step=0)
    with pytest.raises(ParityError, match="cosine"):
        convert(source, tmp_path / "out", "coreml-pal4", limits=impossible)
    assert not (tmp_path / "out").exists()


SOUND_ROTATION = EncoderGraph.rotated
SOUND_ATTENTION = EncoderGraph.attention

# Faults: each is planted into the graph or the files of an otherwise sound conversion, and the figures must show it.


def broken_parity(source: Path, out: Path, *, half: bool = True) -> ParityReport:
    converted(source, out)
    return parity(source, out, ROWS, half=half)


def test_without_a_fault_the_figures_are_within_limits(tiny_dir: Path, artifact: Artifact) -> None:
    parity(tiny_dir, artifact.directory, ROWS).require(FP16_LIMITS)


def test_a_wrong_weight_shows(tiny_dir: Path, tmp_path: Path) -> None:
    wrong = random_weights(ModelSpec.from_directory(tiny_dir))
    wrong["layers.1.mlp.up_proj.weight"] = np.roll(wrong["layers.1.mlp.up_proj.weight"], 1, axis=0)
    altered = write_checkpoint(tmp_path / "altered")
    save_tensors(altered / "model.safetensors", wrong)
    converted(altered, tmp_path / "out")
    report = parity(tiny_dir, tmp_path / "out", ROWS)
    with pytest.raises(ParityError):
        report.require(FP16_LIMITS)
    first_wrong = next(i for i, cosine in enumerate(report.layer_cosines) if cosine < FP16_LIMITS.min_cosine)
    assert first_wrong == 2  # after the second layer: the figures also say where


def test_swapped_halves_of_the_rotation_show(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotated(self: EncoderGraph, x: Var, name: str, rotation: tuple[Var, Var]) -> Var:
        if not name.endswith("k_rotated"):  # in queries and keys alike the fault would cancel out
            return SOUND_ROTATION(self, x, name, rotation)
        left, right = mb.split(x=x, num_splits=2, axis=-1)
        swapped = mb.concat(values=(right, left), axis=-1)
        return SOUND_ROTATION(self, swapped, name, rotation)

    monkeypatch.setattr(EncoderGraph, "rotated", rotated)
    with pytest.raises(ParityError):
        broken_parity(tiny_dir, tmp_path / "out").require(FP16_LIMITS)


def test_a_causal_mask_shows(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(self: EncoderGraph, x: Var, prefix: str, bias: Var, rotation: tuple[Var, Var]) -> Var:
        length, groups = x.shape[1], self.spec.heads_per_kv
        if isinstance(length, int):  # only functions of fixed length are evaluated
            later = np.triu(np.full((length, length), io.MASKED, np.float16), 1)  # [query, key]
            name = f"causal.{length}.{prefix}"
            self.weights.add(name, np.repeat(later, groups, axis=0)[None, None])
            bias = mb.minimum(x=bias, y=self.weights.const(name))
        return SOUND_ATTENTION(self, x, prefix, bias, rotation)

    monkeypatch.setattr(EncoderGraph, "attention", attention)
    monkeypatch.setitem(HANDLERS, "minimum", lambda args: np.minimum(args["x"], args["y"]))
    with pytest.raises(ParityError):
        broken_parity(tiny_dir, tmp_path / "out").require(FP16_LIMITS)


@pytest.fixture(scope="module")
def loud_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose activations reach 30,000 in either direction."""
    directory = write_checkpoint(tmp_path_factory.mktemp("loud") / "checkpoint")
    weights = random_weights(ModelSpec.from_directory(directory))
    table = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = table * np.float32(3e4) / np.abs(table).max()
    save_tensors(directory / "model.safetensors", weights)
    return directory


def test_activations_of_thirty_thousand_are_carried(loud_dir: Path, tmp_path: Path) -> None:
    broken_parity(loud_dir, tmp_path / "out").require(FP16_LIMITS)


def test_a_norm_that_overflows_shows(loud_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(self: EncoderGraph, x: Var, weight: str, root_eps: np.float16 | None = None) -> Var:
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        return mb.mul(x=mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-6))), y=self.weights.const(weight))

    monkeypatch.setattr(EncoderGraph, "norm", norm)
    report = broken_parity(loud_dir, tmp_path / "out")
    with pytest.raises(ParityError):
        report.require(FP16_LIMITS)
    parity(loud_dir, tmp_path / "out", ROWS, half=False).require(FP16_LIMITS)  # only the rounding exposes it
