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
        """Return all collections, in the order they were created."""
        with self._database.reading():
            found = self._database.rows("SELECT id, name, rules FROM collections ORDER BY id")
            return [Collection(number, name, json.loads(rules), self._roots(number)) for number, name, rules in found]

    def get(self, name: str) -> Collection:
        """Return a collection by name. Raises InputError, listing the existing ones, if there is none."""
        found = {collection.name: collection for collection in self.all()}
        if name not in found:
            raise InputError(f"no collection {name!r}; there are: {', '.join(found) or 'none yet'}")
        return found[name]

    def add(self, name: str, rules: Mapping[str, Any] | None = None) -> Collection:
        """Return a collection by name, creating it if needed. Given rules replace its current rules."""
        with self._database.transaction():
            text = json.dumps(dict(rules or {}), sort_keys=True)
            self._database.run(
                "INSERT INTO collections(name, rules) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, text)
            )
            if rules is not None:
                self._database.run("UPDATE collections SET rules = ? WHERE name = ?", (text, name))
        return self.get(name)

    def add_root(self, name: str, path: bytes) -> Root:
        """Add an absolute path to the roots of a collection."""
        with self._database.transaction():
            collection = self.get(name).id
            self._database.run(
                "INSERT INTO roots(collection, path) VALUES (?, ?) ON CONFLICT DO NOTHING", (collection, path)
            )
            found = self._database.value("SELECT id FROM roots WHERE collection = ? AND path = ?", (collection, path))
        return Root(found, path)

    def remove_root(self, root: int) -> None:
        """Delete a root and its files. Texts that become unreferenced are deleted by the next `compact`."""
        with self._database.transaction():
            for (file,) in self._database.rows("SELECT id FROM files WHERE root = ?", (root,)):
                forget(self._database, file)
            self._database.run("DELETE FROM roots WHERE id = ?", (root,))

    def remove(self, name: str) -> None:
        """Delete a collection with its roots and files. Raises InputError if there is none with this name."""
        with self._database.transaction():
            collection = self.get(name)
            for root in collection.roots:
                self.remove_root(root.id)
            self._database.run("DELETE FROM collections WHERE id = ?", (collection.id,))

    def _roots(self, collection: int) -> tuple[Root, ...]:
        rows = self._database.rows("SELECT id, path FROM roots WHERE collection = ? ORDER BY id", (collection,))
        return tuple(Root(*row) for row in rows)
