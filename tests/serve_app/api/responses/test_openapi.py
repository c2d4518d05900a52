"""The OpenAPI document can be read by whatever reads its standard."""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from serve_app.api.application import create_api
from serve_app.service import DiffusionService
from tests.serve_app.fakes import FakeBackend


def find_schemas(part: Any) -> Iterator[Any]:
    """Yields what stands under every `schema` of a document, and its components."""
    if isinstance(part, dict):
        for name, each in part.items():
            if name == "schema":
                yield each
            elif name == "schemas":
                yield from each.values()
            else:
                yield from find_schemas(each)
    elif isinstance(part, list):
        for each in part:
            yield from find_schemas(each)


def test_every_schema_is_one_by_its_own_standard() -> None:
    schemas = list(find_schemas(create_api(DiffusionService(FakeBackend())).openapi()))
    assert len(schemas) > 50
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
