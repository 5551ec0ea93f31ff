"""Training and evaluating a classifier: the configuration, the loop epoch by epoch, its state, its figures."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..dispatch import launches
from .data import ImageSet
from .distributed import Processes
from .models import MODELS, Classifier

__all__ = ["DTYPES", "Config", "Diverged", "Epoch", "Trainer", "build", "evaluate", "normalised", "probabilities"]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


LEAST_STD = 1e-6
EVALUATED = 512  # images in a batch of an evaluation, in each process
ALONE = Processes()


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result, and everything needed to use its weights."""

    model: str
    data: str  # 'digits' or a folder
    digest: str  # of the images, ImageSet.digest
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

    @classmethod
    def of(cls, model: str, source: str, data: ImageSet, **settings: Any) -> "Config":
        """Return the configuration of a run on these images."""
        images = data.train_images
        mean, std = images.mean().item(), images.std().item()
        std = std if std > LEAST_STD else 1.0  # images of a single colour
        return cls(model, source, data.digest, data.channels, *data.size, data.classes, mean, std, **settings)


@dataclass(frozen=True)
class Epoch:
    """The figures of one pass over the training images: a row of metrics.csv.

    Losses include the smoothing of labels; seconds and images per second are of the training only; launches count the
    kernels of the training and of the evaluation, by operator.
    """

    epoch: int
    batch_size: int
    train_images: int
    train_loss: float
    train_accuracy: float
    test_images: int
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    launches: dict[str, int]


class Diverged(RuntimeError):
    """The loss is no longer finite."""


def build(config: Config, device: torch.device) -> Classifier:
    """Return a new model, initialised by the configuration's seed, in its dtype and channels_last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config.channels, (config.height, config.width), len(config.classes))
    return model.to(device, DTYPES[config.dtype], memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def normalised(images: torch.Tensor, config: Config, device: torch.device) -> torch.Tensor:
    """Return images as the model takes them: zero mean, unit variance, on its device, in its dtype, channels_last."""
    scaled = (images - config.mean) / config.std
    return scaled.to(device, DTYPES[config.dtype], memory_format=torch.channels_last)


class Trainer:
    """The training of a model: AdamW, the learning rate rising and falling once (OneCycleLR), cross entropy of smoothed
    labels.

    With state_dict() after an epoch and load_state_dict() in another process, the remaining epochs give the same
    weights, bit for bit, as without the interruption.

    Several processes share each batch and each epoch's test images, and all of them call every method. Figures and
    states are those of all processes together, and fit any number of processes.
    """

    def __init__(
        self,
        model: Classifier,
        data: ImageSet,
        config: Config,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.data, self.config, self.device, self.processes = model, data, config, device, processes
        self.epoch = 0  # finished ones
        self._images, self._labels = normalised(data.train_images, config, device), data.train_labels.to(device)
        self._shuffle = torch.Generator().manual_seed(config.seed)
        self._wrapped = processes.wrap(model)
        self._masters = _Masters(model)
        self._optimizer = torch.optim.AdamW(self._masters.weights, lr=config.lr, weight_decay=0.01)
        steps = -(-len(self._labels) // config.batch_size) * config.epochs
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, config.lr, total_steps=steps)

    def run_epoch(self, on_batch: Callable[[int, float, float, float], None] = lambda *progress: None) -> Epoch:
        """Train on every image once, then evaluate.

        on_batch: gets (images in the batch; the epoch's loss, accuracy and images per second so far) after each
        errors: Diverged, a RuntimeError, if the loss is not finite
        """
        self.model.train()
        epoch, before = self.epoch + 1, launches()
        start, seen, loss_sum, right = time.perf_counter(), 0, 0.0, 0.0
        for batch in torch.randperm(len(self._labels), generator=self._shuffle).split(self.config.batch_size):
            losses, correct = self._step(batch)
            seen += len(batch)
            loss_sum += losses
            right += correct
            if not math.isfinite(losses):
                raise Diverged(f"the loss became {losses / len(batch)} in epoch {epoch}; try a lower learning rate")
            on_batch(len(batch), loss_sum / seen, right / seen, seen / (time.perf_counter() - start))
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = evaluate(self.model, self.data, self.config, self.device, self.processes)
        finite = self.processes.gather([weight.isfinite().all() for weight in self._masters.weights])
        if not (math.isfinite(test_loss) and all(finite)):
            raise Diverged(f"the test images' loss became {test_loss} in epoch {epoch}; try a lower learning rate")
        ran = self.processes.sum_counts({name: count - before.get(name, 0) for name, count in launches().items()})
        self.epoch = epoch
        return Epoch(
            epoch, self.config.batch_size, seen, loss_sum / seen, right / seen,
            len(self.data.test_labels), test_loss, test_accuracy, seconds, seen / seconds, ran,
        )  # fmt: skip

    def _step(self, batch: torch.Tensor) -> list[float]:
        """Make one step of the optimizer. Return (sum of the images' losses, images classified correctly)."""
        own = self.processes.share(batch).to(self.device)
        logits, labels = self._wrapped(self._images[own]), self._labels[own]
        loss = _loss(logits.float(), labels, self.config)
        self.model.zero_grad()
        # So the mean of the processes' gradients is that of the batch's mean loss, however uneven the shares are.
        (loss * (len(own) * self.processes.size / len(batch))).backward()
        self._masters.take_gradients()
        self._optimizer.step()
        self._masters.give_weights()
        self._schedule.step()
        return self.processes.totals(loss.item() * len(own), int((logits.argmax(1) == labels).sum()))

    def model_weights(self) -> dict[str, torch.Tensor]:
        """Return the model's state_dict, on the CPU."""
        whole = self.processes.gather(self.model.state_dict())
        return {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the remaining epochs depend on, as tensors, numbers and texts."""
        return {
            "config": asdict(self.config),
            "epoch": self.epoch,
            "weights": self.processes.gather([weight.detach() for weight in self._masters.weights]),
            "optimizer": self.processes.gather(self._optimizer.state_dict()),
            "schedule": self._schedule.state_dict(),
            "shuffle": self._shuffle.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state. Errors: LookupError, TypeError, ValueError, RuntimeError for the state of another training."""
        if state["config"] != asdict(self.config):
            raise ValueError("it has another configuration")
        if type(state["epoch"]) is not int or not 0 <= state["epoch"] <= self.config.epochs:
            raise ValueError(f"its epoch is {state['epoch']!r}")
        split_like = self.processes.split_like
        for weight, value in zip(self._masters.weights, state["weights"], strict=True):
            if weight.shape != value.shape:
                raise ValueError(f"weights of {tuple(value.shape)} do not fit the model's {tuple(weight.shape)}")
            weight.detach().copy_(split_like(value, weight))
        self._masters.give_weights()
        optimizer = state["optimizer"]
        moments = {  # and numbers of steps, which are not split
            n: {
                name: split_like(value, self._masters.weights[n]) if value.dim() else value
                for name, value in own.items()
            }
            for n, own in optimizer["state"].items()
        }
        self._optimizer.load_state_dict({**optimizer, "state": moments})
        self._schedule.load_state_dict(state["schedule"])
        self._shuffle.set_state(state["shuffle"])
        self.epoch = state["epoch"]


class _Masters:
    """The weights that the optimizer updates: the model's own, or float32 copies of 16-bit weights.

    AdamW's steps are lost in 16 bits: its eps and squared gradients are 0 in float16, and small steps round away.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.own = list(model.parameters())
        self.weights = [p.detach().float() if p.dtype.itemsize == 2 else p for p in self.own]

    def take_gradients(self) -> None:
        """Copy the model's gradients to the copies."""
        for weight, own in zip(self.weights, self.own, strict=True):
            if weight is not own and own.grad is not None:
                weight.grad = own.grad.float()

    def give_weights(self) -> None:
        """Copy the copies' values to the model."""
        with torch.no_grad():
            for weight, own in zip(self.weights, self.own, strict=True):
                if weight is not own:
                    own.copy_(weight)


def _loss(logits: torch.Tensor, labels: torch.Tensor, config: Config) -> torch.Tensor:
    """Return the mean cross entropy of smoothed labels; 0, with gradient 0, for no images."""
    reduction = "mean" if len(labels) else "sum"
    return cross_entropy(logits, labels, label_smoothing=config.smoothing, reduction=reduction)


def _logits(model: Classifier, batches: Iterable[torch.Tensor], config: Config, device: torch.device) -> torch.Tensor:
    """Return logits (N, classes), float32 on the CPU, of batches of images in [0, 1]."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(normalised(batch, config, device)).float().cpu() for batch in batches])


def probabilities(model: Classifier, images: torch.Tensor, config: Config, device: torch.device) -> torch.Tensor:
    """Return class probabilities (N, classes), float32 on the CPU, of images in [0, 1]."""
    return _logits(model, images.split(EVALUATED), config, device).softmax(1)


def evaluate(
    model: Classifier, data: ImageSet, config: Config, device: torch.device, processes: Processes = ALONE
) -> tuple[float, float]:
    """Return the test images' (loss, accuracy); each process evaluates a share of them."""
    images, labels = (
        [processes.share(batch) for batch in whole.split(EVALUATED * processes.size)]
        for whole in (data.test_images, data.test_labels)
    )
    logits, own = _logits(model, images, config, device), torch.cat(labels)
    loss = _loss(logits, own, config).item() * len(own)
    losses, right = processes.totals(loss, int((logits.argmax(1) == own).sum()))
    count = len(data.test_labels)
    return losses / count, torch.tensor(right / count).item()  # as a mean in float32
