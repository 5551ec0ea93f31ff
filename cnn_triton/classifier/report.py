"""A run's report.html: feature maps, the training, the mistakes, the case for convolution; and a comparison of runs."""

import math
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import torch

from ..files import replace
from ..nn import Conv2d
from ..pages import render
from . import pictures
from .anatomy import Stage, feature_maps, stages, weight_counts
from .data import ImageSet
from .models import Classifier
from .runs import COMPARISON, REPORT, Loaded, read_metrics
from .training import Config, normalised, probabilities

__all__ = ["write_comparison", "write_report"]

_MAPS = 32  # the most maps of a layer in a picture
_BIG = (1000, 1000)


def write_report(
    folder: Path,
    model: Classifier,
    config: Config,
    data: ImageSet,
    device: torch.device,
    shown: tuple[str, ...] | None = None,
) -> Path:
    """Write a run's report.html, one file that needs no other; return its path.

    shown: the classes with an example that is put through the network; the first ten unless given
    errors: ValueError for a class that is not there or figures that can't be read, OSError
    """
    metrics = read_metrics(folder)
    shares = probabilities(model, data.test_images, config, device)
    first_of = {name: (data.test_labels == i).nonzero()[:1, 0].tolist() for i, name in enumerate(config.classes)}
    present = [name for name, found in first_of.items() if found]
    if unknown := [name for name in shown or () if name not in present]:
        raise ValueError(f"no test image is of a class {unknown[0]!r}; there are {', '.join(present)}")
    layers = stages(model.features, config.channels, (config.height, config.width))
    examples = [
        _example(model, config, data.test_images[first_of[name][0]], name, layers, device)
        for name in dict.fromkeys(shown or present[:10])
    ]
    chosen = next((example for example in examples if example["class"] == "7"), examples[0])
    page = render(
        "report.html",
        run=folder.name,
        config=config,
        metrics=metrics,
        unseen=data.digest == config.digest,
        stages=layers,
        weights=sum(p.numel() for p in model.parameters()),
        read=math.prod(layers[-1].output),
        kernels=pictures.kernels(model.kernels),
        shared=isinstance(model.first, Conv2d),
        examples=examples,
        first=chosen["class"],
        fields=[{"stage": stage, "box": stage.field.box(*_middle(stage))} for stage in layers],
        picture=chosen["image"],
        curves=pictures.curves(metrics) if metrics else None,
        **_answers(data, shares),
        **_weights(model, config, layers),
    )
    replace(folder / REPORT, page)
    return folder / REPORT


def write_comparison(folder: Path, runs: dict[Path, Loaded]) -> Path:
    """Write compare.html, for runs on the same images whose networks differ in their first layers; return its path.

    runs: the model and the configuration of each, by its folder
    errors: ValueError for figures that can't be read, and for runs that differ in more than their models; OSError
    """
    alike = [replaced(run.config, model="", data="") for run in runs.values()]
    if any(each != alike[0] for each in alike):
        raise ValueError(f"{folder}: its runs differ in more than their first layers, and can't be compared")
    rows = []
    for place, run in runs.items():
        model, config = run.model, run.config
        first, *_ = stages(model.features, config.channels, (config.height, config.width))
        last = read_metrics(place)[-1]
        rows.append(
            {
                "run": place.name,
                "first": first,
                "weights": model.first.weight.numel(),
                "all": sum(p.numel() for p in model.parameters()),
                "train": float(last["train_accuracy"]),
                "test": float(last["test_accuracy"]),
                "kernels": pictures.kernels(model.kernels),
            }
        )
    tested = last["test_images"]
    page = render("compare.html", config=config, rows=rows, tested=int(tested), epochs=int(last["epoch"]))
    replace(folder / COMPARISON, page)
    return folder / COMPARISON


def _answers(data: ImageSet, shares: torch.Tensor) -> dict[str, Any]:
    """Return the network's answers for the test images, and its mistakes."""
    said, labels, n = shares.argmax(1), data.test_labels, len(data.classes)
    wrong = (said != labels).nonzero()[:, 0]
    worst = wrong[shares[wrong].amax(1).argsort(descending=True)][:12].tolist()
    return {
        "tested": len(labels),
        "right": len(labels) - len(wrong),
        "wrong": len(wrong),
        "confusion": pictures.confusion(torch.bincount(labels * n + said, minlength=n * n).view(n, n), data.classes),
        "mistakes": [
            {
                "image": pictures.pixels(data.test_images[i]),
                "said": data.classes[said[i]],
                "is": data.classes[labels[i]],
                "share": shares[i].max().item(),
            }
            for i in worst
        ],
    }


def _weights(model: Classifier, config: Config, layers: list[Stage]) -> dict[str, Any]:
    """Return the numbers of weights of fully connected, locally connected and convolutional layers, for this image size
    and a big one."""
    one = next(stage for stage in layers if stage.convolves)._replace(groups=1)
    sizes = ((config.height, config.width), _BIG)
    return {
        "big": _BIG,
        "window": one.window.size,
        "one": [(size, weight_counts(one._replace(input=(1, *size), output=(1, *size)))) for size in sizes],
        "counts": [
            (f"{here.name}, {here.output[0]} maps", weight_counts(here), weight_counts(there))
            for here, there in zip(layers, stages(model.features, config.channels, _BIG), strict=True)
            if here.convolves
        ],
    }


def _example(
    model: Classifier, config: Config, image: torch.Tensor, name: str, layers: list[Stage], device: torch.device
) -> dict[str, Any]:
    """Return an image's pixels, its maps after each layer, and its class probabilities."""
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
    """Return the middle pixel (p, q) of a stage's output."""
    return stage.output[1] // 2, stage.output[2] // 2
