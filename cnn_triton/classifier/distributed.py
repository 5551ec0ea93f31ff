"""The processes that train together: one alone, or those that torchrun started, sharing each batch by DDP or FSDP2."""

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["Group", "Processes", "first_to", "joined"]

T = TypeVar("T")


class Processes:
    """One process that trains alone: it has every share, and its figures are everyone's."""

    kind, rank, size = "one process", 0, 1

    @property
    def first(self) -> bool:
        """Is this the process that prints and writes?"""
        return self.rank == 0

    def spread(self, model: torch.nn.Module) -> torch.nn.Module:
        """What to call in the model's stead, whose gradients are then the mean of all processes'."""
        return model

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch; empty where there are fewer rows than processes."""
        return batch.tensor_split(self.size)[self.rank]

    def totals(self, *values: float) -> list[float]:
        """Sums over all processes, the same in each."""
        return list(values)

    def counted(self, counts: dict[str, int]) -> dict[str, int]:
        """Counts by name, summed over all processes."""
        return counts

    def told(self, value: T) -> T:
        """The first process's value."""
        return value

    def whole(self, value: Any) -> Any:
        """A tensor, or dicts and lists of them: what is split among the processes put together, in each of them."""
        return value

    def placed(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A whole tensor, of which each process keeps the part that it has of another one."""
        return value


class Group(Processes):
    """Several processes, each with a model alike; every method but share() and placed() is called by all of them."""

    def __init__(self, device: torch.device, fsdp: bool) -> None:
        self.device, self.fsdp = device, fsdp
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.kind = f"{self.size} processes, {'FSDP2' if fsdp else 'DDP'}"

    def spread(self, model: torch.nn.Module) -> torch.nn.Module:
        """DDP around the model; or FSDP2 in it, each layer's parameters split on their own."""
        if not self.fsdp:
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # It warns of operators in place on a layer's output, of which there are none.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(self.device.type, (self.size,))
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 splits no others
        for layer in list(model.modules()):
            if list(layer.parameters(recurse=False)):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def totals(self, *values: float) -> list[float]:
        """Sums over all processes, the same in each."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def counted(self, counts: dict[str, int]) -> dict[str, int]:
        """Counts by name, summed over all processes."""
        each: list[dict[str, int]] = [{}] * self.size
        dist.all_gather_object(each, counts)
        names = dict.fromkeys(name for own in each for name in own)
        return {name: sum(own.get(name, 0) for own in each) for name in names}

    def told(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def whole(self, value: Any) -> Any:
        """A tensor, or dicts and lists of them: what FSDP2 has split put together on the CPU, in each process."""
        from torch.distributed.tensor import DTensor

        if isinstance(value, DTensor):
            return value.full_tensor().cpu()
        if isinstance(value, dict):
            return {name: self.whole(part) for name, part in value.items()}
        return [self.whole(part) for part in value] if isinstance(value, list) else value

    def placed(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A whole tensor, split as another one is."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def joined(device: torch.device, fsdp: bool = False) -> Iterator[Group]:
    """The processes that torchrun started, this one among them; within, only what the first one prints is shown.

    device: of this process; CUDA ones talk by NCCL, others by gloo
    fsdp: split parameters, gradients and the optimizer's state among them (FSDP2), instead of a copy in each (DDP)
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=_store(), rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]), device_id=device if cuda else None,
    )  # fmt: skip
    try:
        group = Group(device, fsdp)
        with contextlib.nullcontext() if group.first else contextlib.redirect_stdout(None):
            yield group
        # Gloo's threads need Python's lock to drop the last collectives' tensors. A group's end waits for them with the
        # lock held, and Python's end they don't survive: here they get it.
        dist.barrier()
        time.sleep(0.3)
    finally:
        dist.destroy_process_group()


@functools.cache
def _store() -> Any:
    """What torchrun's processes find each other by; it is there as long as torchrun is."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))[0]


def first_to(do: str) -> bool:
    """Is this process the first of those that torchrun started to ask for this?"""
    try:
        return bool(_store().add(f"cnn_triton/{do}", 1) == 1)
    except dist.DistError:  # torchrun itself has ended: nobody else is left to ask
        return True
