"""Holds callers to their limits, and says in headers what is left of them (draft-ietf-httpapi-ratelimit-headers).

Requests are counted before their bodies are read; what they cost is known, and charged, when they have been understood.
"""

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from types import MappingProxyType
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.engine.protocol.params import BUILT_IN_UPSCALERS, GenerationParams
from deployments.engine.protocol.request import Request as GenerationRequest
from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.body import close_unread
from serve_app.api.principal import principal_of
from serve_app.api.problems import Fault, Problem, pointer_to, whole_seconds
from serve_app.api.scopes import asks_for_work, counts_tokens
from serve_app.gateway.rate_limits import LimitName, OverLimit, Quota, RateLimits, TooCostly
from serve_app.gateway.sliding_window import WINDOW_S
from serve_app.generation.prepared import Prepared

# Name, unit in words, and how the draft's `RateLimit-Policy` goes on after the quota.
_DESCRIPTIONS: Final[Mapping[LimitName, tuple[str, str]]] = MappingProxyType(
    {
        "requests_per_minute": ("requests a minute", f";w={WINDOW_S}"),
        "concurrent_requests": ("requests at once", ';qu="concurrent-requests"'),
        "cost_per_minute": ("megapixel-steps (pixels x steps x images / 1,000,000) a minute", f";w={WINDOW_S}"),
    }
)

REFUSED_PIXEL_STEPS: Final = 100_000
"""What an entry costs that is refused: less than any image, but a thousand of them are not free."""

RESIZED_STEPS: Final = 2
"""What a pixel costs that is only resized and compressed, in denoising steps: little beside an image, not nothing."""

UPSCALED_STEPS: Final = 4
"""The same of a pixel that a network makes: what ESRGAN computes for one of a doubled picture, by SD1.5's UNet."""

_COSTLY: Final = ("width", "height", "num_inference_steps", "num_images")


class RateLimiting:
    """Answers 429 to who asks for more images than it may; looks at nothing but requests for images.

    And at counts of tokens, which have the same limits and use none of what is left for images: pages send them while
    somebody types.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: RateLimits,
        translate: Callable[[Scope, Problem], Problem] = lambda _, problem: problem,
    ) -> None:
        """`translate` puts a refusal into the words of the surface that was asked."""
        self.app = app
        self._limits, self._translate = limits, translate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not asks_for_work(scope) and not counts_tokens(scope):
            await self.app(scope, receive, send)
            return
        quota = self._find_quota(scope)

        async def send_with_remaining(message: Message) -> None:
            if message["type"] == "http.response.start" and quota.remaining:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"], headers["RateLimit"] = _policy(quota), _remaining(quota)
            await send(message)

        try:
            await quota.enter()
        except OverLimit as over:
            problem = self._translate(scope, _refusal(over))
            problem.headers |= close_unread(Headers(scope=scope))
            await problem.response(exchange_of(scope).request_id)(scope, receive, send_with_remaining)
            return
        exchange_of(scope).quota = quota
        try:
            await self.app(scope, receive, send_with_remaining)
        finally:
            quota.leave()

    def _find_quota(self, scope: Scope) -> Quota:
        principal, config = principal_of(Request(scope)), self._limits.config
        kind = "tokens:" if counts_tokens(scope) else ""
        if principal.key:
            return self._limits.quota_of(f"{kind}key:{principal.key}", config.per_key.with_overrides(principal.limits))
        return self._limits.quota_of(f"{kind}address:{address_of(scope, config.proxies)}", config.per_address)


async def charge(request: Request, *prepared: Prepared) -> None:
    """Charges the request's caller for all of `prepared`. Raises Problem: 429, or 422 where it can never be let in."""
    quota = exchange_of(request.scope).quota
    if quota is None:
        return
    try:
        await quota.charge(sum(pixel_steps(each) for each in prepared))
    except OverLimit as over:
        raise _refusal(over) from None
    except TooCostly as error:
        raise _too_costly(error) from None


async def charge_pixels(request: Request, pixels: int, steps: int = RESIZED_STEPS) -> None:
    """Charges for pixels that are only resized and compressed, or that are worth `steps` each.

    Raises Problem: 429, or 422 if it is far too many.
    """
    quota = exchange_of(request.scope).quota
    if quota is None:
        return
    try:
        await quota.charge(pixels * steps)
    except OverLimit as over:
        raise _refusal(over) from None
    except TooCostly as error:
        raise _too_costly(error) from None


async def charge_refused(request: Request, entries: int) -> None:
    """Charges for a batch's entries that were only read. Raises Problem 429."""
    quota = exchange_of(request.scope).quota
    if quota is None or not entries:
        return
    try:
        await quota.charge_refused(entries * REFUSED_PIXEL_STEPS)
    except OverLimit as over:
        raise _refusal(over) from None


def pixel_steps(prepared: Prepared) -> int:
    """What a request costs, with its second pass if it has one, and the resizing of its images."""
    request = prepared.request
    passes = sum(_pixel_steps_of(each.params) for each in (request, request.second_pass) if each is not None)
    width, height = request.params.output_size or (0, 0)
    resized = width * height * RESIZED_STEPS * request.params.num_images
    return passes + resized + _upscaled_pixel_steps(request)


def _upscaled_pixel_steps(request: GenerationRequest) -> int:
    hires, larger = request.params.hires, request.encoded_bucket
    if hires is None or larger is None or hires.upscaler in BUILT_IN_UPSCALERS:
        return 0
    return larger.width * larger.height * UPSCALED_STEPS * request.params.num_images


def _pixel_steps_of(params: GenerationParams) -> int:
    assert params.width is not None
    assert params.height is not None
    return params.width * params.height * params.num_inference_steps * params.num_images


def address_of(scope: Scope, proxies: int) -> str:
    """Who asks, where there is no key: an IPv4 address, or the network of an IPv6 one, which has 2^64 for itself.

    With `proxies` it is what the outermost of them has added to X-Forwarded-For; what stands before that is the
    caller's own invention. A request that has not come through all of them is known by the connection it came on.
    """
    client = scope.get("client")
    connected = client[0] if client else ""
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    said = forwarded[-proxies].strip() if 0 < proxies <= len(forwarded) else connected
    address = _parse_address(said) or _parse_address(connected)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, 64), strict=False))
    return str(address or "unknown")


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also one with a port, as some proxies write it."""
    bare = text[1:].partition("]")[0] if text.startswith("[") else text
    try:
        address = ip_address(bare.partition(":")[0] if bare.count(":") == 1 else bare)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _refusal(over: OverLimit) -> Problem:
    words, _ = _DESCRIPTIONS[over.name]
    message = f"the limit is {over.limit} {words}; come back later"
    return Problem(429, "rate_limited", message, param=over.name, retry_after=whole_seconds(over.wait_s))


def _too_costly(error: TooCostly) -> Problem:
    message = f"this request costs {error.cost:g} megapixel-steps, and may cost {error.limit} at most"
    faults = tuple(
        Fault(pointer_to(name), "too_costly", "pixels x steps x images is too much; ask for less of one of them")
        for name in _COSTLY
    )
    return Problem(422, "too_costly", message, param="num_inference_steps", faults=faults)


def _policy(quota: Quota) -> str:
    return ", ".join(f'"{name}";q={limit}{_DESCRIPTIONS[name][1]}' for name, (limit, _) in quota.remaining.items())


def _remaining(quota: Quota) -> str:
    remaining = quota.remaining.items()
    return ", ".join(f'"{name}";r={now.left};t={whole_seconds(now.wait_s)}' for name, (_, now) in remaining)
