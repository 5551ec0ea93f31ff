"""The pages: what is in them is true, every picture is there, and a browser shows them without an error."""

import base64
import dataclasses
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from checks import kernels_only
from cnn_triton import pages
from cnn_triton.classifier import photograph, report, runs
from cnn_triton.classifier.anatomy import feature_maps, stages
from cnn_triton.classifier.training import normalised, probabilities
from small import CHROMIUM, command, config, few, refused, train, trainer, watched_in_chromium, write_images


class Page(HTMLParser):
    """A page's elements: (tag, attributes), and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]

    def classes(self, tag, name):
        return [a for t, a in self.elements if t == tag and name in (a.get("class") or "").split()]


def picture(uri):
    kind, content = re.fullmatch(r"data:image/(\w+)[^;]*;base64,(.*)", uri).groups()
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")) if kind != "svg" else None


@pytest.fixture(scope="module")
def data():
    return few(96, 60)


@pytest.fixture(scope="module")
def run(data, device, tmp_path_factory):
    """A short run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "<run> & co"
    train(folder, data, device, epochs=1)
    return folder


@pytest.fixture(scope="module")
def page(run, data, device):
    model, settings = runs.load(run, device)
    path = report.write_report(run, model, settings, data, device)
    return Page(path.read_text())


def test_every_picture_is_there(page, data):
    assert len(page.of("img", id="curves")) == len(page.of("img", id="confusion")) == 1
    shown = [a["data-class"] for a in page.classes("div", "example")]
    assert shown == list("0123456789")
    assert page.of("input", id="class-8")[0].get("checked", "no") is None  # the 7 is the one that is seen first
    assert len(page.classes("img", "input")) == 10
    assert len(page.classes("img", "maps")) == 10 * 4
    assert len(page.classes("table", "probabilities")) == 10
    assert len(page.classes("figure", "field")) == len(page.of("svg")) == 4
    assert page.of("table", id="one-map")
    assert page.of("table", id="layers")
    for text in ("10¹²", "9,000,000", "convolution 3×3 + ReLU", "max pool 2×2", "10 × 10", "4,096"):
        assert text in page.text, text
    assert "<run> & co" in page.text  # as text: nothing of a name is markup
    seven = int((data.test_labels == 7).nonzero()[0])
    pixels = picture(page.classes("img", "input")[7]["src"])
    assert np.array_equal(pixels[..., 0], (data.test_images[seven, 0] * 255).round().byte().numpy())


def tables(text):
    """The cells of a page's tables, by row: {id or number: rows}."""
    found = {}
    for n, (attributes, body) in enumerate(re.findall(r"<table([^>]*)>(.*?)</table>", text, re.S)):
        name = re.search(r'id="([^"]*)"', attributes)
        rows = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
        found[name[1] if name else n] = [row for row in rows if row]
    return found


def test_what_it_says_is_true(run, data, device):
    """Weights, probabilities, kernels, maps, frames, the confusion matrix and the curves, each worked out anew."""
    model, settings = runs.load(run, device)
    text = report.write_report(run, model, settings, data, device).read_text()
    page, found = Page(text), tables(text)
    assert f"{sum(p.numel() for p in model.parameters()):,} weights and biases" in page.text
    shares = probabilities(model, data.test_images, settings, device)

    # one map: (HW)², HW·9, 9; the second layer: 16 maps of 4 x 4 to 32 of 4 x 4, and at 1000 x 1000 of 500 x 500
    assert found["one-map"] == [["8 × 8", "4,096", "576", "9"], ["1000 × 1000", "10¹²", "9,000,000", "9"]]
    small, big = 16 * 16 * 32 * 16, 16 * 500**2 * 32 * 500**2
    assert found["layers"][1][1:] == [
        f"{small:,}", f"{32 * 16 * 16 * 9:,}", "4,608", pages.count(big), pages.count(32 * 500**2 * 16 * 9), "4,608",
    ]  # fmt: skip

    first = [int((data.test_labels == c).nonzero()[0]) for c in range(10)]
    for c in range(10):
        top = shares[first[c]].argsort(descending=True).tolist()
        assert [row[0] for row in found[c]] == [str(i) for i in top]
        assert [row[2] for row in found[c]] == [f"{100 * shares[first[c], i]:.1f} %" for i in top]

    # each tile of 48 + 4 pixels is a map's 8 x 8 (or 4, 2) pixels, brightest where the map is
    sheets = [picture(a["src"]).astype(int).sum(2) for a in page.classes("img", "maps")]
    for c in (0, 7):
        image = normalised(data.test_images[first[c]][None], settings, device)
        for sheet, values in zip(sheets[4 * c : 4 * c + 4], feature_maps(model.features, image), strict=True):
            k, p, q = (int(i) for i in np.unravel_index(int(values.argmax()), values.shape))
            side = 48 // values.shape[1]
            tile = sheet[k // 16 * 52 :, k % 16 * 52 :][:48, :48]
            assert tile[p * side, q * side] == tile.max() == max(sheet.max(), 1)
    weight = model.first.weight.detach().float().cpu()
    kernels = picture(page.classes("img", "sheet")[0]["src"]).astype(int)
    redder = kernels[..., 0] - kernels[..., 2]
    for k in (0, 5, 15):
        r, s = divmod(int(weight[k, 0].abs().argmax()), 3)
        assert (redder[16 * r + 8, 52 * k + 16 * s + 8] > 0) == (weight[k, 0, r, s] > 0)

    # frames: the second is round the image, each as computed
    frames = [a for a in page.of("rect") if a.get("stroke")]
    for frame, stage in zip(frames, stages(model.features, 1, (8, 8)), strict=True):
        box = stage.field.box(stage.output[1] // 2, stage.output[2] // 2)
        assert tuple(int(frame[name]) for name in ("y", "x", "height", "width")) == box

    drawn = base64.b64decode(page.of("img", id="confusion")[0]["src"].split(",")[1]).decode()
    numbers = [int(n) for n in re.findall(r">(\d+)</text>", drawn)]
    counts = torch.zeros(10, 10, dtype=torch.int64)
    for right, said in zip(data.test_labels.tolist(), shares.argmax(1).tolist(), strict=True):
        counts[right, said] += 1
    filled = counts[counts > 0].tolist()
    assert numbers[-len(filled) :] == filled  # row by row, after the axes' labels

    wrong = (shares.argmax(1) != data.test_labels).nonzero()[:, 0]
    worst = wrong[shares[wrong].amax(1).argsort(descending=True)][:12].tolist()
    mistaken = [a["src"] for a in page.of("img") if (a.get("alt") or "").startswith("An image of class")]
    for src, i in zip(mistaken, worst, strict=True):
        assert np.array_equal(picture(src)[..., 0], (data.test_images[i, 0] * 255).round().byte().numpy())


def test_other_images_are_not_called_unseen(run, data, device):
    model, settings = runs.load(run, device)
    other = data._replace(test_images=data.train_images[:20], test_labels=data.train_labels[:20])
    text = report.write_report(run, model, settings, other, device).read_text()
    assert "of 20 images, which the training may have seen, right" in text
    assert "not seen in training" not in text
    assert "unseen" not in text
    few_classes = report.write_report(run, model, settings, data, device, ("7", "7", "3")).read_text()
    assert "An example of 2 of the 10 classes" in few_classes
    assert few_classes.count(" checked>") == 1


def test_nothing_is_fetched(page):
    links = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not page.of("script")


def test_mistakes_and_confusion(run, data, device, page):
    model, settings = runs.load(run, device)
    shares = probabilities(model, data.test_images, settings, device)
    wrong = (shares.argmax(1) != data.test_labels).nonzero()[:, 0]
    assert len(page.classes("figure", "mistake")) == min(len(wrong), 12)
    worst = wrong[shares[wrong].amax(1).argmax()]
    said, share = shares[worst].argmax().item(), shares[worst].max().item()
    captions = re.findall(r"is (\d)says (\d), (\d+) %", page.text)
    assert captions[0] == (str(data.test_labels[worst].item()), str(said), f"{100 * share:.0f}")
    assert f"{100 * (60 - len(wrong)) / 60:.1f} %" in page.text


def test_chosen_classes(run, data, device):
    model, settings = runs.load(run, device)
    path = report.write_report(run, model, settings, data, device, ("7", "3"))
    shown = [a["data-class"] for a in Page(path.read_text()).classes("div", "example")]
    assert shown == ["7", "3"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="no test image is of a class 'x'; there are 0, 1"):
        report.write_report(run, model, settings, data, device, ("x",))
    assert path.read_bytes() == before


@pytest.mark.cover
def test_before_the_first_epoch(data, device, tmp_path):
    one = trainer(data, device, model="vgg")
    runs.Run.create(tmp_path / "run", one).close()
    path = report.write_report(tmp_path / "run", one.model, config(data, model="vgg"), data, device)
    assert "No epoch has finished yet." in path.read_text()


def test_photograph(device, tmp_path):
    """Bright on the left finds a vertical edge that is bright on the left, and no other."""
    image = torch.zeros(1, 40, 60)
    image[0, :, :30] = 1
    with kernels_only("conv2d", "max_pool2d"):
        photograph.write_photograph(image, "half", None, device, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    maps = [picture(a["src"]) for a in page.classes("img", "map")]
    pooled = [picture(a["src"]) for a in page.classes("img", "pooled")]
    assert len(maps) == len(photograph.EDGES) == 8
    assert all(m.shape == (40, 60, 3) for m in maps)
    assert all(m.shape == (20, 30, 3) for m in pooled)
    left = list(photograph.EDGES).index("bright on the left")
    assert maps[left][20, 29:31].min() > 200
    assert maps[left][20, :25].max() < 30
    assert maps[list(photograph.EDGES).index("bright on the right")][20, 5:55].max() < 30


def in_browser(path, tmp_path):
    """(state of each picture, console lines) of a page opened in headless Chromium."""
    watch = """<script>
    addEventListener("load", () => {
      const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
      const drawn = [...document.querySelectorAll("svg image")].filter(i => i.getBBox().width > 0).length;
      const seen = [...document.querySelectorAll(".example")].filter(e => e.offsetHeight > 0).map(e => e.dataset.class);
      document.body.dataset.watch = [document.images.length, broken, drawn, seen.join("+")].join(",");
    });
    </script>"""
    watched, console = watched_in_chromium(path, watch, tmp_path)
    return watched.split(","), console


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian's package chromium)")
def test_in_a_browser(run, page, data, device, tmp_path):
    model, settings = runs.load(run, device)
    report.write_report(run, model, settings, data, device)
    (images, broken, drawn, seen), console = in_browser(run / "report.html", tmp_path)
    assert int(images) == len(page.of("img")) > 50
    assert (broken, drawn, seen) == ("0", "4", "7")
    assert console == []
    photograph.write_photograph(torch.rand(1, 30, 40), "noise", None, device, tmp_path / "page.html")
    (images, broken, _, _), console = in_browser(tmp_path / "page.html", tmp_path)
    assert (images, broken) == (str(1 + 3 * 8), "0")
    assert console == []


def test_the_watch_sees_errors(tmp_path):
    """The check of pages itself: a broken picture and a console error are noticed."""
    if not CHROMIUM:
        pytest.skip("no Chromium here (Debian's package chromium)")
    page = tmp_path / "page.html"
    page.write_text('<body><img src="data:image/png;base64,xxxx"><script>missing()</script></body>')
    (_, broken, _, _), console = in_browser(page, tmp_path)
    assert broken == "1"
    assert console


@pytest.mark.cover
def test_commands(tmp_path):
    """`show` of a sample photograph; what is bad about a page's path, a photograph or a run, in one line."""
    page = tmp_path / "china.html"
    code, out, error = command("show", "china", "--out", page)
    assert code == 0, error
    assert out.strip() == str(page)
    assert Page(page.read_text()).classes("img", "map")
    before = page.read_bytes()
    for args, words in (
        (("china", "--out", page), "nothing is overwritten"),
        (("paris", "--out", tmp_path / "new.html"), "no such image; name a file, 'china' or 'flower'"),
        ((page, "--out", tmp_path / "new.html"), "not a readable image"),
        (("china", "--run", tmp_path, "--out", tmp_path / "new.html"), "no run is here"),
        (("china", "--out", tmp_path / "nowhere" / "new.html"), "No such file or directory"),
    ):
        refused(("show", *args), "error: ", words)
    assert page.read_bytes() == before
    assert not (tmp_path / "new.html").exists()


@pytest.mark.cover
def test_compare(tmp_path):
    """Three first layers trained on the same images: the page says what each run's figures and kernels are."""
    images = write_images(tmp_path / "images", ("dark", "bright"), side=6)
    out = tmp_path / "compared"
    args = ("compare", "--data", images, "--size", "6x5", "--epochs", "1", "--batch-size", "4", "--out", out)
    code, said, error = command(*args)
    assert code == 0, error
    assert str(out / "compare.html") in said
    page = Page((out / "compare.html").read_text())
    pictures = [picture(a["src"]) for a in page.classes("img", "kernels")]
    rows = re.findall(r"<tr><td>(.*?)</tr>", (out / "compare.html").read_text(), re.DOTALL)
    cells = [re.sub(r"<[^>]*>", "|", row).replace("||", "|").split("|") for row in rows]
    names = ("convolution 3×3 + ReLU", "locally connected 3×3 + ReLU", "fully connected + ReLU")
    for name, row, kernels, run, weights in zip(
        names,
        cells,
        pictures,
        ("lenet5", "lenet5-local", "lenet5-full"),
        (16 * 9, 30 * 16 * 9, 30 * 30 * 16),
        strict=True,
    ):
        last = runs.read_metrics(out / run)[-1]
        model, _ = runs.load(out / run, torch.device("cpu"))
        every = sum(p.numel() for p in model.parameters())
        shares = [f"{100 * float(last[part]):.1f} %" for part in ("train_accuracy", "test_accuracy")]
        assert [cell for cell in row if cell] == [name, f"{weights:,}", f"{every:,}", *shares]
        assert len(np.unique(kernels.reshape(-1, 3), axis=0)) > 2
    assert int(runs.read_metrics(out / "lenet5-local")[-1]["locally_connected2d_weight_grad"]) > 0
    refused(args, "nothing is overwritten")
    assert command(*args, "--resume")[0] == 0
    refused((*args[:-3], "9", "--out", out, "--resume"), "--batch-size: the run in")
    # What is begun says how to go on: 6x5 images in batches of 4, one epoch.
    shutil.rmtree(out / "lenet5-full")
    before = runs.read_config(out / "lenet5-local")
    assert command("compare", "--out", out, "--resume")[0] == 0
    assert dataclasses.replace(runs.read_config(out / "lenet5-full"), model="lenet5-local") == before
    assert 'id="comparison"' in (out / "compare.html").read_text()
    refused(("compare", "--resume"), "--resume needs --out")
    refused(("show", "china", "--run", out / "lenet5-local", "--out", tmp_path / "page.html"), "--run", "6 x 5")
