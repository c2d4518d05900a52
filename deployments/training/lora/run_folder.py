"""A training's own folder: what it is asked, how it goes, and what came of it, as files that any process can read.

No torch. A training that is killed leaves the folder as it was at its last checkpoint, and goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal
from uuid import uuid4

from pydantic import ValidationError

from deployments.engine.protocol.errors import Cancelled, EngineError, InvalidParameter
from deployments.training.lora.settings import TrainingSettings
from deployments.whole_files import replace_text

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]
Stage = Literal["reading", "encoding", "training", "evaluating", "done"]

UNFINISHED: Final = ("queued", "running")

_SETTINGS: Final = "settings.json"
_PROGRESS: Final = "progress.json"
_LOSSES: Final = "losses.jsonl"
_CANCEL: Final = "cancel"
_HEARTBEAT: Final = "heartbeat"
_TURN: Final = "turn"
_LOCK: Final = "lock"
_LOCK_S: Final = 2.0
"""Who looks at a training holds its lock for a moment; who trains, for long."""
_LOCK_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How a training goes. `loss` is the mean of the last steps; `seconds` are those spent in training, over all the
    times that it was resumed. `ended` says why there are no more steps: all done, early stop, or time.
    """

    state: State = "queued"
    stage: Stage = "reading"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    seconds: float = 0.0
    ended: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The loss of one step: of the pictures, of what is to stay, and where it was measured of those kept out."""

    step: int
    loss: float
    prior_loss: float | None = None
    validation_loss: float | None = None


class RunFolder:
    """Reads and writes a training's folder. Files that others read are replaced whole."""

    def __init__(self, path: Path, tell: Callable[[TrainingProgress], None] | None = None) -> None:
        """`tell` is called whenever this object writes how it goes."""
        self.path = path
        self._tell = tell

    @property
    def checkpoint(self) -> Path:
        """What the training goes on from."""
        return self.path / "checkpoint.pt"

    def prior_pictures(self, height: int, width: int) -> Path:
        """What the model made in that size before the training, encoded."""
        return self.path / f"prior-{height}x{width}.pt"

    @property
    def lora(self) -> Path:
        """The finished LoRA."""
        return self.path / "lora.safetensors"

    @property
    def sheet(self) -> Path:
        """The pictures before and after."""
        return self.path / "before-after.png"

    @property
    def evaluation(self) -> Path:
        """The scores."""
        return self.path / "evaluation.json"

    @property
    def samples(self) -> Path:
        """The folder of sample pictures."""
        return self.path / "samples"

    def sample(self, step: int, number: int) -> Path:
        """The sample picture of a step and a prompt: by its name it is after all earlier ones."""
        return self.samples / f"{step:06d}-{number:02d}.png"

    def begin(self, settings: TrainingSettings) -> None:
        """Makes the folder, or finds that it has a training of the same settings to go on with.

        Raises InvalidParameter if it has one of others, and Cancelled if that has been asked for.
        """
        if (earlier := self.read_settings()) is not None and earlier != settings:
            changed = [
                name for name in type(settings).model_fields if getattr(earlier, name) != getattr(settings, name)
            ]
            raise InvalidParameter(changed[0], "differs from the training in this folder; take another folder")
        self.samples.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / _SETTINGS, settings.model_dump_json(indent=2))
        if self.is_cancelled:
            raise Cancelled("the training was cancelled")

    def read_settings(self) -> TrainingSettings | None:
        """Returns what was asked; None if there is no training here."""
        try:
            return TrainingSettings.model_validate_json((self.path / _SETTINGS).read_text())
        except (OSError, ValidationError):
            return None

    def read_progress(self) -> TrainingProgress:
        """Returns how it goes."""
        try:
            return TrainingProgress(**_read_json((self.path / _PROGRESS).read_text()))
        except (OSError, ValueError, TypeError):
            return TrainingProgress()

    def write_progress(self, progress: TrainingProgress) -> None:
        """Says how it goes."""
        replace_text(self.path / _PROGRESS, json.dumps(asdict(progress)))
        if self._tell is not None:
            self._tell(progress)

    def change_progress(self, **changes: Any) -> TrainingProgress:
        """Replaces some of what is known, and returns all of it."""
        progress = replace(self.read_progress(), **changes)
        self.write_progress(progress)
        return progress

    def append_loss(self, point: LossPoint) -> None:
        """Adds a point to the loss curve."""
        told = {name: value for name, value in asdict(point).items() if value is not None}
        with (self.path / _LOSSES).open("a") as file:
            file.write(json.dumps(told) + "\n")

    def read_losses(self) -> list[LossPoint]:
        """Returns the loss curve, of finite losses. A last line that was cut off by a kill is left out."""
        return list(self._read_losses())

    def cut_losses(self, step: int) -> None:
        """Drops what was measured after `step`, which is to be done again."""
        kept = [
            json.dumps({k: v for k, v in asdict(p).items() if v is not None})
            for p in self._read_losses()
            if p.step <= step
        ]
        replace_text(self.path / _LOSSES, "".join(f"{line}\n" for line in kept))

    def list_samples(self) -> list[Path]:
        """Returns the sample pictures, the first first."""
        return sorted(self.samples.glob("*.png")) if self.samples.is_dir() else []

    def read_evaluation(self) -> Mapping[str, Any] | None:
        """Returns the scores; None before there are any."""
        try:
            found: dict[str, Any] = _read_json(self.evaluation.read_text())
        except (OSError, ValueError):
            return None
        return found

    def ask_to_cancel(self) -> None:
        """Has the training end at its next step, or not begin."""
        (self.path / _CANCEL).touch()

    def forget_cancel(self) -> None:
        """Takes back `ask_to_cancel`. Only who starts a training may: who runs it cannot know what was asked later."""
        (self.path / _CANCEL).unlink(missing_ok=True)

    def drop_checkpoint(self) -> None:
        """Removes what only a training that goes on needs, which is most of its bytes."""
        for path in (self.checkpoint, *self.path.glob("prior-*.pt")):
            path.unlink(missing_ok=True)

    def take_turn(self) -> str:
        """Says that somebody else runs this training from now on, and returns what tells this turn from others."""
        turn = uuid4().hex
        replace_text(self.path / _TURN, turn)
        return turn

    def is_turn(self, turn: str) -> bool:
        """Returns False if somebody else has taken a turn since then."""
        try:
            return (self.path / _TURN).read_text() == turn
        except OSError:
            return False

    def beat(self) -> None:
        """Shows that somebody sees to this training."""
        (self.path / _HEARTBEAT).touch()

    def silent_for(self) -> float:
        """Returns the seconds since the last `beat`."""
        try:
            return time.time() - (self.path / _HEARTBEAT).stat().st_mtime
        except OSError:
            return math.inf

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps others from this training while the block runs. Raises InvalidParameter if one works on it."""
        with (self.path / _LOCK).open("w") as lock:
            deadline = time.monotonic() + _LOCK_S
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise InvalidParameter("run", "has a training that another process works on")
                time.sleep(_LOCK_LOOK_S)
            yield

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Writes down how the training in its block ends; what is raised there goes on.

        Raises InvalidParameter if another process trains in this folder.
        """
        with self.held(), self._recorded():
            yield

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        self.change_progress(state="running", stage="reading", error="", ended="")
        try:
            yield
        except Cancelled:
            self.change_progress(state="cancelled")
            raise
        except EngineError as error:
            self.change_progress(state="failed", error=error.message)
            raise
        except Exception:
            self.change_progress(state="failed", error="internal error; the server's log has more")
            raise
        except BaseException:
            self.change_progress(state="interrupted")
            raise
        self.change_progress(state="succeeded", stage="done")

    @property
    def is_cancelled(self) -> bool:
        """True if somebody has asked to cancel it."""
        return (self.path / _CANCEL).exists()

    def _read_losses(self) -> Iterator[LossPoint]:
        try:
            lines = (self.path / _LOSSES).read_text().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                point = LossPoint(**_read_json(line))
            except (ValueError, TypeError):
                return
            # Where it was not finite, nothing was read.
            if point.loss is not None:
                yield point


def _read_json(text: str) -> Any:
    """Reads JSON, and what Python writes beyond it, as nothing: a number that is not finite cannot be sent on."""
    return json.loads(text, parse_constant=lambda _: None)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
