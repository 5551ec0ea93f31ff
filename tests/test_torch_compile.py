"""Every function within torch.compile and torch.export, without a graph break, for any batch."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jvp, vmap

import cnn_triton
from checks import operator_of
from cnn_triton import functional
from every_function import close, each, loss, network


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
