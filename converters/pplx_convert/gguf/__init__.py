"""Convert checkpoints to GGUF files for llama.cpp and the programs that use it."""
