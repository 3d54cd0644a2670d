"""The command `pplx-edge`.

Exit status: 0 done, 1 not sound (`doctor`); for the others see `pplx_kit.program`.
"""

from pplx_kit.program import Program

GROUPS = {
    "use": {
        "embed": "embed lines of text, or whole documents in chunks",
        "corpus": "embed a corpus of any size on Ray, on this machine or a cluster, with restart",
        "serve": "serve embeddings to other programs, in the API of OpenAI and of Perplexity",
        "doctor": "report what this machine can run, and test it for half a minute",
    },
    "models": {
        "models": "list, download, locate and delete models",
        "info": "show a model's sizes, format, files and parity figures",
        "verify": "check a model's files, and compare official weights with their published vectors",
    },
    "develop": {
        "convert": "convert a checkpoint to a format that runs fast",
        "compare": "compare conversions of one model with each other: fidelity and size on disk",
        "bench": "measure speed, memory or retrieval quality on this machine",
    },
}
PROGRAM = Program(
    name="pplx-edge",
    description="Embed text on this machine with the pplx-embed models, and convert, compare and measure them.\n"
    "To search in your own files: pplx-search.",
    example="pplx-edge embed notes.txt -o vectors.npy\npplx-edge convert pplx-embed-v1-0.6b --to onnx-int8 --out model",
    groups=GROUPS,
    package="pplx_cli.commands",
    first_step="pplx-edge doctor",
    memory_advice="use a smaller model or shorter texts",
    extra="bench",
)
COMMANDS = PROGRAM.commands
main = PROGRAM.main
build_parser = PROGRAM.parser
