"""The command line: cnn-triton train, demo, predict. PyTorch and Triton are imported once it is known where to run."""

import math
import os
import sys
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    import torch

    from .data import ImageSet
    from .training import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """What to compute in."""

    float32 = "float32"
    float64 = "float64"
    float16 = "float16"
    bfloat16 = "bfloat16"


Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Decides the split, the weights' start and the order of images.")
]
Where = Annotated[Device, typer.Option(help="auto: a CUDA GPU if there is one, else the CPU.")]
Kind = Annotated[Dtype, typer.Option(help="Of weights and activations.")]
Run = Annotated[Path, typer.Argument(help="Folder that `train` wrote.")]
Images = Annotated[list[Path], typer.Argument(help="Image files, white digits on black for a model of the digits.")]


def fail(reason: object) -> NoReturn:
    """Ends the command: one line on the error stream, exit code 2."""
    sys.stderr.write(f"error: {reason}\n")
    raise typer.Exit(2)


def choose(device: Device) -> "torch.device":
    """The device to run on; on a CPU, Triton's interpreter is switched on, so that the kernels run there too."""
    # The interpreter's many small steps are 2.5 times slower on several threads, which wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    cuda = torch.cuda.is_available()
    if device is Device.cuda and not cuda:
        fail("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    if device is Device.cpu or not cuda:
        os.environ.setdefault("TRITON_INTERPRET", "1")
        warnings.filterwarnings("ignore", "(overflow|invalid value) encountered", RuntimeWarning)  # NumPy's, in there
        return torch.device("cpu")
    return torch.device("cuda")


def train_run(
    out: Path | None, epochs: int, batch_size: int, lr: float, seed: int, device: Device, dtype: Dtype
) -> tuple["torch.nn.Module", "ImageSet", "Config", "torch.device", float]:
    """Trains on the digits with a progress bar and saves the result: (model, data, config, device, accuracy)."""
    if not (lr > 0 and math.isfinite(lr)):
        fail(f"--lr must be a positive number, but got {lr}")
    if out is not None and out.exists() and not out.is_dir():
        fail(f"--out {out}: a file is there; name a folder")
    where = choose(device)
    import cnn_triton

    from .data import digits
    from .training import Config, Diverged, build, evaluate, fit, is_run, prepare, save

    if out is not None and is_run(out):
        fail(f"--out {out}: a run is there already, and nothing is overwritten; name another folder")
    if out is not None:
        try:
            prepare(out)
        except OSError as error:
            fail(f"--out {out}: can't be written ({error})")
    print(f"Layers run as {cnn_triton.where(where)}.")
    data = digits(seed)
    mean, std = data.train_images.mean().item(), data.train_images.std().item()
    config = Config(
        "lenet5", "digits", data.channels, *data.size, data.classes, mean, std,
        epochs, batch_size, lr, seed, dtype.value,
    )  # fmt: skip
    model = build(config, where)
    print(f"Training on {len(data.train_labels)} images for {epochs} epochs, batches of {batch_size}.")
    with progress(epochs * len(data.train_labels)) as on_batch:
        try:
            for _ in fit(model, data, config, where, on_batch):
                pass
        except Diverged as error:
            fail(error)
    accuracy = evaluate(model, data, config, where)
    counts = cnn_triton.launches()
    print(f"Kernel launches: {sum(counts.values())} ({', '.join(f'{name} {n}' for name, n in sorted(counts.items()))})")
    if out is not None:
        try:
            save(model, config, out)
        except OSError as error:
            fail(f"--out {out}: can't be written ({error})")
        print(f"Saved to {out}.")
    return model, data, config, where, accuracy


class progress:
    """A progress bar over images, with loss, accuracy and images per second; on a pipe, a line a tenth."""

    def __init__(self, images: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.images = images
        self.done = 0
        self.console = Console()
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Callable[[int, float, float, float], None]:
        self.bar.start()
        task = self.bar.add_task("", total=self.images)

        def on_batch(count: int, loss: float, accuracy: float, rate: float) -> None:
            text = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {rate:.0f} images/s"
            self.bar.update(task, advance=count, description=text)
            tenths = 10 * self.done // self.images, 10 * (self.done + count) // self.images
            self.done += count
            if not self.console.is_terminal and tenths[0] != tenths[1]:
                print(f"training {10 * tenths[1]:3d}%  {text}", flush=True)

        return on_batch

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for weights and configuration; a finished run is not overwritten.")],
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: Rate = 0.01,
    seed: Seed = 0,
    device: Where = Device.auto,
    dtype: Kind = Dtype.float32,
) -> None:
    """Trains a LeNet-5-like network on handwritten digits, every layer a Triton kernel."""
    *_, accuracy = train_run(out, epochs, batch_size, lr, seed, device, dtype)
    print(f"test accuracy: {accuracy:.3f}")


@app.command()
def demo(
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: Rate = 0.01,
    seed: Seed = 0,
    device: Where = Device.auto,
    dtype: Kind = Dtype.float32,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the run in.")] = None,
) -> None:
    """Trains on handwritten digits and shows what the network says of a few that it has not seen."""
    model, data, config, where, accuracy = train_run(out, epochs, batch_size, lr, seed, device, dtype)
    from .training import probabilities

    few = slice(0, 6)
    shares, best = probabilities(model, data.test_images[few], config, where).max(1)
    print(f"test accuracy: {accuracy:.3f}\n\nUnseen digits:")
    pictures = [drawing(image[0]) for image in data.test_images[few]]
    for row in zip(*pictures, strict=True):
        print("  " + "   ".join(row))
    said = [f"{data.classes[b]} ({s:.0%})" for b, s in zip(best.tolist(), shares.tolist(), strict=True)]
    truth = [data.classes[i] for i in data.test_labels[few].tolist()]
    print("  " + "   ".join(f"{'says ' + text:16}" for text in said).rstrip())
    print("  " + "   ".join(f"{'is   ' + text:16}" for text in truth).rstrip())


def drawing(image: "torch.Tensor") -> list[str]:
    """An image (H, W) in [0, 1] as lines of text, two characters a pixel."""
    return ["".join(2 * " ░▒▓█"[min(int(v * 5), 4)] for v in row) for row in image.tolist()]


@app.command()
def predict(run: Run, images: Images, device: Where = Device.auto) -> None:
    """Names the class of each image, with its probability."""
    where = choose(device)
    import torch

    from .data import load_image
    from .training import load, probabilities

    try:
        model, config = load(run, where)
        pixels = torch.stack([load_image(path, config.channels, (config.height, config.width)) for path in images])
    except ValueError as error:
        fail(error)
    shares, best = probabilities(model, pixels, config, where).max(1)
    for path, share, index in zip(images, shares.tolist(), best.tolist(), strict=True):
        print(f"{path}: {config.classes[index]} ({share:.1%})")


def main() -> None:
    """The command `cnn-triton`."""
    app()


if __name__ == "__main__":
    main()
