"""The errors of a request, as one tree.

    EngineError
    ├── InvalidParameter     the caller's mistake: names the field and the rule
    │   ├── UnknownModel     no such model is configured
    │   └── BlockedPrompt    a prompt has what the server's blocklist refuses
    ├── Overloaded           the queue is full; try again later
    ├── DeadlineExceeded     it cannot be ready when the caller wants it
    ├── Cancelled            its caller has cancelled it by its id
    ├── EngineStopped        the engine stopped before the request finished; safe to repeat elsewhere
    │   └── EngineLost       it was lost while running the request, which may be the cause
    ├── Quarantined          the same request has just crashed several engines; not now
    ├── ModelLoadError       files missing, broken or out of reach; raised at start-up
    └── GenerationFailed     not the caller's mistake, and repeating will not help
        ├── Filtered         the model's safety policy keeps the image back
        ├── SafetyCheckFailed the policy asks for a check, and it failed
        ├── NumericalFailure the network answered NaN or infinity, or the image is black
        └── DoesNotFit       one image alone does not fit into the device's memory

Every class has a stable `code` for machines, and `retryable` says whether the same request may be repeated.
Messages are written for callers: they never hold a prompt, a path or another library's text.
All of them survive pickling, because a replica's answers cross a process boundary.
"""


class EngineError(Exception):
    """The root of the tree. `message` is safe to show to the caller."""

    code = "internal_error"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidParameter(EngineError):
    """A parameter breaks a rule. `field` is the parameter's public name, for example `width`."""

    code = "invalid_parameter"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type["InvalidParameter"], tuple[str, str]]:
        return type(self), (self.field, self.message)


class UnknownModel(InvalidParameter):
    """The named model is not configured here."""

    code = "model_not_found"


class BlockedPrompt(InvalidParameter):
    """A prompt breaks a rule of the server's blocklist. The message names the `rule` and nothing that is in it."""

    code = "prompt_blocked"

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(field, f"has what the rule {rule!r} of this server's blocklist refuses")
        self.rule = rule

    def __reduce__(self) -> tuple[type["BlockedPrompt"], tuple[str, str]]:
        return type(self), (self.field, self.rule)


class Overloaded(EngineError):
    """The queue is full. `retry_after` is the time until it may have a place, in seconds, if that can be predicted."""

    code = "overloaded"
    retryable = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type["Overloaded"], tuple[str, float | None]]:
        return type(self), (self.message, self.retry_after)


class DeadlineExceeded(EngineError):
    """The request cannot be finished within its `deadline_ms`, or was not."""

    code = "deadline_exceeded"


class Cancelled(EngineError):
    """The request was cancelled by its id, or by that of its batch; `name` is the id that was given."""

    code = "cancelled"

    def __init__(self, message: str = "the request was cancelled", name: str = "") -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[type["Cancelled"], tuple[str, str]]:
        return type(self), (self.message, self.name)


class EngineStopped(EngineError):
    """The engine stopped before it finished the request."""

    code = "engine_stopped"
    retryable = True


class EngineLost(EngineStopped):
    """The engine was lost while it ran the request: its process died, or its loop failed.

    The request may be the cause.
    """


class Quarantined(EngineError):
    """Every engine that ran this very request a short while ago was lost with it."""

    code = "quarantined"


class GenerationFailed(EngineError):
    """An image could not be made, though its request was valid."""

    code = "generation_failed"


class NumericalFailure(GenerationFailed):
    """The network's output for this row was not finite, or all black, twice."""

    code = "numerical_failure"


class Filtered(GenerationFailed):
    """A checker found in the image what the model's safety policy keeps back; `category` says what."""

    code = "content_filtered"

    def __init__(self, category: str) -> None:
        super().__init__(f"the image was filtered by this model's safety policy: {category}")
        self.category = category

    def __reduce__(self) -> tuple[type["Filtered"], tuple[str]]:
        return type(self), (self.category,)


class SafetyCheckFailed(GenerationFailed):
    """An image could not be checked, and the model's safety policy gives out none unchecked."""

    code = "safety_check_failed"
    retryable = True

    def __init__(self, message: str = "the image could not be checked, as this model's safety policy requires") -> None:
        super().__init__(message)


class DoesNotFit(GenerationFailed):
    """One image of this size takes more memory than the device has."""

    code = "does_not_fit"


class ModelLoadError(EngineError):
    """A model's files are missing, broken, or out of reach. The message says what to do about it."""

    code = "model_load_failed"
