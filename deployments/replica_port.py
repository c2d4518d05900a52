"""Where a replica listens for the processes that call it.

Serve gives each replica a port of its own, on every address. Ray's token guards it; on a node that is this machine's
own alone, nobody else need reach it at all.
"""

from ipaddress import ip_address


def bind_to_loopback() -> None:
    """To be called in a replica's constructor: Serve opens the port after it. Does nothing where others are to call."""
    # In a replica's process it is there already; whoever only imports this does not need it.
    import ray

    address = ray.util.get_node_ip_address() if ray.is_initialized() else ""
    if not address or not ip_address(address).is_loopback:
        return
    here = f"[{address}]" if ":" in address else address
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    # There is no setting for it.
    replica.add_port_to_grpc_server = lambda server, asked: add_port(server, asked.replace("[::]", here))
