"""Find out which backends this machine and this installation can use, and the reason if one cannot be used."""

from dataclasses import dataclass

from pplx_edge import backends
from pplx_edge.errors import EdgeError
from pplx_edge.registry import BACKENDS, Backend, entry
from pplx_kit import host
from pplx_kit.terminal import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """The state of a backend on this machine.

    `why` is the reason if it cannot, and otherwise a note on how it runs. `versions` maps distributions to versions.
    """

    usable: bool
    why: str
    versions: dict[str, str]


def backend_states() -> dict[str, BackendState]:
    """Return the state of every backend, by name."""
    return {name: _state(backend) for name, backend in BACKENDS.items()}


def _state(backend: Backend) -> BackendState:
    versions = host.versions(*backend.distributions)
    try:
        if backend.requirement:
            entry(backend.requirement)()
        backends.require_installed(backend)
        entry(backend.session)
        note = entry(backend.note)() if backend.note else ""
        return BackendState(usable=True, why=note, versions=versions)
    except EdgeError as error:
        return BackendState(usable=False, why=str(error), versions=versions)
    except (ImportError, OSError) as error:  # installed, but incomplete or built for another machine
        why = f"installed, but it cannot be loaded ({printable(str(error))}); install it again"
        return BackendState(usable=False, why=why, versions=versions)
