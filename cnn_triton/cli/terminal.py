"""Output of the command line while it works: a progress bar, a line for each epoch, images in characters."""

from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..classifier.training import Epoch

__all__ = ["TrainingProgress", "drawing"]


class TrainingProgress:
    """A progress bar with the loss, accuracy and images per second of the epoch so far, and a line for each epoch.

    The bar is for terminals only. The lines also go to files and pipes; their figures are those of metrics.csv.
    """

    def __init__(self, epochs: int, finished: int, images: int) -> None:
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.description}"),
            TimeRemainingColumn(),
            disable=not Console().is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=epochs * images, completed=finished * images)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def on_batch(self, count: int, loss: float, accuracy: float, rate: float) -> None:
        """Move the bar by a batch of images."""
        text = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {rate:.0f} images/s"
        self.bar.update(self.task, advance=count, description=text)

    def on_epoch(self, epoch: Epoch) -> None:
        """Print an epoch's figures."""
        print(
            f"epoch {epoch.epoch:2d} of {self.epochs}  loss {epoch.train_loss:.4f}  "
            f"accuracy {epoch.train_accuracy:.3f}  test accuracy {epoch.test_accuracy:.3f}  "
            f"{epoch.images_per_second:.0f} images/s",
            flush=True,
        )

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def drawing(image: torch.Tensor) -> list[str]:
    """Return an image (H, W) in [0, 1] as lines of text, two characters for each pixel."""
    return ["".join(2 * " ░▒▓█"[min(int(v * 5), 4)] for v in row) for row in image.tolist()]
