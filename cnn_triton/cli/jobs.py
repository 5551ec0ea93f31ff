"""What the commands do: choose where to run, open images and runs, train; each failure is one line and exit code 2.

PyTorch and Triton are imported once it is known where to run.
"""

import contextlib
import functools
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Set
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    import torch

    from ..classifier.data import ImageSet
    from ..classifier.distributed import Processes
    from ..classifier.models import Classifier
    from ..classifier.runs import Onlooker, Run
    from ..classifier.training import Config, Trainer

__all__ = [
    "choose", "compare_runs", "fail", "free_folder", "guarded", "open_data", "open_run", "place", "run_data",
    "train_run", "write_report",
]  # fmt: skip


P = ParamSpec("P")
T = TypeVar("T")


def fail(reason: object) -> NoReturn:
    """Ends the command: one line on the error stream, exit code 2."""
    if first_to("fail"):  # the others end because of the same
        sys.stderr.write(f"error: {' '.join(str(reason).split())}\n")
    raise typer.Exit(2)


def launched() -> bool:
    """Did torchrun start this process, with others?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_to(do: str) -> bool:
    """Is this process the first of a training's to do something that is to be done once?"""
    if not launched():
        return True
    from ..classifier import distributed

    return distributed.first_to(do)


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """The command, in which a file or memory that can't be had is one line and exit code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> T:
        try:
            return command(*args, **options)
        except OSError as error:
            fail(error)
        except (MemoryError, RuntimeError) as error:
            if re.search("(closed|reset) by peer", str(error)):
                fail("another process of this training has ended; what it said of it, and torchrun's summary, say why")
            if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
                raise
            fail(f"not enough memory ({str(error)[:200]}); smaller images or a smaller --batch-size need less")

    return run


def place(device: str) -> "torch.device":
    """The device of a word."""
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        fail("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    return torch.device("cuda" if cuda and device != "cpu" else "cpu")


def choose(device: str) -> "torch.device":
    """The device to run on; on a CPU, Triton's interpreter is switched on, so that the kernels run there too."""
    # The interpreter's many small steps are 2.5 times slower on several threads, which wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    if place(device).type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
        warnings.filterwarnings("ignore", "(overflow|invalid value) encountered", RuntimeWarning)  # NumPy's, in there
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
    """The images of --data; what was left out of them is said on the error stream."""
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
    """(height, width) of 'SIDE' or 'HEIGHTxWIDTH', up to 9999."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if not numbers:
        fail(f"--size must be a number of pixels, as 32, or two, as 24x32 (height x width), but got {text!r}")
    return int(numbers[1]), int(numbers[2] or numbers[1])


def train_run(
    out: Path | None,
    device: str,
    resume: bool = False,
    fsdp: bool = False,
    given: Set[str] = frozenset(),
    among: Path | None = None,
    **options: Any,
) -> Path:
    """Trains, or goes on with a training, and writes its report; returns the run's folder.

    options: data, model, size, epochs, batch_size, lr, seed, dtype
    given: those that do not just stand at their defaults; a run that is gone on with must have been begun with them
    among: the folder that is to be gone on with instead of the run's own, where the run is one of several
    Of the processes that torchrun started, all train, the first one writes, and only in the first one this returns.
    """
    if not (options["lr"] > 0 and math.isfinite(options["lr"])):
        fail(f"--lr must be a positive number, but got {options['lr']}")
    options["size"] = parse_size(options["size"])
    if options["data"] != "digits":
        options["data"] = str(Path(options["data"]).resolve())
    if resume and out is None:
        fail("--resume needs --out, the folder of the run to go on with")
    if fsdp and not launched():
        fail(
            "--fsdp shares a training among processes, but this is one alone; torchrun --no-python cnn-triton train ..."
        )
    out = out or free_folder(f"{Path(options['data']).name}-{options['model']}")
    if Path(options["data"]) in out.resolve().parents:
        fail(f"--out {out}: it is inside --data, where a folder is a class; name one elsewhere")
    where = choose(device)
    from ..classifier import runs
    from ..classifier.distributed import Processes, joined

    with joined(where, fsdp) if launched() else contextlib.nullcontext(Processes()) as processes:
        out, going_on = processes.told((out, resume and runs.is_run(out)))
        run, trainer = open_training(out, where, processes, going_on, given, options)
        train_on(run, trainer, out, going_on, among or out)
    if not isinstance(run, runs.Run):
        raise typer.Exit
    counts = runs.launch_counts(run.epochs)
    by_operator = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    print(f"Kernel launches: {sum(counts.values())} ({by_operator})")
    write_report(out, open_run(out, where)[0], trainer.config, trainer.data, where)
    run.close()
    print(f"test accuracy: {float(run.epochs[-1]['test_accuracy']):.3f}")
    return out


COMPARED = ("lenet5", "lenet5-local", "lenet5-full")


def compare_runs(out: Path | None, device: str, resume: bool, given: Set[str], **options: Any) -> Path:
    """Trains the networks that differ in their first layer, and writes the page that compares them; returns its path.

    A comparison that is gone on with takes its options from the runs that are begun. options, given: see `train_run`
    """
    if launched():
        fail("compare trains one network after the other, in one process; start it without torchrun")
    if resume and out is None:
        fail("--resume needs --out, the folder of the comparison to go on with")
    folder = out or free_folder("compare")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"--out {folder}: it is there already, and nothing is overwritten; name a new folder, or --resume one")
    where = choose(device)
    from ..classifier import report, runs

    trained = [folder / model for model in COMPARED]
    for number, run in enumerate(reversed(trained), 1):  # the largest first: memory that is too little is said early
        begun = next((each for each in trained if runs.is_run(each)), None)
        if begun and not runs.is_run(run):  # like the one that is begun; that it fits the options has been seen there
            config = vars(open_run(begun, where)[1])
            kept = {"size", *(given & {"data"})}  # the images may have moved
            options |= {name: config[name] for name in options.keys() - kept}
            options["size"] = f"{config['height']}x{config['width']}"
        print(f"\nNetwork {number} of {len(trained)}: {run.name}")
        train_run(run, device, resume, given=given, among=folder, **options | {"model": run.name})
    try:
        return report.write_comparison(folder, [(run, *open_run(run, where)) for run in trained])
    except (OSError, ValueError) as error:
        fail(error)


def train_on(run: "Run | Onlooker", trainer: "Trainer", out: Path, going_on: bool, again: Path) -> None:
    """The epochs that are left, each saved; `again` is the folder to go on with after an interruption."""
    import cnn_triton

    from ..classifier.training import Diverged
    from .terminal import TrainingProgress

    epochs, images = trainer.config.epochs, len(trainer.data.train_labels)
    print(f"Layers run as {cnn_triton.where(trainer.device)}.")
    if going_on:
        print(f"Going on after epoch {trainer.epoch} of {epochs}.")
    shared = f", shared by {trainer.processes.kind}" if trainer.processes.size > 1 else ""
    print(f"Training on {images} images for {epochs} epochs, batches of {trainer.config.batch_size}{shared}.")
    with TrainingProgress(epochs, trainer.epoch, images) as progress:
        while trainer.epoch < epochs:
            try:
                epoch = trainer.run_epoch(progress.on_batch)
                run.add(epoch, trainer)
            except (Diverged, OSError) as error:
                fail(f"{error}; {out} keeps the state after epoch {run.saved}")
            except KeyboardInterrupt:
                if launched():  # and torchrun passes on what a terminal has sent already
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                fail(f"interrupted; go on with --out {again} --resume, after epoch {run.saved}")
            progress.on_epoch(epoch)


def open_training(
    out: Path, where: "torch.device", processes: "Processes", going_on: bool, given: Set[str], options: dict[str, Any]
) -> tuple["Run | Onlooker", "Trainer"]:
    """A new run, or the one that is gone on with, and its trainer. The folder is the first process's alone."""
    from ..classifier import runs
    from ..classifier.training import Config, Trainer, build

    writes = processes.first
    if writes and not going_on and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"--out {out}: it is there already, and nothing is overwritten; name a new folder, or --resume a run")
    try:
        begun = processes.told(runs.read_config(out) if writes and going_on else None)
        if begun:
            config = begun
            refuse_changes(config, {name: options[name] for name in given & options.keys() - {"data"}}, out)
            source = options["data"] if "data" in given else config.data  # the images may have moved
            data = open_data(source, config.seed, (config.height, config.width))
            if data.digest != config.digest:
                fail(f"--data {source}: these are not the images that the run in {out} was begun with")
        else:
            data = open_data(options["data"], options["seed"], options["size"])
            settings = {name: value for name, value in options.items() if name not in ("data", "model", "size")}
            config = processes.told(Config.of(options["model"], options["data"], data, **settings))
            if data.digest != config.digest:
                fail(f"--data {options['data']}: these are not the images that the first process has")
        trainer = Trainer(build(config, where), data, config, where, processes)
        if not writes:
            return runs.Onlooker(trainer, going_on), trainer
        return runs.Run.resume(out, trainer) if going_on else runs.Run.create(out, trainer), trainer
    except (OSError, ValueError) as error:
        fail(f"--out {out}: {error}")


def refuse_changes(config: "Config", asked: dict[str, Any], out: Path) -> None:
    """Fails if an option that was given contradicts the run that is gone on with."""
    begun = {**vars(config), "size": (config.height, config.width)}
    for name, value in asked.items():
        if value != begun[name]:
            fail(
                f"--{name.replace('_', '-')}: the run in {out} was begun with {begun[name]}, not {value}; "
                "leave the option out, or begin another run"
            )


def free_folder(name: str) -> Path:
    """A folder in runs/ that is not there yet."""
    return next(path for n in count(1) if not (path := Path("runs") / (name if n == 1 else f"{name}-{n}")).exists())


def open_run(run: Path, where: "torch.device") -> tuple["Classifier", "Config"]:
    """The model of a run."""
    from ..classifier.runs import load

    try:
        return load(run, where)
    except ValueError as error:
        fail(error)


def write_report(
    run: Path,
    model: "Classifier",
    config: "Config",
    data: "ImageSet",
    where: "torch.device",
    shown: tuple[str, ...] = (),
) -> Path:
    """Writes a run's report.html."""
    from ..classifier import report

    try:
        return report.write_report(run, model, config, data, where, shown)
    except (OSError, ValueError) as error:
        fail(error)


def run_data(run: Path, config: "Config", other: str | None) -> "ImageSet":
    """A run's own images, or others of the same kind, with the labels of the run's classes."""
    source = other or config.data
    images = open_data(source, config.seed, (config.height, config.width))
    kind, expected = (images.channels, *images.size), (config.channels, config.height, config.width)
    if kind != expected:
        fail(f"--data {source}: its images are {kind} (channels, height, width), but {run} is of {expected}")
    if unknown := set(images.classes) - set(config.classes):
        fail(f"--data {source}: {run} knows no class {sorted(unknown)[0]!r}, only {', '.join(config.classes)}")
    if images.digest != config.digest:
        sys.stderr.write(f"warning: {source} is not what the training held back from; it may have seen some of it\n")
    import torch

    order = torch.tensor([config.classes.index(name) for name in images.classes])
    return images._replace(
        train_labels=order[images.train_labels], test_labels=order[images.test_labels], classes=config.classes
    )
