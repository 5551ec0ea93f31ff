"""Arrays as pictures for a page, as data: URLs: pixels, kernels and maps as PNG, curves and matrices as SVG."""

import base64
import io
import warnings

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

__all__ = ["confusion", "curves", "kernels", "maps", "photograph", "pixels"]

_GAP = 4  # pixels between the tiles of a sheet


def _url(content: bytes, kind: str) -> str:
    """Return an image file as a data: URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(array: np.ndarray) -> str:
    """Return an array of bytes as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=True)
    return _url(buffer.getvalue(), "png")


def _bytes(image: torch.Tensor) -> np.ndarray:
    """Return an image (C, H, W) in [0, 1], grey or RGB, as (H, W, 3) bytes."""
    return (image.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def pixels(image: torch.Tensor) -> str:
    """Return an image (C, H, W) in [0, 1] as a PNG."""
    return _png(_bytes(image))


def photograph(image: torch.Tensor) -> str:
    """Return an image (C, H, W) in [0, 1] as a JPEG, for images of millions of pixels."""
    buffer = io.BytesIO()
    Image.fromarray(_bytes(image)).save(buffer, "JPEG", quality=90)
    return _url(buffer.getvalue(), "jpeg")


def kernels(weight: torch.Tensor, side: int = 48) -> str:
    """Draw a first layer's weights (K, C, R, S), one tile for each kernel: in colour for C = 3, else blue below 0, red
    above."""
    top = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    scaled = 0.5 + weight / (2 * top)
    if weight.shape[1] == 3:
        return _sheet([_bytes(kernel) for kernel in scaled], side)
    colours = colormaps["RdBu_r"]
    return _sheet([_coloured(kernel.mean(0).numpy(), colours) for kernel in scaled], side)


def maps(values: torch.Tensor, side: int = 48) -> str:
    """Draw feature maps (K, P, Q), one tile for each, black at 0 (or at the least value, if lower), brightest at their
    maximum."""
    low, high = min(values.min().item(), 0.0), values.max().item()
    scaled = (values - low) / max(high - low, 1e-12)
    return _sheet([_coloured(one.numpy(), colormaps["magma"]) for one in scaled], side)


def _coloured(values: np.ndarray, colours: object) -> np.ndarray:
    """Return values in [0, 1] in the colours of a map."""
    return colours(values, bytes=True)[..., :3]  # type: ignore[operator,no-any-return]


def _sheet(tiles: list[np.ndarray], side: int, across: int = 16) -> str:
    """Put tiles (H, W, 3) side by side, `across` in a row, enlarged by a whole factor or shrunk to about `side`."""
    h, w = tiles[0].shape[:2]
    factor = max(side // max(h, w), 1)
    h, w = h * factor, w * factor
    if max(h, w) > 3 * side:
        h, w = (max(length * 3 * side // max(h, w), 1) for length in (h, w))
        across = max(across // 3, 1)
    across = min(across, len(tiles))
    rows = -(-len(tiles) // across)
    sheet = Image.new("RGBA", (across * (w + _GAP) - _GAP, rows * (h + _GAP) - _GAP))
    for n, tile in enumerate(tiles):
        enlarged = Image.fromarray(tile).resize(
            (w, h), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
        )
        sheet.paste(enlarged, (n % across * (w + _GAP), n // across * (h + _GAP)))
    return _png(np.array(sheet))


def _svg(figure: Figure) -> str:
    """Return a figure as SVG."""
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnn_triton", "font.family": "sans-serif"}),
    ):
        warnings.simplefilter("ignore")  # about glyphs that Matplotlib lacks: the browser has them
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _url(buffer.getvalue(), "svg+xml")


def curves(metrics: list[dict[str, str]]) -> str:
    """Plot loss and accuracy by epoch, of training and test images, from the rows of metrics.csv."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    epochs = [int(row["epoch"]) for row in metrics]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", "#2a6f97"), ("test", "#c1440e")):
            values = [float(row[f"{part}_{quantity}"]) for row in metrics]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=f"{part} images")
        axes.set(xlabel="epoch", ylabel=quantity, xlim=(0.5, len(epochs) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(useOffset=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return _svg(figure)


def confusion(counts: torch.Tensor, classes: tuple[str, ...]) -> str:
    """Plot the confusion matrix: counts[i, j] images of class i that the network classifies as class j."""
    n = len(classes)
    side = min(max(3.2, 0.42 * n + 1.4), 12)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    if n <= 30:
        for i, j in counts.nonzero().tolist():
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=9)
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
        axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
        axes.set_yticks(range(n), names, parse_math=False)
    axes.set(xlabel="the network says", ylabel="it is")
    return _svg(figure)
