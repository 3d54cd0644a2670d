"""A name to a directory: the built-in model, a path, or a hub repository. The only module that touches the network.

What was fetched once is used as it is, without asking the network again, until it is pulled anew: a model does not
change under an index that was made with it.
"""

import difflib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pplx_edge.errors import CheckpointError, InputError, ModelNotFound, OfflineError, StorageError
from pplx_edge.weights.artifact import ready_graphs, storage_errors
from pplx_edge.weights.checkpoint import weight_files

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
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "pplx-edge.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
_NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5")
_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be named: where it is on disk, or None when it has to be fetched first.

    `n_bytes` is what it takes on disk, `revision` the commit a hub repository stands at.
    """

    name: str
    kind: Literal["built-in", "official", "cached"]
    directory: Path | None = None
    n_bytes: int = 0
    revision: str | None = None


def resolve(
    name_or_path: str | Path, *, revision: str | None = None, offline: bool | None = None, graphs: str | None = None
) -> Path:
    """The directory of a built-in name, an existing directory or a hub repository, which is fetched when needed.

    `revision` pins a commit, tag or branch. `offline` forbids the network (None: as HF_HUB_OFFLINE says). `graphs`
    asks for ready ONNX graphs as well, by a pattern of their names without `.onnx` (`*`: all).

    Raises ModelNotFound, or OfflineError with the command that fetches the model when it is not here.
    """
    if local := _local_directory(name_or_path):
        return local
    repository = repository_of(name_or_path)
    if found := _cached(repository, revision, graphs):
        return found
    if _is_offline(offline):
        raise _not_here(repository, revision, " and the network is switched off")
    return _fetch(repository, revision, graphs)


def path(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """The directory of a model that is on this machine. Raises OfflineError when it would have to be fetched."""
    if local := _local_directory(name_or_path):
        return local
    repository = repository_of(name_or_path)
    if found := _cached(repository, revision, None):
        return found
    raise _not_here(repository, revision)


def pull(name: str, *, revision: str | None = None, offline: bool | None = None, graphs: str | None = None) -> Path:
    """The directory of a hub repository, brought to the newest commit of `revision`; files that arrived are kept."""
    if local := _local_directory(name):
        return local
    repository = repository_of(name)
    if _is_offline(offline):
        raise OfflineError(f"{repository}: cannot be fetched, the network is switched off; unset HF_HUB_OFFLINE")
    return _fetch(repository, revision, graphs)


def remove(name: str) -> int:
    """Deletes a hub repository from the cache, with what was converted from it; the bytes that were freed.

    Raises InputError for a built-in model or a path, ModelNotFound when the repository is not in the cache.
    """
    if _local_directory(name):
        raise InputError(f"{name}: not in the hub's cache; only fetched models are removed")
    repository = repository_of(name)
    found = next((repo for repo in _cached_repositories() if repo.repo_id == repository), None)
    if not found:
        raise ModelNotFound(f"{repository}: not in the cache, nothing to remove; see: pplx-edge models list")
    commits = [commit.commit_hash for commit in found.revisions]
    with storage_errors(Path(found.repo_path)):
        freed = sum(_remove_conversions(commit) for commit in commits)
        # Narrowed to this repository: a copy of it elsewhere in the cache may hold the very same commit.
        only = replace(_hub().scan_cache_dir(_hub_cache()), repos=frozenset([found]))
        only.delete_revisions(*commits).execute()
    if Path(found.repo_path).exists():
        raise StorageError(f"{found.repo_path}: could not be deleted; look at its permissions")
    return freed + found.size_on_disk


def available() -> list[Model]:
    """The built-in model, the official ones and whatever else the hub's cache holds that can be opened."""
    built_in = _built_in()
    models = [Model(BUILT_IN, "built-in", built_in, _tree_bytes(built_in))]
    cached = {repo.repo_id: _cached_model(repo) for repo in _cached_repositories()}
    for repository in OFFICIAL.values():
        models.append(cached.pop(repository, None) or Model(repository, "official"))
    return models + [model for _, model in sorted(cached.items()) if model]


def repository_of(name: str | Path) -> str:
    """The hub repository that a name means. Raises ModelNotFound, with a suggestion for a slip of the pen."""
    name = str(name)
    if name in OFFICIAL:
        return OFFICIAL[name]
    if _looks_like_path(name):
        raise ModelNotFound(f"{name}: no such directory; a model is {BUILT_IN}, a directory or a hub id (org/name)")
    if name.count("/") != 1 or name.endswith(".git") or any(char.isspace() for char in name):
        raise ModelNotFound(f"{name!r}: no such model{_suggestion(name)}; see: pplx-edge models list")
    return name


def source_name(name_or_path: str | Path) -> str | None:
    """The hub repository that a model came from; None for a directory or the built-in model."""
    return None if _local_directory(name_or_path) else repository_of(name_or_path)


def cache_directory() -> Path:
    """Where converted models are kept: $PPLX_EDGE_CACHE, or `pplx-edge` in the user's cache directory."""
    if chosen := os.environ.get("PPLX_EDGE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pplx-edge"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "pplx-edge"


def _local_directory(name_or_path: str | Path) -> Path | None:
    """The built-in model's directory or an existing one; None for what may be a hub repository."""
    if str(name_or_path) == BUILT_IN:
        return _built_in()
    if not str(name_or_path):
        raise ModelNotFound(
            f"an empty string names no model; a model is {BUILT_IN}, a directory or a hub id (org/name)"
        )
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFound(f"{path}: a file; name the directory that holds config.json and the weights")
    return None


def _built_in() -> Path:
    directory = Path(__file__).parents[1] / BUILT_IN
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{directory}: the built-in model's files are missing; install pplx-edge again")
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
    """The hub's client library, imported only when a hub repository is asked for."""
    import huggingface_hub

    return huggingface_hub


def _cached(repository: str, revision: str | None, graphs: str | None) -> Path | None:
    """The directory of a repository that was fetched whole, without asking the network."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # One pattern only: which other files count as whole is for _is_whole to say, not for the repository's list.
        found = _hub().snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=["config.json"]
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelNotFound(f"{repository!r}: not a hub id{_suggestion(repository)}") from error
    return Path(found) if _is_whole(Path(found), graphs) else None


def _is_whole(directory: Path, graphs: str | None) -> bool:
    has_model = _has_model(directory) if graphs is None else any(directory.glob(f"onnx/{graphs}.onnx"))
    return has_model and all((directory / name).is_file() for name in ("config.json", "tokenizer.json"))


def _has_model(directory: Path) -> bool:
    """Whether all weight files, or ready graphs, are there."""
    try:
        return all(path.is_file() for path in weight_files(directory))
    except CheckpointError:
        return bool(ready_graphs(directory))


def _fetch(repository: str, revision: str | None, graphs: str | None) -> Path:
    """The repository's directory, fetched or brought up to date; only the files that a model needs."""
    with _hub_errors(repository, revision), storage_errors(_hub_cache()):
        # Asked first, because snapshot_download hands out an old snapshot in silence when the network is gone.
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
            f"{directory}: some of {repository} did not arrive; run: pplx-edge models pull {repository}"
        )
    return directory


def _terminal_bar() -> type:
    """The hub's own progress bar, silent unless stderr is a terminal."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{"disable": None} | options)

    return Bar


def _patterns(repository: str, names: list[str], graphs: str | None) -> list[str]:
    """What to fetch of a repository that holds files of these names. Raises ModelNotFound when it is no model."""
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    has_checkpoint = any(name.endswith(".safetensors") and "/" not in name for name in names)
    has_graphs = any(name.endswith(".onnx") for name in names)
    if missing or not (has_checkpoint or has_graphs):
        lacks = missing[0] if missing else "safetensors weights or ONNX graphs"
        raise ModelNotFound(f"{repository}: not an embedding model that can be opened: it has no {lacks}")
    if graphs is not None:
        return [*_MODEL_FILES, f"onnx/{graphs}.onnx", f"onnx/{graphs}.onnx_data*"]
    return [*_MODEL_FILES] if has_checkpoint else [*_MODEL_FILES, "*.onnx", "*.onnx_data*"]


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turns what the hub's library raises into the error tree, saying what to do next."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] (of httpx or httpx2)

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{repository}: its owner grants access on request: ask at https://huggingface.co/{repository}, "
            "then: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{repository}: no revision {revision!r}; a commit, tag or branch is wanted") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{repository}: no such hub repository, or a private one (then: hf auth login){_suggestion(repository)}"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r}: not a hub id{_suggestion(repository)}") from error
    except errors.HfHubHTTPError as error:
        raise OfflineError(
            f"{repository}: the hub answered with an error ({error.response.status_code}); try again later: "
            f"pplx-edge models pull {repository}"
        ) from error
    except (HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise _not_here(repository, revision, " and the hub cannot be reached") from error
    except (errors.FileMetadataError, json.JSONDecodeError) as error:
        raise OfflineError(
            f"{repository}: what answered is not a model hub; is a proxy or HF_ENDPOINT in the way?"
        ) from error


def _not_here(repository: str, revision: str | None, why: str = "") -> OfflineError:
    at = f" --revision {revision}" if revision else ""
    return OfflineError(
        f"{repository}: not on this machine{why}{_suggestion(repository)}; "
        f"fetch it once where there is a network: pplx-edge models pull {repository}{at}"
    )


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_repositories() -> list[Any]:
    """The model repositories in the hub's cache, as its library describes them."""
    if not _hub_cache().is_dir():
        return []
    return [repo for repo in _hub().scan_cache_dir(_hub_cache()).repos if repo.repo_type == "model"]


def _cached_model(repo: Any) -> Model | None:
    """The newest whole snapshot of a cached repository; None when it holds nothing that can be opened."""
    for commit in sorted(repo.revisions, key=lambda commit: commit.last_modified, reverse=True):
        directory = Path(commit.snapshot_path)
        if _is_whole(directory, None):
            kind = "official" if repo.repo_id in OFFICIAL.values() else "cached"
            return Model(repo.repo_id, kind, directory, repo.size_on_disk, commit.commit_hash)
    return None


def _remove_conversions(commit: str) -> int:
    """Deletes what was converted from a commit; conversions are named after the directory they were made from."""
    freed = 0
    for directory in (cache_directory() / "artifacts").glob(f"{commit}-*"):
        freed += _tree_bytes(directory)
        shutil.rmtree(directory)
    return freed


def _tree_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
