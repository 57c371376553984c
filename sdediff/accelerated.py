"""Many processes on many devices and machines, as `torchrun` or `accelerate launch` starts them.

`processes()` finds them in the environment. accelerate chooses the device and the way they talk (nccl between GPUs, gloo between CPUs).
`Copies`: each process holds the whole network, and gradients are averaged as they come (DDP). `Shards`: each holds its part of every
weight, gradient, average and optimiser state, and whole weights exist for one block at a time (FSDP2).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .names import UserError
from .processes import Alone, Processes

if TYPE_CHECKING:
    from accelerate import Accelerator


def processes(sharded: bool | None = None) -> Processes:
    """The processes of this job, for `fit(..., among=processes())`: `Alone`, on a GPU if there is one, unless many were launched.

    sharded: whether each holds a part of the network only (`Shards`), or all of it (`Copies`); None: as `accelerate launch --use_fsdp`
    says (ACCELERATE_USE_FSDP). Raises `UserError` where accelerate is missing, or a machine has more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone("cuda" if torch.cuda.is_available() and not _said("ACCELERATE_USE_CPU") else None)
    kind = Shards if (_said("ACCELERATE_USE_FSDP") if sharded is None else sharded) else Copies
    return kind(_accelerator())


def _said(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def _accelerator() -> Accelerator:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError:
        raise UserError("training in many processes needs accelerate: pip install 'sdediff[train]'.") from None
    cpu = _said("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not cpu and rank >= devices:
        raise UserError(
            f"process {rank} of this machine has no GPU of its own (there are {devices}): start {devices} processes a machine "
            f"(--nproc-per-node={devices}), or set ACCELERATE_USE_CPU=true."
        )
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # what is sent is the gradients' own memory
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp])  # `Training.precision` says what is computed in bf16


class _Launched(Processes):
    """What both ways have in common."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank, self.count, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device

    def gather(self, x: Tensor) -> Tensor:
        gathered: Any = self.accelerator.gather(x.contiguous())
        return gathered

    def meet(self) -> None:
        self.accelerator.wait_for_everyone()

    def lost(self, wrong: Exception) -> bool:
        told = str(wrong).lower()
        return isinstance(wrong, torch.distributed.DistError) or any(sign in told for sign in _LOST)


# gloo has no error class of its own
_LOST = ("closed by peer", "connection reset", "connection refused", "broken pipe", "socket timeout", "timed out waiting")


class Copies(_Launched):
    """The whole network in every process (DistributedDataParallel)."""

    def prepare(self, net: nn.Module) -> nn.Module:
        return self.accelerator.prepare(net)

    def apart(self, net: nn.Module) -> AbstractContextManager:
        return self.accelerator.no_sync(net)

    def clip(self, net: nn.Module, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(net.parameters(), most)

    def own(self, net: nn.Module) -> dict[str, Tensor]:
        return dict(self.accelerator.unwrap_model(net).state_dict())

    def whole(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(own) if self.rank == 0 else {}

    def put(self, own: Tensor, whole: Tensor) -> None:
        with torch.no_grad():
            own.copy_(whole)


class Shards(_Launched):
    """A part of the network in every process (torch's `fully_shard`, which unlike accelerate's runs on CPUs too).

    What trains is a sharded copy. The network as it was given stays whole, where it lies, and is told the weights when they are asked for
    (`Progress.averaged`, and at the end).
    """

    def prepare(self, net: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = self.accelerator.device
        for value in (*net.parameters(), *net.buffers()):  # the weights of rank 0, as with `Copies`
            there = value.detach().to(device)
            torch.distributed.broadcast(there, 0)
            value.data.copy_(there)
        called = copy.deepcopy(net)
        called.register_forward_hook(_no_view)
        mesh = init_device_mesh(device.type, (self.count,))
        for unit in units(called):
            fully_shard(unit, mesh=mesh)
        fully_shard(called, mesh=mesh)
        return called

    def apart(self, net: nn.Module) -> AbstractContextManager:
        return nullcontext()  # sums kept apart would be whole: the memory that shards are there to save

    def clip(self, net: nn.Module, most: float) -> Tensor:
        return _full(nn.utils.clip_grad_norm_(net.parameters(), most))

    def own(self, net: nn.Module) -> dict[str, Tensor]:
        return dict(net.state_dict())

    def local(self, own: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return own.to_local() if isinstance(own, DTensor) else own

    def whole(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, part in own.items():
            full = _full(part)
            if self.rank == 0:
                found[name] = full.cpu()
        return found

    def put(self, own: Tensor, whole: Tensor) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        with torch.no_grad():
            if isinstance(own, DTensor):  # every process has read the whole: nothing is sent
                whole = distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
            own.copy_(whole)

    def show(self, net: nn.Module, own: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in net.state_dict().items():
                value.copy_(_full(own[name]))


def _no_view(net: nn.Module, given: Any, answer: Any) -> Any:
    """An answer that may be changed in place without the shards' hooks noticing: they sit on the tensor, which a view would share."""
    return answer.clone() if isinstance(answer, Tensor) and answer._is_view() else answer


def _full(x: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return x.full_tensor() if isinstance(x, DTensor) else x


def units(net: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network whose weights are made whole together: the outermost members of its lists of modules."""
    for child in net.children():
        listed = isinstance(child, nn.ModuleList)
        for member in child if listed else ():
            if isinstance(member, nn.ModuleList):
                yield from units(member)
            elif any(True for _ in member.parameters()):
                yield member
        if not listed:
            yield from units(child)
