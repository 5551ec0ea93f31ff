"""The parts that commands share: choose a device, open images and runs; each failure is one line and exit code 2.

PyTorch and Triton are imported only once the device is chosen.
"""

import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

import typer

from ..files import replace

if TYPE_CHECKING:
    import torch

    from ..classifier.data import ImageSet
    from ..classifier.runs import Loaded
    from ..classifier.training import Config

__all__ = [
    "device_for_kernels", "fail", "find_device", "free_folder", "guarded", "launched", "open_data", "open_run",
    "parse_size", "run_data", "write_file", "write_report",
]  # fmt: skip


P = ParamSpec("P")
T = TypeVar("T")


def fail(reason: object) -> NoReturn:
    """End the command: one line on the error stream, exit code 2."""
    if first_to("fail"):  # the other processes end for the same reason
        sys.stderr.write(f"error: {' '.join(str(reason).split())}\n")
    raise typer.Exit(2)


def launched() -> bool:
    """True if torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_to(do: str) -> bool:
    """True if this process is the first of a training to do a thing that is to be done once."""
    if not launched():
        return True
    from ..classifier import distributed

    return distributed.first_to(do)


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Return the command with one line and exit code 2 for a file or memory that can't be had."""

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> T:
        try:
            return command(*args, **options)
        except OSError as error:
            fail(error)
        except (MemoryError, RuntimeError) as error:
            if re.search("(closed|reset) by peer", str(error)):
                fail("another process of this training has ended; its own message, and torchrun's summary, say why")
            if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
                raise
            fail(f"not enough memory ({str(error)[:200]}); smaller images or a smaller --batch-size need less")

    return run


def find_device(device_name: str) -> "torch.device":
    """Return the device of --device: auto, cpu or cuda. Fail for cuda without a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    if device_name == "cuda" and not cuda:
        fail("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    return torch.device("cuda" if cuda and device_name != "cpu" else "cpu")


def device_for_kernels(device_name: str) -> "torch.device":
    """Return this process's device; for a CPU, switch Triton's interpreter on, so that the kernels run there too."""
    # The interpreter's many small steps are 2.5 times slower on several threads, which wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    if find_device(device_name).type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
        warnings.filterwarnings("ignore", "(overflow|invalid value) encountered", RuntimeWarning)  # NumPy's, in it
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda")
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if own >= there:
        fail(
            f"--device cuda: torchrun starts more processes here than there are GPUs; --nproc-per-node={there} would do"
        )
    return torch.device("cuda", own)


def open_data(source: str, seed: int, size: tuple[int, int] | None) -> "ImageSet":
    """Return the images of --data; a line on the error stream says which files were left out."""
    from ..classifier import data

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        try:
            images = data.read(source, seed, size)
        except ValueError as error:
            fail(f"--data {error}")
    for warning in said:
        if first_to(f"warn: {warning.message}"):
            sys.stderr.write(f"warning: {warning.message}\n")
    return images


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of 'SIDE' or 'HEIGHTxWIDTH', up to 9999."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if not numbers:
        fail(
            f"--size must be a number of pixels, for example 32, or height x width, for example 24x32, but got {text!r}"
        )
    return int(numbers[1]), int(numbers[2] or numbers[1])


def free_folder(name: str) -> Path:
    """Return a folder in runs/ that is not there yet."""
    return next(path for n in count(1) if not (path := Path("runs") / (name if n == 1 else f"{name}-{n}")).exists())


def open_run(run: Path, device: "torch.device") -> "Loaded":
    """Return the model of a run, and its configuration."""
    from ..classifier.runs import load

    try:
        return load(run, device)
    except ValueError as error:
        fail(error)


def write_report(
    run: Path, loaded: "Loaded", data: "ImageSet", device: "torch.device", shown: tuple[str, ...] = ()
) -> Path:
    """Write a run's report.html; return its path."""
    from ..classifier import report

    try:
        return report.write_report(run, loaded.model, loaded.config, data, device, shown)
    except (OSError, ValueError) as error:
        fail(error)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a command was asked for, and say so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content)
    except OSError as error:
        fail(f"{path}: {error}")
    print(f"written: {path}")


def run_data(run: Path, config: "Config", other: str | None) -> "ImageSet":
    """Return a run's own images, or others of the same kind, with the labels of the run's classes."""
    source = other or config.data
    images = open_data(source, config.seed, (config.height, config.width))
    kind, expected = (images.channels, *images.size), (config.channels, config.height, config.width)
    if kind != expected:
        fail(f"--data {source}: its images are {kind} (channels, height, width), but {run} is of {expected}")
    if unknown := set(images.classes) - set(config.classes):
        fail(f"--data {source}: the run {run} has no class {sorted(unknown)[0]!r}, only {', '.join(config.classes)}")
    if images.digest != config.digest:
        sys.stderr.write(
            f"warning: {source} is not the data set of the training, which may have seen some of these images\n"
        )
    import torch

    order = torch.tensor([config.classes.index(name) for name in images.classes])
    return images._replace(
        train_labels=order[images.train_labels], test_labels=order[images.test_labels], classes=config.classes
    )
