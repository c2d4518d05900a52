"""Whatever comes in, a parser says what it is, or refuses it in our words. Nothing else, and nothing slow."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import Request

from deployments.engine.conditioning.prompt_syntax import MAX_WEIGHT, parse_weighted
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.middleware.request_id import ACCEPTED, request_id_of
from serve_app.api.parsing.body import check_content_headers, content_length_of, parse_json_object
from serve_app.api.parsing.forms import read_form
from serve_app.api.parsing.negotiation import negotiate, parse_accept
from serve_app.api.parsing.validation import read_params
from serve_app.api.problems import Problem
from serve_app.api.trace import named_trace_id
from tests.serve_app.api.parsing.test_hostile_forms import END, FORM, part

bounded = settings(max_examples=300, deadline=1000, derandomize=True)

T = TypeVar("T")

MARKER = "SECRET"
ODD = st.lists(st.sampled_from([*"()[]\\: .-+0159aé☕\n", "BREAK"]), max_size=60).map("".join)
PROMPT = ODD | st.text(max_size=60)
VALUE = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=80)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text().map(lambda text: MARKER + text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
FIELD = st.sampled_from(sorted(GenerationParams.model_fields)) | st.text(max_size=12)


Refusal = Problem | InvalidParameter


def tried(read: Callable[[], T]) -> T | Refusal:
    """What `read` gives, or refuses with. Everything else is a bug."""
    try:
        return read()
    except (Problem, InvalidParameter) as refusal:
        return refusal


@bounded
@given(PROMPT)
def test_a_prompt_is_weighed_or_refused(prompt: str) -> None:
    fragments = tried(lambda: parse_weighted(prompt))
    if isinstance(fragments, Refusal):
        return
    assert all(0 <= fragment.weight <= MAX_WEIGHT for fragment in fragments)
    # What is read is text of the prompt, in its order.
    rest = iter(prompt)
    assert all(character in rest for fragment in fragments for character in fragment.text)


@bounded
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_an_object_or_refused(body: bytes) -> None:
    parsed = tried(lambda: parse_json_object(body))
    if isinstance(parsed, Problem):
        assert parsed.status in (400, 422)
        assert MARKER not in parsed.message
    else:
        assert parsed == json.loads(body)


@bounded
@given(st.dictionaries(FIELD, JSON, max_size=5))
def test_fields_are_parameters_or_refused_without_an_echo(fields: dict[str, Any]) -> None:
    read = tried(lambda: read_params({"prompt": "a cup", **fields}))
    if isinstance(read, Problem):
        assert (read.status, bool(read.faults)) == (422, True)
        assert MARKER not in json.dumps(read.body("id"))


@bounded
@given(st.lists(st.tuples(FIELD, st.binary(max_size=40), st.booleans()), max_size=6), st.binary(max_size=40))
async def test_a_form_is_read_or_refused(parts: list[tuple[str, bytes, bool]], junk: bytes) -> None:
    body = b""
    for name, value, is_file in parts:
        written = name.replace('"', "%22").replace("\r", "").replace("\n", "").encode("utf-8", "surrogatepass")
        disposition = b'form-data; name="' + written + b'"' + (b'; filename="SECRET"' if is_file else b"")
        body += part(disposition, value)
    for sent in (body + END, junk + body + END, body + junk + END):
        with suppress(Problem, InvalidParameter):
            (await read_form(posted(sent), 10_000, ("image",), ("fit",))).read_params()


def posted(body: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(with_headers(*FORM.items()).scope, receive)


def with_headers(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw})


@bounded
@given(VALUE | st.text(st.sampled_from(list('ajpn*/+;,=q.01 \t"')), max_size=80))
def test_an_accept_header_chooses_or_is_refused(accept: str) -> None:
    assert all(0 <= entry.quality <= 1 for entry in parse_accept(accept))
    offers = ["application/json", "image/png"]
    chosen = tried(lambda: negotiate(with_headers(("accept", accept)), offers))
    assert chosen in offers or (isinstance(chosen, Problem) and chosen.status == 406)


@bounded
@given(VALUE, VALUE)
def test_content_headers_are_understood_or_refused(kind: str, coding: str) -> None:
    for headers in ([("content-type", kind)], [("content-type", "application/json"), ("content-encoding", coding)]):
        request = with_headers(*headers)
        found = tried(partial(check_content_headers, request, "application/json"))
        assert isinstance(found, dict) or (isinstance(found, Problem) and found.status == 415)


@bounded
@given(VALUE | st.from_regex(r"[0-9+\- _x.]{0,40}", fullmatch=True))
def test_a_length_is_a_number_or_unknown(length: str) -> None:
    announced = content_length_of(Headers({"content-length": length}))
    assert announced is None or (announced >= 0 and re.fullmatch("[0-9]+", length))


@bounded
@given(st.lists(VALUE, max_size=3))
def test_a_request_always_has_a_harmless_id(given_ids: list[str]) -> None:
    headers = with_headers(*(("x-request-id", value) for value in given_ids)).headers
    assert ACCEPTED.fullmatch(request_id_of(headers))


TRACE = st.from_regex(r"[0-9a-fA-F]{2}-[0-9a-f]{30,34}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True)


@bounded
@given(VALUE | TRACE.filter(lambda text: all(ord(character) < 256 for character in text)))
def test_a_trace_has_a_proper_id_or_is_none(parent: str) -> None:
    trace_id = named_trace_id(with_headers(("traceparent", parent)).headers)
    assert trace_id is None or (re.fullmatch("[0-9a-f]{32}", trace_id) and trace_id in parent)


@pytest.mark.parametrize("text", ["(" * 8000, "[" * 8000, "(:" * 4000, "\\" * 8000, "(a:1)" * 1600, "BREAK" * 1600])
def test_a_prompt_takes_no_longer_for_being_odd(text: str) -> None:
    """Linear: eight thousand characters, the most that there can be, in much less than a second."""
    begun = time.process_time()
    tried(lambda: parse_weighted(text))
    assert time.process_time() - begun < 1
