"""Named groups of tasks, over which figures are averaged."""

from collections.abc import Mapping, Sequence

from pplx_edge.errors import InputError

Groups = Mapping[str, tuple[str, ...]]

# The groups that the targets of nano are stated in.
TARGETS: Groups = {
    "english": ("squad-dev", "tydi-en-dev", "scitldr"),
    "non-latin": (
        "xquad-ar",
        "xquad-zh",
        "xquad-hi",
        "xquad-ru",
        "xquad-th",
        "xquad-el",
        "jaquad-dev",
        "tydi-ko-dev",
    ),
    "tools-code": ("metatool", "sealtools-ood", "nl2bash"),
    "contextual": ("squad-context", "factbook-context"),
}
NAMED: Mapping[str, Groups] = {"targets": TARGETS}


def parse_groups(texts: Sequence[str]) -> Groups:
    """Groups of `targets` (a named set) and `NAME=TASK,TASK`, in their order.

    Raises InputError for anything else, and for a name that comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for name, tasks in _parsed(text).items():
            if name in found:
                raise InputError(f"group {name!r} is given twice; give each a name of its own")
            found[name] = tasks
    return found


def tasks_of(groups: Groups) -> list[str]:
    """All tasks of all groups, each once, in their order."""
    return list(dict.fromkeys(task for tasks in groups.values() for task in tasks))


def _parsed(text: str) -> Groups:
    if text in NAMED:
        return NAMED[text]
    name, equals, listed = text.partition("=")
    tasks = tuple(task for task in listed.split(",") if task)
    if not equals or not name or not tasks:
        raise InputError(f"{text!r} is no group: NAME=TASK,TASK or one of {', '.join(NAMED)} is")
    return {name: tasks}
