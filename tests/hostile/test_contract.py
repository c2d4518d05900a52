"""Our own OpenAPI document, taken at its word by a machine: whatever fits it, and whatever does not, is sent.

No answer may be a bug of ours, and each is one that the document names, with the type and the shape that it promises.
"""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_api(DiffusionService(FakeBackend())))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@SCHEMA.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_documented(case: "schemathesis.Case[Any]") -> None:
    case.call_and_validate(checks=CHECKS)
