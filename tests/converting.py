"""Models to convert, beside twins that stay as they are: their results, and what was captured."""

import copy

import torch
import torch.nn.functional as F

import cnn_triton


class Net(torch.nn.Module):
    """What a model may have: one ReLU in several places, functions, a branch on an attribute, dropout, a residual."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.conv2, self.bn2 = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv3, self.fc, self.fc2 = torch.nn.Conv2d(4, 6, 1), torch.nn.Linear(24, 5), torch.nn.Linear(5, 3)
        self.p, self.down = 0.0, None

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        y = F.relu(self.conv3(self.relu(y)))
        y = F.max_pool2d(y, 2)
        if self.down is not None:
            y = self.down(y)
        y = F.dropout(y, self.p, training=self.training)
        y = F.adaptive_avg_pool2d(y, 2)
        return self.fc2(F.relu(self.fc(torch.flatten(y, 1))))


def settle(model):
    """Statistics and scales of batch normalisations as after some training, not as they start."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, torch.nn.Conv2d):  # signals that keep their size through the layers
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def net(device):
    """A model and its twin, float64."""
    model = settle(Net()).to(device, torch.float64)
    return model, copy.deepcopy(model)


def image(device, size=8):
    return torch.randn(2, 1, size, size, dtype=torch.float64, device=device)


def patterns(report):
    """What was captured of a model, and that something was."""
    assert report.captures.graphs > 0, str(report)
    return dict(report.captures.patterns)


def agree(ours, theirs, x):
    """Results, gradients and buffers, in both modes."""
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((a, ours), (b, theirs))]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


def stages(device, pool=None):
    """Two convolutions with all that can follow them, and a linear layer; and their twin, float64."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), pool or torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 3, 2, bias=False), torch.nn.LeakyReLU(0.2), torch.nn.Flatten(), torch.nn.LazyLinear(3),
        torch.nn.Hardtanh(-0.5, 0.7),
    )  # fmt: skip
    model(torch.randn(2, 1, 8, 8))
    model = settle(model).to(device, torch.float64)
    return model, copy.deepcopy(model)


def ran(model, x):
    """The kernels of a forward pass, by operator."""
    before = cnn_triton.launches()
    with torch.no_grad():
        model(x)
    after = cnn_triton.launches()
    return {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
