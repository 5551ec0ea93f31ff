"""Changes after conversion count: hooks, attributes, layers put into a model."""

import copy

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import cnn_triton
from converting import agree, image, net, ran, stages


@pytest.mark.cover
@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "conv3", "fc"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_that_come_and_go(name, kind, device):
    """Between two calls: each sees what it would see in the original, and then no more."""
    seen = []
    models = net(device)
    cnn_triton.convert(models[0])
    x = image(device)
    for model in models:
        model.eval()
        if kind == "full_backward":
            model.relu.inplace = False  # PyTorch's own condition
        found = []

        def hook(module, *given, found=found):
            tensors = [t for each in given for t in (each if isinstance(each, tuple) else (each,)) if t is not None]
            found.append([t.detach().clone() for t in tensors])

        model(x).square().sum().backward()
        handle = getattr(model.get_submodule(name), f"register_{kind}_hook")(hook)
        model(x).square().sum().backward()
        handle.remove()
        model(x).square().sum().backward()
        seen.append(found)
    assert seen[0]
    torch.testing.assert_close(*seen)


def test_attributes_that_change(device):
    """What was captured relied on them."""
    model, twin = net(device)
    cnn_triton.convert(model)
    x = image(device)
    for each in (model, twin):
        each.down = torch.nn.AvgPool2d(2)
    agree(model, twin, x)
    for each in (model, twin):
        each.down = None
        each.p = 1.0
    agree(model, twin, x)
    for each in (model, twin):
        each.p = 0.0
        each.relu = torch.nn.Identity()
        each.bn2 = torch.nn.Identity()
    agree(model, twin, x)


def test_a_longer_sequential(device):
    """Layers that are appended, inserted or replaced later run."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    for each in (model, twin):
        each.append(torch.nn.Softmax(1))
        each[1] = torch.nn.Sigmoid()
    agree(model, twin, image(device))


def test_hooks_of_all_modules(device):
    """A hook on every module that there is sees what it would see in the original, modules come and gone, too."""
    seen = []
    models = net(device)
    cnn_triton.convert(models[0])
    x = image(device)
    models[0].eval()(x)  # captured without
    for model in models:
        seen.append([])
        for _ in range(2):  # one after the other, which a guard on their number takes for the same
            found = []
            handle = register_module_forward_hook(lambda module, x, y, found=found: found.append(y.detach().clone()))
            try:
                model.eval()(x)
            finally:
                handle.remove()
            model(x)
            assert found
            seen[-1] += found
    assert len(seen[0]) == len(seen[1])
    torch.testing.assert_close(*seen)


CHANGES = {
    "slope": lambda m: setattr(m[5], "negative_slope", 0.6),
    "negative slope": lambda m: setattr(m[5], "negative_slope", -0.6),
    "bounds": lambda m: setattr(m[8], "max_val", 0.1),
    "kernel": lambda m: setattr(m[3], "kernel_size", 1),
    "windows": lambda m: (setattr(m[3], "kernel_size", 3), setattr(m[3], "stride", 3)),
    "padding": lambda m: setattr(m[3], "padding", 1),
    "activation": lambda m: m.__setitem__(5, torch.nn.GELU("tanh")),
    "unknown activation": lambda m: m.__setitem__(5, torch.nn.ELU()),
    "activation before a pool": lambda m: m.__setitem__(2, torch.nn.SiLU()),
    "pool": lambda m: m.__setitem__(3, torch.nn.AvgPool2d(2)),
    "no pool": lambda m: m.__setitem__(3, torch.nn.MaxPool2d(2, 2, 1)),
    "norm": lambda m: m.__setitem__(1, torch.nn.InstanceNorm2d(4)),
    "forward": lambda m: setattr(m[5], "forward", torch.square),
    "eps": lambda m: setattr(m[1], "eps", 0.3),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.cover
@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_conversion(change, device):
    """Modules are read at every call."""
    model, twin = stages(device, torch.nn.MaxPool2d(2, 2))
    if change in ("kernel", "windows", "padding", "no pool"):  # other sizes
        model, twin = model[:6], twin[:6]
    cnn_triton.convert(model)
    for each in (model, twin):
        CHANGES[change](each)
    agree(model, twin, image(device))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.cover
@pytest.mark.parametrize("name", "0123458")
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_in_chains(name, kind, device):
    """A hook that came after conversion sees what it would see in the original, and its module's results are the
    same; removed, all is one kernel again."""
    models, seen = stages(device), []
    cnn_triton.convert(models[0])
    x = image(device)
    for model in models:
        found = []

        def hook(module, *given, found=found):
            tensors = [t for each in given for t in (each if isinstance(each, tuple) else (each,)) if t is not None]
            found.append([t.detach().clone() for t in tensors])

        handle = getattr(model.get_submodule(name), f"register_{kind}_hook")(hook)
        for mode in (True, False):
            model.train(mode)(x).square().sum().backward()
        handle.remove()
        seen.append(found)
    assert len(seen[0]) == 2
    torch.testing.assert_close(*seen)
    assert ran(models[0], x) == {"conv2d_pool": 1, "conv2d": 1, "linear": 1}
