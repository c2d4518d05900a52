"""How many tries one process makes at a time: in all, for one tenant, and to one host."""

from collections import Counter

from serve_app.callbacks.message import Message


class Slots:
    """`most` tries at a time, `most_per_host` of them to one host.

    A tenant takes one only while it has fewer than are free. So it has at most half, and leaves half of the rest to the
    next, however slow its receivers are. Without keys there is one tenant, which has no name, and may have all.
    """

    def __init__(self, most: int, most_per_host: int) -> None:
        self.most, self.most_per_host = most, most_per_host
        self.tenants: Counter[str] = Counter()
        self.hosts: Counter[str] = Counter()

    @property
    def free(self) -> int:
        return self.most - self.tenants.total()

    def admits_tenant(self, tenant: str) -> bool:
        """Whether the tenant may have one more."""
        return self.free > 0 and (not tenant or self.tenants[tenant] < self.free)

    def admits_host(self, host: str) -> bool:
        """Whether one more may go to the host."""
        return self.hosts[host] < self.most_per_host

    def take(self, message: Message) -> None:
        """Counts a try of the message."""
        self.tenants[message.tenant] += 1
        self.hosts[message.host] += 1

    def release(self, message: Message) -> None:
        """Counts it no longer, and forgets a tenant and a host without any."""
        self.tenants -= Counter((message.tenant,))
        self.hosts -= Counter((message.host,))
