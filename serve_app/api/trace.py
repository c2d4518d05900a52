"""W3C Trace Context: finds the trace that a request belongs to. Records no spans; Ray Serve and FastAPI do."""

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

HEADER = "traceparent"

_PROPAGATOR = TraceContextTextMapPropagator()


def trace_id_of(headers: Headers) -> str | None:
    """The id of the trace being recorded here, else of the one that the caller names; None without either."""
    here = trace.get_current_span().get_span_context()
    return trace.format_trace_id(here.trace_id) if here.is_valid else named_trace_id(headers)


def named_trace_id(headers: Headers) -> str | None:
    """The trace id in the `traceparent` header; None if it is missing, repeated or malformed."""
    given = headers.getlist(HEADER)
    if len(given) != 1:
        return None
    parent = trace.get_current_span(_PROPAGATOR.extract({HEADER: given[0]})).get_span_context()
    return trace.format_trace_id(parent.trace_id) if parent.is_valid else None
