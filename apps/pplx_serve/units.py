"""Service definitions for launchd and systemd, to be saved by the user."""

import shlex
import sys
from collections.abc import Sequence
from xml.sax.saxutils import escape

NAME = "pplx-edge-serve"
_LABEL = "local.pplx-edge.serve"


def command_line(options: Sequence[str]) -> list[str]:
    """Return the command that starts the server with some options."""
    return [sys.executable, "-m", "pplx_cli", "serve", *options]


def systemd(options: Sequence[str]) -> str:
    """Return a systemd unit for the user's own services."""
    start = shlex.join(command_line(options)).replace("%", "%%")
    return f"""# Save as ~/.config/systemd/user/{NAME}.service, then run: systemctl --user enable --now {NAME}
[Unit]
Description=Embeddings server of pplx-edge

[Service]
ExecStart={start}
Restart=on-failure
TimeoutStopSec=60
NoNewPrivileges=true

[Install]
WantedBy=default.target
"""


def launchd(options: Sequence[str]) -> str:
    """Return a launchd agent."""
    arguments = "\n".join(f"    <string>{escape(each)}</string>" for each in command_line(options))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- Save as ~/Library/LaunchAgents/{_LABEL}.plist, then run: launchctl load -w THAT_FILE -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>{_LABEL}</string>
  <key>ProgramArguments</key>
  <array>
{arguments}
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ExitTimeOut</key>
  <integer>60</integer>
</dict>
</plist>
"""
