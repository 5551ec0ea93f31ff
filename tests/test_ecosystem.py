"""Every function within the rest of PyTorch: autocast, checkpoints, fake tensors, counters, fx, CUDA graphs."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cnn_triton
from checks import kernels_only, operator_of
from cnn_triton import functional, nn
from every_function import FUNCTIONS, Each, close, each, loss, network


def test_every_function_is_here():
    assert {one.name for one in FUNCTIONS} == set(functional.__all__)


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
