"""The options and arguments that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """The device to run on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """The dtype of weights and activations."""

    float32 = "float32"
    float64 = "float64"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Model(StrEnum):
    """The network to train."""

    lenet5 = "lenet5"
    lenet5_local = "lenet5-local"
    lenet5_full = "lenet5-full"
    vgg = "vgg"


DATA = "'digits', or a folder: of image files, one sub-folder for each class, or of MNIST's IDX files."
Data = Annotated[str, typer.Option(help=DATA)]
OtherData = Annotated[str | None, typer.Option(help=f"{DATA} The run's own unless given.")]
Size = Annotated[
    str | None, typer.Option(help="The size for a folder's images, 32 unless given: SIDE or HEIGHTxWIDTH.")
]
ModelOption = Annotated[
    Model,
    typer.Option(
        help="Similar to LeNet-5, the first layer a convolution, or locally or fully connected; or a small VGG."
    ),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step.")]
LrOption = Annotated[float, typer.Option(help="Highest learning rate.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Decides the split, the initial weights and the order of images.")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto: a CUDA GPU if there is one, else the CPU.")]
DtypeOption = Annotated[Dtype, typer.Option(help="The dtype of weights and activations.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder; a new one in runs/ unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or begin it if none is there.")]
FsdpOption = Annotated[
    bool, typer.Option("--fsdp", help="Under torchrun: split weights and optimizer among the processes (FSDP2).")
]
Run = Annotated[Path, typer.Argument(help="Folder that `train` wrote.")]
Images = Annotated[
    list[Path], typer.Argument(help="Image files similar to the training's, for example white digits on black.")
]


def typed(context: typer.Context) -> set[str]:
    """Return the names of the options that were given on the command line."""
    source = context.get_parameter_source
    return {name for name in context.params if getattr(source(name), "name", "") == "COMMANDLINE"}
