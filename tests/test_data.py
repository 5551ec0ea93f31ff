"""Images: folders of every kind, IDX files, unusual pixels, and what is wrong with bad ones in one line."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_triton.classifier.data import digits, idx_files, image_folder, load_image, read, sample_photograph
from small import write_images


def test_digits():
    data = digits(3)
    assert len(data.train_labels) == 1437
    assert len(data.test_labels) == 360
    assert data.size == (8, 8)
    assert data.test_labels.bincount().min() >= 34  # stratified: about a tenth of 360 each
    assert data.train_images.min() == 0
    assert data.train_images.max() == 1
    both = torch.cat([data.train_images, data.test_images]).flatten(1)
    whole = torch.cat([digits(4).train_images, digits(4).test_images]).flatten(1)
    assert torch.equal(both.sort(0)[0], whole.sort(0)[0])  # another split of the same images
    assert not torch.equal(digits(4).test_labels, data.test_labels)
    assert read("digits", 3).digest == data.digest != digits(4).digest


@pytest.mark.parametrize("channels", [1, 3])
def test_folder(tmp_path, channels):
    folder = write_images(tmp_path / "images", ["cat", "a dog", "7"], channels, count=10)
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("not a class")
    data = read(str(folder), 0, (6, 5))
    assert data.classes == ("7", "a dog", "cat")
    assert (data.channels, data.size) == (channels, (6, 5))
    assert data.train_labels.bincount().tolist() == [8, 8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2, 2]
    again, other = image_folder(folder, 0, (6, 5)), image_folder(folder, 1, (6, 5))
    assert torch.equal(again.train_images, data.train_images)
    assert again.digest == data.digest != other.digest
    brightness = [data.train_images[data.train_labels == c].mean().item() for c in range(3)]
    assert brightness[2] < brightness[1] < brightness[0]  # written as cat, a dog, 7: the labels are the folders'


def test_mixed_folder_is_in_colour(tmp_path):
    folder = write_images(tmp_path / "images", ["a", "b"])
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(folder / "a" / "red.JPEG", quality=100)
    data = image_folder(folder, 0, (8, 8))
    assert data.channels == 3
    everything = torch.cat([data.train_images, data.test_images])
    assert ((everything[:, 0] > 0.9) & (everything[:, 1] < 0.1)).flatten(1).all(1).sum() == 1


def test_other_files_are_left_out_with_a_warning(tmp_path):
    folder = write_images(tmp_path / "images", ["a", "b"])
    (folder / "a" / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match="1 files are no PNG or JPEG and are left out"):
        assert len(image_folder(folder, 0, (8, 8)).train_labels) == 12 - 3


def folder_of(what, path):
    if what == "empty":
        path.mkdir()
    elif what == "one class":
        write_images(path, ["only"])
    elif what == "one image":
        write_images(path, ["a", "b"])
        for n in range(1, 6):
            (path / "b" / f"{n}.png").unlink()
    elif what == "torn image":
        write_images(path, ["a", "b"], side=40)
        (path / "b" / "3.png").write_bytes((path / "b" / "3.png").read_bytes()[:300])
    elif what == "file":
        path.write_text("x")
    return path


BAD_FOLDERS = {
    "empty": "needs two or more sub-folders, one for each class, but has none",
    "one class": "needs two or more sub-folders, one for each class, but has only 'only'",
    "one image": "needs two or more PNG or JPEG files, but has 1",
    "torn image": "3.png: not a readable image",
    "file": "neither 'digits' nor a folder of images",
    "nothing": "neither 'digits' nor a folder of images",
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folder(tmp_path, what):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(str(folder_of(what, tmp_path / "images")), 0)
    assert BAD_FOLDERS[what] in str(error.value)
    assert str(tmp_path) in str(error.value)


def write_idx(path, array):
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def idx_folder(folder, suffix="", parts=("train", "t10k")):
    draw = np.random.default_rng(int(torch.randint(2**31, ())))
    arrays = {}
    for part, count in zip(parts, (40, 20), strict=False):
        labels = np.resize(np.array([3, 5, 9], np.uint8), count)
        arrays[part] = draw.integers(0, 256, (count, 7, 6), np.uint8), labels
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", arrays[part][0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    arrays = idx_folder(tmp_path, suffix)
    data = read(str(tmp_path), 0)
    assert data.classes == ("3", "5", "9")
    assert (data.channels, data.size) == (1, (7, 6))
    for images, labels, part in (
        (data.train_images, data.train_labels, "train"),
        (data.test_images, data.test_labels, "t10k"),
    ):
        assert torch.equal(images[:, 0], torch.from_numpy(arrays[part][0]) / 255)
        assert [int(data.classes[i]) for i in labels] == arrays[part][1].tolist()


def test_idx_without_a_test_part(tmp_path):
    idx_folder(tmp_path, parts=("train",))
    data = idx_files(tmp_path, 0)
    assert (len(data.train_labels), len(data.test_labels)) == (32, 8)


def test_bad_idx(tmp_path):
    idx_folder(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for content, words in (
        (whole[:-1], "40 x 7 x 6 values are promised, but 1679 are there"),
        (b"", "not an IDX file"),
        (whole[:9], "not an IDX file"),
        (labels.read_bytes(), "not an IDX file of bytes in 3 dimensions"),
    ):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read(str(tmp_path), 0)
    images.unlink()
    with pytest.raises(ValueError, match="the images file of the train images is missing"):
        read(str(tmp_path), 0)
    write_idx(images, np.zeros((39, 7, 6), np.uint8))
    with pytest.raises(ValueError, match="hold 39 images and 40 labels"):
        read(str(tmp_path), 0)
    write_idx(images, np.zeros((0, 7, 6), np.uint8))
    with pytest.raises(ValueError, match=r"holds no values \(0 x 7 x 6\)"):
        read(str(tmp_path), 0)
    images.unlink()
    packed = bytearray(gzip.compress(whole))
    packed[10] = 0xFF  # a kind of block that there is not: the data can't be unpacked
    images.with_name(f"{images.name}.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="not a readable gzip file"):
        read(str(tmp_path), 0)
    write_idx(images, np.zeros((39, 7, 6), np.uint8))
    images.rename(f"{images}.gz")
    with pytest.raises(ValueError, match="not a readable gzip file"):
        read(str(tmp_path), 0)


def test_images_of_other_kinds(tmp_path):
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    clear = np.dstack([np.full((8, 8, 3), 255, np.uint8), grey])  # white ink on nothing
    for name, pixels in (("8", grey), ("16", grey.astype(np.uint16) << 8), ("alpha", clear)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        image = load_image(tmp_path / f"{name}.png", 1, (8, 8))
        torch.testing.assert_close(image[0], torch.from_numpy(grey) / 255, atol=0.005, rtol=0)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="no known range"):
        load_image(tmp_path / "float.tiff", 1, (8, 8))


def test_colour_size_and_direction(tmp_path):
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[:3, :, 0] = 255  # red above
    picture = Image.fromarray(pixels)
    turned = picture.getexif()
    turned[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=turned)
    image = load_image(tmp_path / "turned.png", 3)
    assert image.shape == (3, 6, 10)
    assert image[0, 3:].eq(1).all()
    assert image[0, :3].eq(0).all()
    assert image[1:].eq(0).all()
    small = load_image(tmp_path / "turned.png", 3, (2, 5))
    assert small.shape == (3, 2, 5)
    assert torch.equal(small[0], torch.tensor([[0.0], [1.0]]).expand(2, 5))


def test_broken_exif(tmp_path):
    """Whatever is wrong with a camera's notes, the image is loaded, or refused in one line."""
    pixels = Image.fromarray(np.full((16, 16, 3), 128, np.uint8))
    notes = pixels.getexif()
    notes[0x0112], notes[0x010F], notes[0x011A] = 6, "maker", 72.0
    pixels.save(tmp_path / "good.jpg", exif=notes)
    good = (tmp_path / "good.jpg").read_bytes()
    draw, refusals = np.random.default_rng(int(torch.randint(2**31, ()))), []
    for _ in range(300):
        bad = bytearray(good)
        bad[int(draw.integers(20, 120))] = int(draw.integers(256))
        (tmp_path / "bad.jpg").write_bytes(bad)
        try:
            image = load_image(tmp_path / "bad.jpg", 3)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert image.shape == (3, 16, 16)
    assert len(refusals) < 200
    assert all("bad.jpg: not a readable image" in refusal for refusal in refusals)


@pytest.mark.parametrize("name", ["a\x01b", "a\nb", "\udcff\udcfe"], ids=ascii)
def test_a_class_that_cannot_be_printed(tmp_path, name):
    write_images(tmp_path / "images", ["a", name])
    with pytest.raises(ValueError, match=r"^[ -~]*can't be printed; rename it$"):
        image_folder(tmp_path / "images", 0, (8, 8))


def test_a_size_is_for_image_files(tmp_path):
    idx_folder(tmp_path)
    assert read(str(tmp_path), 0, (7, 6)).size == (7, 6)
    for source in (str(tmp_path), "digits"):
        with pytest.raises(ValueError, match=r"its images are \d x \d pixels; another size is for folders"):
            read(source, 0, (9, 9))


def test_unreadable_images(tmp_path):
    png = tmp_path / "torn.png"
    Image.fromarray(np.arange(4096, dtype=np.uint16).view(np.uint8).reshape(64, 128)).save(png)
    png.write_bytes(png.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("torn.png", "not a readable image"),
        ("text.png", "not a readable image"),
        ("folder.png", "not a readable image"),
        ("none.png", "no such image"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: {words}"):
            load_image(tmp_path / name, 1, (8, 8))


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_an_enormous_image_is_refused_unread(tmp_path, side):
    """A PNG of a few hundred bytes that claims 144 or 400 million pixels."""
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"bomb.png: too large an image \(Image size \(\d+ pixels\)"):
        load_image(file, 1, (8, 8))


def test_sample_photographs():
    assert load_image(sample_photograph("china"), 3).shape == (3, 427, 640)
    with pytest.raises(ValueError, match="paris: no such image"):
        sample_photograph("paris")
