"""Keeps the messages that wait in this process, in a queue for each tenant and host.

Tenants take turns, and so do the hosts of each: who has had a turn comes behind all that wait by then.
`outbox_scripts.py` does the same in Redis.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict, deque
from itertools import count

from serve_app.callbacks.message import Claim, Message
from serve_app.callbacks.slots import Slots


class DueOrder:
    """Keys by the time in milliseconds at which each is due; of one time, the one that was put first comes first."""

    def __init__(self) -> None:
        self._order: list[tuple[int, int, str]] = []
        self._entries: dict[str, tuple[int, int, str]] = {}
        self._count = count()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def first(self) -> int:
        """When the first one is due; there must be one."""
        return self._order[0][0]

    def put(self, key: str, due: int) -> None:
        """Puts a key, there or not, where its time is."""
        self.drop(key)
        self._entries[key] = entry = (due, next(self._count), key)
        insort(self._order, entry)

    def put_earlier(self, key: str, due: int) -> None:
        """Puts a key that is not there, or due later than `due`."""
        if key not in self._entries or self._entries[key][0] > due:
            self.put(key, due)

    def drop(self, key: str) -> None:
        """Drops a key, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            del self._order[bisect_left(self._order, entry)]

    def due_by(self, now: int) -> list[str]:
        """Returns the keys that are due."""
        return [key for *_, key in self._order[: bisect_right(self._order, now, key=lambda entry: entry[0])]]


class MessageQueues:
    """Messages of one kind. A claim moves its message to the claim's end: until then nobody else finds it due."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Message, int]] = {}
        self._of_tenant: Counter[str] = Counter()
        self._queues: defaultdict[tuple[str, str], DueOrder] = defaultdict(DueOrder)
        # When each has its turn: no later than its first message is due.
        self._tenants = DueOrder()
        self._hosts: defaultdict[str, DueOrder] = defaultdict(DueOrder)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._kept

    def of_tenant(self, tenant: str) -> int:
        """How many are the tenant's."""
        return self._of_tenant[tenant]

    def holds(self, claim: Claim) -> bool:
        """Whether the message is still the claim's."""
        return self._kept.get(claim.message.id, (None, -1))[1] == claim.until

    def put(self, message: Message, due: int) -> int:
        """Keeps a message, or puts another in its place; returns the time at which it is due."""
        tenant, host, before = message.tenant, message.host, self._kept.get(message.id)
        if before is None:
            self._of_tenant[tenant] += 1
        elif before[1] == due:
            # Every time is another, so that it tells whose a claim is.
            due += 1
        self._kept[message.id] = (message, due)
        self._queues[tenant, host].put(message.id, due)
        self._hosts[tenant].put_earlier(host, due)
        self._tenants.put_earlier(tenant, due)
        return due

    def remove(self, message: Message) -> None:
        """Forgets a message, if it is there."""
        tenant, host = message.tenant, message.host
        if self._kept.pop(message.id, None) is None:
            return
        self._of_tenant -= Counter((tenant,))
        self._queues[tenant, host].drop(message.id)
        if not self._queues[tenant, host]:
            del self._queues[tenant, host]
            self._hosts[tenant].drop(host)
        if not self._hosts[tenant]:
            del self._hosts[tenant]
            self._tenants.drop(tenant)

    def claim(self, slots: Slots, now: int, hold_ms: int) -> list[Claim]:
        """Claims what is due for `hold_ms` milliseconds, as far as `slots` go, and takes these."""
        claims, turns = list[Claim](), deque(self._tenants.due_by(now))
        while turns:
            tenant = turns.popleft()
            message = self._first_of(tenant, slots, now) if slots.admits_tenant(tenant) else None
            if message is not None:
                slots.take(message)
                claims.append(Claim(message, self._hold(message, now, now + hold_ms)))
                turns.append(tenant)
        return claims

    def _first_of(self, tenant: str, slots: Slots, now: int) -> Message | None:
        """Returns the tenant's message whose turn it is, unless all that are due wait for their hosts."""
        hosts = self._hosts[tenant]
        for host in hosts.due_by(now):
            if slots.admits_host(host):
                queue = self._queues[tenant, host]
                if queue.first <= now:
                    return self._kept[queue.due_by(now)[0]][0]
                hosts.put(host, queue.first)
        if hosts.first > now:
            self._tenants.put(tenant, hosts.first)
        return None

    def _hold(self, message: Message, now: int, until: int) -> int:
        tenant, host = message.tenant, message.host
        until = self.put(message, until)
        self._hosts[tenant].put(host, max(now, self._queues[tenant, host].first))
        self._tenants.put(tenant, max(now, self._hosts[tenant].first))
        return until
