"""Every public function on small tensors, beside PyTorch's, and a small network of ours."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from cases import draw
from checks import operator_of, unfolded
from cnn_triton import functional, nn
from cnn_triton.kernels.matrix import activations


class Each(NamedTuple):
    """A function by its name, the shapes of its tensors, the first with the batch, and its other arguments."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    names: tuple[str, ...] = ()  # of tensors that are given by name

    def ours(self, *tensors):
        given = self._given(tensors)
        count = len(given) - len(self.names)
        named = dict(zip(self.names, given[count:], strict=True))
        if "slope" in named:
            named["activation"] = "prelu", named.pop("slope")
        return getattr(functional, self.name)(*given[:count], **named, **self.options)

    def theirs(self, *tensors):
        if self.name == "locally_connected2d":
            return unfolded(*tensors, **self.options)
        if self.name == "conv2d_batch_norm":
            return F.batch_norm(F.conv2d(*tensors[:3]), None, None, *tensors[3:], training=True).relu()
        options = dict(self.options)
        size, activation = options.pop("pool_size", None), activations.spell(options.pop("activation", None))
        product = self.name.split("_relu")[0]
        if self.names:
            x, w, b, scale, residual, *slope = tensors
            y = F.conv2d(x, w, **options) * scale[:, None, None] + b[:, None, None] + residual
            y = F.prelu(y, *slope) if slope else y
        else:
            y = getattr(F, product)(*self._given(tensors), **options)
        y = activations.reference(activation, y)
        y = y.relu() if product != self.name else y
        return y if size is None else getattr(F, self.name.removeprefix("conv2d_relu_"))(y, size)

    @property
    def operator(self):
        """The operator that runs where derivatives are asked for."""
        keeps = activations.of(activations.spell(self.options.get("activation"))).saves == "input"
        keeps = keeps or "slope" in self.names
        return operator_of(self.name) + "_with_preactivation" * keeps

    @property
    def roles(self):
        """What each tensor is, as far as it matters here."""
        return ("input", *[""] * (len(self.shapes) - len(self.names) - 1), *self.names)

    @property
    def bare(self):
        """The product or pool alone, without what is given by name."""
        if not self.names:
            return self
        return Each(self.name.removesuffix("_batch_norm"), self.shapes[: -len(self.names)])

    def _given(self, tensors):
        """The tensors, and what an unpooling's indices are: each value's place within its own window."""
        if "unpool" not in self.name:
            return tensors
        *_, h, w = tensors[0].shape
        rows = torch.arange(h, device=tensors[0].device)[:, None] * (2 if "2d" in self.name else 0)
        places = rows * 2 * w + 2 * torch.arange(w, device=tensors[0].device)
        return *tensors, (places if "2d" in self.name else places[0]).expand(tensors[0].shape)

    def tensors(self, device, batch=None, dtype=torch.float64):
        shapes = self.shapes if batch is None else self.of_batch(batch).shapes
        return [draw(shape, dtype, "contiguous").to(device) for shape in shapes]

    def of_batch(self, batch):
        """The same of another batch size."""
        sizes = zip(self.roles, self.shapes, strict=True)
        return self._replace(
            shapes=tuple((batch, *shape[1:]) if name in ("input", "residual") else shape for name, shape in sizes)
        )


FUNCTIONS = [
    Each("conv2d", ((2, 4, 5, 6), (6, 2, 3, 3), (6,)), {"padding": 1, "groups": 2}),
    Each("conv2d_relu", ((2, 3, 6, 5), (4, 3, 3, 2), (4,)), {"stride": 2, "padding": (2, 1)}),
    Each(
        "conv2d", ((2, 3, 5, 4), (4, 3, 2, 2), (4,), (4,), (2, 4, 4, 3)), {"activation": "gelu"}, ("scale", "residual")
    ),
    Each("conv2d", ((2, 3, 5, 4), (4, 3, 2, 2), (4,), (4,), (2, 4, 4, 3), (4,)), names=("scale", "residual", "slope")),
    Each("conv2d_relu_max_pool2d", ((2, 2, 5, 6), (3, 2, 2, 2), (3,)), {"pool_size": 2}),
    Each("conv2d_relu_avg_pool2d", ((2, 4, 5, 5), (2, 2, 2, 2), (2,)), {"pool_size": (2, 1), "groups": 2}),
    Each(
        "conv2d_batch_norm",
        ((2, 2, 4, 5), (3, 2, 2, 2), (3,), (3,), (3,)),
        {"training": True, "activation": "relu"},
        ("norm_weight", "norm_bias"),
    ),
    Each("locally_connected2d", ((2, 4, 4, 3), (2, 4, 2, 3, 2, 2), (2, 4, 2)), {"padding": (0, 1), "groups": 2}),
    Each("conv1d", ((2, 3, 7), (4, 3, 3), (4,)), {"dilation": 2}),
    Each("conv_transpose2d", ((2, 3, 4, 5), (3, 4, 3, 3), (4,)), {"stride": 2, "output_padding": 1}),
    Each("conv_transpose1d", ((2, 4, 5), (4, 2, 3), (4,)), {"groups": 2}),
    Each("max_pool2d", ((2, 3, 7, 6),), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Each("max_pool1d", ((2, 3, 9),), {"kernel_size": 2}),
    Each("max_unpool2d", ((2, 3, 4, 3),), {"kernel_size": 2}),
    Each("max_unpool1d", ((2, 3, 4),), {"kernel_size": 2}),
    Each("avg_pool2d", ((2, 3, 7, 6),), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    Each("avg_pool1d", ((2, 3, 8),), {"kernel_size": 2}),
    Each("adaptive_avg_pool2d", ((2, 3, 7, 5),), {"output_size": (3, 2)}),
    Each("adaptive_avg_pool1d", ((2, 3, 7),), {"output_size": 3}),
    Each("adaptive_max_pool2d", ((2, 3, 7, 5),), {"output_size": (3, 2)}),
    Each("adaptive_max_pool1d", ((2, 3, 7),), {"output_size": 3}),
    Each("linear", ((5, 4), (3, 4), (3,))),
    Each("linear_relu", ((5, 4), (3, 4), (3,))),
    Each("linear", ((5, 4), (3, 4), (3,)), {"activation": "silu"}),
]
each = pytest.mark.parametrize("one", FUNCTIONS, ids=[one.name for one in FUNCTIONS])
close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def loss(call):
    """A number that has a second derivative."""
    return lambda *tensors: call(*tensors).tanh().square().sum()


def network():
    return torch.nn.Sequential(
        nn.ConvReLU2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(2), nn.ConvTranspose2d(6, 4, 2, 2), nn.AdaptiveAvgPool2d((2, 3)), torch.nn.Flatten(),
        nn.LinearReLU(24, 8), nn.Linear(8, 3),
    )  # fmt: skip
