"""The command `pplx-edge`.

Exit status: 0 done, 1 not sound (`doctor`); for the others see `pplx_kit.program`.
"""

from pplx_kit.program import Program

COMMANDS = ("embed", "convert", "compare", "info", "models", "verify", "bench", "doctor")
PROGRAM = Program(
    name="pplx-edge",
    description="Embed text on this machine with the pplx-embed models, and convert, compare and measure them.\n"
    "To search in your own files: pplx-search.",
    example="pplx-edge embed notes.txt -o vectors.npy\npplx-edge convert pplx-embed-v1-0.6b --to onnx-int8 --out model",
    commands={name: f"pplx_cli.commands.{name}" for name in COMMANDS},
    first_step="pplx-edge doctor",
    memory_advice="use a smaller model or shorter texts",
    extra="bench",
)
main = PROGRAM.main
build_parser = PROGRAM.parser
