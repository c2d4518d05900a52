"""Exit codes of the command line, and the one line that it ends with when something went wrong."""

import typer

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def exit_with(message: str, exit_code: int = EXIT_FAILED) -> typer.Exit:
    """Prints `message` on standard error, in one line, and returns the exception to raise."""
    typer.secho(f"darkroom: {message}", err=True, fg="red")
    return typer.Exit(exit_code)
