"""Locates a LoRA's file: on disk, or on the Hugging Face hub at a pinned commit. No torch."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.lora import LoraFile


def locate_file(title: str, file: LoraFile) -> Path:
    """Returns the path of a LoRA's file, and fetches it if need be. Raises ModelLoadError, which begins with `title`.

    A commit never changes: what is in the hub's cache needs no hub.
    """
    if not file.file:
        return Path(file.source)
    try:
        return Path(hf_hub_download(file.source, file.file, revision=file.revision))
    except (GatedRepoError, RepositoryNotFoundError):
        raise ModelLoadError(
            f"{title}: the hub shows no repository {file.source!r}; check `source`, or set HF_TOKEN if it is not public"
        ) from None
    except RevisionNotFoundError:
        raise ModelLoadError(f"{title}: {file.source!r} has no revision {file.revision!r} on the hub") from None
    except LocalEntryNotFoundError:
        raise ModelLoadError(f"{title}: the hub is out of reach, and {file.file!r} is not in the cache") from None
    except EntryNotFoundError:
        raise ModelLoadError(f"{title}: {file.source!r} has no file {file.file!r} at {file.revision!r}") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelLoadError(f"{title}: {file.file!r} could not be fetched from the hub") from error
