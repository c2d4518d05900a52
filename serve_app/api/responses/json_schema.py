"""JSON schemas for the OpenAPI document: in it, a reference to a schema's own definitions leads nowhere."""

from typing import Any

from pydantic import BaseModel


def inline_schema(model: type[BaseModel], *, by_alias: bool = True) -> dict[str, Any]:
    """Returns the JSON schema of `model` with all that it refers to written out."""
    schema = model.model_json_schema(by_alias=by_alias)
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            beside = {name: resolve(each) for name, each in part.items() if name != "$ref"}
            return resolve(definitions[part["$ref"].rpartition("/")[2]]) | beside
        return {name: resolve(each) for name, each in part.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
