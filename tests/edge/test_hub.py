"""The hub finds the directories of built-in models and paths, and downloads repositories from a server on localhost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serving

from pplx_edge.errors import EdgeError, InputError, ModelNotFound, OfflineError
from pplx_edge.weights import hub

REPOSITORY = "someone/some-model"
OFFICIAL = "perplexity-ai/pplx-embed-v1-0.6b"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"a": 1}',
    "tokenizer.json": b'{"b": 1}',
    "modules.json": b"[]",
    "1_Pooling/config.json": b'{"c": 1}',
    "model.safetensors": WEIGHTS,
    "modeling.py": b"raise SystemExit('remote code ran')",
    "pytorch_model.bin": b"pickle",
    "README.md": b"a card",
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx_data": b"data",
    "onnx/model_quantized.onnx": b"graph of int8",
    "onnx/code.py": b"raise SystemExit('remote code ran')",
}
WANTED = {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on localhost that huggingface_hub uses as the hub, and an empty cache."""
    from huggingface_hub import constants

    with serving() as running:
        running.repositories = {REPOSITORY: dict(FILES), OFFICIAL: dict(FILES)}
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "edge"))
        yield running


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_nano_is_in_the_package(nano_dir: Path):
    assert hub.locate("nano") == nano_dir


def test_an_existing_directory_is_returned_as_it_is(tmp_path: Path):
    assert hub.locate(tmp_path) == tmp_path
    assert hub.locate(str(tmp_path)) == tmp_path


def test_a_directory_takes_precedence_over_a_repository_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "someone" / "some-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.locate(REPOSITORY) == Path(REPOSITORY)


@pytest.mark.parametrize(
    "name", ["./models/mine", "/nowhere/at/all", "../no-such-model", "models/mine/", "~/no-such-model", "a\\b"]
)
def test_a_missing_path_is_not_looked_up_on_the_hub(name: str, server: Hub):
    with pytest.raises(ModelNotFound, match="no such directory"):
        hub.locate(name)
    assert server.requests == []


def test_the_error_for_a_file_asks_for_its_directory(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFound, match="is a file; pass the directory"):
        hub.locate(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nanoo", "nano"),
        ("pplx-embed-v1-06b", "pplx-embed-v1-0.6b"),
        ("pplx-embed-context-4b", "pplx-embed-context-v1-4b"),
    ],
)
def test_a_typo_gets_a_suggestion(name: str, meant: str):
    with pytest.raises(ModelNotFound, match=rf"did you mean {meant}\?"):
        hub.locate(name)


@pytest.mark.parametrize("name", ["", "what is this", "a/b/c", "org/name with space", "-/x--y", "org/na..me"])
def test_an_invalid_name_is_refused(name: str, server: Hub):
    with pytest.raises(ModelNotFound):
        hub.locate(name)
    assert server.requests == []


@pytest.mark.parametrize("alias", sorted(hub.OFFICIAL))
def test_the_official_models_have_short_names(alias: str):
    assert hub.repository_of(alias) == f"perplexity-ai/{alias}"


def test_only_files_that_a_model_needs_are_downloaded(server: Hub):
    directory = hub.locate(REPOSITORY)
    assert files_under(directory) == WANTED
    assert server.fetched() == WANTED
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert directory.name == COMMIT


def test_no_progress_bar_without_a_terminal(server: Hub, capfd: pytest.CaptureFixture[str]):
    hub.locate(REPOSITORY)
    assert capfd.readouterr() == ("", "")


def test_a_cached_model_needs_no_request(server: Hub):
    first = hub.locate(REPOSITORY)
    server.requests.clear()
    assert hub.locate(REPOSITORY) == first
    assert hub.locate(REPOSITORY, offline=True) == first
    assert hub.cached_path(REPOSITORY) == first
    assert server.requests == []


def test_download_updates_to_a_new_commit_and_locate_does_not(server: Hub):
    old = hub.locate(REPOSITORY)
    server.commit = "f" * 40
    server.repositories[REPOSITORY]["model.safetensors"] = b"newer"
    assert hub.locate(REPOSITORY) == old
    new = hub.download(REPOSITORY)
    assert new.name == "f" * 40
    assert (new / "model.safetensors").read_bytes() == b"newer"
    assert hub.locate(REPOSITORY) == new
    assert hub.locate(REPOSITORY, revision=COMMIT) == old


def test_a_pinned_commit_is_downloaded(server: Hub):
    assert hub.locate(REPOSITORY, revision=COMMIT).name == COMMIT


@pytest.mark.parametrize(
    ("graphs", "more"),
    [
        ("model_quantized", {"onnx/model_quantized.onnx"}),
        ("*", {"onnx/model_quantized.onnx", "onnx/model.onnx", "onnx/model.onnx_data"}),
    ],
)
def test_graphs_are_downloaded_on_request_only(server: Hub, graphs: str, more: set[str]):
    hub.locate(REPOSITORY)
    assert files_under(hub.locate(REPOSITORY, graphs=graphs)) == WANTED | more


def test_the_graphs_of_a_repository_without_weights_are_downloaded(server: Hub):
    server.repositories[REPOSITORY] = {"config.json": b"{}", "tokenizer.json": b"{}", "model.onnx": b"g", "x.py": b""}
    assert files_under(hub.locate(REPOSITORY)) == {"config.json", "tokenizer.json", "model.onnx"}


def test_shards_are_downloaded_with_their_index(server: Hub):
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    shards = {f"model-0000{i}-of-00002.safetensors": b"x" for i in (1, 2)}
    server.repositories[REPOSITORY] = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": index,
        **shards,
    }
    directory = hub.locate(REPOSITORY)
    assert set(shards) < files_under(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OfflineError):
        hub.cached_path(REPOSITORY)
    assert files_under(hub.locate(REPOSITORY)) == files_under(directory)


def test_a_broken_download_resumes_where_it_stopped(server: Hub, monkeypatch: pytest.MonkeyPatch, no_waiting):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.break_once["model.safetensors"] = 4000
    assert (hub.locate(REPOSITORY) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [sent for method, path, sent in server.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", "bytes=4000-"]


def test_files_that_arrived_before_a_failure_are_kept(server: Hub, no_waiting):
    server.fails.add("model.safetensors")
    with pytest.raises(OfflineError, match=f"pplx-edge models pull {REPOSITORY}"):
        hub.locate(REPOSITORY)
    with pytest.raises(OfflineError):
        hub.cached_path(REPOSITORY)
    server.fails.clear()
    server.requests.clear()
    assert (hub.locate(REPOSITORY) / "model.safetensors").read_bytes() == WEIGHTS
    assert "model.safetensors" in server.fetched()
    assert server.fetched() < WANTED


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ((404, "RepoNotFound"), ModelNotFound, "no such hub repository"),
        ((401, "RepoNotFound"), ModelNotFound, "hf auth login"),
        ((403, "GatedRepo"), ModelNotFound, f"request it at https://huggingface.co/{REPOSITORY}"),
        ((503, ""), OfflineError, "503"),
    ],
)
def test_a_refusal_of_the_hub_is_one_clear_error(server: Hub, answer, error: type[EdgeError], says: str, no_waiting):
    server.answers[REPOSITORY] = answer
    with pytest.raises(error, match=says) as caught:
        hub.locate(REPOSITORY)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without waiting."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_an_unknown_revision_is_named(server: Hub):
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        hub.locate(REPOSITORY, revision="v9")


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json"])
def test_a_repository_without_a_model_is_not_downloaded(server: Hub, lacking: str):
    del server.repositories[REPOSITORY][lacking]
    with pytest.raises(ModelNotFound, match=f"it has no {lacking}"):
        hub.locate(REPOSITORY)
    assert server.fetched() == set()


def test_pickled_weights_are_not_a_model(server: Hub):
    server.repositories[REPOSITORY] = dict.fromkeys(("config.json", "tokenizer.json", "pytorch_model.bin"), b"")
    with pytest.raises(ModelNotFound, match="no safetensors weights"):
        hub.locate(REPOSITORY)


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_makes_no_request_and_names_the_command(server: Hub, how: str, monkeypatch: pytest.MonkeyPatch):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match=f"pplx-edge models pull {OFFICIAL}"):
        hub.locate("pplx-embed-v1-0.6b", offline=True if how == "argument" else None)
    with pytest.raises(OfflineError):
        hub.download(REPOSITORY, offline=True if how == "argument" else None)
    assert server.requests == []


def test_without_a_network_the_error_names_the_command(server: Hub, monkeypatch: pytest.MonkeyPatch, no_waiting):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(OfflineError, match=f"cannot be reached.*pplx-edge models pull {REPOSITORY} --revision v1"):
        hub.locate(REPOSITORY, revision="v1")


def test_a_download_without_a_network_fails(server: Hub, monkeypatch: pytest.MonkeyPatch, no_waiting):
    from huggingface_hub import constants

    hub.locate(REPOSITORY)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.locate(REPOSITORY)
    with pytest.raises(OfflineError):
        hub.download(REPOSITORY)


def test_available_models_are_listed(server: Hub, nano_dir: Path):
    hub.locate(REPOSITORY)
    hub.locate("pplx-embed-v1-0.6b")
    models = {model.name: model for model in hub.available()}
    assert next(iter(models)) == "nano"
    assert models["nano"].directory == nano_dir
    assert models[OFFICIAL].kind == "official"
    assert models[OFFICIAL].revision == COMMIT
    assert models[OFFICIAL].n_bytes >= len(WEIGHTS)
    assert models["perplexity-ai/pplx-embed-v1-4b"].directory is None
    assert models[REPOSITORY].kind == "cached"


def test_an_empty_cache_lists_the_official_models(server: Hub):
    assert [model.name for model in hub.available()] == ["nano", *hub.OFFICIAL.values()]


def test_remove_deletes_a_repository_and_its_conversions(server: Hub, tmp_path: Path):
    directory = hub.locate(REPOSITORY)
    hub.locate(OFFICIAL)
    converted = tmp_path / "edge" / "artifacts" / f"{COMMIT}-onnx-int8-abc"
    converted.mkdir(parents=True)
    (converted / "model.onnx").write_bytes(b"x" * 1000)
    assert hub.remove(REPOSITORY) > len(WEIGHTS) + 1000
    assert not directory.exists()
    assert not converted.exists()
    assert hub.cached_path(OFFICIAL).is_dir()
    with pytest.raises(ModelNotFound, match="not in the cache"):
        hub.remove(REPOSITORY)


def test_nano_and_directories_are_not_removed(tmp_path: Path):
    for name in ("nano", str(tmp_path)):
        with pytest.raises(InputError, match="only downloaded models"):
            hub.remove(name)


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "home/.cache/pplx-edge"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/pplx-edge"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/pplx-edge"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "home/Library/Caches/pplx-edge"),
        ("darwin", {"PPLX_EDGE_CACHE": "/mine"}, "/mine"),
    ],
)
def test_the_cache_is_in_the_cache_directory_of_the_platform(
    platform: str, environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("XDG_CACHE_HOME", "PPLX_EDGE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path / "home")} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert hub.cache_directory() == tmp_path / expected


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)


def test_local_models_never_import_the_hubs_library(tmp_path: Path, nano_dir: Path):
    code = (
        "import sys; from pplx_edge.weights import hub; hub.locate('nano'); "
        f"hub.locate({str(tmp_path)!r}); print('huggingface_hub' in sys.modules)"
    )
    assert run_python(code).stdout == "False\n"
