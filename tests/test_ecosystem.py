"""Every function within the rest of PyTorch: torch.compile, export, torch.func, autocast, checkpoints, counters, fx."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cnn_triton
from cases import draw
from checks import kernels_only, operator_of, unfolded
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


def test_every_function_is_here():
    assert {one.name for one in FUNCTIONS} == set(functional.__all__)


def loss(call):
    """A number that has a second derivative."""
    return lambda *tensors: call(*tensors).tanh().square().sum()


def argnums(one):
    return tuple(range(len(one.shapes)))


# torch.func


@each
def test_grad(one, device):
    tensors = one.tensors(device)
    with kernels_only(one.operator):
        ours = grad(loss(one.ours), argnums(one))(*tensors)
    close(ours, grad(loss(one.theirs), argnums(one))(*tensors))


@pytest.mark.cover
@each
def test_jvp(one, device):
    """All tensors' tangents at once, and each alone."""
    tensors, tangents = one.tensors(device), one.tensors(device)
    with kernels_only(one.operator):
        ours = jvp(one.ours, tuple(tensors), tuple(tangents))
    close(ours, jvp(one.theirs, tuple(tensors), tuple(tangents)))
    for i, tangent in enumerate(tangents):

        def along(call, i=i, tangent=tangent):
            return jvp(lambda t: call(*tensors[:i], t, *tensors[i + 1 :]), (tensors[i],), (tangent,))

        close(along(one.ours), along(one.theirs))
    with forward_ad.dual_level():
        dual = one.ours(*map(forward_ad.make_dual, tensors, tangents))
        close(tuple(forward_ad.unpack_dual(dual)), ours)


@pytest.mark.cover
@each
def test_hessian(one, device):
    """Forward over reverse, in batches."""
    small = one.of_batch(1) if one.name != "conv2d_batch_norm" else one
    tensors = small.tensors(device)
    last = (len(tensors) - 1,) if len(tensors) > 1 else (0,)  # the bias, if there is one, and the batch
    for wrt in {last, (0,)}:
        with kernels_only(one.operator):
            ours = hessian(loss(small.ours), wrt)(*tensors)
        close(ours, hessian(loss(small.theirs), wrt)(*tensors))


@each
def test_hessian_times_vector(one, device):
    """Of all tensors, forward over reverse and reverse over reverse."""
    tensors, vectors = one.tensors(device), one.tensors(device)
    slope, right = (grad(loss(call), argnums(one)) for call in (one.ours, one.theirs))
    _, expected = jvp(right, tuple(tensors), tuple(vectors))
    close(jvp(slope, tuple(tensors), tuple(vectors))[1], expected)

    def along(*tensors):
        return sum((g * v).sum() for g, v in zip(slope(*tensors), vectors, strict=True))

    close(grad(along, argnums(one))(*tensors), expected)


@pytest.mark.cover
@each
def test_vmap(one, device):
    """Over each choice of tensors, at odd dimensions; and of gradients: a gradient for each sample."""
    tensors = one.tensors(device)
    for choice in range(1, 2 ** len(tensors), 1 if len(tensors) <= 3 else 6):
        dims = tuple((i + choice) % (t.dim() + 1) if choice >> i & 1 else None for i, t in enumerate(tensors))
        stacks = [
            t if dim is None else torch.stack([t, t.flip(0), 2 * t], dim) for t, dim in zip(tensors, dims, strict=True)
        ]
        with kernels_only(one.operator):
            ours = vmap(one.ours, dims, out_dims=1)(*stacks)
        close(ours, vmap(one.theirs, dims, out_dims=1)(*stacks))
        gradients = (vmap(grad(loss(call), argnums(one)), dims)(*stacks) for call in (one.ours, one.theirs))
        close(*gradients)
        whole = (
            grad(lambda *t, call=call: vmap(call, dims)(*t).tanh().sum(), argnums(one))(*stacks)  # noqa: B023
            for call in (one.ours, one.theirs)
        )
        close(*whole)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_vmap(device):
    x, w = draw((2, 3, 2, 4, 5, 5), torch.float64, "contiguous").to(device), draw((3, 6, 4, 3, 3), torch.float64, "")
    with kernels_only("conv2d"):
        ours = vmap(vmap(functional.conv2d), (0, None))(x, w.to(device))
    close(ours, vmap(vmap(F.conv2d), (0, None))(x, w.to(device)))


def test_vmap_with_indices(device):
    x = draw((3, 2, 3, 6, 6), torch.float64, "contiguous").to(device)
    ours = vmap(lambda x: functional.max_pool2d(x, 2, return_indices=True))(x)
    close(ours, vmap(lambda x: F.max_pool2d(x, 2, return_indices=True))(x))


# torch.compile


def compiled(call, backend="aot_eager", **options):
    """The call, as one graph; and a counter of compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(call, backend=counter, fullgraph=True, **options), counter


def ran(before):
    """The operators that launched kernels since."""
    return {name for name, count in cnn_triton.launches().items() if count > before.get(name, 0)}


@pytest.mark.cover
@each
def test_compiles(one, device):
    """Forward and backward as one graph without a break, for any batch: no second compilation. (The first batch is of
    a size that nothing else has: of sizes that are the same once, the compiler takes it that they always are.)"""
    call, counter = compiled(one.ours, dynamic=True)
    for batch in (11, 3, 7):
        tensors = [t.requires_grad_() for t in one.tensors(device, batch)]
        before = cnn_triton.launches()
        y = call(*tensors)
        gradients = torch.autograd.grad(loss(lambda y: y)(y), tensors)
        assert one.operator in ran(before)
        assert counter.frame_count == 1
        right = one.theirs(*tensors)
        close((y, *gradients), (right, *torch.autograd.grad(loss(lambda y: y)(right), tensors)))
    with torch.no_grad():
        close(call(*tensors), one.theirs(*tensors))


@pytest.mark.cover
@each
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_exports(one, strict, device):
    """torch.export, the batch left open: our operators stand in the graph."""

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return one.ours(*tensors)

    tensors = one.tensors(device, 3)
    batch = {0: torch.export.Dim("batch", min=2)}
    sizes = (tuple(batch if name in ("input", "residual") else None for name in one.roles),)
    exported = torch.export.export(Module(), tuple(tensors), dynamic_shapes=sizes, strict=strict)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert f"cnn_triton.{operator_of(one.name)}.default" in targets
    assert not any("aten.conv" in target or ("pool" in target and "aten" in target) for target in targets)
    tensors = one.tensors(device, 5)
    close(exported.module()(*tensors), one.theirs(*tensors))


def network():
    return torch.nn.Sequential(
        nn.ConvReLU2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(2), nn.ConvTranspose2d(6, 4, 2, 2), nn.AdaptiveAvgPool2d((2, 3)), torch.nn.Flatten(),
        nn.LinearReLU(24, 8), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize(("dynamic", "compilations"), [(True, [1, 1, 1]), (None, [1, 2, 2])], ids=["dynamic", "auto"])
def test_inductor(dynamic, compilations, device):
    """A model, trained as the compiler's default backend has it. Unless told otherwise, it takes the second batch size
    for the sign of many, and compiles no more."""
    model = network().to(device)
    call, counter = compiled(model, "inductor", dynamic=dynamic)
    counts = []
    for batch in (2, 3, 5):
        x = torch.randn(batch, 1, 8, 8, device=device)
        gradients = [torch.autograd.grad(m(x).square().sum(), list(model.parameters())) for m in (call, model)]
        torch.testing.assert_close(*gradients)
        counts.append(counter.frame_count)
    assert counts == compilations


def test_new_image_sizes_compile_nothing(device):
    w = torch.randn(4, 1, 3, 3, device=device)
    call, counter = compiled(lambda x: functional.max_pool2d(functional.conv2d(x, w, None, 1, 1), 2), dynamic=True)
    for size in (8, 10, 13):
        x = torch.randn(2, 1, size, size + 1, device=device)
        torch.testing.assert_close(call(x), F.max_pool2d(F.conv2d(x, w, None, 1, 1), 2))
    assert counter.frame_count == 1


@pytest.mark.parametrize("transform", ["grad", "vmap", "gradients of each sample", "jvp", "hessian"])
def test_compiles_transforms(transform, device):
    """torch.func's transforms within one compiled graph."""
    x, w = torch.randn(3, 2, 6, 6, device=device), torch.randn(4, 2, 3, 3, device=device)

    def number(w, x):
        return functional.max_pool2d(functional.conv2d_relu(x[None], w, None, 1, 1), 2).square().sum()

    call, args = {
        "grad": (grad(number), (w, x[0])),
        "vmap": (vmap(number, (None, 0)), (w, x)),
        "gradients of each sample": (vmap(grad(number), (None, 0)), (w, x)),
        "jvp": (lambda w, d: jvp(lambda w: functional.conv2d(x, w), (w,), (d,)), (w, w.cos())),
        "hessian": (hessian(lambda w: functional.conv2d(x, w).square().sum()), (w[:1, :, :2, :2],)),
    }[transform]
    torch.testing.assert_close(compiled(call)[0](*args), call(*args))


def test_compiles_autocast(device):
    model, x = network().to(device), torch.randn(2, 1, 8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = compiled(model)[0](x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, model(x))


# The rest of training


@pytest.mark.cover
@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_autocast(one, dtype, device):
    """Results have the dtype of PyTorch's own product or pool, gradients those of the tensors, and the values are those
    of casts: to autocast's dtype, but to float32 for a scale, the bias beside it, and a normalisation's weights."""
    leaves = [t.requires_grad_() for t in one.tensors(device, dtype=dtype)]
    with torch.autocast(device.type, torch.bfloat16):
        ours, theirs = one.ours(*leaves), one.bare.theirs(*leaves[: len(one.bare.shapes)])
    low = ours.dtype
    assert low == theirs.dtype
    precise = {"scale": (2, 3), "norm_weight": (3, 4)}[one.names[0]] if one.names and low != dtype else ()
    casts = [t.to(torch.float32 if i in precise else low) for i, t in enumerate(leaves)]
    torch.testing.assert_close(ours, one.ours(*casts), rtol=0, atol=0)
    assert [g.dtype for g in torch.autograd.grad(ours.sum(), leaves)] == [dtype] * len(leaves)


@pytest.mark.cover
@each
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpoint(one, reentrant, device):
    """The forward pass runs again where it has saved something, and gives the same gradients."""
    tensors = [t.requires_grad_() for t in one.tensors(device)]
    right = torch.autograd.grad(loss(one.ours)(*tensors), tensors)
    before = cnn_triton.launches()
    loss(lambda *t: checkpoint(one.ours, *t, use_reentrant=reentrant))(*tensors).backward()
    first = operator_of(one.name) if reentrant else one.operator  # which asks for no derivatives where reentrant
    again = reentrant or "avg" not in one.name
    runs = [cnn_triton.launches()[name] - before.get(name, 0) for name in sorted({first, one.operator})]
    assert min(runs) >= 1
    assert sum(runs) >= (2 if again else 1)
    assert all(torch.equal(t.grad, g) for t, g in zip(tensors, right, strict=True))


@pytest.mark.cover
@each
def test_inference_mode(one, device):
    tensors = one.tensors(device)
    with torch.inference_mode(), kernels_only(operator_of(one.name)):
        y = one.ours(*tensors)
    assert y.is_inference()
    close(y.clone(), one.theirs(*tensors))


@pytest.mark.cover
@each
def test_fake_tensors(one, device):
    """Shapes, strides, dtype and device without a computation; and shapes of tensors on the device 'meta'."""
    tensors = one.tensors(device)
    right = one.ours(*tensors)
    with FakeTensorMode() as mode:
        y = one.ours(*map(mode.from_tensor, tensors))
    assert (y.shape, y.stride(), y.dtype, y.device) == (right.shape, right.stride(), right.dtype, right.device)
    assert one.ours(*(t.to("meta") for t in tensors)).shape == right.shape


@each
def test_flops(one, device):
    """What torch's counter counts of PyTorch's own functions, forward and backward: products, and nothing else."""
    plain, totals = one, []
    if "groups" in one.options and "conv" in one.name:  # whose gradients PyTorch's counter counts as if there were none
        inner = 1 if "transpose" in one.name else one.shapes[0][1]
        weight = (one.shapes[1][0], one.shapes[2][0] if inner == 1 else inner, *one.shapes[1][2:])
        options = {name: value for name, value in one.options.items() if name != "groups"}
        plain = Each(one.name, (one.shapes[0], weight, one.shapes[2]), options)
    for call in (plain.ours, plain.theirs):
        tensors = [t.requires_grad_() for t in plain.tensors(device)]
        with FlopCounterMode(display=False) as counter:
            call(*tensors).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


@pytest.mark.cover
@each
def test_fx_notes_the_call(one, device):
    """torch.fx traces the functions as single calls, as it does PyTorch's."""

    class Module(torch.nn.Module):
        def forward(self, x):
            return one.ours(x, *rest)

    if "unpool" in one.name:
        pytest.skip("this test's indices are computed from the shape, which torch.fx doesn't know")
    x, *rest = one.tensors(device)
    traced = torch.fx.symbolic_trace(Module())
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [getattr(functional, one.name)]
    close(traced(x), one.theirs(x, *rest))


def test_a_tensor_of_another_class_decides(device):
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is functional.conv2d:
                return "asked"
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.randn(1, 2, 5, 5, device=device)
    assert functional.conv2d(x.as_subclass(Loud), torch.randn(3, 2, 3, 3, device=device)) == "asked"


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized(kind, device):
    """torch.nn.utils.parametrize on our modules: the same weights, state_dict and gradients."""
    models = [
        torch.nn.Sequential(kind(one.Conv2d(2, 4, 3)), torch.nn.Flatten(), kind(one.Linear(36, 3)))
        for one in (nn, torch.nn)
    ]
    ours, theirs = (model.to(device, torch.float64).eval() for model in models)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, device=device)
    with kernels_only("conv2d", "linear") if kind is parametrizations.weight_norm else torch.enable_grad():
        y = ours(x)
    close(y, theirs(x))
    gradients = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (ours, theirs)]
    close(*gradients)


def test_gradients_of_each_sample(device):
    """torch.func over a whole model: functional_call, vmap and grad."""
    model = network().to(device, torch.float64)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, device=device)

    def number(weights, image):
        return functional_call(model, weights, image[None]).square().sum()

    per_sample = vmap(grad(number), (None, 0))(weights, x)
    for i, image in enumerate(x):
        alone = grad(number)(weights, image)
        close({name: g[i] for name, g in per_sample.items()}, alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA GPU")
def test_cuda_graph():
    """A whole training step is captured and replayed."""
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(4, 1, 8, 8, device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    captured = [p.grad.clone() for p in model.parameters()]
    step()
    torch.testing.assert_close(captured, [p.grad for p in model.parameters()])


@pytest.mark.parametrize("tracked", [True, False])
def test_ensembles_in_training(tracked, device):
    """Models stacked into one, each with its own batch normalisation: results and statistics."""
    results = []
    for ours in (True, False):
        models = []
        for seed in range(3):
            torch.manual_seed(seed)
            layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3, track_running_stats=tracked), torch.nn.ReLU()]
            model = torch.nn.Sequential(*layers)
            if ours:
                block = nn.ConvBatchNorm2d(2, 3, 3, activation="relu", track_running_stats=tracked)
                block.load_state_dict(model[:2].state_dict())
                model = block
            models.append(model.to(device).double())
        weights, buffers = torch.func.stack_module_state(models)

        def run(weights, buffers, x, model=models[0]):
            return torch.func.functional_call(model, (weights, buffers), (x,))

        x = torch.linspace(-1, 1, 4 * 2 * 5 * 5, dtype=torch.float64, device=device).cos().view(4, 2, 5, 5)
        results.append([torch.func.vmap(run, (0, 0, None))(weights, buffers, x), *buffers.values()])
    torch.testing.assert_close(*results)


def test_batches_of_second_gradients_of_unpooling(device):
    y, places = F.max_pool2d(torch.randn(1, 2, 4, 4, dtype=torch.float64, device=device), 2, return_indices=True)
    y.requires_grad_()
    rows = torch.randn(3, *y.shape, dtype=torch.float64, device=device)
    found = []
    for unpool in (functional.max_unpool2d, F.max_unpool2d):
        (grad,) = torch.autograd.grad((unpool(y, places, 2) ** 3).sum(), y, create_graph=True)
        found += torch.autograd.grad(grad, y, rows, is_grads_batched=True)
    torch.testing.assert_close(*found)
