"""Content negotiation: chooses the kind of answer from the Accept header (RFC 9110)."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from serve_app.api.problems import Problem

JSON = "application/json"
EVENTS = "text/event-stream"

# Browsers send ten short ones. Each is compared with each offer, on the event loop.
MAX_RANGES = 256
MAX_RANGE_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One entry of an Accept header, `*/*` for example."""

    kind: str
    subkind: str
    quality: float

    def matches(self, media_type: str) -> bool:
        """Whether the range covers `media_type`."""
        kind, _, subkind = media_type.partition("/")
        return self.kind in ("*", kind) and self.subkind in ("*", subkind)

    @property
    def specificity(self) -> int:
        """The number of parts that are named rather than wildcards: 0 to 2."""
        return (self.kind != "*") + (self.subkind != "*")


def negotiate(request: Request, offers: Sequence[str]) -> str:
    """Returns the offer that the caller prefers; the earlier one on a tie. Raises Problem 406 if none is acceptable.

    Between offers of the same quality, one that is named wins over one that only matches a wildcard.
    """
    ranges = parse_accept(",".join(request.headers.getlist("accept")))
    if not ranges:
        return offers[0]
    scores = {offer: _score(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: scores[offer])
    if scores[best] <= (0.0, 2):
        raise Problem(406, "not_acceptable", f"this request can be answered as {', '.join(offers)}")
    return best


def parse_accept(accept: str) -> list[MediaRange]:
    """Parses an Accept header. Malformed entries are left out. Raises Problem 406 for too many."""
    entries = dict.fromkeys(accept.split(","))
    if len(entries) > MAX_RANGES:
        raise Problem(406, "not_acceptable", f"the Accept header may name at most {MAX_RANGES} media ranges")
    return [found for entry in entries if (found := _parse_media_range(entry)) is not None]


def _score(offer: str, ranges: Sequence[MediaRange]) -> tuple[float, int]:
    fitting = [entry for entry in ranges if entry.matches(offer)]
    if not fitting:
        return (0.0, 0)
    nearest = max(fitting, key=lambda entry: entry.specificity)
    return (nearest.quality, nearest.specificity)


def _parse_media_range(entry: str) -> MediaRange | None:
    if len(entry) > MAX_RANGE_CHARACTERS:
        return None
    media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
    kind, slash, subkind = media_type.partition("/")
    quality = next((value for name, _, value in (p.partition("=") for p in parameters) if name.strip() == "q"), "1")
    try:
        weight = float(quality)
    except ValueError:
        return None
    if not (kind and slash and subkind) or not 0 <= weight <= 1:
        return None
    return MediaRange(kind, subkind, weight)
