"""Binds a replica's port to loopback where no other machine has to reach it.

Serve gives each replica a port of its own, on every address. Ray's token guards it; on a node with a loopback address
nobody else needs to reach it at all.
"""

from ipaddress import ip_address


def bind_to_loopback() -> None:
    """Binds the port to loopback if the node's address is.

    Call it in a replica's constructor: Serve opens the port later.
    """
    # A replica's process has it loaded already; others that import this module do not need it.
    import ray

    address = ray.util.get_node_ip_address() if ray.is_initialized() else ""
    if not address or not ip_address(address).is_loopback:
        return
    here = f"[{address}]" if ":" in address else address
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    # There is no setting for it.
    replica.add_port_to_grpc_server = lambda server, asked: add_port(server, asked.replace("[::]", here))
