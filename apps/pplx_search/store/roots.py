"""Collections: named sets of roots, each with rules."""

import json
from collections.abc import Mapping
from typing import Any

from pplx_edge.errors import InputError
from pplx_search.store.database import Database
from pplx_search.store.files import forget
from pplx_search.store.values import Collection, Root


class Collections:
    """The collections of an index."""

    def __init__(self, database: Database):
        self._database = database

    def all(self) -> list[Collection]:
        """Every collection, in the order in which they were made."""
        with self._database.reading():
            found = self._database.rows("SELECT id, name, rules FROM collections ORDER BY id")
            return [Collection(number, name, json.loads(rules), self._roots(number)) for number, name, rules in found]

    def get(self, name: str) -> Collection:
        """The collection of a name. Raises InputError naming those that there are."""
        found = {collection.name: collection for collection in self.all()}
        if name not in found:
            raise InputError(f"no collection {name!r}; there are: {', '.join(found) or 'none yet'}")
        return found[name]

    def add(self, name: str, rules: Mapping[str, Any] | None = None) -> Collection:
        """The collection of a name, made if it is not there; rules that are given replace those it has."""
        with self._database.transaction():
            text = json.dumps(dict(rules or {}), sort_keys=True)
            self._database.run(
                "INSERT INTO collections(name, rules) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, text)
            )
            if rules is not None:
                self._database.run("UPDATE collections SET rules = ? WHERE name = ?", (text, name))
        return self.get(name)

    def add_root(self, name: str, path: bytes) -> Root:
        """Lets a collection take files from an absolute path too."""
        with self._database.transaction():
            collection = self.get(name).id
            self._database.run(
                "INSERT INTO roots(collection, path) VALUES (?, ?) ON CONFLICT DO NOTHING", (collection, path)
            )
            found = self._database.value("SELECT id FROM roots WHERE collection = ? AND path = ?", (collection, path))
        return Root(found, path)

    def remove_root(self, root: int) -> None:
        """Forgets a root and its files; texts that nothing else holds go with the next `compact`."""
        with self._database.transaction():
            for (file,) in self._database.rows("SELECT id FROM files WHERE root = ?", (root,)):
                forget(self._database, file)
            self._database.run("DELETE FROM roots WHERE id = ?", (root,))

    def remove(self, name: str) -> None:
        """Forgets a collection, its roots and files. Raises InputError when there is none of the name."""
        with self._database.transaction():
            collection = self.get(name)
            for root in collection.roots:
                self.remove_root(root.id)
            self._database.run("DELETE FROM collections WHERE id = ?", (collection.id,))

    def _roots(self, collection: int) -> tuple[Root, ...]:
        rows = self._database.rows("SELECT id, path FROM roots WHERE collection = ? ORDER BY id", (collection,))
        return tuple(Root(*row) for row in rows)
