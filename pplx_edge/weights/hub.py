"""Find the directory of a model: the built-in one, a path, or a hub repository. Only this module uses the network.

A downloaded repository is used from the cache without contacting the hub until it is downloaded again, so a model never
changes underneath an index that was built with it.
"""

import difflib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, InputError, ModelNotFound, OfflineError, StorageError
from pplx_edge.files import storage_errors
from pplx_edge.registry import BACKENDS
from pplx_edge.weights.artifact import ready_made
from pplx_edge.weights.checkpoint import weight_files

CACHE_VARIABLE = "PPLX_EDGE_CACHE"
BUILT_IN = "nano"
OFFICIAL = {
    name: f"perplexity-ai/{name}"
    for name in (
        "pplx-embed-v1-0.6b",
        "pplx-embed-v1-4b",
        "pplx-embed-context-v1-0.6b",
        "pplx-embed-context-v1-4b",
    )
}
_MODEL_FILES = (
    layout.CONFIG,
    layout.MODULES,
    layout.POOLING_CONFIG,
    layout.MANIFEST,
    layout.TOKENIZER,
    layout.TOKENIZER_CONFIG,
    layout.SPECIAL_TOKENS,
    layout.WEIGHTS,
    "model-*.safetensors",
    layout.WEIGHTS_INDEX,
    layout.EQUALIZATION,
)
_NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5")
_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in the list of available models.

    `directory` is its location on disk, or None if it must be downloaded first. `n_bytes` is its size on disk, and
    `revision` the commit of the downloaded hub repository.
    """

    name: str
    kind: Literal["built-in", "official", "cached"]
    directory: Path | None = None
    n_bytes: int = 0
    revision: str | None = None


def locate(
    name_or_path: str | Path, *, revision: str | None = None, offline: bool | None = None, graphs: str | None = None
) -> Path:
    """Return the directory of a model, downloading it from the hub if it is not in the cache.

    `name_or_path` is a built-in name, a directory or a hub repository. `revision` pins a commit, tag or branch.
    `offline=True` forbids network access, and None follows HF_HUB_OFFLINE. `graphs` is a pattern of the file names of
    ONNX graphs, without `.onnx`, that are needed as well (`*` for all).

    Raises ModelNotFound if there is no such model, and OfflineError, with the command that downloads the model, if it
    is not in the cache and cannot be downloaded.
    """
    if local := _local_directory(name_or_path):
        return local
    repository = repository_of(name_or_path)
    if found := _cached(repository, revision, graphs):
        return found
    if _is_offline(offline):
        raise _not_here(repository, revision, " and network access is disabled")
    return _fetch(repository, revision, graphs)


def cached_path(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Return the directory of a model that is on this machine. Raises OfflineError if it has to be downloaded."""
    if local := _local_directory(name_or_path):
        return local
    repository = repository_of(name_or_path)
    if found := _cached(repository, revision, None):
        return found
    raise _not_here(repository, revision)


def download(name: str, *, revision: str | None = None, offline: bool | None = None, graphs: str | None = None) -> Path:
    """Download the newest commit of `revision` of a hub repository and return its directory.

    Files that are already in the cache are not downloaded again. For a built-in model or a directory, return its
    directory. Raises ModelNotFound, OfflineError, CheckpointError or StorageError.
    """
    if local := _local_directory(name):
        return local
    repository = repository_of(name)
    if _is_offline(offline):
        raise OfflineError(f"{repository}: cannot be downloaded: network access is disabled; unset HF_HUB_OFFLINE")
    return _fetch(repository, revision, graphs)


def remove(name: str) -> int:
    """Delete a hub repository and its cached conversions, and return the number of bytes freed.

    Raises InputError for a built-in model or a path, ModelNotFound if the repository is not in the cache, and
    StorageError if it cannot be deleted.
    """
    if _local_directory(name):
        raise InputError(f"{name}: not in the hub cache; only downloaded models can be removed")
    repository = repository_of(name)
    found = next((repo for repo in _cached_repositories() if repo.repo_id == repository), None)
    if not found:
        raise ModelNotFound(f"{repository}: not in the cache, nothing to remove; see: pplx-edge models list")
    commits = [commit.commit_hash for commit in found.revisions]
    with storage_errors(Path(found.repo_path)):
        freed = sum(_remove_conversions(commit) for commit in commits)
        # Restrict the deletion to this repository: a copy of it elsewhere in the cache may contain the same commit.
        only = replace(_hub().scan_cache_dir(_hub_cache()), repos=frozenset([found]))
        only.delete_revisions(*commits).execute()
    if Path(found.repo_path).exists():
        raise StorageError(f"{found.repo_path}: could not be deleted; check its permissions")
    return freed + found.size_on_disk


def available() -> list[ListedModel]:
    """Return the built-in model, the official models, and all other models in the hub cache that can be opened."""
    built_in = _built_in()
    models = [ListedModel(BUILT_IN, "built-in", built_in, _tree_bytes(built_in))]
    cached = {repo.repo_id: _cached_model(repo) for repo in _cached_repositories()}
    for repository in OFFICIAL.values():
        models.append(cached.pop(repository, None) or ListedModel(repository, "official"))
    return models + [model for _, model in sorted(cached.items()) if model]


def repository_of(name: str | Path) -> str:
    """Return the hub repository for a model name. Raises ModelNotFound, with a suggestion if the name has a typo."""
    name = str(name)
    if name in OFFICIAL:
        return OFFICIAL[name]
    if _looks_like_path(name):
        raise ModelNotFound(f"{name}: no such directory; a model is {BUILT_IN}, a directory or a hub id (org/name)")
    if name.count("/") != 1 or name.endswith(".git") or any(char.isspace() for char in name):
        raise ModelNotFound(f"{name!r}: no such model{_suggestion(name)}; see: pplx-edge models list")
    return name


def source_name(name_or_path: str | Path) -> str | None:
    """Return the hub repository of a model, or None for a directory or the built-in model."""
    return None if _local_directory(name_or_path) else repository_of(name_or_path)


def cache_directory() -> Path:
    """Return the directory for converted models: $PPLX_EDGE_CACHE, or `pplx-edge` in the user's cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pplx-edge"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "pplx-edge"


def _local_directory(name_or_path: str | Path) -> Path | None:
    """Return the directory of the built-in model or an existing directory, or None for a possible hub repository."""
    if str(name_or_path) == BUILT_IN:
        return _built_in()
    if not str(name_or_path):
        raise ModelNotFound(f"the model name is empty; a model is {BUILT_IN}, a directory or a hub id (org/name)")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFound(f"{path}: is a file; pass the directory that contains config.json and the weights")
    return None


def _built_in() -> Path:
    directory = Path(__file__).parents[1] / BUILT_IN
    if not (directory / layout.CONFIG).is_file():
        raise ModelNotFound(f"{directory}: the files of the built-in model are missing; reinstall pplx-edge")
    return directory


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or os.path.isabs(name) or "\\" in name


def _suggestion(name: str) -> str:
    known = [BUILT_IN, *OFFICIAL, *OFFICIAL.values()]
    close = [other for other in difflib.get_close_matches(name, known, n=1) if other != name]
    return f" (did you mean {close[0]}?)" if close else ""


def _is_offline(offline: bool | None) -> bool:
    if offline is None:
        return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    return offline


def _hub():
    """Return the hub client library, imported on first use because the import is slow."""
    import huggingface_hub

    return huggingface_hub


def _cached(repository: str, revision: str | None, graphs: str | None) -> Path | None:
    """Return the cached directory of a completely downloaded repository, or None. Does not use the network."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # Only config.json is required here; _is_whole decides whether the download is complete.
        found = _hub().snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=[layout.CONFIG]
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelNotFound(f"{repository!r}: not a hub id{_suggestion(repository)}") from error
    return Path(found) if _is_whole(Path(found), graphs) else None


def _is_whole(directory: Path, graphs: str | None) -> bool:
    has_model = _has_model(directory) if graphs is None else any(directory.glob(f"onnx/{graphs}.onnx"))
    return has_model and all((directory / name).is_file() for name in (layout.CONFIG, layout.TOKENIZER))


def _has_model(directory: Path) -> bool:
    """Return whether a directory contains all weight files of a checkpoint, or ready-made ONNX graphs."""
    try:
        return all(path.is_file() for path in weight_files(directory))
    except CheckpointError:
        return ready_made(directory) is not None


def _fetch(repository: str, revision: str | None, graphs: str | None) -> Path:
    """Download or update the files that a model needs, and return the directory."""
    with _hub_errors(repository, revision), storage_errors(_hub_cache()):
        # Query the hub first: without a network, snapshot_download silently returns an old snapshot.
        info = _hub().HfApi().model_info(repository, revision=revision)
        names = [file.rfilename for file in info.siblings or []]
        patterns = _patterns(repository, names, graphs)
        directory = Path(
            _hub().snapshot_download(
                repository,
                revision=revision or "main",
                allow_patterns=patterns,
                ignore_patterns=list(_NEVER),
                tqdm_class=_terminal_bar(),
            )
        )
    if not _is_whole(directory, graphs):
        raise CheckpointError(
            f"{directory}: the download of {repository} is incomplete; run: pplx-edge models pull {repository}"
        )
    return directory


def _terminal_bar() -> type:
    """Return a subclass of the hub's progress bar that shows nothing unless stderr is a terminal."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{"disable": None} | options)

    return Bar


def _patterns(repository: str, names: list[str], graphs: str | None) -> list[str]:
    """Return the patterns of files to download, given the names of all files in a repository.

    Raises ModelNotFound if the repository is not an embedding model.
    """
    missing = [name for name in (layout.CONFIG, layout.TOKENIZER) if name not in names]
    has_checkpoint = any(name.endswith(".safetensors") and "/" not in name for name in names)
    patterns = [pattern for backend in BACKENDS.values() for pattern in backend.ready_made]
    has_ready = any(fnmatch(name, pattern) for name in names for pattern in patterns)
    if missing or not (has_checkpoint or has_ready):
        lacks = missing[0] if missing else "safetensors weights or ONNX graphs"
        raise ModelNotFound(f"{repository}: not a supported embedding model: it has no {lacks}")
    if graphs is not None:
        return [*_MODEL_FILES, f"onnx/{graphs}.onnx", f"onnx/{graphs}.onnx_data*"]
    downloads = [pattern for backend in BACKENDS.values() for pattern in backend.downloads]
    return [*_MODEL_FILES] if has_checkpoint else [*_MODEL_FILES, *downloads]


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Convert exceptions of the hub library to errors of pplx-edge that say what to do next."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] (of httpx or httpx2)

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{repository}: access requires the owner's approval: request it at https://huggingface.co/{repository}, "
            "then run: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{repository}: no revision {revision!r}; pass a commit, tag or branch") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{repository}: no such hub repository{_suggestion(repository)}; if it is private, run: hf auth login"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r}: not a hub id{_suggestion(repository)}") from error
    except errors.HfHubHTTPError as error:
        raise OfflineError(
            f"{repository}: the hub returned an error ({error.response.status_code}); try again later: "
            f"pplx-edge models pull {repository}"
        ) from error
    except (HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise _not_here(repository, revision, " and the hub cannot be reached") from error
    except (errors.FileMetadataError, json.JSONDecodeError) as error:
        raise OfflineError(
            f"{repository}: the response is not from a model hub; check HF_ENDPOINT and your proxy settings"
        ) from error


def _not_here(repository: str, revision: str | None, why: str = "") -> OfflineError:
    at = f" --revision {revision}" if revision else ""
    return OfflineError(
        f"{repository}: not on this machine{why}{_suggestion(repository)}; "
        f"download it once with network access: pplx-edge models pull {repository}{at}"
    )


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_repositories() -> list[Any]:
    """Return the model repositories in the hub cache, as objects of the hub library."""
    if not _hub_cache().is_dir():
        return []
    return [repo for repo in _hub().scan_cache_dir(_hub_cache()).repos if repo.repo_type == "model"]


def _cached_model(repo: Any) -> ListedModel | None:
    """Return the newest complete snapshot of a cached repository, or None if none of its snapshots can be opened."""
    for commit in sorted(repo.revisions, key=lambda commit: commit.last_modified, reverse=True):
        directory = Path(commit.snapshot_path)
        if _is_whole(directory, None):
            kind = "official" if repo.repo_id in OFFICIAL.values() else "cached"
            return ListedModel(repo.repo_id, kind, directory, repo.size_on_disk, commit.commit_hash)
    return None


def _remove_conversions(commit: str) -> int:
    """Delete the cached conversions of a commit and return the number of bytes freed.

    The directory name of a conversion starts with the commit, because it starts with the name of its source directory.
    """
    freed = 0
    for directory in (cache_directory() / "artifacts").glob(f"{commit}-*"):
        freed += _tree_bytes(directory)
        shutil.rmtree(directory)
    return freed


def _tree_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
