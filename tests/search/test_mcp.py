"""`pplx-search mcp`, asked by the official client, and its entry in the files of assistants."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pplx_edge.errors import InputError
from pplx_search import assistant_setup
from pplx_search.assistant_setup import NAME, TARGETS, planned, snippet
from pplx_search.program import main

TOOL_SECONDS = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assistant")
    (folder / "files").mkdir()
    (folder / "files" / "lease.md").write_text("# Lease\n\nThe lease of the flat ends in June.\n", encoding="utf-8")
    (folder / "files" / "rent.md").write_text("# Rent\n\nThe rent of the flat is 900 euros.\n", encoding="utf-8")
    assert main(["--home", str(folder / "home"), "add", "--quiet", str(folder / "files")]) == 0
    return folder / "home"


def test_the_official_client_gets_answers(home: Path) -> None:
    mcp = pytest.importorskip("mcp", reason="needs the extra [mcp]")
    from mcp.client import Client

    parameters = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "pplx_search", "--home", str(home), "mcp"],
        env={"PYTHONPATH": ":".join(sys.path), "PPLX_EDGE_WARM": "0"},
    )

    async def talk() -> dict[str, Any]:
        async with asyncio.timeout(TOOL_SECONDS), Client(parameters) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            found = (
                await client.call_tool("search", {"query": "when does the lease end", "limit": 1})
            ).structured_content
            assert found is not None
            (hit,) = found["results"]
            place = {"document": hit["document"], "start": hit["start"]}
            return {
                "tools": tools,
                "search": found,
                "get": (await client.call_tool("get", {"document": hit["document"], "line": 3})).structured_content,
                "similar": (await client.call_tool("similar", place)).structured_content,
                "status": (await client.call_tool("status", {})).structured_content,
                "unknown": await client.call_tool("get", {"document": 999}),
                "filtered": (await client.call_tool("search", {"query": "lease", "type": "pdf"})).structured_content,
            }

    found = asyncio.run(talk())
    assert found["tools"] == ["search", "get", "similar", "status"]
    hit = found["search"]["results"][0]
    assert (Path(hit["path"]).name, hit["page"]) == ("lease.md", None)
    assert found["get"]["text"] == "The lease of the flat ends in June.\n"
    assert [Path(each["path"]).name for each in found["similar"]["results"]] == ["rent.md"]
    assert found["status"]["files"]["indexed"] == 2
    assert found["unknown"].is_error
    assert "not in the index" in found["unknown"].content[0].text
    assert found["filtered"]["results"] == []


def test_it_ends_with_its_input_and_writes_nothing_else_to_stdout(home: Path) -> None:
    pytest.importorskip("mcp", reason="needs the extra [mcp]")
    command = [sys.executable, "-m", "pplx_search", "--home", str(home), "mcp"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


WRITABLE = [name for name, target in TARGETS.items() if target.writable]


@pytest.mark.parametrize("name", WRITABLE)
def test_install_and_remove_leave_the_rest_alone(name: str, user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = TARGETS[name]
    path = target.path(user)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = (
        json.dumps({"theme": "döner", target.key: {"other": {"command": "x"}}}, indent=4, ensure_ascii=False) + "\n"
    )
    path.write_text(before, encoding="utf-8")
    path.chmod(0o640)
    assert main(["mcp", "install", "--target", name, "--yes"]) == 0
    assert f'+        "{NAME}"' in capsys.readouterr().out.replace("    " * 2, "        ")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["theme"] == "döner"
    assert found[target.key]["other"] == {"command": "x"}
    assert found[target.key][NAME]["command"] == sys.executable
    assert found[target.key][NAME]["args"][-1] == "mcp"
    assert path.stat().st_mode & 0o777 == 0o640
    assert main(["mcp", "install", "--target", name, "--yes"]) == 0
    assert "nothing to change" in capsys.readouterr().err
    assert main(["mcp", "remove", "--target", name, "--yes"]) == 0
    assert path.read_text(encoding="utf-8") == before


def test_a_file_that_is_missing_is_made(user: Path) -> None:
    assert main(["mcp", "install", "--target", "cursor", "--yes"]) == 0
    path = TARGETS["cursor"].path(user)
    assert list(json.loads(path.read_text(encoding="utf-8"))["mcpServers"]) == [NAME]
    assert path.stat().st_mode & 0o077 == 0
    assert main(["mcp", "remove", "--target", "cursor", "--yes"]) == 0
    assert json.loads(path.read_text(encoding="utf-8")) == {}


def test_files_with_comments_and_toml_are_left_alone(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = TARGETS["zed"].path(user)
    path.parent.mkdir(parents=True)
    path.write_text('{\n  // my theme\n  "theme": "x",\n}\n', encoding="utf-8")
    for name, wanted in (("zed", '"context_servers"'), ("codex", "[mcp_servers.pplx-search]")):
        assert main(["mcp", "install", "--target", name, "--yes"]) == 1
        shown = capsys.readouterr()
        assert wanted in shown.out
        assert "left to you" in shown.err
    assert "my theme" in path.read_text(encoding="utf-8")
    assert not TARGETS["codex"].path(user).exists()


def test_nothing_is_changed_without_agreement(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "install", "--target", "cursor", "--print"]) == 0
    assert NAME in capsys.readouterr().out
    assert main(["mcp", "install", "--target", "cursor"]) == 1
    assert not TARGETS["cursor"].path(user).exists()


def test_a_file_that_changed_meanwhile_is_kept(user: Path) -> None:
    change = planned(TARGETS["cursor"], user, ["pplx"])
    change.path.parent.mkdir(parents=True)
    change.path.write_text('{"new": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="was changed meanwhile"):
        change.write()
    assert change.path.read_text(encoding="utf-8") == '{"new": 1}'


def test_snippets_are_what_the_assistant_reads() -> None:
    import tomllib

    arguments = ["/usr/bin/python", "-m", 'a "quoted" name']
    found = tomllib.loads(snippet(TARGETS["codex"], arguments))
    assert found["mcp_servers"][NAME] == {"command": arguments[0], "args": arguments[1:]}
    assert json.loads(snippet(TARGETS["vscode"], arguments))["servers"][NAME]["type"] == "stdio"
    assert assistant_setup.entry(TARGETS["zed"], arguments) == {"command": arguments[0], "args": arguments[1:]}
