"""The pages: what is in them is true, every picture is there, and a browser shows them without an error."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from checks import kernels_only
from cnn_triton import nn, pages, photograph, report, runs
from cnn_triton.anatomy import feature_maps, stages, weight_counts
from cnn_triton.models import MODELS
from small import command, config, few, refused, trainer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def perturbed(features, size, p, q):
    """The input pixels that output pixel (p, q) depends on: (top, left, height, width), found by gradients."""
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    y = features(x)
    y[0, :, p, q].sum().backward()
    rows, columns = (x.grad[0].abs().sum(0).sum(axis).nonzero()[:, 0] for axis in (1, 0))
    top, left = rows[0].item(), columns[0].item()
    return top, left, rows[-1].item() - top + 1, columns[-1].item() - left + 1


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(2, 3, 3, padding="same")],
        lambda: [nn.Conv2d(2, 3, (4, 2), padding="same"), nn.AvgPool2d(2)],
        lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 2, (3, 5)), nn.AvgPool2d(3, 2, 1)],
        lambda: [nn.Conv2d(2, 4, (5, 2), (2, 3), (3, 1)), nn.Conv2d(4, 4, 3, dilation=(2, 1), groups=2)],
    ],
    ids=range(4),
)
def test_receptive_fields(layers):
    """The fields computed are those in which a change of the input changes the output."""
    features = torch.nn.Sequential(*layers()).double()
    size = (41, 38)
    found = stages(features, 2, size)
    for depth, stage in enumerate(found, 1):
        p, q = stage.output[1] // 2, stage.output[2] // 2
        assert perturbed(features[:depth], size, p, q) == stage.field.box(p, q)
    assert stage.output == features(torch.zeros(1, 2, *size, dtype=torch.float64)).shape[1:]


def test_receptive_fields_of_the_networks():
    sizes = [stage.field.size[0] for stage in stages(MODELS["lenet5"](1, (32, 32), 10).features, 1, (32, 32))]
    assert sizes == [3, 4, 8, 10]
    sizes = [stage.field.size[0] for stage in stages(MODELS["vgg"](3, (32, 32), 10).features, 3, (32, 32))]
    assert sizes == [3, 5, 6, 10, 14, 16, 24, 32, 36]


def test_weight_counts():
    features = torch.nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    full, local, shared = weight_counts(stages(features, 3, (5, 4))[0])
    assert full == torch.nn.Linear(3 * 5 * 4, 8 * 5 * 4, bias=False).weight.numel()
    assert local == 8 * 5 * 4 * 3 * 9
    assert shared == features[0].weight.numel()
    one = torch.nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"))
    assert weight_counts(stages(one, 1, (1000, 1000))[0]) == (10**12, 9 * 10**6, 9)
    grouped = torch.nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    assert weight_counts(stages(grouped, 4, (9, 9))[0])[2] == grouped[0].weight.numel()


@pytest.mark.parametrize(
    ("number", "text"),
    [(9, "9"), (9_000_000, "9,000,000"), (10**12, "10¹²"), (16 * 10**12, "1.6 · 10¹³"), (99_999_999, "10⁸")],
)
def test_counts_are_legible(number, text):
    assert pages.count(number) == text


def test_feature_maps(device):
    model = MODELS["lenet5"](1, (8, 8), 10).to(device)
    image = torch.randn(1, 1, 8, 8, device=device)
    with kernels_only("conv2d", "max_pool2d"):
        maps = feature_maps(model.features, image)
    assert [tuple(m.shape) for m in maps] == [(16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 2, 2)]
    torch.testing.assert_close(maps[-1], model.features(image)[0].float().cpu())


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
    one = trainer(data, device)
    saved = runs.Run.create(folder, one)
    saved.add(one.run_epoch(), one)
    saved.close()
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


def test_nothing_is_fetched(page):
    links = [a[k] for _, a in page.elements for k in ("src", "href") if k in a]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not page.of("script")


def test_mistakes_and_confusion(run, data, device, page):
    model, settings = runs.load(run, device)
    from cnn_triton.training import probabilities

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
    copy = tmp_path / "watched.html"
    copy.write_text(path.read_text().replace("</body>", watch + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    watched = re.search(r'data-watch="([^"]*)"', done.stdout)
    assert watched, done.stdout[-500:] + done.stderr[-2000:]
    return watched[1].split(","), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


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
