"""Checks, before anything is started, whether a model's files can be loaded: by names, folders and headers of files."""

from pathlib import Path
from typing import Final

from deployments.engine.checkpoints.native_size import describe_single_file
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.spec import IpAdapterSpec, ModelSpec, PartSpec, UpscalerSpec, as_part
from deployments.pins import convert_command

# For a hub repository without a commit: loading refuses it, and says where to pin. A branch name would let a stranger's
# push change the images. The commits of the registry's rows, and who else names them, are in `pins.py`.
UNPINNED: Final = None

_FILES: Final = (".safetensors", ".ckpt")


def check_source(spec: ModelSpec) -> None:
    """Raises ModelLoadError if `spec`, or one of its parts, certainly cannot be loaded.

    That is: no such folder, a file of a model that is not served, or a hub name without a commit. It looks at names,
    folders and the headers of files only, so that a server can refuse before it starts anything.
    """
    title = f"model {spec.name!r}"
    if describe_single_file(spec) is None:
        check_part(title, "`revision` under `models:`", PartSpec(spec.source, spec.revision))
    for noun, place, named in (("ControlNet", "controlnets", spec.controlnets), ("part", "parts", spec.parts)):
        for name, given in named.items():
            if (place, name) == ("parts", "vae") and Path(as_part(given).source).is_file():
                continue
            setting = f"`{place}: {name}: revision` under `models:`"
            check_part(f"{title}, {noun} {name!r}", setting, as_part(given))
    for name, adapter in spec.ip_adapters.items():
        of_adapter = f"{title}, IP-Adapter {name!r}"
        _check_file(of_adapter, f"`ip_adapters: {name}`", adapter)
        encoder = PartSpec(adapter.image_encoder, adapter.image_encoder_revision)
        check_part(f"{of_adapter}, its image encoder", f"`ip_adapters: {name}: image_encoder_revision`", encoder)
    for checker in spec.safety.checkers if spec.safety.is_on else ():
        if checker.source is not None:
            setting = "the checker's `revision` under `safety:`"
            check_part(f"{title}, safety checker {checker.name!r}", setting, PartSpec(checker.source, checker.revision))


def check_part(title: str, setting: str, part: PartSpec) -> None:
    """Raises ModelLoadError, which begins with `title` and names the `setting` to pin, if `part` certainly cannot be
    loaded.
    """
    if Path(part.source).is_dir():
        return
    if Path(part.source).is_file():
        raise ModelLoadError(
            f"{title}: {Path(part.source).name!r} is one file; only models and VAEs can be, give a folder"
        )
    if command := convert_command(part.source, part.revision):
        raise ModelLoadError(
            f"{title}: {part.source!r} has pickled weights only; `{command}` makes a folder to set as its `source`"
        )
    if part.revision is not UNPINNED and Path(part.source).suffix not in _FILES:
        return
    if Path(part.source).is_absolute() or part.source.startswith(".") or Path(part.source).suffix in _FILES:
        what = "file" if Path(part.source).suffix in _FILES else "folder"
        raise ModelLoadError(f"{title}: there is no {what} {part.source!r}")
    raise ModelLoadError(
        f"{title}: pin {setting} to a commit of {part.source!r} in the configuration, or set `source` there to a local "
        "folder"
    )


def is_missing_path(source: str) -> bool:
    """Whether `source` is an absolute path that this machine does not have: another, which has it, may be meant."""
    return Path(source).is_absolute() and not Path(source).exists()


def check_upscaler(spec: UpscalerSpec) -> None:
    """Raises ModelLoadError if an upscaler's file certainly cannot be loaded."""
    _check_file(f"upscaler {spec.name!r}", "`upscalers`", spec)


def _check_file(title: str, setting: str, spec: UpscalerSpec | IpAdapterSpec) -> None:
    source = Path(spec.source)
    if source.is_dir():
        raise ModelLoadError(f"{title}: {spec.source!r} is a folder; give the safetensors file in it")
    if not source.is_file():
        if source.is_absolute() or spec.source.startswith(".") or source.suffix in _FILES:
            raise ModelLoadError(f"{title}: there is no file {spec.source!r}")
        if spec.revision is UNPINNED or not spec.file:
            raise ModelLoadError(
                f"{title}: name `file` under {setting}, and pin `revision` there to a commit of {spec.source!r}, or "
                "set `source` to a local file"
            )
    if Path(spec.file or spec.source).suffix != ".safetensors":
        raise ModelLoadError(
            f"{title}: {spec.file or source.name!r} is no safetensors file; pickled weights (.pth) may hold code, and "
            "are not opened here: save their tensors as safetensors"
        )
