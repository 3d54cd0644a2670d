"""The command `optimum-cli export pplx-edge`. optimum imports this module whenever `optimum-cli` starts."""

from argparse import ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from pplx_edge.errors import EdgeError


class EdgeExportCommand(BaseOptimumCLICommand):
    """Convert a pplx-embed checkpoint to one of pplx-edge's formats."""

    COMMAND = CommandInfo(name="pplx-edge", help="Convert a pplx-embed checkpoint to a format of pplx-edge.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the arguments of the command."""
        from pplx_edge.registry import DEFAULT_FORMAT, all_formats

        parser.add_argument("-m", "--model", required=True, help="nano, a directory, or a model id on the hub.")
        parser.add_argument("--format", default=DEFAULT_FORMAT, choices=all_formats(), help="Format to write.")
        parser.add_argument("--revision", help="Commit, tag or branch of a hub repository.")
        parser.add_argument("--force", action="store_true", help="Replace a converted model that exists at the output.")
        parser.add_argument("output", help="Directory to write.")

    def run(self) -> None:
        """Convert the model and compare it with the reference. Ends the program with one line if that fails."""
        from pplx_edge.registry import entry, require_format
        from pplx_edge.weights import hub

        args: Any = self.args
        try:
            source = hub.locate(args.model, revision=args.revision)
            convert = entry(require_format(args.format).converter)
            convert(source, args.output, args.format, replace=args.force, source_name=hub.source_name(args.model))
        except EdgeError as error:
            raise SystemExit(f"optimum-cli: error: {error}") from None
        print(args.output)


REGISTER_COMMANDS = [(EdgeExportCommand, ExportCommand)]
