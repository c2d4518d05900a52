"""LitServe with batching: it collects whatever waits, and what is alike in a batch is made in one call.

python -m bench.online.peers.litserve_server PORT
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

import litserve
from fastapi import Response

from bench.online.messages import PEERS_PATH, read_request
from bench.online.peers.pipelines import MOST, WAIT_S, LikePipelines
from deployments.engine.protocol.request import Request

LONGEST_S: Final = 120.0


class LitPipelines(litserve.LitAPI):
    """The four hooks of a LitServe server."""

    def setup(self, device: str) -> None:
        self._pipelines = LikePipelines()

    def decode_request(self, request: dict[str, Any]) -> Request:
        return read_request(request)

    def predict(self, requests: Sequence[Request]) -> list[bytes]:
        return self._pipelines.files(requests)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


def main() -> None:
    api = LitPipelines(max_batch_size=MOST, batch_timeout=WAIT_S, api_path=PEERS_PATH)
    server = litserve.LitServer(api, accelerator="cpu", timeout=LONGEST_S)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
