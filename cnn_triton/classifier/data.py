"""Images to learn from: scikit-learn's handwritten digits, folders of image files, MNIST's IDX files; single images."""

import contextlib
import gzip
import hashlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

__all__ = ["ImageSet", "digits", "idx_files", "image_folder", "load_image", "read", "sample_photograph"]


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

    @property
    def digest(self) -> str:
        """A hash of all images and labels, part by part."""
        total = hashlib.sha256(repr(self.classes).encode())
        for tensor in self[:4]:
            total.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return total.hexdigest()[:16]


def read(source: str, seed: int, size: tuple[int, int] | None = None) -> ImageSet:
    """Return the images of a name or a folder: 'digits', MNIST's files, or a folder with one sub-folder for each class.

    size: (height, width) for a folder's images, 32 x 32 unless given; the others have their own
    errors: ValueError, in one line
    """
    folder = Path(source)
    try:
        if source != "digits" and not folder.is_dir():
            raise ValueError(f"{source}: neither 'digits' nor a folder of images")
        if source != "digits" and not _idx_pairs(folder):
            return image_folder(folder, seed, size or (32, 32))
        images = digits(seed) if source == "digits" else idx_files(folder, seed)
    except OSError as error:
        raise ValueError(f"{source}: can't be read ({error})") from None
    if size not in (None, images.size):
        own = " x ".join(map(str, images.size))
        raise ValueError(f"{source}: its images are {own} pixels; another size is for folders of image files")
    return images


def digits(seed: int) -> ImageSet:
    """Return handwritten digits: 1,797 real images, 8 x 8, white on black; a stratified 80/20 split by seed.

    Source: scikit-learn's load_digits, from the UCI data set "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    return _split(images, torch.from_numpy(data.target).long(), tuple(str(c) for c in data.target_names), seed)


def sample_photograph(name: str) -> Path:
    """Return the file of one of scikit-learn's sample photographs: 'china' or 'flower', 427 x 640 pixels, in colour."""
    import sklearn.datasets

    path = Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg"
    if name not in ("china", "flower"):
        raise ValueError(f"{name}: no such image; name a file, 'china' or 'flower'")
    return path


def _split(images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], seed: int) -> ImageSet:
    """Hold back a fifth of the images for the test, but at least as many as classes; each class in proportion."""
    from sklearn.model_selection import train_test_split

    held_back = max(len(classes), -(-len(labels) // 5))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=held_back, stratify=labels.numpy(), random_state=seed
    )
    return ImageSet(images[train], labels[train], images[test], labels[test], classes)


def image_folder(folder: Path, seed: int, size: tuple[int, int]) -> ImageSet:
    """Return PNG and JPEG files, one sub-folder for each class, at size = (H, W); a stratified 80/20 split by seed.

    Grey if every image is grey, else RGB. Files that are neither PNG nor JPEG are left out, with a warning.
    Errors: ValueError for fewer than two classes, a class of fewer than two images, an image that can't be read.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        found = f"only {classes[0].name!r}" if classes else "none"
        raise ValueError(f"{folder}: needs two or more sub-folders, one for each class, but has {found}")
    for path in classes:
        if not path.name.isprintable():
            raise ValueError(f"{folder}: the name of the sub-folder {path.name!a} can't be printed; rename it")
    files: list[Path] = []
    labels: list[int] = []
    for label, path in enumerate(classes):
        there = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        images = [file for file in there if file.suffix.lower() in (".png", ".jpg", ".jpeg")]
        if len(images) < len(there):
            warnings.warn(f"{path}: {len(there) - len(images)} files are no PNG or JPEG and are left out", stacklevel=2)
        if len(images) < 2:
            raise ValueError(f"{path}: a class needs two or more PNG or JPEG files, but has {len(images)}")
        files += images
        labels += [label] * len(images)
    channels = 1 if all(_is_grey(file) for file in files) else 3
    pixels = torch.stack([load_image(file, channels, size) for file in files])
    return _split(pixels, torch.tensor(labels), tuple(path.name for path in classes), seed)


def _idx_pairs(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the IDX files of a folder: {'train' or 'test': {'images' or 'labels': file}}."""
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        found = re.search(r"(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(\.gz)?$", path.name)
        if found:
            pairs.setdefault("train" if found[1] == "train" else "test", {})[found[2]] = path
    return pairs


def idx_files(folder: Path, seed: int) -> ImageSet:
    """Return the images of MNIST's files, or its successors': train-images-idx3-ubyte, train-labels-idx1-ubyte and
    t10k-..., plain or .gz.

    Without a test pair, a fifth of the training images is held back, by seed. Errors: ValueError for a missing half
    of a pair, a file that is not IDX, or numbers of images and labels that differ.
    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    pairs = _idx_pairs(folder)
    parts = {}
    for part in sorted({"train", *pairs}):
        missing = {"images", "labels"} - pairs.get(part, {}).keys()
        if missing:
            raise ValueError(f"{folder}: the {' and '.join(sorted(missing))} file of the {part} images is missing")
        images, labels = _idx(pairs[part]["images"], 3), _idx(pairs[part]["labels"], 1)
        if len(images) != len(labels):
            raise ValueError(f"{folder}: the {part} files hold {len(images)} images and {len(labels)} labels")
        parts[part] = torch.from_numpy(images).float()[:, None] / 255, torch.from_numpy(labels).long()
    present = torch.cat([labels for _, labels in parts.values()]).unique()
    parts = {part: (images, torch.searchsorted(present, labels)) for part, (images, labels) in parts.items()}
    names = tuple(str(label) for label in present.tolist())
    if len(names) < 2:
        raise ValueError(f"{folder}: needs two or more classes, but every label is {names[0]}")
    if "test" not in parts:
        return _split(*parts["train"], names, seed)
    if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
        raise ValueError(f"{folder}: training and test images differ in size")
    return ImageSet(*parts["train"], *parts["test"], names)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the values of an IDX file of bytes: 0, 0, the type 8, number of dimensions, big-endian sizes, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable gzip file ({error})") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape, dtype=object):
        raise ValueError(
            f"{path}: {' x '.join(map(str, shape))} values are promised, but {len(content) - header} are there"
        )
    if 0 in shape:
        raise ValueError(f"{path}: holds no values ({' x '.join(map(str, shape))})")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def load_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Return an image file as (channels, H, W) float32 in [0, 1], shrunk or enlarged to size = (H, W) if given.

    channels: 1 (grey) or 3 (RGB). Colours are not inverted: a network trained on white digits expects white digits.
    The image is turned upright as its EXIF orientation says, 16-bit grey is scaled to the same range, and transparent
    parts become black. Errors: ValueError, in one line, for a file that is missing, no readable image, or larger than
    Pillow's Image.MAX_IMAGE_PIXELS.
    """
    with _opened(path) as file:
        image = eight_bit(_upright(file)).convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    return pixels.view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file. Errors: ValueError, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Pillow finds odd, but reads
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: too large an image ({error})") from None
    except Exception as error:  # on torn files Pillow's decoders fail in any way
        raise ValueError(f"{path}: not a readable image ({error})") from None


# How to turn an image upright, by its EXIF orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned upright by its EXIF orientation; as it is if that can't be read."""
    turn = None
    with contextlib.suppress(Exception):  # the pixels may be fine
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _is_grey(path: Path) -> bool:
    """True if the file holds a grey image."""
    with _opened(path) as file:
        return file.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F")


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel and no transparency. Errors: ValueError for pixels of unknown range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of {image.mode!r}, 32 bits, have no known range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    return image
