"""A run's folder: configuration, weights, figures and the training's state, complete at every moment.

    config.json          everything that decides the result (training.Config)
    model.safetensors    the weights after the last finished epoch
    metrics.csv          a row of figures for each epoch (training.Epoch)
    training.pt          everything that the remaining epochs depend on (training.Trainer.state_dict)
    report.html          the pictures (report.py)

A folder appears complete, by a rename. Each file is replaced by a rename, figures first, weights last: a kill at any
moment leaves every file complete, and training.pt says from which epoch a resumed training goes on.
"""

import csv
import errno
import fcntl
import io
import json
import math
import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from ..files import UNFINISHED, replace
from .models import Classifier
from .training import LEAST_STD, Config, Epoch, Trainer, build

__all__ = [
    "COMPARISON", "METRICS", "REPORT", "Loaded", "Onlooker", "Run", "is_run", "launch_counts", "load", "read_config",
    "read_metrics",
]  # fmt: skip

CONFIG, WEIGHTS, METRICS, STATE, REPORT = (
    "config.json", "model.safetensors", "metrics.csv", "training.pt", "report.html"
)  # fmt: skip
COMPARISON = "compare.html"  # beside the folders of several runs
_LOCK = ".lock"


class Run:
    """The folder of a training in progress; no other process can write to it until it is closed."""

    def __init__(self, folder: Path, lock: Any) -> None:
        self.folder = folder
        self.epochs: list[dict[str, str]] = []
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, trainer: Trainer) -> "Run":
        """Make a folder, with the untrained weights. Errors: FileExistsError if one with files is there, OSError."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            new.chmod(0o755)
            run = cls(new, _locked(new))
            replace(new / CONFIG, (json.dumps(asdict(trainer.config), indent=2) + "\n").encode())
            run._save(trainer, [])
            try:
                new.rename(folder)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise FileExistsError("it is there already, and nothing is overwritten") from None
                raise
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        run.folder = folder
        return run

    @classmethod
    def resume(cls, folder: Path, trainer: Trainer) -> "Run":
        """Go on in a folder: the trainer takes its state.

        errors: BlockingIOError if another process trains there, ValueError for a state that can't be used, OSError
        """
        run = cls(folder, _locked(folder))
        for left in folder.glob(f"{UNFINISHED}*"):
            left.unlink()
        try:
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            trainer.load_state_dict(state)
        except OSError:
            raise
        except Exception as error:  # a torn file, or another program's, makes torch.load fail in any way
            raise ValueError(f"{folder / STATE}: not a state of this training ({_line(error)})") from None
        rows = read_metrics(folder)
        if len(rows) < trainer.epoch:
            raise ValueError(f"{folder / METRICS}: has {len(rows)} epochs, but {STATE} is of epoch {trainer.epoch}")
        trainer.processes.broadcast(state)
        run._save(trainer, rows[: trainer.epoch])
        return run

    def add(self, epoch: Epoch, trainer: Trainer) -> None:
        """Save an epoch's figures and the state after it. Errors: OSError; the last saved state stays."""
        figures = {name: str(value) for name, value in asdict(epoch).items() if name != "launches"}
        counts = {"launches": sum(epoch.launches.values()), **dict(sorted(epoch.launches.items()))}
        row = figures | {name: str(count) for name, count in counts.items()}
        self._save(trainer, [*self.epochs, row])

    def _save(self, trainer: Trainer, epochs: list[dict[str, str]]) -> None:
        columns = list(dict.fromkeys(name for row in epochs for name in row)) or ["epoch"]
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, restval="0", lineterminator="\n")
        writer.writeheader()
        writer.writerows(epochs)
        replace(self.folder / METRICS, table.getvalue().encode())
        state = io.BytesIO()
        torch.save(trainer.state_dict(), state)
        replace(self.folder / STATE, state.getvalue())
        self.epochs = epochs  # a resumed training goes on after these from now on
        replace(self.folder / WEIGHTS, save_weights(trainer.model_weights()))

    @property
    def saved(self) -> int:
        """Number of epochs after which a resumed training goes on."""
        return len(self.epochs)

    def close(self) -> None:
        """Let other processes write to the folder."""
        self._lock.close()


class Onlooker:
    """The counterpart of the first process's Run in another process, which takes and gives its part of the state."""

    def __init__(self, trainer: Trainer, going_on: bool) -> None:
        if going_on:
            trainer.load_state_dict(trainer.processes.broadcast({}))
        self._give(trainer)

    def add(self, epoch: Epoch, trainer: Trainer) -> None:
        """Give this process's part of the state that the first process saves."""
        self._give(trainer)

    def _give(self, trainer: Trainer) -> None:
        trainer.state_dict()
        trainer.model_weights()
        self.saved = trainer.epoch


def _locked(folder: Path) -> Any:
    """Return the folder's lock; it ends with the process. Errors: BlockingIOError if another process has it."""
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BlockingIOError("another process trains there") from None
    return lock


def is_run(folder: Path) -> bool:
    """True if the folder holds a run."""
    return (folder / CONFIG).exists() or (folder / WEIGHTS).exists()


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv. Errors: ValueError, in one line."""
    try:
        with (folder / METRICS).open(newline="") as file:
            rows = list(csv.DictReader(file))
        for n, row in enumerate(rows, 1):
            if int(row["epoch"]) != n or None in row or None in row.values():
                raise ValueError(f"line {n + 1} is not the figures of epoch {n}")
            for field in fields(Epoch):
                (float if field.type is float else int)(row[field.name])  # launches: their total
        launch_counts(rows)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{folder / METRICS}: not the figures of a run ({_line(error)})") from None
    return rows


def launch_counts(rows: list[dict[str, str]]) -> dict[str, int]:
    """Return the kernel launches of all epochs, by operator, from the rows of metrics.csv."""
    operators = dict.fromkeys(name for row in rows for name in row)
    for field in fields(Epoch):
        operators.pop(field.name, None)
    return {name: sum(int(row.get(name) or 0) for row in rows) for name in operators}


def _line(error: object) -> str:
    """Return an error's message in one line, at most about 300 characters long."""
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + "..."


def read_config(folder: Path) -> Config:
    """Return the configuration of a run. Errors: ValueError, in one line."""
    if not is_run(folder):
        raise ValueError(f"{folder}: no run is here ({CONFIG} and {WEIGHTS} are missing)")
    try:
        return _checked(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG}: not the configuration of a run ({_line(repr(error))})") from None


def _checked(values: dict[str, Any]) -> Config:
    """Return the configuration of JSON's values. Errors: KeyError, TypeError, ValueError."""
    config = Config(**{**values, "classes": tuple(values["classes"])})
    for field in fields(Config):
        name, kind, value = field.name, field.type, getattr(config, field.name)
        if name != "classes" and type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"{name} must be {kind}, but is {value!r}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but is {value}")
    if min(config.lr, config.epochs, config.batch_size) <= 0 or config.std < LEAST_STD:
        raise ValueError("lr, std, epochs and batch_size must be positive")
    if config.channels not in (1, 3) or not all(0 < side < 10**4 for side in (config.height, config.width)):
        raise ValueError("channels must be 1 or 3, height and width 1 to 9999")
    if not (0 <= config.seed < 2**32 and 0 <= config.smoothing <= 1):
        raise ValueError("seed must be 0 to 2^32 - 1, smoothing 0 to 1")
    if not all(isinstance(name, str) for name in config.classes):
        raise ValueError("classes must be names")
    return config


class Loaded(NamedTuple):
    """The model of a run, with the weights after its last finished epoch, and its configuration."""

    model: Classifier
    config: Config


def load(folder: Path, device: torch.device) -> Loaded:
    """Return the model of a run, and its configuration. Errors: ValueError, in one line, for a folder without a run or
    weights of another model."""
    config = read_config(folder)
    try:
        model = build(config, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / CONFIG}: not the configuration of a run ({_line(repr(error))})") from None
    try:
        model.load_state_dict(load_weights((folder / WEIGHTS).read_bytes()))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS}: can't be read ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS}: the weights of another model ({_line(error)})") from None
    return Loaded(model, config)
