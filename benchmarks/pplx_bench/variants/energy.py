"""The energy that the processor used, where this machine lets an ordinary user read it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts joules between `start` and `stop`. `reason` says why it cannot, and is "" if it can."""

    def __init__(self, rapl: Path = _RAPL):
        self._read: Callable[[], float] | None = None
        self._monitor: Any = None
        self._before, self.reason = 0.0, ""
        if sys.platform == "darwin":
            try:
                from zeus_apple_silicon import AppleEnergyMonitor  # type: ignore[import-not-found]

                self._monitor = AppleEnergyMonitor()
            except ImportError:
                self.reason = "zeus-apple-silicon is not installed: pip install zeus-apple-silicon"
            return
        packages = sorted(rapl.glob("intel-rapl:[0-9]"))
        try:
            _joules(packages)
        except OSError as error:
            self.reason = f"{error.filename} cannot be read by this user"
        else:
            self.reason = "" if packages else f"{rapl} has no counters of the processor's energy"
        if not self.reason:
            self._read = lambda: _joules(packages)

    def start(self) -> None:
        """Begin to count."""
        if self._monitor is not None:
            self._monitor.begin_window("bench")
        elif self._read is not None:
            self._before = self._read()

    def stop(self) -> float | None:
        """Return the joules since `start`, or None if they cannot be read or the counter has wrapped around."""
        if self._monitor is not None:
            used = self._monitor.end_window("bench")
            parts = (getattr(used, f"{name}_mj", None) for name in ("cpu_total", "gpu", "ane", "dram"))
            return sum(part for part in parts if part) / 1000
        if self._read is None:
            return None
        used = self._read() - self._before
        return used if used >= 0 else None


def _joules(packages: list[Path]) -> float:
    return sum(int((package / "energy_uj").read_text(encoding="ascii")) for package in packages) / 1e6
