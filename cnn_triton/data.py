"""Images to learn from: scikit-learn's handwritten digits, and single image files for prediction."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DATASETS", "ImageSet", "digits", "load_image"]


class ImageSet(NamedTuple):
    """Images in [0, 1], (N, C, H, W) float32, with their classes, (N,) int64, in two parts."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return self.train_images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of an image."""
        return (self.train_images.shape[2], self.train_images.shape[3])


def digits(seed: int) -> ImageSet:
    """Handwritten digits: 1,797 real images, 8 x 8, white on black; a stratified 80/20 split by seed.

    Source: scikit-learn's load_digits, from the UCI data set "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=data.target, random_state=seed)
    return ImageSet(images[train], labels[train], images[test], labels[test], tuple(str(c) for c in data.target_names))


DATASETS = {"digits": digits}
"""Data sets by name; each takes a seed."""


def eight_bit(image: "Image.Image") -> "Image.Image":
    """The image with 8 bits a channel and nothing transparent. Errors: ValueError for pixels of unknown range."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of {image.mode!r}, 32 bits, have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    return image


def load_image(path: Path, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """An image file as (channels, H, W) float32 in [0, 1], shrunk or enlarged to size = (H, W).

    channels: 1 (grey) or 3 (RGB). The ink is taken as it is: a network trained on white digits expects white digits.
    16-bit grey is scaled to the same range; transparent parts are taken as black.
    Errors: ValueError, in one line, for a file that is missing or no readable image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = eight_bit(file).convert("L" if channels == 1 else "RGB").resize(size[::-1], Image.Resampling.BOX)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from None
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    return pixels.view(*size, channels).permute(2, 0, 1).contiguous()
