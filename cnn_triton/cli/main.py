"""The command line: cnn-triton train, evaluate, predict, report, show, compare, profile, inspect, demo."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .jobs import device_for_kernels, fail, find_device, free_folder, guarded, open_run, run_data, write_report
from .options import (
    BatchSize,
    Data,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    Epochs,
    FsdpOption,
    Images,
    LrOption,
    Model,
    ModelOption,
    OtherData,
    Out,
    Resume,
    Run,
    Seed,
    Size,
    typed,
)
from .train_command import compare_runs, train_run

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train image classifiers whose layers are Triton kernels, profile any PyTorch model, and inspect what a "
    "kernel compiles to.",
)  # fmt: skip


@app.command()
@guarded
def train(
    context: typer.Context,
    data: Data = "digits",
    model: ModelOption = Model.lenet5,
    size: Size = None,
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: LrOption = 0.01,
    seed: Seed = 0,
    device_name: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.float32,
    out: Out = None,
    resume: Resume = False,
    fsdp: FsdpOption = False,
) -> None:
    """Train a network on images, every layer a Triton kernel; keep weights, figures and a page of pictures.

    Under torchrun, the processes share every batch.
    """
    folder = train_run(
        out, device_name, resume, fsdp, typed(context),
        data=data, model=model.value, size=size,
        epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, dtype=dtype.value,
    )  # fmt: skip
    print(f"Saved to {folder}; pictures: {folder / 'report.html'}")


@app.command()
@guarded
def demo(
    model: ModelOption = Model.lenet5,
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: LrOption = 0.01,
    seed: Seed = 0,
    device_name: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.float32,
    out: Out = None,
) -> None:
    """Train on handwritten digits, classify a few unseen ones, and write a page of pictures."""
    folder = train_run(
        out or free_folder("demo"), device_name,
        data="digits", model=model.value, size=None,
        epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, dtype=dtype.value,
    )  # fmt: skip
    device = device_for_kernels(device_name)
    from ..classifier.data import digits
    from ..classifier.training import probabilities
    from .terminal import drawing

    run = open_run(folder, device)
    images = digits(seed)
    few = slice(0, 6)
    said = probabilities(run.model, images.test_images[few], run.config, device).argmax(1).tolist()
    print("\nUnseen digits:")
    pictures = [drawing(image[0]) for image in images.test_images[few]]
    for row in zip(*pictures, strict=True):
        print("  " + "   ".join(row))
    print("  " + "   ".join(f"{'says ' + images.classes[i]:16}" for i in said).rstrip())
    print("  " + "   ".join(f"{'is   ' + images.classes[i]:16}" for i in images.test_labels[few].tolist()).rstrip())
    print(f"\nWhat each layer sees: {(folder / 'report.html').resolve()}")


@app.command()
@guarded
def compare(
    context: typer.Context,
    data: Data = "digits",
    size: Size = None,
    epochs: Epochs = 15,
    batch_size: BatchSize = 128,
    lr: LrOption = 0.01,
    seed: Seed = 0,
    device_name: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.float32,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train a network three times, its first layer a convolution, locally connected, and fully connected, and write a
    page that shows the effect of shared weights: accuracy, number of weights, learned kernels."""
    page = compare_runs(
        out, device_name, resume, typed(context),
        data=data, size=size, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, dtype=dtype.value,
    )  # fmt: skip
    print(f"Compared: {page.resolve()}")


@app.command()
@guarded
def evaluate(run: Run, data: OtherData = None, device_name: DeviceOption = Device.auto) -> None:
    """Print how many of the test images a run classifies correctly, class by class."""
    device = device_for_kernels(device_name)
    loaded = open_run(run, device)
    images = run_data(run, loaded.config, data)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..classifier.training import probabilities

    right = probabilities(loaded.model, images.test_images, loaded.config, device).argmax(1) == images.test_labels
    table = Table("class", "images", "right", "accuracy")
    for index, name in enumerate(loaded.config.classes):
        own = right[images.test_labels == index]
        if len(own):
            table.add_row(escape(name), str(len(own)), str(int(own.sum())), f"{own.float().mean().item():.3f}")
    Console().print(table)
    print(f"test accuracy: {right.float().mean().item():.3f}")


@app.command()
@guarded
def predict(run: Run, images: Images, device_name: DeviceOption = Device.auto) -> None:
    """Print the class of each image, with its probability."""
    device = device_for_kernels(device_name)
    loaded = open_run(run, device)
    config = loaded.config
    import torch

    from ..classifier.data import load_image
    from ..classifier.training import probabilities

    try:
        pixels = torch.stack([load_image(path, config.channels, (config.height, config.width)) for path in images])
    except ValueError as error:
        fail(error)
    shares, best = probabilities(loaded.model, pixels, config, device).max(1)
    for path, share, index in zip(images, shares.tolist(), best.tolist(), strict=True):
        print(f"{path}: {config.classes[index]} ({share:.1%})")


@app.command()
@guarded
def report(
    run: Run,
    show_class: Annotated[
        list[str] | None, typer.Option("--class", help="A class to show an example of; may be given several times.")
    ] = None,
    data: OtherData = None,
    device_name: DeviceOption = Device.auto,
) -> None:
    """Write report.html anew: feature maps of each layer, the training, the mistakes, and the case for convolution."""
    device = device_for_kernels(device_name)
    loaded = open_run(run, device)
    images = run_data(run, loaded.config, data)
    print(write_report(run, loaded, images, device, tuple(show_class or ())))


@app.command()
@guarded
def show(
    image: Annotated[str, typer.Argument(help="An image file, or scikit-learn's 'china' or 'flower'.")],
    run: Annotated[Path | None, typer.Option(help="A run whose first layer is used instead of edge kernels.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; IMAGE.html in this folder unless given.")] = None,
    device_name: DeviceOption = Device.auto,
) -> None:
    """Put a photograph through a first layer, at full size, and write a page of its feature maps."""
    device = device_for_kernels(device_name)
    loaded = open_run(run, device) if run else None
    from ..classifier.data import load_image, sample_photograph
    from ..classifier.photograph import write_photograph

    page = out or Path(f"{Path(image).stem}.html")
    if page.exists():
        fail(f"--out {page}: it is there already, and nothing is overwritten; name another page")
    try:
        path = Path(image) if Path(image).exists() else sample_photograph(image)
        photograph = load_image(path, loaded.config.channels if loaded else 1)
        write_photograph(photograph, Path(image).stem, loaded, device, page)
    except (OSError, ValueError) as error:
        fail(error)
    print(page.resolve())


@app.command()
@guarded
def profile(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=f"{', '.join(Model)}; a run's folder; or module:function of your own.")],
    input: Annotated[str | None, typer.Option(help="Images: CHANNELSxHEIGHTxWIDTH.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 32,
    training: Annotated[
        bool, typer.Option("--training", help="Profile a training step: forward and backward.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show PyTorch's own operators beside ours, in one run.")
    ] = False,
    device_name: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.float32,
    steps: Annotated[int, typer.Option(min=1, help="Steps over which the figures are taken.")] = 10,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    trace: Annotated[Path | None, typer.Option(help="File for a trace that Chrome and Perfetto open.")] = None,
    roofline: Annotated[Path | None, typer.Option(help="File for a plot, for example roofline.png.")] = None,
    proton: Annotated[
        Path | None, typer.Option(help="File for the tree of Triton's profiler, if it is installed.")
    ] = None,
    ncu: Annotated[str | None, typer.Option(help="The name of a kernel for Nsight Compute to profile.")] = None,
) -> None:
    """Show where a step's time goes: by layer, operator and kernel, beside the limits of the device."""
    if ncu is not None:
        from .profile_command import ncu as run_ncu

        words = [model]
        options = {each.name: each.opts[0] for each in context.command.params}
        for name in sorted(typed(context) - {"ncu", "model"}):
            value = context.params[name]
            words += [options[name], *([] if value is True else [str(value)])]
        return run_ncu(ncu, words)
    device = find_device(device_name)
    import torch

    from .profile_command import profile_model

    profile_model(
        model, input, batch_size, device, getattr(torch, dtype.value), steps,
        training=training, compare=compare, json=json, trace=trace, roofline=roofline, proton=proton,
    )  # fmt: skip
    return None


@app.command("inspect")
@guarded
def inspect_command(
    op: Annotated[
        str,
        typer.Argument(
            help="A function of cnn_triton.functional, for example conv2d_relu; or file.py:function of your own."
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE: input=32x64x56x56, padding=1; a layer of ResNet-50 unless given."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="A chip, for example sm_90; may be given several times. All unless given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, tf32, float32 or float64.")] = "bfloat16",
    layout: Annotated[
        str, typer.Option(help="Memory format of images: channels_last or contiguous.")
    ] = "channels_last",
    gradients: Annotated[bool, typer.Option("--gradients", help="Compile the backward pass, too.")] = False,
    operator: Annotated[str | None, typer.Option(help="Show only this operator of those that the call runs.")] = None,
    tile: Annotated[
        str | None, typer.Option(help="A tile instead of the pick, for example 128x64x64,stages=3.")
    ] = None,
    tiles: Annotated[bool, typer.Option("--tiles", help="Show a table of every tile that could serve.")] = False,
    sort: Annotated[
        str | None, typer.Option(help="The figure that sorts the table of tiles, for example registers.")
    ] = None,
    run: Annotated[
        bool,
        typer.Option("--run", help="Run it, too, in the simulator, on random values: is it right, what does it do?"),
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="For --run: what PyTorch does in place of your own function, file.py:function.")
    ] = None,
    dump: Annotated[Path | None, typer.Option(help="Folder for TTIR, TTGIR, LLIR, PTX or AMDGCN, and SASS.")] = None,
    html: Annotated[Path | None, typer.Option(help="File for a page: source beside code, linked both ways.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
) -> None:
    """Show the code that a call compiles to on any chip, its limits there, and what it does; no GPU is needed."""
    if "cnn_triton.kernels.base.lang" not in sys.modules:  # on import it decides if kernels are interpreted
        os.environ["TRITON_INTERPRET"] = "0"
    from .inspect_command import inspect_op

    inspect_op(
        op, arguments or [], targets=target or ["all"], dtype=dtype, layout=layout, gradients=gradients,
        operator=operator, tile=tile, every_tile=tiles, sort=sort, run=run, reference=reference, dump=dump, html=html,
        json=json,
    )  # fmt: skip


def main() -> None:
    """Run the command `cnn-triton`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes
    app()
