"""The real version of macOS."""

import os
import platform
import subprocess


def macos_version() -> tuple[str, str]:
    """Return the release and the build of macOS, for example `("26.1", "25B78")`, and `("", "")` on other systems.

    A Python built for an older macOS is told that macOS 26 is 16.0 unless SYSTEM_VERSION_COMPAT is 0. If `sw_vers`
    fails, the release is what Python is told, and the build is empty.
    """
    found = []
    for option in ("-productVersion", "-buildVersion"):
        command = ["/usr/bin/sw_vers", option]
        environment = os.environ | {"SYSTEM_VERSION_COMPAT": "0"}
        try:
            run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return platform.mac_ver()[0], ""
        found.append(run.stdout.strip())
    return found[0], found[1]
