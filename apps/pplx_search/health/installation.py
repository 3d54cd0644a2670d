"""The checks of `doctor` on the installation: version, SQLite, search kernel, parsers and file watching."""

import platform
from collections.abc import Iterator
from importlib import import_module, metadata

from pplx_edge import __version__
from pplx_edge.errors import EdgeError
from pplx_kit.findings import Finding, note, sound, wrong
from pplx_kit.terminal import printable
from pplx_search.health.sample_files import samples, unread_kinds

_INSTALL = "pip install 'pplx-edge[search]'"
_PARSERS = {  # package name: (import name, file types it is needed for)
    "pypdfium2": ("pypdfium2", "PDFs"),
    "selectolax": ("selectolax", "HTML, mail and EPUB"),
    "charset-normalizer": ("charset_normalizer", "text files"),
}


def installation() -> Iterator[Finding]:
    """Yield a finding for each part of the installation."""
    yield sound(
        "pplx-search",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        version=__version__,
        python=platform.python_version(),
        system=platform.system(),
    )
    yield _engine()
    yield _kernel()
    yield _parsers()
    yield _watching()


def _engine() -> Finding:
    if why := _why_not("apsw"):
        return wrong("sqlite", why, _INSTALL)
    import apsw

    from pplx_search.store.database import OLDEST_ENGINE, require_engine

    version, oldest = apsw.sqlite_lib_version(), ".".join(map(str, OLDEST_ENGINE))
    facts = {"version": version, "oldest": oldest, "apsw": apsw.apsw_version()}
    try:
        require_engine(version)
    except EdgeError as error:
        return wrong("sqlite", str(error), "pip install -U apsw", **facts)
    return sound("sqlite", f"{version} (requires {oldest} or newer)", **facts)


def _kernel() -> Finding:
    if why := _why_not("numkong"):
        slower = "searches use NumPy, which gives the same results but is slower with millions of passages"
        return note("kernel", f"{slower} ({why})", _INSTALL, kernel="numpy")
    return sound("kernel", f"numkong {metadata.version('numkong')}", kernel="numkong")


def _parsers() -> Finding:
    versions: dict[str, str] = {}
    lacking: list[str] = []
    for name, (module, what) in _PARSERS.items():
        if why := _why_not(module):
            lacking.append(f"{what} cannot be read because {why}")
        else:
            versions[name] = metadata.version(name)
    if lacking:
        return wrong("parsers", "; ".join(lacking), _INSTALL, versions=versions)
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    try:
        unread = unread_kinds()
    except EdgeError as error:
        return wrong("parsers", f"{error} ({told})", _INSTALL, versions=versions)
    if unread:
        why = "; ".join(f"{kind}: {printable(reason)}" for kind, reason in unread.items())
        what = f"a sample file was not read: {why} ({told})"
        return wrong("parsers", what, _INSTALL, versions=versions, unread=unread)
    kinds = ", ".join(samples())
    what = f"sample files ({kinds}) were read in child processes ({told})"
    return sound("parsers", what, versions=versions, unread={})


def _watching() -> Finding:
    if why := _why_not("watchfiles"):
        return wrong("watching", f"pplx-search watch cannot run: {why}", _INSTALL)
    version = metadata.version("watchfiles")
    return sound("watching", f"watchfiles {version}", version=version)


def _why_not(module: str) -> str:
    """Return the reason why a module cannot be imported, or an empty string if it can."""
    try:
        import_module(module)
    except ModuleNotFoundError:
        return f"{module} is not installed"
    except (ImportError, OSError) as error:
        return f"{module} is installed but cannot be imported ({printable(str(error))})"
    return ""
