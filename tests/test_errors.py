"""Bad input: the exception type that PyTorch raises, with a message that names the argument and what it got."""

import re

import pytest
import torch
import torch.nn.functional as F

from bad_calls import CASES, PATHS, W, X, on, rand
from cnn_triton import functional


@PATHS
@pytest.mark.parametrize(("ours", "theirs", "make", "words"), CASES)
def test_error(ours, theirs, make, words, path):
    args = make()
    # Any exception: PyTorch decides which.
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(*args)
    with on(path), pytest.raises(Exception) as got:  # noqa: PT011
        ours(*args)
    assert issubclass(got.type, expected.type), f"{got.type} is no {expected.type}: {got.value}"
    for word in words:
        assert word in str(got.value), f"{word!r} is not in: {got.value}"
    assert all(
        a.device.type == "meta" or torch.equal(a, b)
        for a, b in zip(args, before, strict=True)
        if isinstance(a, torch.Tensor)
    )


@pytest.mark.parametrize(
    ("mode", "padding", "shape"),
    [("reflect", (1, 8), X), ("circular", (9, 0), X), ("reflect", 1, (2, 0, 8, 8)), ("replicate", 1, (2, 0, 8, 8))],
    ids=str,
)
def test_padding_mode(mode, padding, shape):
    """Padding that the image can't show: RuntimeError, as torch.nn.functional.pad raises."""
    x, w = rand(*shape), rand(6, shape[1], 3, 3)
    with pytest.raises(RuntimeError):
        F.pad(x, 2 * padding[1:] + 2 * padding[:1] if isinstance(padding, tuple) else (1, 1, 1, 1), mode)
    with pytest.raises(RuntimeError, match=f"padd.*{mode}"):
        functional.conv2d(x, w, padding=padding, padding_mode=mode)


EPILOGUE = {  # label: (arguments, exception, what the message must hold)
    "unknown word": (lambda: {"activation": "rellu"}, ValueError, ("activation", "'rellu'", "did you mean 'relu'")),
    "no word": (lambda: {"activation": 3}, TypeError, ("activation", "3")),
    "bounds of text": (lambda: {"activation": ("clamp", "a", "b")}, TypeError, ("activation", "'a'")),
    "a number too many": (lambda: {"activation": ("relu", 1)}, ValueError, ("activation", "'relu'", "0 numbers", "1")),
    "relu6 of 1": (lambda: {"activation": ("relu6", 1)}, ValueError, ("activation", "'relu6'", "0 numbers", "1")),
    "slope": (lambda: {"activation": ("leaky_relu", -0.1)}, ValueError, ("'leaky_relu'", "slope", "-0.1")),
    "nan": (lambda: {"activation": ("clamp", float("nan"), 1)}, ValueError, ("'clamp'", "nan")),
    "bounds": (lambda: {"activation": ("hardtanh", 1, 0)}, ValueError, ("'hardtanh'", "(1.0, 0.0)")),
    "prelu without a slope": (lambda: {"activation": ("prelu",)}, ValueError, ("'prelu'", "a slope", "0 values")),
    "prelu by its word": (lambda: {"activation": "prelu"}, ValueError, ("'prelu'", "slope", "torch.nn.PReLU")),
    "prelu's slope a number": (lambda: {"activation": ("prelu", 0.1)}, TypeError, ("'prelu'", "torch.Tensor", "float")),
    "prelu's shape": (lambda: {"activation": ("prelu", rand(5))}, RuntimeError, ("slope", "(6,)", "(5,)")),
    "prelu's dtype": (
        lambda: {"activation": ("prelu", rand(6).double())}, RuntimeError, ("slope", "float64", "float32")
    ),
    "scale's shape": (lambda: {"scale": rand(5)}, RuntimeError, ("scale", "(6,)", "(5,)")),
    "scale's dtype": (lambda: {"scale": rand(6).half()}, RuntimeError, ("scale", "float16", "float32")),
    "scale a float": (lambda: {"scale": 2.0}, TypeError, ("scale", "float")),
    "residual's shape": (
        lambda: {"residual": rand(2, 6, 6, 5)}, RuntimeError, ("residual", "(2, 6, 6, 6)", "(2, 6, 6, 5)")
    ),
    "residual's dtype": (
        lambda: {"residual": rand(2, 6, 6, 6).double()}, RuntimeError, ("residual", "float64", "float32")
    ),
}  # fmt: skip


@PATHS
@pytest.mark.parametrize("label", EPILOGUE)
def test_epilogue(label, path):
    given, error, words = EPILOGUE[label]
    with on(path), pytest.raises(error) as got:
        functional.conv2d(rand(*X), rand(*W), **given())
    assert all(word in str(got.value) for word in words), got.value


PLACED = (6, 6, 6, 3, 3, 4)
LOCAL = {  # label: (arguments of locally_connected2d, what the message must hold)
    "input 2-D": (lambda: (rand(8, 8), rand(*PLACED)), ("input", "(8, 8)")),
    "weight 4-D": (lambda: (rand(*X), rand(*W)), ("weight", "6-D", "(6, 4, 3, 3)")),
    "channels": (lambda: (rand(2, 5, 8, 8), rand(*PLACED)), ("input", "5", "4")),
    "pixels": (lambda: (rand(*X), rand(*PLACED), None, 1, 1), ("weight", "8 x 8", "6 x 6")),
    "window": (lambda: (rand(2, 4, 2, 8), rand(*PLACED)), ("weight", "3 x 3", "2 x 8")),
    "weight's window": (lambda: (rand(*X), rand(6, 6, 6, 0, 3, 4)), ("weight", "6-D", "(6, 6, 6, 0, 3, 4)")),
    "weight's channels": (lambda: (rand(*X), rand(*PLACED[:-1], 3)), ("input", "4", "(6, 6, 6, 3, 3, 3)", "3")),
    "bias' shape": (lambda: (rand(*X), rand(*PLACED), rand(5)), ("bias", "(6,)", "(5,)")),
    "bias' either shape": (lambda: (rand(*X), rand(*PLACED), rand(5, 6)), ("bias", "(6,)", "(6, 6, 6)", "(5, 6)")),
    "bias' pixels": (lambda: (rand(*X), rand(*PLACED), rand(5, 6, 6)), ("bias", "(6, 6, 6)", "(5, 6, 6)")),
    "groups": (lambda: (rand(*X), rand(*PLACED), None, 1, 0, 1, 4), ("groups", "4")),
    "stride 0": (lambda: (rand(*X), rand(*PLACED), None, 0), ("stride", "(0, 0)")),
    "weight's dtype": (lambda: (rand(*X), rand(*PLACED).double()), ("weight", "float64", "float32")),
}


@PATHS
@pytest.mark.parametrize("label", LOCAL)
def test_locally_connected(label, path):
    """RuntimeError, as of unfold and einsum."""
    make, words = LOCAL[label]
    with on(path), pytest.raises(RuntimeError) as got:
        functional.locally_connected2d(*make())
    assert all(word in str(got.value) for word in words), got.value
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor, but got NoneType"):
        functional.locally_connected2d(rand(*X), None)


@PATHS
def test_batch_norm_and_residual(path):
    """In training, too, what PyTorch would broadcast is refused where its operators run."""
    with on(path), pytest.raises(RuntimeError, match=r"residual.*\(2, 6, 6, 6\).*\(1, 6, 1, 1\)"):
        functional.conv2d_batch_norm(rand(*X), rand(*W), training=True, residual=rand(1, 6, 1, 1))


def test_batch_norm():
    """PyTorch's types: ValueError for one value per channel, RuntimeError without statistics."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(rand(1, 6, 1, 1), None, None, training=True)
    with pytest.raises(ValueError, match=r"input must leave more than one value per channel .* shape \(1, 6, 1, 1\)"):
        functional.conv2d_batch_norm(rand(1, 4, 3, 3), rand(*W), training=True)
    with pytest.raises(RuntimeError, match="running_mean and running_var must be tensors unless training"):
        functional.conv2d_batch_norm(rand(*X), rand(*W))
    with pytest.raises(RuntimeError, match=r"input must be 4-D \(N, C, H, W\), but got shape \(4, 8, 8\)"):
        functional.conv2d_batch_norm(rand(*X)[0], rand(*W), training=True)


NORM = {  # label: (arguments, exception, the message)
    **{
        name: (lambda name=name: {name: rand(5)}, RuntimeError, rf"^{name} must have shape \(6,\).*, but got \(5,\)")
        for name in ("bias", "running_mean", "running_var", "norm_weight", "norm_bias")
    },
    "norm_bias a float": (lambda: {"norm_bias": 2.0}, TypeError, r"norm_bias must be a torch\.Tensor .* float"),
    "norm_weight of integers": (lambda: {"norm_weight": rand(6).int()}, RuntimeError, r"norm_weight has dtype .*int32"),
    "running_mean of integers": (lambda: {"running_mean": rand(6).int()}, RuntimeError, r"running_mean has dtype"),
    "eps": (lambda: {"eps": "a"}, TypeError, "eps must be a number, but got 'a'"),
    "momentum": (lambda: {"momentum": None}, TypeError, "momentum must be a number, but got None"),
    "training": (lambda: {"training": "yes"}, TypeError, "training must be True or False, but got 'yes'"),
}


@PATHS
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("label", NORM)
def test_batch_norm_arguments(label, training, path):
    """Each is named as the user names it."""
    make, error, words = NORM[label]
    given = {"running_mean": rand(6), "running_var": rand(6), "training": training} | make()
    with on(path), pytest.raises(error, match=words):
        functional.conv2d_batch_norm(rand(*X), rand(*W), **given)


@PATHS
def test_residual(path):
    """A number for a residual, and the shapes of rows in the user's terms."""
    with on(path), pytest.raises(TypeError, match=r"residual must be a torch\.Tensor or None, but got float"):
        functional.linear(rand(3, 4), rand(4), residual=2.0)
    for function, shape in ((functional.conv1d, (2, 6, 6)), (functional.conv_transpose1d, (2, 6, 10))):
        weight = rand(6, 4, 3) if function is functional.conv1d else rand(4, 6, 3)
        words = rf"residual must have shape {re.escape(str(shape))}, but got \(2, 6, 5\)"
        with on(path), pytest.raises(RuntimeError, match=words):
            function(rand(2, 4, 8), weight, residual=rand(2, 6, 5))


def test_unknown_padding_mode():
    """ValueError, as torch.nn.Conv2d raises."""
    with pytest.raises(ValueError, match=r"padding_mode must be one of .*'reflect'.*, but got 'mirror'"):
        functional.conv2d(rand(*X), rand(*W), padding=1, padding_mode="mirror")


@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu", "linear", "linear_relu"])
def test_mixed_devices(name):
    """RuntimeError, as between a CPU and a GPU in PyTorch (which lets its meta device mix, so it is not asked)."""
    shapes = (X, W) if "conv" in name else ((3, 4), (6, 4))
    input, weight = (rand(*shape) for shape in shapes)
    with pytest.raises(RuntimeError, match="weight is on meta, but input is on cpu"):
        getattr(functional, name)(input, weight.to("meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu", "linear", "linear_relu", "max_pool2d", "avg_pool2d"])
def test_unsupported_dtype(name, dtype):
    """NotImplementedError, which is a RuntimeError, as PyTorch's CUDA operators raise; its CPU ones take some."""
    shapes = {"conv": (X, W), "line": ((3, 4), (6, 4))}.get(name[:4], (X,))
    args = [torch.ones(shape).to(dtype) for shape in shapes] + ([2] if "pool" in name else [])
    with pytest.raises(NotImplementedError, match=f"input has dtype {dtype}.*float16, bfloat16, float32, float64"):
        getattr(functional, name)(*args)


HUGE = [1 << 31, 1 << 40]


@pytest.mark.parametrize("huge", HUGE)
def test_numbers_beyond_32_bits(huge, device):
    """A convolution takes them where they make no difference, as PyTorch's; pools raise RuntimeError, as PyTorch's."""
    x, w = torch.randn(1, 2, 4, 4, device=device), torch.randn(3, 2, 3, 3, device=device)
    torch.testing.assert_close(functional.conv2d(x, w, stride=huge), F.conv2d(x, w, stride=huge))
    point = w[:, :, :1, :1]
    torch.testing.assert_close(functional.conv2d(x, point, dilation=huge), F.conv2d(x, point, dilation=huge))
    for name in ("max_pool2d", "avg_pool2d"):
        for given in ({"kernel_size": 2, "stride": huge}, {"kernel_size": huge}):
            for home in (F, functional):
                with pytest.raises(RuntimeError):
                    getattr(home, name)(x, **given)


ROWS = {
    "channels": (functional.conv1d, lambda: (rand(2, 5, 8), rand(6, 4, 3)), ("input", "5", "(6, 4, 3)")),
    "groups": (functional.conv1d, lambda: (rand(2, 8, 8), rand(6, 2, 3), None, 1, 0, 1, 4), ("groups", "(6, 2, 3)")),
    "no pixel": (functional.conv1d, lambda: (rand(2, 4, 0), rand(6, 4, 3)), ("input", "3-D", "(2, 4, 0)")),
    "window": (functional.conv1d, lambda: (rand(2, 4, 8), rand(6, 4, 13)), ("weight", "13 pixels", "input's 8;")),
    "bias": (functional.conv1d, lambda: (rand(2, 4, 8), rand(6, 4, 3), rand(5)), ("bias", "(6,)", "(5,)")),
    "transposed": (functional.conv_transpose1d, lambda: (rand(2, 4, 8), rand(6, 4, 3)), ("input", "(6, 4, 3)")),
    "output_padding": (
        functional.conv_transpose1d, lambda: (rand(2, 4, 8), rand(4, 6, 3), None, 2, 0, 3),
        ("output_padding", "(2,)", "(3,)"),
    ),
    "cropped": (
        functional.conv_transpose1d, lambda: (rand(2, 4, 8), rand(4, 6, 3), None, 1, 9),
        ("padding", "(9,)", "(2, 4, 8)"),
    ),
    "pool": (functional.max_pool1d, lambda: (rand(2, 4, 8), 9), ("kernel_size", "(9,)", "of 8:")),
    "padding over half": (functional.avg_pool1d, lambda: (rand(2, 4, 8), 3, 1, 2), ("padding", "(3,)", "(2,)")),
    "no channel": (functional.avg_pool1d, lambda: (rand(2, 0, 8), 2), ("input", "3-D", "(2, 0, 8)")),
    "huge": (functional.max_pool1d, lambda: (rand(2, 4, 8), 2, 1 << 31), ("stride", f"({1 << 31},)")),
    "unpooled": (
        functional.max_unpool1d, lambda: (rand(2, 4, 1), torch.zeros(2, 4, 1).long(), 1, 1, 2), ("padding", "(2,)"),
    ),
    "output_size": (
        functional.max_unpool1d, lambda: (rand(2, 4, 4), torch.zeros(2, 4, 4).long(), 2, 2, 0, (12,)), ("(8,)", "(2,)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "path"),
    [
        (label, path) for label in ROWS for path in ("kernels", "aten") if (label, path) != ("huge", "aten")
    ],  # theirs can
)
def test_rows(label, path, device):
    """Messages of one-dimensional functions speak of rows, not of the images that these are to the kernels."""
    function, args, words = ROWS[label]
    with on(path), pytest.raises((RuntimeError, ValueError)) as error:
        function(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in args()))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert " x " not in message
    assert not re.search(r"4-D|, 1, \d+\)|\(1, \d+\)", message), message
