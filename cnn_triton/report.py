"""Pages that show what a network sees: report.html of a run, and a photograph through a first layer."""

from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from . import __version__, functional, pictures
from .anatomy import Stage, feature_maps, stages, weight_counts
from .data import ImageSet
from .models import Classifier
from .nn import Conv2d, MaxPool2d
from .runs import REPORT, read_metrics, replace
from .training import Config, normalised, probabilities

__all__ = ["EDGES", "write_photograph", "write_report"]

_MAPS = 32  # of a layer, at most, in a picture
_BIG = (1000, 1000)


def write_report(
    folder: Path,
    model: Classifier,
    config: Config,
    data: ImageSet,
    device: torch.device,
    shown: tuple[str, ...] | None = None,
) -> Path:
    """Writes a run's report.html, one file that needs no other; returns its path.

    shown: the classes of which an example is put through the network; the first ten unless given
    Errors: ValueError for a class that is not there or figures that can't be read, OSError.
    """
    metrics = read_metrics(folder)
    shares = probabilities(model, data.test_images, config, device)
    said, labels = shares.argmax(1), data.test_labels
    first_of = {name: (labels == i).nonzero()[:1, 0].tolist() for i, name in enumerate(config.classes)}
    present = [name for name, found in first_of.items() if found]
    if unknown := [name for name in shown or () if name not in present]:
        raise ValueError(f"no test image is of a class {unknown[0]!r}; there are {', '.join(present)}")
    n = len(config.classes)
    counts = torch.bincount(labels * n + said, minlength=n * n).view(n, n)
    own = stages(model.features, config.channels, (config.height, config.width))
    big = stages(model.features, config.channels, _BIG)
    examples = [
        _example(model, config, data.test_images[first_of[name][0]], name, own, device)
        for name in shown or present[:10]
    ]
    chosen = next((example for example in examples if example["class"] == "7"), examples[0])
    wrong = (said != labels).nonzero()[:, 0]
    worst = wrong[shares[wrong].amax(1).argsort(descending=True)]
    replace(
        folder / REPORT,
        _page(
            "report.html",
            config=config,
            run=folder.name,
            metrics=metrics,
            right=(said == labels).sum().item(),
            tested=len(labels),
            stages=own,
            examples=examples,
            first=chosen["class"],
            kernels=pictures.kernels(_first(model).weight.detach().float().cpu()),
            curves=pictures.curves(metrics) if metrics else None,
            confusion=pictures.confusion(counts, config.classes),
            wrong=len(wrong),
            mistakes=[
                {
                    "image": pictures.pixels(data.test_images[i]),
                    "said": config.classes[said[i]],
                    "is": config.classes[labels[i]],
                    "share": shares[i].max().item(),
                }
                for i in worst[:12].tolist()
            ],
            fields=[{"stage": stage, "box": stage.field.box(*_middle(stage))} for stage in own],
            picture=chosen["image"],
            counts=[
                (f"{a.name}, {a.output[0]} maps", weight_counts(a), weight_counts(b))
                for a, b in zip(own, big, strict=True)
                if a.convolves
            ],
            one=[_one_map(own[0], size) for size in ((config.height, config.width), _BIG)],
            big=_BIG,
            weights=sum(p.numel() for p in model.parameters()),
            read=own[-1].output[0] * own[-1].output[1] * own[-1].output[2],
        ),
    )
    return folder / REPORT


def _page(template: str, /, **values: Any) -> bytes:
    environment = Environment(
        loader=PackageLoader("cnn_triton", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = count
    return environment.get_template(template).render(version=__version__, **values).encode()


def count(number: int) -> str:
    """A whole number, from ten millions on as a power of ten."""
    if number < 10**7:
        return f"{number:,}"
    factor, exponent = f"{number:.1e}".split("e+")
    power = "10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1.0" else f"{float(factor):g} · {power}"


def _first(model: Classifier) -> Conv2d:
    return next(layer for layer in model.features if isinstance(layer, Conv2d))


def _example(
    model: Classifier, config: Config, image: torch.Tensor, name: str, layers: list[Stage], device: torch.device
) -> dict[str, Any]:
    """An image's way through the network: its pixels, its maps after each layer, its class probabilities."""
    model.eval()
    sheets = feature_maps(model.features, normalised(image[None], config, device))
    shares = probabilities(model, image[None], config, device)[0]
    top = shares.argsort(descending=True)[:10].tolist()
    return {
        "class": name,
        "image": pictures.pixels(image),
        "layers": [
            {"stage": stage, "shown": min(len(sheet), _MAPS), "sheet": pictures.maps(sheet[:_MAPS])}
            for stage, sheet in zip(layers, sheets, strict=True)
        ],
        "shares": [(config.classes[i], shares[i].item()) for i in top],
    }


def _middle(stage: Stage) -> tuple[int, int]:
    """A stage's output pixel (p, q) in the middle."""
    return stage.output[1] // 2, stage.output[2] // 2


def _one_map(stage: Stage, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Weights for one map of an image with one channel, as large as the image."""
    one = stage._replace(groups=1, input=(1, *size), output=(1, *size))
    return size, weight_counts(one)


# Hand-set 3x3 kernels: what a first layer may learn to find.
EDGES = {
    "bright on the left": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "bright on the right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "bright above": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "bright below": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "bright above left": ((2, 1, 0), (1, 0, -1), (0, -1, -2)),
    "bright above right": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "bright points (Laplace)": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "blur": ((1 / 9,) * 3,) * 3,
}


def write_photograph(
    image: torch.Tensor, name: str, layer: tuple[Classifier, Config] | None, device: torch.device, out: Path
) -> None:
    """Writes a page with a photograph's feature maps, at full size, after convolution + ReLU and after a 2x2 pool.

    image: (C, H, W) in [0, 1]; grey for the hand-set kernels, with a run's channels for its trained first layer
    Errors: OSError.
    """
    if layer is None:
        labels = list(EDGES)
        weight = torch.tensor(list(EDGES.values()))[:, None]
        x, conv = image[None].to(device), weight.to(device)
        found = functional.conv2d_relu(x, conv, None, padding="same")
    else:
        model, config = layer
        trained = _first(model)
        weight = trained.weight.detach().float().cpu()
        labels = [f"kernel {k}" for k in range(len(weight))]
        with torch.no_grad():
            found = trained(normalised(image[None], config, device))
    pooled = MaxPool2d(2, ceil_mode=True)(found)
    replace(
        out,
        _page(
            "photograph.html",
            name=name,
            hand_set=layer is None,
            image=pictures.photograph(image),
            size=tuple(image.shape[1:]),
            maps=[
                (label, pictures.kernels(weight[k : k + 1]), _bright(found[0, k]), _bright(pooled[0, k]))
                for k, label in enumerate(labels)
            ],
        ),
    )


def _bright(values: torch.Tensor) -> str:
    """A map (P, Q) in grey; its largest half percent is white."""
    flat = values.flatten().float().cpu()
    white = flat.kthvalue(-(-len(flat) * 995 // 1000)).values.clamp_min(1e-12)
    return pictures.photograph((flat / white).view(values.shape)[None])
