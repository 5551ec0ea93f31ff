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
    """One process that trains alone: it has the whole of every batch, and its figures are the training's."""

    description, rank, size = "one process", 0, 1

    @property
    def first(self) -> bool:
        """True if this is the process that prints and writes."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module to call instead of the model; gradients are then means over all processes."""
        return model

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a batch; it is empty if there are fewer rows than processes."""
        return batch.tensor_split(self.size)[self.rank]

    def totals(self, *values: float) -> list[float]:
        """Return the sums over all processes, the same in each."""
        return list(values)

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """Return counts by name, summed over all processes."""
        return counts

    def broadcast(self, value: T) -> T:
        """Return the first process's value."""
        return value

    def gather(self, value: Any) -> Any:
        """Return a tensor, or dicts and lists of them, with tensors that are split among the processes made whole."""
        return value

    def split_like(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return a whole tensor, split among the processes as another one is."""
        return value


class Group(Processes):
    """Several processes with equal models; all of them call every method, except share() and split_like()."""

    def __init__(self, device: torch.device, fsdp: bool) -> None:
        self.device, self.fsdp = device, fsdp
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.description = f"{self.size} processes, {'FSDP2' if fsdp else 'DDP'}"

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return DDP around the model; or the model with FSDP2 in it, each layer's parameters split on their own."""
        if not self.fsdp:
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # It warns about in-place operators on a layer's output; there are none here.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(self.device.type, (self.size,))
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 splits no others
        for layer in list(model.modules()):
            if list(layer.parameters(recurse=False)):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def totals(self, *values: float) -> list[float]:
        """Return the sums over all processes, the same in each."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """Return counts by name, summed over all processes."""
        each: list[dict[str, int]] = [{}] * self.size
        dist.all_gather_object(each, counts)
        names = dict.fromkeys(name for own in each for name in own)
        return {name: sum(own.get(name, 0) for own in each) for name in names}

    def broadcast(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def gather(self, value: Any) -> Any:
        """Return a tensor, or dicts and lists of them, with tensors that FSDP2 has split made whole on the CPU."""
        from torch.distributed.tensor import DTensor

        if isinstance(value, DTensor):
            return value.full_tensor().cpu()
        if isinstance(value, dict):
            return {name: self.gather(part) for name, part in value.items()}
        return [self.gather(part) for part in value] if isinstance(value, list) else value

    def split_like(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return a whole tensor, split as another one is."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def joined(device: torch.device, fsdp: bool = False) -> Iterator[Group]:
    """Join the processes that torchrun started; within the context only the first one prints.

    device: of this process; processes on CUDA devices communicate by NCCL, others by gloo
    fsdp: True to split parameters, gradients and the optimizer's state (FSDP2), False for a copy in each process (DDP)
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
        # Gloo's threads need Python's lock to drop the last collectives' tensors. The end of a group waits for them but
        # holds the lock, and the end of Python kills them: so they get the lock here.
        dist.barrier()
        time.sleep(0.3)
    finally:
        dist.destroy_process_group()


@functools.cache
def _store() -> Any:
    """Return the store by which torchrun's processes find each other; it lives as long as torchrun."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))[0]


def first_to(do: str) -> bool:
    """True if this is the first of torchrun's processes to ask for this."""
    try:
        return bool(_store().add(f"cnn_triton/{do}", 1) == 1)
    except dist.DistError:  # torchrun itself has ended: nobody else is left to ask
        return True
