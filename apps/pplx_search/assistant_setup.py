"""Enter this program into the configuration of an assistant, and take it out again.

Only files that are plain JSON are changed, and only the one entry in them. A file with comments, or in another format,
is left to its owner, who gets the lines to paste.
"""

import copy
import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_edge.files import replacing_file

NAME = "pplx-search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An assistant: its configuration file, below the home directory, on macOS and on Linux.

    `key` is the member of the file that holds the servers, and `extra` what this assistant wants in an entry besides
    command and arguments. `writable` is False if the file is not JSON.
    """

    title: str
    mac: str
    linux: str
    key: str = "mcpServers"
    extra: dict[str, Any] | None = None
    writable: bool = True

    def path(self, home: Path) -> Path:
        """Return the configuration file of this assistant."""
        return home / (self.mac if sys.platform == "darwin" else self.linux)


_CODE = "Code/User/mcp.json"
TARGETS = {
    "claude": Target(
        title="Claude Desktop",
        mac="Library/Application Support/Claude/claude_desktop_config.json",
        linux=".config/Claude/claude_desktop_config.json",
    ),
    "claude-code": Target(title="Claude Code", mac=".claude.json", linux=".claude.json"),
    "cursor": Target(title="Cursor", mac=".cursor/mcp.json", linux=".cursor/mcp.json"),
    "vscode": Target(
        title="Visual Studio Code",
        mac=f"Library/Application Support/{_CODE}",
        linux=f".config/{_CODE}",
        key="servers",
        extra={"type": "stdio"},
    ),
    "windsurf": Target(
        title="Windsurf", mac=".codeium/windsurf/mcp_config.json", linux=".codeium/windsurf/mcp_config.json"
    ),
    "zed": Target(
        title="Zed", mac=".config/zed/settings.json", linux=".config/zed/settings.json", key="context_servers"
    ),
    "gemini": Target(title="Gemini CLI", mac=".gemini/settings.json", linux=".gemini/settings.json"),
    "lmstudio": Target(title="LM Studio", mac=".lmstudio/mcp.json", linux=".lmstudio/mcp.json"),
    "codex": Target(
        title="Codex", mac=".codex/config.toml", linux=".codex/config.toml", key="mcp_servers", writable=False
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a configuration file: its text before and after. `before` is None if there is no file."""

    path: Path
    before: str | None
    after: str

    @property
    def diff(self) -> str:
        """The change as a unified diff, "" if nothing changes."""
        lines = [(text or "").splitlines(keepends=True) for text in (self.before, self.after)]
        return "".join(difflib.unified_diff(*lines, fromfile=str(self.path), tofile=str(self.path)))

    def write(self) -> None:
        """Write the file. It is replaced in one step, and keeps its permissions. Raises InputError if it changed."""
        if (self.path.read_text(encoding="utf-8") if self.path.exists() else None) != self.before:
            raise InputError(f"{self.path}: was changed meanwhile; run the command again")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        target = self.path.resolve()  # a link stays a link
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        with replacing_file(target) as new:
            new.write_text(self.after, encoding="utf-8")
            new.chmod(mode)


def entry(target: Target, arguments: list[str]) -> dict[str, Any]:
    """Return the entry for an assistant."""
    return {**(target.extra or {}), "command": arguments[0], "args": arguments[1:]}


def snippet(target: Target, arguments: list[str]) -> str:
    """Return the lines to paste into the configuration of an assistant."""
    made = entry(target, arguments)
    if target.writable:
        return json.dumps({target.key: {NAME: made}}, indent=2)
    lines = [f"[{target.key}.{NAME}]", *(f"{name} = {json.dumps(value)}" for name, value in made.items())]
    return "\n".join(lines)


def planned(target: Target, home: Path, arguments: list[str] | None) -> Change:
    """Return the change that enters this program, or takes it out if `arguments` is None.

    Raises InputError if the file cannot be changed without losing something, such as its comments.
    """
    path = target.path(home)
    if not target.writable:
        raise InputError(f"{path} is not JSON, so it is left to you")
    before = path.read_text(encoding="utf-8") if path.exists() else None
    try:
        found = json.loads(before) if before and before.strip() else {}
    except ValueError as error:
        raise InputError(f"{path} is not plain JSON ({error}), so it is left to you") from error
    servers = found.get(target.key, {}) if isinstance(found, dict) else None
    if not isinstance(servers, dict):
        raise InputError(f"{path} holds something else than servers, so it is left to you")
    changed = copy.deepcopy(found)
    if arguments is not None:
        changed.setdefault(target.key, {})[NAME] = entry(target, arguments)
    elif NAME in servers:
        del changed[target.key][NAME]
        if not changed[target.key]:
            del changed[target.key]
    if changed == found:
        return Change(path=path, before=before, after=before or "")
    return Change(
        path=path, before=before, after=json.dumps(changed, indent=_indent(before), ensure_ascii=False) + "\n"
    )


def _indent(text: str | None) -> int | str:
    """Return the indentation that a file uses, 2 spaces if it has none."""
    for line in (text or "").splitlines()[1:]:
        if blank := line[: len(line) - len(line.lstrip())]:
            return blank
    return 2
