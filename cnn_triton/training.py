"""Training, evaluating, saving and loading a classifier."""

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .data import ImageSet
from .models import MODELS

__all__ = [
    "DTYPES",
    "Config",
    "Diverged",
    "Epoch",
    "build",
    "evaluate",
    "fit",
    "load",
    "prepare",
    "probabilities",
    "save",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result, and what is needed to use its weights."""

    model: str
    data: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: float
    std: float
    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.01
    seed: int = 0
    dtype: str = "float32"
    smoothing: float = 0.1


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave."""

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float


class Diverged(RuntimeError):
    """The loss is no longer finite."""


def build(config: Config, device: torch.device) -> torch.nn.Module:
    """A new model, initialised by the configuration's seed, in its dtype and channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config.channels, (config.height, config.width), len(config.classes))
    return model.to(device, DTYPES[config.dtype], memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def normalised(images: torch.Tensor, config: Config, device: torch.device) -> torch.Tensor:
    """Images as the model takes them: zero mean, unit variance, on its device, in its dtype, channels_last."""
    scaled = (images - config.mean) / config.std
    return scaled.to(device, DTYPES[config.dtype], memory_format=torch.channels_last)


def fit(
    model: torch.nn.Module,
    data: ImageSet,
    config: Config,
    device: torch.device,
    on_batch: Callable[[int, float, float, float], None] = lambda *progress: None,
) -> Iterator[Epoch]:
    """Trains the model; yields after each epoch. AdamW, the learning rate rising and falling once (OneCycleLR).

    The loss is cross entropy with the labels smoothed by config.smoothing, so its least value is above zero.

    on_batch: called with (images in the batch; the epoch's loss, accuracy and images per second so far)
    errors: Diverged, a RuntimeError, if the loss is not finite
    """
    images, labels = normalised(data.train_images, config, device), data.train_labels.to(device)
    shuffle = torch.Generator().manual_seed(config.seed)
    steps = -(-len(labels) // config.batch_size) * config.epochs
    masters = _Masters(model)
    optimizer = torch.optim.AdamW(masters.weights, lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)
    model.train()
    for epoch in range(1, config.epochs + 1):
        start, seen, loss_sum, right = time.perf_counter(), 0, 0.0, 0
        for batch in torch.randperm(len(labels), generator=shuffle).split(config.batch_size):
            batch = batch.to(device)
            logits = model(images[batch])
            loss = cross_entropy(logits.float(), labels[batch], label_smoothing=config.smoothing)
            model.zero_grad()
            loss.backward()
            masters.take_gradients()
            optimizer.step()
            masters.give_weights()
            schedule.step()
            seen += len(batch)
            loss_sum += loss.item() * len(batch)
            right += int((logits.argmax(1) == labels[batch]).sum())
            if not loss.isfinite():
                raise Diverged(f"the loss became {loss.item()} in epoch {epoch}; try a lower learning rate")
            on_batch(len(batch), loss_sum / seen, right / seen, seen / (time.perf_counter() - start))
        yield Epoch(epoch, loss_sum / seen, right / seen, seen / (time.perf_counter() - start))


class _Masters:
    """The weights that the optimizer moves: the model's own, or float32 copies of 16-bit ones.

    AdamW's steps are lost in 16 bits: its eps and squared gradients are 0 in float16, and small steps round away.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.own = list(model.parameters())
        self.weights = [p.detach().float() if p.dtype.itemsize == 2 else p for p in self.own]

    def take_gradients(self) -> None:
        """The model's gradients become the copies'."""
        for weight, own in zip(self.weights, self.own, strict=True):
            if weight is not own and own.grad is not None:
                weight.grad = own.grad.float()

    def give_weights(self) -> None:
        """The copies' values become the model's."""
        with torch.no_grad():
            for weight, own in zip(self.weights, self.own, strict=True):
                if weight is not own:
                    own.copy_(weight)


def probabilities(model: torch.nn.Module, images: torch.Tensor, config: Config, device: torch.device) -> torch.Tensor:
    """Class probabilities (N, classes), float32 on the CPU, of images in [0, 1]."""
    model.eval()
    with torch.no_grad():
        batches = normalised(images, config, device).split(512)
        return torch.cat([model(batch).float().softmax(1) for batch in batches]).cpu()


def evaluate(model: torch.nn.Module, data: ImageSet, config: Config, device: torch.device) -> float:
    """Share of the test images that the model classifies right."""
    predicted = probabilities(model, data.test_images, config, device).argmax(1)
    return (predicted == data.test_labels).float().mean().item()


def prepare(folder: Path) -> None:
    """Makes a run's folder and tries it, before the work. Errors: OSError if it can't be made or written to."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def save(model: torch.nn.Module, config: Config, folder: Path) -> None:
    """Writes the weights and the configuration to the run's folder; each file is complete or absent."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with _replacing(folder / _WEIGHTS) as file:
        save_file(weights, file)
    with _replacing(folder / _CONFIG) as file:
        file.write_text(json.dumps(asdict(config), indent=2) + "\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the path's name, on the disk, when it is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    """Does the folder hold a finished run?"""
    return (folder / _CONFIG).exists() or (folder / _WEIGHTS).exists()


def _checked(values: dict[str, Any]) -> Config:
    """The configuration of JSON's values. Errors: KeyError, TypeError, ValueError."""
    config = Config(**{**values, "classes": tuple(values["classes"])})
    kinds = {field.name: type(field.default) for field in fields(Config) if field.default is not MISSING}
    kinds |= dict.fromkeys(("model", "data"), str) | dict.fromkeys(("channels", "height", "width"), int)
    kinds |= dict.fromkeys(("mean", "std"), float) | {"classes": tuple}
    for name, kind in kinds.items():
        value = getattr(config, name)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"{name} must be {kind.__name__}, but is {value!r}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but is {value}")
    if not (config.std > 0 and all(isinstance(c, str) for c in config.classes)):
        raise ValueError("std must be positive, and classes names")
    return config


def load(folder: Path, device: torch.device) -> tuple[torch.nn.Module, Config]:
    """The model of a run. Errors: ValueError, in one line, for a folder without one or weights of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_run(folder):
        raise ValueError(f"{folder}: no run is here ({_CONFIG} and {_WEIGHTS} are missing)")
    try:
        config = _checked(json.loads((folder / _CONFIG).read_text()))
        model = build(config, device)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _CONFIG}: not the configuration of a run ({error!r})") from None
    try:
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / _WEIGHTS}: can't be read ({error})") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / _WEIGHTS}: the weights of another model ({reason})") from None
    return model, config
