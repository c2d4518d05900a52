"""The trainings that callers have asked for: each a folder, which says everything there is to know of it.

No state is kept in memory, so every ingress process answers for all of them. A tenant sees its own only.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from deployments.engine.protocol.errors import InvalidParameter, Overloaded, UnknownModel
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersion, LoraVersions
from deployments.training.lora.dataset import read_examples
from deployments.training.lora.order import TrainingOrder, read_order
from deployments.training.lora.registration import register
from deployments.training.lora.run_folder import UNFINISHED, RunFolder, State, TrainingProgress, replace_text
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from serve_app.config.sections import TrainingAllowance, TrainingConfig
from serve_app.trainings.runner import TrainingRunner

_ID: Final = re.compile(r"[0-9a-f]{32}")
_OWNER: Final = "owner.json"
_PICTURES: Final = "pictures"
_LISTED: Final = 100
_SILENT_S: Final = 60.0
"""After so many seconds without a sign of life, whoever ran a training is gone."""


@dataclass(frozen=True)
class Training:
    """A training by its `id`: whose it is, when it was `created` (seconds since 1970), and its folder."""

    id: str
    tenant: str
    created: float
    run: RunFolder

    def progress(self) -> TrainingProgress:
        """Returns how it goes; `interrupted` if nobody runs it any more."""
        progress = self.run.read_progress()
        if progress.state in UNFINISHED and self.run.silent_for() > _SILENT_S:
            return self.run.change_progress(state="interrupted")
        return progress


class Trainings:
    """Starts, finds, cancels, resumes and registers trainings. Methods read and write files: call in threads."""

    def __init__(
        self,
        config: TrainingConfig,
        models: Sequence[ModelSpec],
        versions: LoraVersions,
        runner: TrainingRunner,
    ) -> None:
        """What is registered goes to `versions`."""
        self._config, self._models, self._versions, self._runner = config, models, versions, runner
        self._folder = Path(config.folder)

    def start(
        self, tenant: str, settings: TrainingSettings, files: Mapping[str, bytes], own: TrainingAllowance | None
    ) -> Training:
        """Begins a training on `files`: one zip, or pictures and captions, by their names.

        `own` is the allowance of the caller's key. Raises InvalidParameter, UnknownModel, and Overloaded.
        """
        limits = self._config.limits.with_overrides(own).limits()
        spec = self._find_model(settings.model_name)
        _check(settings, limits)
        self._versions.check_owner(settings.name, tenant)
        self._check_room(tenant)
        training = Training(uuid4().hex, tenant, time.time(), RunFolder(self._folder / "new"))
        home = self._folder / training.id
        try:
            source = _write(home, files)
            read_examples(source, settings, limits)
            run = RunFolder(home)
            run.begin(settings)
            TrainingOrder(spec, source, limits, self._config.own_device).write(home)
            replace_text(home / _OWNER, json.dumps({"tenant": tenant, "created": training.created}))
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        self._runner.start(run)
        return Training(training.id, tenant, training.created, run)

    def of_tenant(self, tenant: str) -> list[Training]:
        """Returns the tenant's newest trainings, the newest first."""
        own = [each for each in self._all() if each.tenant == tenant]
        return sorted(own, key=lambda each: -each.created)[:_LISTED]

    def find(self, tenant: str, id: str) -> Training | None:
        """Returns a training; None if there is none of that id, or it is another tenant's."""
        found = self._read(id)
        return found if found is not None and found.tenant == tenant else None

    def cancel(self, training: Training) -> TrainingProgress:
        """Has it end at its next step; has no effect on one that is over."""
        if training.progress().state in UNFINISHED:
            training.run.ask_to_cancel()
        return training.progress()

    def resume(self, training: Training) -> TrainingProgress:
        """Has one that was interrupted, cancelled or failed go on from its last checkpoint. Raises InvalidParameter."""
        resumable: tuple[State, ...] = ("interrupted", "cancelled", "failed")
        settings = training.run.read_settings()
        if settings is None or training.progress().state not in resumable:
            raise InvalidParameter("id", f"only trainings that are {', '.join(resumable)} can be resumed")
        read_order(training.run.path)
        self._check_room(training.tenant)
        training.run.begin(settings)
        training.run.change_progress(state="queued", error="")
        self._runner.start(training.run)
        return training.progress()

    def register(self, training: Training) -> LoraVersion:
        """Serves what it has made as the newest version of its name. Raises InvalidParameter."""
        return register(training.run, self._versions, owner=training.tenant)

    def picture(self, training: Training, name: str) -> bytes | None:
        """Returns the sample picture, or the sheet, of that name; None if there is none."""
        run = training.run
        files = {path.name: path for path in (*run.list_samples(), run.sheet)}
        try:
            return files[name].read_bytes() if name in files else None
        except OSError:
            return None

    def stop(self) -> None:
        """Ends those that run here; each can be resumed."""
        self._runner.stop()

    def _check_room(self, tenant: str) -> None:
        unfinished = [each for each in self.of_tenant(tenant) if each.progress().state in UNFINISHED]
        if len(unfinished) >= self._config.unfinished:
            raise Overloaded(f"{len(unfinished)} trainings are waiting or running, and no more may")

    def _find_model(self, name: str) -> ModelSpec:
        found = next((spec for spec in self._models if spec.has_name(name)), None)
        if found is None:
            raise UnknownModel(
                "model_name", f"there is no such model; there is {', '.join(s.name for s in self._models)}"
            )
        return found

    def _all(self) -> Iterator[Training]:
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        yield from (found for name in names if (found := self._read(name)) is not None)

    def _read(self, id: str) -> Training | None:
        if _ID.fullmatch(id) is None:
            return None
        try:
            told = json.loads((self._folder / id / _OWNER).read_text())
            return Training(id, str(told["tenant"]), float(told["created"]), RunFolder(self._folder / id))
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _check(settings: TrainingSettings, limits: TrainingLimits) -> None:
    if settings.steps > limits.steps:
        raise InvalidParameter("steps", f"must be at most {limits.steps} with this key")
    if settings.max_minutes is not None and settings.max_minutes > limits.minutes:
        raise InvalidParameter("max_minutes", f"must be at most {limits.minutes:g} with this key")


def _write(home: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files, whose names are ours, and returns what `read_examples` takes."""
    home.mkdir(parents=True)
    if "zip" in files:
        path = home / f"{_PICTURES}.zip"
        path.write_bytes(files["zip"])
        return path
    folder = home / _PICTURES
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
