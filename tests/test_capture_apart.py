"""What the backend must leave as it is written: changes in place, second readers, random programs."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tn

import cnn_triton
from capturing import Net, X, compare, compiled, fresh  # noqa: F401
from cnn_triton import captures


def between(change):
    """A residual that is changed after it was added, before the kernel that would read it."""

    def forward(m, x):
        y = m.conv(-x) + x
        change(m, x)
        return F.relu(y) + x

    return forward


def norm_read(m, x):
    y = m.norm(m.conv(x))
    seen = m.norm.running_mean.clone()
    return F.relu(y) + seen[:, None, None]


def added_changed(m, x):
    y = F.silu(m.norm(m.conv(-x)) + x)
    x.mul_(2.0)
    return y + x


def weight_changed(m, x):
    w = m.conv.weight.detach() * 1.0
    y = F.conv2d(x, w, padding=1)
    w.mul_(2.0)
    return F.relu(y) + w.sum()


def view_changed(m, x):
    y = m.conv(-x) + x
    x.view(-1)[3:9].zero_()
    return F.relu(y)


def two_readers(m, x):
    y = m.conv(x)
    return F.relu(y) + y


def add_to_view(m, x):
    y = m.conv(x)
    z = y[:, :2]
    y += m.other(x)
    return F.relu(y)[:, :2] + z


def add_to_input(m, x):
    x += m.conv(x * 2.0)
    return F.relu(x)


def reshaped(m, x):
    r = x[None] * 1.0
    y = m.conv(x) + r
    r.squeeze_(0)
    return y[0] + r


def autocast(m, x):
    y = m.conv(x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        z = m.other(x)
    return F.relu(y) + z.float()


def grad_mode(m, x):
    y = m.conv(x)
    with torch.no_grad():
        y = F.relu(y)
    return y + x


# What must stay as it is: (forward, training, patterns).
APART = {
    "residual changed": (between(lambda m, x: x.mul_(3.0)), False, {"conv2d + add": 1}),
    "residual changed by out=": (between(lambda m, x: torch.neg(x, out=x)), False, {"conv2d + add": 1}),
    **{
        f"residual changed by {name}": (
            between(lambda m, x, name=name: getattr(x, f"__{name}__")(2.0)),
            False,
            {"conv2d + add": 1},
        )
        for name in ("iadd", "isub", "imul", "itruediv")
    },
    "residual set": (between(lambda m, x: x.__setitem__((0, 0), 5.0)), False, {"conv2d + add": 1}),
    "residual changed by inplace=": (between(lambda m, x: F.relu(x, inplace=True)), False, {"conv2d + add": 1}),
    "residual changed after it all": (added_changed, True, {"conv2d + batch_norm + add": 1}),
    "a view changed": (view_changed, False, {"conv2d + add": 1}),
    "weight changed": (weight_changed, False, {"conv2d": 1}),
    "statistics read": (norm_read, True, {"conv2d + batch_norm": 1}),
    "two readers": (two_readers, False, {"conv2d": 1}),
    "twice by one": (lambda m, x: F.relu(m.conv(x) + x).add(x) + (lambda y: y + y)(m.other(x)), False, None),
    "adds to what has a view": (add_to_view, False, {"conv2d": 2}),
    "adds to an input": (add_to_input, False, {"conv2d": 1}),
    "scaled": (lambda m, x: F.relu(torch.add(m.conv(x), x, alpha=2)), False, {"conv2d": 1}),
    "another rank, until later": (reshaped, False, {"conv2d": 1}),
    "broadcast": (lambda m, x: F.relu(m.conv(x) + x[:1]), False, {"conv2d": 1}),
    "a number": (lambda m, x: F.relu(m.conv(x) + 1.0), False, {"conv2d": 1}),
    "another dtype": (lambda m, x: F.relu(m.conv(x) + x.double()).float(), False, {"conv2d": 1}),
    "activation first": (lambda m, x: F.relu(m.conv(x)) + x, False, {"conv2d + relu": 1}),
    "norm of another dimension": (
        lambda m, x: m.rows(F.linear(x.flatten(2), m.linear.weight.new_ones(3, 42))),
        False,
        {"linear": 1},
    ),
    "slopes of another dimension": (lambda m, x: m.slopes(m.linear(x)), False, {"linear": 1}),
    "norm, added, prelu": (
        lambda m, x: m.slopes(m.norm(m.conv(x)) + x),
        True,
        {"conv2d + batch_norm + add": 1},
    ),
    "norm after": (lambda m, x: m.norm(F.relu(m.conv(x))), False, {"conv2d + relu": 1}),
    "overlapping pool": (lambda m, x: F.max_pool2d(F.relu(m.conv(x)), 3, 2), False, {"conv2d + relu": 1}),
    "across autocast": (autocast, False, None),
    "across no_grad": (grad_mode, False, {"conv2d": 1}),
}


@pytest.mark.cover
@pytest.mark.parametrize("name", APART)
def test_apart(name, device):
    forward, train, patterns = APART[name]
    grads = name not in ("weight changed", "residual changed by out=")  # which eager autograd refuses
    close = 2.0**-6 if name == "across autocast" else 2e-4  # bfloat16's last two bits
    make, x = lambda: Net(forward, device), torch.randn(X, device=device)
    compare(make, x, train=train, patterns=patterns, grads=grads, close=close)


def program(draw):
    """The source of a random function of module m and images x: layers, activations, sums, views, changes in place."""
    lines, names = ["def forward(m, x):"], ["x"]
    for i in range(draw.randint(4, 10)):
        a, b = draw.choice(names), draw.choice(names)
        line = draw.choice([
            f"v{i} = m.conv({a})", f"v{i} = m.conv({a})", f"v{i} = m.other({a})", f"v{i} = m.norm(m.conv({a}))",
            f"v{i} = m.norm({a})", f"v{i} = F.relu({a})", f"v{i} = F.relu({a}, inplace=True)", f"v{i} = {a} + {b}",
            f"v{i} = {a}; v{i} += {b}", f"v{i} = {a}.add_({b})", f"v{i} = F.leaky_relu({a}, 0.1)",
            f"v{i} = F.hardtanh({a}, -0.5, 0.5)", f"v{i} = F.silu({a})", f"v{i} = {a}.flatten(1).view_as({b})",
            f"v{i} = {a}; v{i}[:, 1:3].mul_(0.5)", f"v{i} = torch.sigmoid({a})", f"v{i} = F.relu6(m.conv({a}))",
            f"v{i} = {a}.transpose(0, 1).transpose(0, 1)", f"v{i} = F.dropout({a}, 0.5, False)",
            f"v{i} = F.relu(m.norm(m.other({a})) + {b})",
        ])  # fmt: skip
        lines.append(f"    {line}")
        names = [*names[-3:], f"v{i}"]
    lines.append(f"    return {' + '.join(names)}")
    return "\n".join(lines)


def outcome(run, model, x):
    """Output, gradients, buffers and the input of a call; or the type of the error that PyTorch raises."""
    given = x.detach().clone().requires_grad_()
    mine = given * 1.0
    try:
        y = run(mine)
        grads = torch.autograd.grad(y.square().sum(), [given, *model.parameters()], allow_unused=True)
    except RuntimeError:
        return None
    return [y, mine, *model.buffers(), *grads]


@pytest.mark.cover
@pytest.mark.parametrize("number", range(60))
def test_random_programs(number, device):
    """Whatever is written, the captured graph does what Python does."""
    draw = random.Random(random.random())  # of this test's seed
    theirs, x = None, torch.randn(X, device=device)
    while theirs is None:  # some programs change what autograd has kept
        source, train = program(draw), draw.random() < 0.5
        space = {"F": F, "torch": torch}
        exec(source, space)
        model = Net(space["forward"], device).train(train)
        twin = copy.deepcopy(model)
        with cnn_triton.backend("aten"):
            theirs = outcome(model, model, x)
    ours = outcome(compiled(twin), twin, x)
    assert captures.graphs > 0
    assert ours is not None, f"eager runs, the captured graph fails:\n{source}\n{captures}"
    for their, our in zip(theirs, ours, strict=True):
        if their is not None:
            torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-3, msg=lambda m: f"{m}\n{source}\n{captures}")


@pytest.mark.parametrize("train", [False, True])
def test_output_changed_by_its_user(train, device):
    """An output that PyTorch lets its user change in place in training is not kept by a kernel."""
    words = (
        lambda y: F.leaky_relu(y, 0.1), F.relu6, F.hardtanh, lambda y: F.relu6(y, True),
        lambda y: F.hardtanh(y, inplace=True),
    )  # fmt: skip
    for act in words:
        theirs = Net(lambda m, x, act=act: act(m.conv(x)), device).train(train)
        ours, x = copy.deepcopy(theirs), torch.randn(X, device=device)
        grads = []
        for model, run in ((theirs, theirs), (ours, compiled(ours))):
            y = run(x)
            y += x
            grads.append(torch.autograd.grad(y.sum(), model.conv.weight)[0])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert "may be changed in place" in str(captures)


@pytest.mark.parametrize("kind", ["a view", "detached"])
def test_inputs_that_share_memory(kind, device):
    """Captured with inputs that don't, a graph is right where they do: Dynamo doesn't look at that."""

    class Changes(tn.Module):
        def __init__(self):
            super().__init__()
            self.conv = tn.Conv2d(4, 4, 3)

        def forward(self, x, other):
            y = self.conv(x)
            other.add_(1.0)
            return F.relu(y)

    model = Changes().to(device).eval()
    run = compiled(model)
    with torch.no_grad():
        run(torch.randn(X, device=device), torch.randn(X, device=device))
        for call in (run, model):
            x = torch.arange(2.0 * 4 * 6 * 7, device=device).sin().view(X)
            y = call(x, x.view(X) if kind == "a view" else x.detach())
            right = F.relu(F.conv2d(torch.arange(2.0 * 4 * 6 * 7, device=device).sin().view(X), *model.parameters()))
            torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)
