"""The command line: cnn-triton train, evaluate, predict, report, show, demo.

PyTorch and Triton are imported once it is known where to run.
"""

import math
import os
import re
import sys
import warnings
from collections.abc import Set
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import torch

    from .data import ImageSet
    from .models import Classifier
    from .training import Config

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Trains image classifiers whose every layer is a Triton kernel, and shows what they see.",
)  # fmt: skip


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


class Model(StrEnum):
    """Which network."""

    lenet5 = "lenet5"
    vgg = "vgg"


DATA = "'digits', or a folder: of image files, a sub-folder a class, or of MNIST's IDX files."
Data = Annotated[str, typer.Option(help=DATA)]
OtherData = Annotated[str | None, typer.Option(help=f"{DATA} The run's own unless given.")]
Size = Annotated[str, typer.Option(help="What a folder's images are brought to: SIDE or HEIGHTxWIDTH, in pixels.")]
Network = Annotated[Model, typer.Option(help="A network like LeNet-5, or a small one like VGG.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Decides the split, the weights' start and the order of images.")
]
Where = Annotated[Device, typer.Option(help="auto: a CUDA GPU if there is one, else the CPU.")]
Kind = Annotated[Dtype, typer.Option(help="Of weights and activations.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; a new one in runs/ unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or begin it if none is there.")]
Run = Annotated[Path, typer.Argument(help="Folder that `train` wrote.")]
Images = Annotated[
    list[Path], typer.Argument(help="Image files, as those of the training: white digits on black, say.")
]


def fail(reason: object) -> NoReturn:
    """Ends the command: one line on the error stream, exit code 2."""
    sys.stderr.write(f"error: {' '.join(str(reason).split())}\n")
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


def open_data(source: str, seed: int, size: tuple[int, int]) -> "ImageSet":
    """The images of --data; what was left out of them is said on the error stream."""
    from . import data

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        try:
            images = data.read(source, seed, size)
        except ValueError as error:
            fail(f"--data {error}")
    for warning in said:
        sys.stderr.write(f"warning: {warning.message}\n")
    return images


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of 'SIDE' or 'HEIGHTxWIDTH'."""
    numbers = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if not numbers:
        fail(f"--size must be a number of pixels, as 32, or two, as 24x32 (height x width), but got {text!r}")
    return int(numbers[1]), int(numbers[2] or numbers[1])


def train_run(
    out: Path | None, device: Device, resume: bool = False, given: Set[str] = frozenset(), **options: Any
) -> Path:
    """Trains, or goes on with a training, and writes its report; returns the run's folder.

    given: the options that do not stand at their defaults only; a run that is gone on with must have the same
    """
    if not (options["lr"] > 0 and math.isfinite(options["lr"])):
        fail(f"--lr must be a positive number, but got {options['lr']}")
    size = parse_size(options["size"])
    if resume and out is None:
        fail("--resume needs --out, the folder of the run to go on with")
    where = choose(device)
    import cnn_triton

    from . import runs
    from .terminal import TrainingProgress
    from .training import Config, Diverged, Trainer, build

    source = options["data"] if options["data"] == "digits" else str(Path(options["data"]).resolve())
    out = out or free_folder(f"{Path(source).name}-{options['model']}")
    going_on = resume and runs.is_run(out)
    if not going_on and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"--out {out}: it is there already, and nothing is overwritten; name a new folder, or --resume a run")
    settings = {name: options[name] for name in ("epochs", "batch_size", "lr", "seed")} | {
        "dtype": options["dtype"].value
    }
    try:
        if going_on:
            config = runs.read_config(out)
            asked = settings | {"model": options["model"].value, "data": source, "size": size}
            refuse_changes(config, {name: asked[name] for name in given & asked.keys()}, out)
            data = open_data(config.data, config.seed, (config.height, config.width))
            if data.digest != config.digest:
                fail(f"--data {config.data}: these are not the images that the run in {out} was begun with")
        else:
            data = open_data(source, options["seed"], size)
            config = Config.of(options["model"].value, source, data, **settings)
        trainer = Trainer(build(config, where), data, config, where)
        run = runs.Run.resume(out, trainer) if going_on else runs.Run.create(out, trainer)
    except (OSError, ValueError) as error:
        fail(f"--out {out}: {error}")
    print(f"Layers run as {cnn_triton.where(where)}.")
    if going_on:
        print(f"Going on after epoch {trainer.epoch} of {config.epochs}.")
    images = len(data.train_labels)
    print(f"Training on {images} images for {config.epochs} epochs, batches of {config.batch_size}.")
    with TrainingProgress(config.epochs, trainer.epoch, images) as progress:
        while trainer.epoch < config.epochs:
            try:
                epoch = trainer.run_epoch(progress.on_batch)
                run.add(epoch, trainer)
            except (Diverged, OSError) as error:
                fail(f"{error}; {out} keeps the state after epoch {len(run.epochs)}")
            except KeyboardInterrupt:
                fail(f"interrupted; go on with --out {out} --resume, after epoch {len(run.epochs)}")
            progress.on_epoch(epoch)
    launches = {name: sum(int(row.get(name) or 0) for row in run.epochs) for name in cnn_triton.launches()}
    counts = ", ".join(f"{name} {number}" for name, number in sorted(launches.items()) if number)
    print(f"Kernel launches: {sum(launches.values())} ({counts})")
    write_report(out, trainer.model, config, data, where)
    run.close()
    print(f"test accuracy: {float(run.epochs[-1]['test_accuracy']):.3f}")
    return out


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
    from .runs import load

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
    from . import report

    try:
        return report.write_report(run, model, config, data, where, shown)
    except (OSError, ValueError) as error:
        fail(error)


@app.command()
def train(
    context: typer.Context,
    data: Data = "digits",
    model: Network = Model.lenet5,
    size: Size = "32",
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: Rate = 0.01,
    seed: Seed = 0,
    device: Where = Device.auto,
    dtype: Kind = Dtype.float32,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Trains a network on images, every layer a Triton kernel; keeps weights, figures and a page of pictures."""
    given = {
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    folder = train_run(
        out, device, resume, given,
        data=data, model=model, size=size, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, dtype=dtype,
    )  # fmt: skip
    print(f"Saved to {folder}; pictures: {folder / 'report.html'}")


@app.command()
def demo(
    model: Network = Model.lenet5,
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: Rate = 0.01,
    seed: Seed = 0,
    device: Where = Device.auto,
    dtype: Kind = Dtype.float32,
    out: Out = None,
) -> None:
    """Trains on handwritten digits, shows what the network says of a few unseen ones, and writes a page of pictures."""
    folder = train_run(
        out or free_folder("demo"), device,
        data="digits", model=model, size="8", epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, dtype=dtype,
    )  # fmt: skip
    where = choose(device)
    from .data import digits
    from .terminal import drawing
    from .training import probabilities

    network, config = open_run(folder, where)
    images = digits(seed)
    few = slice(0, 6)
    said = probabilities(network, images.test_images[few], config, where).argmax(1).tolist()
    print("\nUnseen digits:")
    pictures = [drawing(image[0]) for image in images.test_images[few]]
    for row in zip(*pictures, strict=True):
        print("  " + "   ".join(row))
    print("  " + "   ".join(f"{'says ' + images.classes[i]:16}" for i in said).rstrip())
    print("  " + "   ".join(f"{'is   ' + images.classes[i]:16}" for i in images.test_labels[few].tolist()).rstrip())
    print(f"\nWhat each layer sees: {(folder / 'report.html').resolve()}")


@app.command()
def evaluate(run: Run, data: OtherData = None, device: Where = Device.auto) -> None:
    """Says how many of the test images a run classifies right, class by class."""
    where = choose(device)
    model, config = open_run(run, where)
    images = run_data(run, config, data)
    from rich.console import Console
    from rich.table import Table

    from .training import probabilities

    right = probabilities(model, images.test_images, config, where).argmax(1) == images.test_labels
    table = Table("class", "images", "right", "accuracy")
    for index, name in enumerate(config.classes):
        own = right[images.test_labels == index]
        if len(own):
            table.add_row(name, str(len(own)), str(int(own.sum())), f"{own.float().mean().item():.3f}")
    Console().print(table)
    print(f"test accuracy: {right.float().mean().item():.3f}")


def run_data(run: Path, config: "Config", other: str | None) -> "ImageSet":
    """A run's own images, or others of the same kind, with the labels of the run's classes."""
    source = other or config.data
    images = open_data(source, config.seed, (config.height, config.width))
    kind, expected = (images.channels, *images.size), (config.channels, config.height, config.width)
    if kind != expected:
        fail(f"--data {source}: its images are {kind} (channels, height, width), but {run} is of {expected}")
    if unknown := set(images.classes) - set(config.classes):
        fail(f"--data {source}: {run} knows no class {sorted(unknown)[0]!r}, only {', '.join(config.classes)}")
    if other is None and images.digest != config.digest:
        sys.stderr.write(f"warning: the images in {source} have changed since the training, which may have seen some\n")
    import torch

    order = torch.tensor([config.classes.index(name) for name in images.classes])
    return images._replace(
        train_labels=order[images.train_labels], test_labels=order[images.test_labels], classes=config.classes
    )


@app.command()
def predict(run: Run, images: Images, device: Where = Device.auto) -> None:
    """Names the class of each image, with its probability."""
    where = choose(device)
    model, config = open_run(run, where)
    import torch

    from .data import load_image
    from .training import probabilities

    try:
        pixels = torch.stack([load_image(path, config.channels, (config.height, config.width)) for path in images])
    except ValueError as error:
        fail(error)
    shares, best = probabilities(model, pixels, config, where).max(1)
    for path, share, index in zip(images, shares.tolist(), best.tolist(), strict=True):
        print(f"{path}: {config.classes[index]} ({share:.1%})")


@app.command()
def report(
    run: Run,
    show_class: Annotated[
        list[str] | None, typer.Option("--class", help="A class to show an example of; may be given several times.")
    ] = None,
    data: OtherData = None,
    device: Where = Device.auto,
) -> None:
    """Writes report.html anew: what each layer sees, the training, the mistakes, and why convolution."""
    where = choose(device)
    model, config = open_run(run, where)
    images = run_data(run, config, data)
    print(write_report(run, model, config, images, where, tuple(show_class or ())))


@app.command()
def show(
    image: Annotated[str, typer.Argument(help="An image file, or scikit-learn's 'china' or 'flower'.")],
    run: Annotated[Path | None, typer.Option(help="A run whose first layer to use, instead of edge kernels.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; IMAGE.html, here, unless given.")] = None,
    device: Where = Device.auto,
) -> None:
    """Puts a photograph through a first layer, at full size, and writes a page of its feature maps."""
    where = choose(device)
    layer = open_run(run, where) if run else None
    from .data import load_image, sample_photograph
    from .report import write_photograph

    page = out or Path(f"{Path(image).stem}.html")
    if page.exists():
        fail(f"--out {page}: it is there already, and nothing is overwritten; name another page")
    try:
        path = Path(image) if Path(image).exists() else sample_photograph(image)
        photograph = load_image(path, layer[1].channels if layer else 1)
        write_photograph(photograph, Path(image).stem, layer, where, page)
    except (OSError, ValueError) as error:
        fail(error)
    print(page.resolve())


def main() -> None:
    """The command `cnn-triton`."""
    app()


if __name__ == "__main__":
    main()
