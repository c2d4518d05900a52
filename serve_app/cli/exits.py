"""Exit codes of the command line, and the one line that it ends with when something went wrong."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer

from deployments.engine.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    DoesNotFit,
    EngineError,
    GenerationFailed,
    InvalidParameter,
    NumericalFailure,
    Overloaded,
    UnknownModel,
)
from serve_app.client import DarkroomError
from serve_app.config.errors import ConfigError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_BUSY: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_UNREACHABLE: Final = 6
EXIT_NO_IMAGE: Final = 7
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    0: "everything was done",
    EXIT_FAILED: "something else: a file could not be written, a model not loaded, an error of the server's",
    EXIT_USAGE: "an option, a parameter, a file or the configuration is wrong",
    EXIT_REFUSED: "the server does not let you: no key, an unknown one, or one that may not do this",
    EXIT_BUSY: "the server is full, a limit is reached, or a deadline cannot be kept: later it may work",
    EXIT_NOT_FOUND: "there is no such model, job, image or address",
    EXIT_UNREACHABLE: "no server answered, or not to the end",
    EXIT_NO_IMAGE: "an image could not be made, or not be put where it belongs",
    EXIT_INTERRUPTED: "Ctrl-C; the server's work was ended as well, unless a line says that it may go on",
}

_BY_STATUS: Final = {
    401: EXIT_REFUSED,
    403: EXIT_REFUSED,
    404: EXIT_NOT_FOUND,
    421: EXIT_REFUSED,
    429: EXIT_BUSY,
    503: EXIT_BUSY,
    504: EXIT_BUSY,
}
_BY_CODE: Final = {
    **dict.fromkeys(("invalid_url", "invalid_api_key", "invalid_parameter", "invalid_environment"), EXIT_USAGE),
    **{kind.code: EXIT_NO_IMAGE for kind in (GenerationFailed, NumericalFailure, DoesNotFit, Cancelled)},
}

_BY_ERROR: Final[tuple[tuple[type[EngineError], int], ...]] = (
    (UnknownModel, EXIT_NOT_FOUND),
    (InvalidParameter, EXIT_USAGE),
    (Overloaded, EXIT_BUSY),
    (DeadlineExceeded, EXIT_BUSY),
    (GenerationFailed, EXIT_NO_IMAGE),
    (Cancelled, EXIT_NO_IMAGE),
)


def exit_with(message: str, exit_code: int = EXIT_FAILED) -> typer.Exit:
    """Prints `message` on standard error, in one line, and returns the exception to raise."""
    typer.secho(f"darkroom: {message}", err=True, fg="red")
    return typer.Exit(exit_code)


def exit_code_of(error: DarkroomError) -> int:
    """Returns the exit code for what a server, or the way to it, has answered."""
    if error.status == 0:
        return _BY_CODE.get(error.code, EXIT_UNREACHABLE)
    if error.status == 200:
        return EXIT_NO_IMAGE
    # A redirect is an address that is no server's.
    by_status = _BY_STATUS.get(error.status, EXIT_USAGE if 300 <= error.status < 500 else EXIT_FAILED)
    return by_status if error.status == 401 else _BY_CODE.get(error.code, by_status)


def error_json(error: DarkroomError | EngineError) -> dict[str, Any]:
    """Returns an error as `--json` prints it."""
    told: dict[str, Any] = {"code": error.code, "message": error.message}
    if isinstance(error, DarkroomError):
        told |= {"status": error.status, "field": error.field, "request_id": error.request_id or None}
        return told | ({} if error.retry_after is None else {"retry_after": error.retry_after})
    return told | ({"field": error.field} if isinstance(error, InvalidParameter) else {})


def _keep(field: str) -> str:
    return field


@contextmanager
def exit_on_errors(
    *, as_json: bool = False, url: str = "", hint: str = "", name_of: Callable[[str], str] = _keep
) -> Iterator[dict[str, Any]]:
    """Ends the command with one line and its exit code for what is raised inside; `as_json` also prints the error.

    `url` is the server's, `hint` what to do where none answers, and `name_of` the option for a field of the HTTP API.
    Gives what is printed beside the error, for the block to fill: what was done before it.
    """
    done: dict[str, Any] = {}

    def end(message: str, exit_code: int, told: dict[str, Any] | None = None) -> typer.Exit:
        if as_json:
            print(json.dumps(done | {"error": told or {"code": "failed", "message": message}}), flush=True)
        return exit_with(message, exit_code)

    def named(field: str | None, message: str) -> str:
        # A server's own message begins with the field, as it calls it.
        return f"{name_of(field)}: {message.removeprefix(f'{field} ')}" if field else message

    try:
        yield done
    except ConfigError as error:
        raise end(str(error), EXIT_USAGE) from None
    except DarkroomError as error:
        message = named(error.field, error.message)
        if error.code == "unreachable":
            message = f"no server answers at {url}{hint}"
        raise end(message, exit_code_of(error), error_json(error)) from None
    except EngineError as error:
        message = named(error.field, error.message) if isinstance(error, InvalidParameter) else error.message
        exit_code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), EXIT_FAILED)
        raise end(message, exit_code, error_json(error)) from None
    except BrokenPipeError:
        typer.secho("darkroom: nobody reads standard output any more", err=True, fg="red")
        # Typer ends the command with 1, and keeps Python from writing there once more.
        raise
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        raise end(message, EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
