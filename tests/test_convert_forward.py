"""Whatever a converted model's forward does besides its layers, it does as before, and once a call."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import cnn_triton
from converting import agree, image, patterns

SWITCH = [1]


class Reads(torch.nn.Module):
    """A convolution and a ReLU, whose forward does something beside."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls, self.scales = torch.nn.Conv2d(1, 2, 3), 0, [1.0]
        self.kept = None

    def act(self, y):
        return F.relu(y)


class Counts(Reads):
    """Sets an attribute."""

    def forward(self, x):
        self.calls += 1
        return self.act(self.conv(x)) * self.calls


class Keeps(Reads):
    """Keeps its features."""

    def forward(self, x):
        self.kept = self.conv(x)
        return self.act(self.kept)


class Scales(Reads):
    """Reads a list."""

    def forward(self, x):
        return self.act(self.conv(x)) * self.scales[0]


class Global(Reads):
    """Reads a global list."""

    def forward(self, x):
        return self.act(self.conv(x)) * SWITCH[0]


class Random(Reads):
    """Draws a number."""

    def forward(self, x):
        return self.act(self.conv(x)) * random.random()


class Noise(Reads):
    """Draws a tensor."""

    def forward(self, x):
        return self.act(self.conv(x)) + torch.rand(1).item()


class Typed(Reads):
    """Asks for its input's type."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if isinstance(y, torch.Tensor) else y


class Prints(Reads):
    """Has an effect."""

    def forward(self, x):
        print("called")
        return self.act(self.conv(x))


class Branches(Reads):
    """Branches on values."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if y.sum() > 0 else y


class Optional(Reads):
    """Takes an argument that a caller may leave out."""

    def forward(self, x, more=None):
        y = self.act(self.conv(x))
        return y if more is None else y + more


class NoGrad(Reads):
    """Asks how it is called."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if torch.is_grad_enabled() else y


class Nested(Reads):
    """Does it in a function that it calls."""

    def forward(self, x):
        return self.scale(self.conv(x))

    def scale(self, y):
        return self.act(y) * SWITCH[0]


class Computed(Reads):
    """Reads a property."""

    @property
    def scale(self):
        return SWITCH[0]

    def forward(self, x):
        return self.act(self.conv(x)) * self.scale


class Doubled(torch.nn.Conv2d):
    """A layer that is called in its own way."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Called(Reads):
    """Has such a layer."""

    def __init__(self):
        super().__init__()
        self.doubled = Doubled(1, 2, 3)

    def forward(self, x):
        return self.act(self.conv(x)) + self.doubled(x)


class Contexts(Reads):
    """Switches something."""

    def forward(self, x):
        with torch.no_grad():
            return self.act(self.conv(x))


class Checkpoints(Reads):
    """Keeps less than a trace would."""

    def forward(self, x):
        return self.act(checkpoint(self.conv, x, use_reentrant=False))


class Catches(Reads):
    """Handles an error."""

    def forward(self, x):
        y = self.act(self.conv(x))
        try:
            return y + self.missing
        except AttributeError:
            return y


class Looks(Reads):
    """Asks whether it has something."""

    def forward(self, x):
        y = self.act(self.conv(x))
        return y if getattr(self, "shift", None) is None else y + self.shift


PROGRAMS = (
    Computed, Called, Contexts, Checkpoints, Counts, Keeps, Scales, Global, Random, Noise, Typed, Prints, Branches,
    Optional, NoGrad, Nested, Catches, Looks,
)  # fmt: skip


@pytest.mark.parametrize("kind", PROGRAMS, ids=lambda kind: kind.__name__)
def test_what_a_forward_may_do(kind, device, capsys):
    """Whatever it does besides, it does as before, and once a call."""
    model = kind().to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    results, said = [], []
    for each in (model, twin):
        random.seed(3)
        torch.manual_seed(3)
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64, device=device)
        results.append([each(x), each(x), each.kept, each.calls])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    torch.testing.assert_close(*results)
    assert report.captures.graphs > 0
    assert not report.call.failure
    left = kind in (Keeps, NoGrad, Random, Noise, Prints, Branches, Checkpoints)  # whose graphs break, or read it twice
    assert left or patterns(report)["conv2d + relu"] > 0


ATTRIBUTES = {
    "appears": lambda m: setattr(m, "shift", 0.5),
    "vanishes": lambda m: (setattr(m, "shift", 2.0), m(X8), delattr(m, "shift")),
    "becomes None": lambda m: (setattr(m, "shift", 2.0), m(X8), setattr(m, "shift", None)),
    "a method": lambda m: setattr(m, "act", torch.sigmoid),
    "a forward": lambda m: setattr(m, "forward", lambda x: m.conv(x).exp()),
    "a layer's forward": lambda m: setattr(m.conv, "forward", torch.square),
    "a layer": lambda m: setattr(m, "conv", torch.nn.Conv2d(1, 1, 1).to(m.conv.weight)),
    "a class": lambda m: setattr(m, "__class__", Scales),
}  # fmt: skip
X8 = torch.zeros(1, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("change", ATTRIBUTES)
def test_what_changes_after_conversion(change, device):
    model = Looks().to(device).double()
    cnn_triton.convert(model)
    x = image(device)
    model(x)
    torch.manual_seed(1)
    ATTRIBUTES[change](model)
    y = model(x)
    twin = copy.deepcopy(model)
    cnn_triton.revert(twin)
    if change == "a forward":
        twin.forward = lambda x: twin.conv(x).exp()
    torch.testing.assert_close(y, twin(x))


class Flags(Reads):
    """Reads a constant of its class."""

    SCALE = 2.0

    def forward(self, x):
        return self.act(self.conv(x)) * self.SCALE


def test_constants_of_a_class(device, monkeypatch):
    model = Flags().to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    agree(model, twin, image(device))
    monkeypatch.setattr(Flags, "SCALE", 3.0)
    agree(model, twin, image(device))
