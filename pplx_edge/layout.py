"""The names of all files in a model directory. No other module of the product spells one of them."""

# Checkpoints
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
WEIGHTS = "model.safetensors"
WEIGHTS_SHARD = "model-{:05d}-of-{:05d}.safetensors"  # number of the shard, counted from 1, and number of shards
WEIGHTS_INDEX = "model.safetensors.index.json"
EQUALIZATION = "equalization.json"  # scales that a conversion would measure otherwise
MODULES = "modules.json"  # the modules of sentence-transformers
POOLING = "1_Pooling"
POOLING_CONFIG = f"{POOLING}/{CONFIG}"

# Artifacts: the manifest, the text files that a conversion copies from its source, and the files of each backend
MANIFEST = "pplx-edge.json"
TEXT_FILES = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS)
ONNX_GRAPH = "model.onnx"
ONNX_WEIGHTS = "model.onnx_data"
NATIVE_MODEL = "model.native"
COREML_PACKAGE = "model.mlpackage"  # one function for each fixed length
COREML_TABLE = "embedding.safetensors"
COREML_PROBE = "probe.safetensors"  # token ids and their reference vectors, for the test before the first use
OPENVINO_GRAPH = "openvino_model.xml"  # the name that optimum-intel opens
OPENVINO_WEIGHTS = "openvino_model.bin"
GGUF_MODEL = "model.gguf"

# Ready-made ONNX graphs in repositories, the best for CPUs first
READY_GRAPHS = ("model_quantized.onnx", "model_int8.onnx", ONNX_GRAPH, "model_q4.onnx")
