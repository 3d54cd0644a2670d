"""Named groups of tasks whose scores are averaged."""

from collections.abc import Mapping, Sequence

from pplx_bench.options import comma_list
from pplx_edge.errors import InputError

Groups = Mapping[str, Sequence[str]]

# The groups for which the targets of nano are stated.
_NON_LATIN = "xquad-ar xquad-zh xquad-hi xquad-ru xquad-th xquad-el jaquad-dev tydi-ko-dev"
TARGETS: Groups = {
    "english": ("squad-dev", "tydi-en-dev", "scitldr"),
    "non-latin": tuple(_NON_LATIN.split()),
    "tools-code": ("metatool", "sealtools-ood", "nl2bash"),
    "contextual": ("squad-context", "factbook-context"),
}
NAMED: Mapping[str, Groups] = {"targets": TARGETS}


def parse_groups(texts: Sequence[str]) -> Groups:
    """Return the groups of `targets` (a named set) and `NAME=TASK,TASK`, in order.

    Raises InputError for anything else, and for a duplicate name.
    """
    found: dict[str, Sequence[str]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        tasks = comma_list(listed)
        if text not in NAMED and not (name and tasks):
            raise InputError(f"{text!r} is not a group; write NAME=TASK,TASK or one of {', '.join(NAMED)}")
        for group, names in NAMED.get(text, {name: tasks}).items():
            if group in found:
                raise InputError(f"group {group!r} is given twice; choose another name")
            found[group] = names
    return found
