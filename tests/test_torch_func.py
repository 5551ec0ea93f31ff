"""Every function and models within torch.func: grad, jvp, vmap, hessian, a gradient for each sample, ensembles."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

from cases import draw
from checks import kernels_only
from cnn_triton import functional, nn
from every_function import close, each, loss, network


def argnums(one):
    return tuple(range(len(one.shapes)))


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
