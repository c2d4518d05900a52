"""Darkroom, kept from mixing: only rows of one sampler, and all or none of them guided, share a UNet call.

That is how other servers that batch steps do it. All else is Darkroom's own: its server, its queue, its engine.

    python -m bench.online.peers.like_steps CONFIG PORT
"""

import os
import sys
import threading
from unittest.mock import patch

from bench.online.peers.like_replica import LikeReplica
from serve_app.config.server import load_config
from serve_app.launch.local_cluster import Order, prepare_environment, start


def main() -> None:
    config, port = sys.argv[1:]
    order = Order(config=load_config(config), host="127.0.0.1", port=int(port), temp_dir=os.environ["RAY_TMPDIR"])
    # Before Ray is imported, which the application's module does.
    prepare_environment()
    from serve_app import app

    with patch.object(app, "build_app", lambda config: app.build_application(config, LikeReplica)):
        start(order)
    threading.Event().wait()


if __name__ == "__main__":
    main()
