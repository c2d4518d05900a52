"""The nearest tier: results in this process' memory, the latest used ones."""

from collections import OrderedDict

from serve_app.cache.entry import CacheEntry
from serve_app.generation.fingerprint import Fingerprint


class MemoryTier:
    """At most `limit_bytes` of entries. Used on one event loop; may be looked at from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self.bytes = 0
        self.evictions = 0
        self._limit = limit_bytes
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        # Of each work, whatever its seed, the entry that came last.
        self._latest: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> CacheEntry | None:
        """The entry under that key, which is now the latest used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def latest(self, work_key: str) -> CacheEntry | None:
        """The entry of that work that came last, if it is still here."""
        key = self._latest.get(work_key)
        return None if key is None else self.get(key)

    def put(self, entry: CacheEntry) -> None:
        """Keeps the entry, in place of those that were not used for longest. One larger than all of it is not kept."""
        self.drop(entry.fingerprint)
        if entry.size > self._limit:
            return
        key = entry.fingerprint.key
        self._entries[key] = entry
        self._latest[entry.fingerprint.work_key] = key
        self.bytes += entry.size
        while self.bytes > self._limit:
            self.evictions += 1
            self.drop(next(iter(self._entries.values())).fingerprint)

    def drop(self, fingerprint: Fingerprint) -> None:
        """Forgets the entry, if it is here."""
        entry = self._entries.pop(fingerprint.key, None)
        if entry is None:
            return
        self.bytes -= entry.size
        if self._latest.get(fingerprint.work_key) == fingerprint.key:
            del self._latest[fingerprint.work_key]

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self._latest.clear()
        self.bytes = 0
