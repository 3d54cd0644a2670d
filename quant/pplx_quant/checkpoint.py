"""Checkpoints in the Hugging Face layout, written atomically.

Stock transformers (>= 5.2), sentence-transformers and text-embeddings-inference open the directory as it is. A
checkpoint of an unfinished run also contains the tensors of the optimizer and the step, as safetensors and JSON, and
never a pickle.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, StorageError
from pplx_edge.files import left_by_crash, replacing_directory
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import CONTEXTUAL_KEY, ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.safetensors import SafetensorsWriter
from pplx_quant.stock_layout import write_modules

WEIGHTS = layout.WEIGHTS
STATE_TENSORS = "training_state.safetensors"
STATE_VALUES = "training_state.json"
TOKENIZER_FILES = (layout.TOKENIZER, layout.TOKENIZER_CONFIG)


def hf_config(spec: ModelSpec) -> dict:
    """Return the `config.json` of a bidirectional encoder as stock libraries read it: a Qwen3 that is not causal."""
    return {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "is_causal": False,
        "use_bidirectional_attention": True,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_tokens,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "rms_norm_eps": spec.rms_norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": False,
        "initializer_range": 0.02,
        CONTEXTUAL_KEY: spec.contextual,
        "pad_token_id": spec.sep_id,
        "eos_token_id": spec.sep_id,
        "dtype": "float32",
    }


def write_checkpoint(
    folder: Path,
    model: Qwen3Encoder,
    tokenizer_folder: Path,
    dtype: torch.dtype = torch.float32,
    state: tuple[Mapping[str, Tensor], Mapping[str, object]] | None = None,
    vectors: str = "means",
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint to `folder` and replace a previous one; after a crash, either of them is complete.

    `weights` are written instead of those of the model, which are others while it has adapters or is sharded. `state`
    adds what a run needs to continue: tensors by name, and JSON values. `vectors` selects the output of
    sentence-transformers (see `stock_layout`). Raises StorageError.
    """
    with writing_checkpoint(folder, model.spec, tokenizer_folder, vectors) as staging:
        chosen = model.state_dict() if weights is None else weights
        plain = {name: weight.detach().to(dtype).contiguous() for name, weight in chosen.items()}
        save_file(plain, staging / WEIGHTS, metadata={"format": "pt"})
        if state is not None:
            save_file(dict(state[0]), staging / STATE_TENSORS)
            (staging / STATE_VALUES).write_text(json.dumps(state[1]) + "\n")


@contextmanager
def writing_checkpoint(folder: Path, spec: ModelSpec, tokenizer_folder: Path, vectors: str = "means") -> Iterator[Path]:
    """Provide a directory with all files of a model except its weights, which the block must write.

    It replaces `folder` when the block ends, and is deleted if the block raises. Raises StorageError.
    """
    try:
        with replacing_directory(folder, replace=True) as staging:
            (staging / layout.CONFIG).write_text(json.dumps(hf_config(spec), indent=2) + "\n")
            write_modules(staging, spec, vectors)
            for name in TOKENIZER_FILES:
                shutil.copyfile(tokenizer_folder / name, staging / name)
            yield staging
            for path in staging.glob("*.safetensors"):
                path.chmod(0o644)  # the library writes for the owner alone
    except OSError as error:
        raise StorageError(
            f"{folder}: checkpoint not written ({error.strerror or error}); the last one is kept"
        ) from error


def write_float32_weights(
    path: Path, shapes: Mapping[str, Sequence[int]], blocks: Callable[[str], Iterable[np.ndarray]]
) -> None:
    """Write a safetensors file of float32 tensors, each from the consecutive blocks that `blocks(name)` yields.

    Only one block has to be in memory. Raises ValueError if the blocks of a tensor do not fill its shape.
    """
    tensors = {name: ("F32", tuple(shape)) for name, shape in shapes.items()}
    with SafetensorsWriter(path, tensors, {"format": "pt"}) as file:
        for name in shapes:
            for block in blocks(name):
                file.append(name, np.ascontiguousarray(block, np.float32))


def find_checkpoint(folder: Path) -> Path | None:
    """Return `folder`, or the previous version that a crash left under another name; None if there is no checkpoint."""
    found = left_by_crash(folder) or folder
    return found if (found / WEIGHTS).is_file() else None


def read_model(folder: Path) -> Qwen3Encoder:
    """Return the float32 encoder of a checkpoint. Raises CheckpointError if the files do not fit together."""
    checkpoint = Checkpoint.open(folder)
    model = Qwen3Encoder(checkpoint.spec)
    names = checkpoint.spec.tensor_shapes()
    model.load_state_dict({name: torch.from_numpy(checkpoint.read(name).copy()) for name in names})
    return model


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and values of `write_checkpoint`'s `state`. Raises CheckpointError if they are damaged."""
    try:
        with safe_open(folder / STATE_TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((folder / STATE_VALUES).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: training state not readable ({error})") from error
    except Exception as error:  # SafetensorError has no other base class
        raise CheckpointError(f"{folder / STATE_TENSORS}: damaged ({error})") from error
