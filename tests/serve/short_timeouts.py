"""`pplx-edge`, with timeouts that tests can wait for: `python -m short_timeouts serve …`."""

import sys
from dataclasses import replace

import pplx_cli
from pplx_kit import web_guard, web_server


def main() -> int:
    web_server.TimedProtocol.header_seconds = 0.5
    before = web_guard.Guard.__init__

    def init(self: web_guard.Guard, app: web_guard.Application, settings: web_guard.GuardSettings) -> None:
        before(self, app, replace(settings, body_seconds=0.5, reply_seconds=1.0))

    web_guard.Guard.__init__ = init
    return pplx_cli.main()


if __name__ == "__main__":
    sys.exit(main())
