"""The nearest tier: the latest used results, in this process' memory."""

from cachetools import LRUCache

from serve_app.cache.entry import CacheEntry
from serve_app.generation.fingerprint import Fingerprint


class MemoryTier:
    """At most `limit_bytes` of entries. Used on one event loop; may be looked at from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._entries = _Entries(limit_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What all entries take."""
        return int(self._entries.currsize)

    @property
    def evictions(self) -> int:
        """How many entries have made room for others."""
        return self._entries.evictions

    def get(self, key: str) -> CacheEntry | None:
        """The entry under that key, which is now the latest used."""
        return self._entries.get(key)

    def latest(self, work_key: str) -> CacheEntry | None:
        """The entry of that work that came last, if it is still here."""
        key = self._entries.latest.get(work_key)
        return None if key is None else self.get(key)

    def put(self, entry: CacheEntry) -> None:
        """Keeps the entry, in place of those that were not used for longest. One larger than all of it is not kept."""
        self.drop(entry.fingerprint)
        if entry.size <= self._entries.maxsize:
            self._entries[entry.fingerprint.key] = entry

    def drop(self, fingerprint: Fingerprint) -> None:
        """Forgets the entry, if it is here."""
        self._entries.pop(fingerprint.key, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()


class _Entries(LRUCache[str, CacheEntry]):
    """`latest` has, of each work, whatever its seed, the key of the entry that came last."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes, getsizeof=lambda entry: entry.size)
        self.evictions = 0
        self.latest: dict[str, str] = {}

    def __setitem__(self, key: str, entry: CacheEntry) -> None:
        super().__setitem__(key, entry)
        self.latest[entry.fingerprint.work_key] = key

    def __delitem__(self, key: str) -> None:
        work_key = super().__getitem__(key).fingerprint.work_key
        super().__delitem__(key)
        if self.latest.get(work_key) == key:
            del self.latest[work_key]

    def popitem(self) -> tuple[str, CacheEntry]:
        self.evictions += 1
        return super().popitem()

    def clear(self) -> None:
        super().clear()
        self.latest.clear()
