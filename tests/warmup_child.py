"""Run by test_warmup.py in a process without the interpreter: warms small models up, prints what it saw as JSON."""

import dataclasses
import json
import sys
import threading
import warnings

import torch
import triton
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import cnn_triton
from cnn_triton import nn
from cnn_triton.tools import warmup

CHIP = "sm_90"
LAST = torch.channels_last


def small(channels=8):
    """Layers of several kinds, a normalisation with statistics, and one that draws random numbers."""
    return torch.nn.Sequential(
        nn.ConvReLU2d(channels, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.Dropout(),
        nn.MaxPool2d(2),
        torch.nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def images(channels=8):
    return torch.randn(4, channels, 8, 8)


class Wrapped(torch.nn.Module):
    """A model that calls another one in its own way."""

    def __init__(self, call, model=None):
        super().__init__()
        self.model, self.call = model or small(), call

    def forward(self, *args, **kwargs):
        return self.call(self.model, *args, **kwargs)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    others: dict
    name: str = "logits"


compiled = []


def count(**kernel):
    compiled.append(kernel["src"].name)


def warm(model, example, **options):
    """The report, and how many kernels Triton made."""
    del compiled[:]
    report = cnn_triton.warmup(model, example, **{"chip": CHIP, **options})
    return {**report._asdict(), "text": str(report), "compiled": len(compiled)}


def message(model, example, **options):
    try:
        return warm(model, example, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def state(model):
    return {
        "weights": [t.tolist() for t in (*model.parameters(), *model.buffers())],
        "same objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "launches": cnn_triton.launches(),
        "runs kernels": cnn_triton.where(torch.device("cpu")),
    }


def first_and_second():
    """A warm-up and another one; and is everything as it was?"""
    model, x = small(), images()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].eval()
    before = state(model)
    first = warm(model, x, workers=2)
    unchanged = {name: value == before[name] for name, value in state(model).items()}
    return {"first": first, "second": warm(model, x), "unchanged": unchanged}


def real_step():
    """What Triton has to make for a step on real tensors after a warm-up; the operators' results are uninitialised."""
    found = {}
    for name, layout in (("channels_last", LAST), ("contiguous", torch.contiguous_format)):
        model, x = small().to(memory_format=layout), images().to(memory_format=layout)
        report = warm(model, x)
        del compiled[:]
        with warmup._compiling_for(CHIP):
            with warmup.Collecting() as real:
                torch.nn.functional.cross_entropy(model(x), torch.zeros(4, dtype=torch.long)).backward()
            for kernel, _, args, constants in real.launches:
                kernel.run(*args, grid=(1,), warmup=True, **constants)
        found[name] = {**report, "real launches": len(real.launches), "compiled": list(compiled)}
    return found


def kinds():
    """Launches of a step by kind of model, input, output and surroundings."""
    model, x = small(), images()
    frozen = small().eval().requires_grad_(False)
    with torch.device("meta"):
        nowhere, of_nowhere = small(), images()
    found = {
        "tensor": warm(model, x),
        "tuple": warm(model, (x,)),
        "dict": warm(model, {"input": x}),
        "dataclass": warm(Wrapped(lambda m, x: Output(m(x), {})), x),
        "nested": warm(Wrapped(lambda m, x: ({"a": [m(x)]}, 1, None)), x),
        "loss": warm(Wrapped(lambda m, x: m(x).logsumexp(1).mean()), x),
        "compiled": warm(torch.compile(model), x),
        "meta": warm(nowhere, of_nowhere),
        "frozen": warm(frozen, x),
        "input's gradient": warm(frozen, x.clone().requires_grad_()),
        "input's gradient, too": warm(model, x.clone().requires_grad_()),
        "twice": warm(Wrapped(lambda m, x, y: (m(x), m(y))), (x, x)),
        "checkpoint": warm(Wrapped(lambda m, x: checkpoint(m, x, use_reentrant=False)), x),
        "none": warm(torch.nn.Flatten(), x),
    }
    with torch.no_grad():
        found["no_grad"] = warm(model, x)
    with torch.inference_mode():
        found["inference_mode"] = warm(model, x)
    with cnn_triton.backend("aten"):
        found["aten"] = warm(model, x)
    found["on a CPU"] = warm(model, x, chip=None)
    return found


def own_weight():
    """The gradients of a weight that is neither parameter nor buffer, after a warm-up: one that has none, and one."""
    x, weights = images(), [torch.ones(1, requires_grad=True) for _ in range(2)]
    weights[1].grad = torch.full((1,), 2.0)
    model = Wrapped(lambda m, x: (m(weights[0] * x), weights[1]))
    launches = [warm(model, x)["launches"], warm(model.requires_grad_(False), x)["launches"]]
    return {"gradients": [w.grad if w.grad is None else w.grad.tolist() for w in weights], "launches": launches}


def autocast():
    """The dtypes of kernels' tensors under autocast, where a layer of PyTorch's own comes first; and is it on in the
    backward pass?"""
    on = []

    def call(model, x):
        y = model(x)
        y.register_hook(lambda grad: on.append(torch.is_autocast_enabled("cpu")))
        return y

    model = Wrapped(call, torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)))
    with warmup._compiling_for(CHIP), torch.autocast("cpu", torch.bfloat16):
        launches = warmup.step_launches(model, (images(),), {})
    dtypes = {str(a.dtype) for launch in launches for a in tree_leaves(launch.args) if isinstance(a, torch.Tensor)}
    return {"dtypes": sorted(dtypes), "on in backward": on}


def refused():
    """What is said about models that a warm-up can't take."""
    x = images()
    return {
        "value": message(Wrapped(lambda m, x: m(x * x.sum().item())), x),
        "mask": message(Wrapped(lambda m, x: m(x[x.sum((1, 2, 3)) > 0])), x),
        "lazy": message(torch.nn.LazyLinear(3), x),
        "channels": message(small(), x[:, :5]),
    }


def failure():
    """Kernels that do not compile; and then only in the pool's threads."""
    from triton.backends.nvidia.compiler import CUDABackend

    model, x = torch.nn.Sequential(nn.MaxPool2d(2)), images().requires_grad_()
    make = CUDABackend.make_cubin

    def nowhere(*args):
        raise ValueError("no luck")

    def alone(*args):
        assert threading.current_thread() is threading.main_thread()
        return make(*args)

    CUDABackend.make_cubin = nowhere
    said = message(model, x, chip="sm_80")
    CUDABackend.make_cubin = alone
    return {"message": said, "then": warm(model, x, chip="sm_80"), "again": warm(model, x, chip="sm_80")}


def on_gpu():
    """What Triton has to make for a step on the GPU here after a warm-up."""
    model, x = small().cuda().to(memory_format=LAST), images().cuda().to(memory_format=LAST)
    report = warm(model, x, chip=None)
    del compiled[:]
    torch.nn.functional.cross_entropy(model(x), torch.zeros(4, dtype=torch.long, device="cuda")).backward()
    return {**report, "compiled": list(compiled), "launched": sum(cnn_triton.launches().values())}


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="torch.*")
    triton.knobs.compilation.listener = count
    torch.manual_seed(0)
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
