"""Collections: named sets of roots with rules about which of their files are indexed."""

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
            return [Collection(id_, name, json.loads(rules), self._roots(id_)) for id_, name, rules in found]

    def get(self, name: str) -> Collection:
        """Return a collection by name. Raises InputError, listing the existing ones, if there is none."""
        found = {collection.name: collection for collection in self.all()}
        if name not in found:
            raise InputError(f"no collection {name!r}; there are: {', '.join(found) or 'none yet'}")
        return found[name]

    def add(self, name: str, rules: Mapping[str, Any] | None = None) -> Collection:
        """Return a collection by name, creating it if needed. If `rules` are given, they replace its current rules."""
        with self._database.transaction():
            text = json.dumps(dict(rules or {}), sort_keys=True)
            self._database.run(
                "INSERT INTO collections(name, rules) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, text)
            )
            if rules is not None:
                self._database.run("UPDATE collections SET rules = ? WHERE name = ?", (text, name))
        return self.get(name)

    def add_root(self, name: str, path: bytes) -> Root:
        """Add an absolute path to the roots of a collection, and return the root."""
        with self._database.transaction():
            collection_id = self.get(name).id
            self._database.run(
                "INSERT INTO roots(collection, path) VALUES (?, ?) ON CONFLICT DO NOTHING", (collection_id, path)
            )
            root_id = self._database.value(
                "SELECT id FROM roots WHERE collection = ? AND path = ?", (collection_id, path)
            )
        return Root(root_id, path)

    def remove_root(self, root_id: int) -> None:
        """Delete a root and its files. Texts that become unreferenced are deleted by the next `compact`."""
        with self._database.transaction():
            for (file_id,) in self._database.rows("SELECT id FROM files WHERE root = ?", (root_id,)):
                forget(self._database, file_id)
            self._database.run("DELETE FROM roots WHERE id = ?", (root_id,))

    def remove(self, name: str) -> None:
        """Delete a collection with its roots and files. Raises InputError if there is none with this name."""
        with self._database.transaction():
            collection = self.get(name)
            for root in collection.roots:
                self.remove_root(root.id)
            self._database.run("DELETE FROM collections WHERE id = ?", (collection.id,))

    def _roots(self, collection_id: int) -> tuple[Root, ...]:
        rows = self._database.rows("SELECT id, path FROM roots WHERE collection = ? ORDER BY id", (collection_id,))
        return tuple(Root(*row) for row in rows)
