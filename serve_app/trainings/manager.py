"""The trainings that callers have asked for: each a folder, which says everything there is to know of it.

No state is kept in memory, so every ingress process answers for all of them. A tenant sees its own only.
"""

import asyncio
import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from deployments.engine.protocol.errors import Cancelled, InvalidParameter, Overloaded, UnknownModel
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.versions import LoraVersion, LoraVersions
from deployments.training.lora.dataset import check_examples
from deployments.training.lora.order import TrainingOrder, read_order
from deployments.training.lora.registration import register
from deployments.training.lora.run_folder import UNFINISHED, RunFolder, State, TrainingProgress
from deployments.training.lora.settings import TrainingLimits, TrainingSettings
from deployments.whole_files import replace_text
from serve_app.config.sections import TrainingAllowance, TrainingConfig
from serve_app.generation.blocklist import NOTHING_BLOCKED, Blocklist
from serve_app.trainings.prompts import check_prompts
from serve_app.trainings.runner import TrainingRunner

_ID: Final = re.compile(r"[0-9a-f]{32}")
_OWNER: Final = "owner.json"
_PICTURES: Final = "pictures"
_LOCK: Final = ".lock"
_REMOVED: Final = ".removed-"
_LISTED: Final = 100
_SILENT_S: Final = 60.0
"""After so many seconds without a sign of life, whoever ran a training is gone."""

_RESUMABLE: Final[tuple[State, ...]] = ("interrupted", "cancelled", "failed")


@dataclass(frozen=True)
class Training:
    """A training by its `id`: whose it is, when it was `created` (seconds since 1970), and its folder.

    `shows_pictures` is false where the model's images must be checked before anybody sees them: these are not.
    """

    id: str
    tenant: str
    created: float
    run: RunFolder
    shows_pictures: bool

    def progress(self) -> TrainingProgress:
        """Returns how it goes; `interrupted` if nobody runs it any more."""
        progress = self.run.read_progress()
        if progress.state in UNFINISHED and self.run.silent_for() > _SILENT_S:
            return replace(progress, state="interrupted")
        return progress

    @property
    def is_over(self) -> bool:
        """Whether nobody runs it, or is to run it."""
        return self.progress().state not in UNFINISHED


class Trainings:
    """Starts, finds, cancels, resumes, registers and removes trainings.

    All methods but `start` read and write files: call them in threads.
    """

    def __init__(
        self,
        config: TrainingConfig,
        models: Sequence[ModelSpec],
        versions: LoraVersions,
        runner: TrainingRunner,
        blocklist: Blocklist = NOTHING_BLOCKED,
    ) -> None:
        """What is registered goes to `versions`; prompts and captions are checked against the `blocklist`."""
        self._config, self._models, self._versions, self._runner = config, models, versions, runner
        self._blocklist = blocklist
        self._folder = Path(config.folder)
        self._starting = asyncio.Lock()

    async def start(
        self, tenant: str, settings: TrainingSettings, files: Mapping[str, bytes], own: TrainingAllowance | None
    ) -> Training:
        """Begins a training on `files`: one zip, or pictures and captions, by their names, read for one at a time.

        `own` is the allowance of the caller's key. Raises InvalidParameter, UnknownModel, Overloaded, and Cancelled if
        that was asked for meanwhile.
        """
        async with self._starting:
            return await asyncio.to_thread(self._start, tenant, settings, files, own)

    def of_tenant(self, tenant: str) -> list[Training]:
        """Returns the tenant's newest trainings, the newest first."""
        return self._of_tenant(tenant)[:_LISTED]

    def find(self, tenant: str, id: str) -> Training | None:
        """Returns a training; None if there is none of that id, or it is another tenant's."""
        found = self._read(id)
        return found if found is not None and found.tenant == tenant else None

    def cancel(self, training: Training) -> bool:
        """Has one that waits or runs end at its next step; removes one that is over, and returns True then.

        Raises InvalidParameter if another process still works on it.
        """
        if not training.is_over:
            training.run.ask_to_cancel()
            return False
        self._remove(training)
        return True

    def resume(self, training: Training) -> TrainingProgress:
        """Has one that was interrupted, cancelled or failed go on from its last checkpoint. Raises InvalidParameter."""
        _check_resumable(training)
        with self._alone(), _held(training):
            settings = _check_resumable(training)
            check_prompts(self._blocklist, settings)
            self._check_room(training.tenant)
            training.run.forget_cancel()
            training.run.change_progress(state="queued", error="")
            self._runner.start(training.run)
        return training.progress()

    def register(self, training: Training) -> LoraVersion:
        """Serves what it has made as the newest version of its name, once. Raises InvalidParameter."""
        with _held(training):
            return register(training.run, self._versions, owner=training.tenant)

    def picture(self, training: Training, name: str) -> bytes | None:
        """Returns the sample picture, or the sheet, of that name; None if there is none to be shown."""
        run = training.run
        files = {path.name: path for path in (*run.list_samples(), run.sheet)} if training.shows_pictures else {}
        try:
            return files[name].read_bytes() if name in files else None
        except OSError:
            return None

    def stop(self) -> None:
        """Ends those that run here; each can be resumed."""
        self._runner.stop()

    def _start(
        self, tenant: str, settings: TrainingSettings, files: Mapping[str, bytes], own: TrainingAllowance | None
    ) -> Training:
        limits = self._config.limits.with_overrides(own).limits()
        spec = self._find_model(settings.model_name)
        _check(settings, limits)
        if settings.sample_prompts and not _shows_pictures(spec):
            rule = f"must be left out: what {spec.name!r} makes is shown only when it is checked, and samples are not"
            raise InvalidParameter("sample_prompts", rule)
        check_prompts(self._blocklist, settings)
        self._versions.check_owner(settings.name, tenant)
        training = self._reserve(tenant, settings)
        try:
            source = _write(training.run.path, files)
            captions = check_examples(source, settings, limits)
            check_prompts(self._blocklist, settings, captions.values())
            order = TrainingOrder(spec, source, limits, self._config.own_device, self._config.processes)
            order.write(training.run.path)
            if training.run.is_cancelled:
                raise Cancelled("the training was cancelled")
        except BaseException:
            with contextlib.suppress(InvalidParameter, OSError):
                self._remove(training)
            raise
        self._runner.start(training.run)
        return training

    def _reserve(self, tenant: str, settings: TrainingSettings) -> Training:
        """Returns a new training, which counts from now on, whichever process counts. Raises Overloaded."""
        with self._alone():
            self._check_room(tenant)
            self._remove_oldest(tenant)
            id, created = uuid4().hex, time.time()
            run = RunFolder(self._folder / id)
            run.begin(settings)
            run.beat()
            told = {"tenant": tenant, "created": created, "model": settings.model_name}
            replace_text(run.path / _OWNER, json.dumps(told))
        return Training(id, tenant, created, run, self._may_show(settings.model_name))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads and processes from counting trainings while the block runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_room(self, tenant: str) -> None:
        unfinished = sum(not each.is_over for each in self._of_tenant(tenant))
        if unfinished >= self._config.unfinished:
            raise Overloaded(f"{unfinished} trainings are waiting or running, and no more may")

    def _remove_oldest(self, tenant: str) -> None:
        """Removes the tenant's trainings that are over, but the newest, and what an interrupted removal has left."""
        for path in self._folder.glob(f"{_REMOVED}*"):
            shutil.rmtree(path, ignore_errors=True)
        for training in [each for each in self._of_tenant(tenant) if each.is_over][self._config.kept :]:
            with contextlib.suppress(InvalidParameter):
                self._remove(training)

    def _remove(self, training: Training) -> None:
        """Removes a training; from the first moment it is none any more. Raises InvalidParameter."""
        doomed = self._folder / f"{_REMOVED}{training.id}"
        with _held(training):
            training.run.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _find_model(self, name: str) -> ModelSpec:
        found = next((spec for spec in self._models if spec.has_name(name)), None)
        if found is None:
            raise UnknownModel(
                "model_name", f"there is no such model; there is {', '.join(s.name for s in self._models)}"
            )
        return found

    def _may_show(self, model: str) -> bool:
        """Whether a model's pictures may be shown. Of one that is not served any more nobody knows, so they may not."""
        return any(spec.has_name(model) and _shows_pictures(spec) for spec in self._models)

    def _of_tenant(self, tenant: str) -> list[Training]:
        own = [each for each in self._all() if each.tenant == tenant]
        return sorted(own, key=lambda each: -each.created)

    def _all(self) -> Iterator[Training]:
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        yield from (found for name in names if (found := self._read(name)) is not None)

    def _read(self, id: str) -> Training | None:
        if _ID.fullmatch(id) is None:
            return None
        run = RunFolder(self._folder / id)
        try:
            told = json.loads((run.path / _OWNER).read_text())
            return Training(
                id, str(told["tenant"]), float(told["created"]), run, self._may_show(str(told.get("model", "")))
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _shows_pictures(spec: ModelSpec) -> bool:
    return spec.safety.policy != "required"


def _check(settings: TrainingSettings, limits: TrainingLimits) -> None:
    if settings.steps > limits.steps:
        raise InvalidParameter("steps", f"must be at most {limits.steps} with this key")
    if settings.max_minutes is not None and settings.max_minutes > limits.minutes:
        raise InvalidParameter("max_minutes", f"must be at most {limits.minutes:g} with this key")


def _check_resumable(training: Training) -> TrainingSettings:
    """Returns what was asked of a training that can go on. Raises InvalidParameter."""
    settings = training.run.read_settings()
    if settings is None or training.progress().state not in _RESUMABLE:
        raise InvalidParameter("id", f"only trainings that are {', '.join(_RESUMABLE)} can be resumed")
    try:
        read_order(training.run.path)
    except (OSError, ValueError, LookupError, TypeError):
        raise InvalidParameter("id", "has not come so far that it can be resumed; begin another one") from None
    return settings


@contextmanager
def _held(training: Training) -> Iterator[None]:
    """Keeps others from a training while the block runs. Raises InvalidParameter."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(training.run.held())
        except (InvalidParameter, FileNotFoundError):
            raise InvalidParameter("id", "is of a training that another process works on, or has removed") from None
        yield


def _write(home: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the files, whose names are ours, and returns what `check_examples` takes."""
    if "zip" in files:
        path = home / f"{_PICTURES}.zip"
        path.write_bytes(files["zip"])
        return path
    folder = home / _PICTURES
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
