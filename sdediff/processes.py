"""Who trains: one process, or many that share a batch. `fit` asks a `Processes` for whatever differs between the two.

A network that many share has its tensors as its process holds them, its `own`: whole ones, or a part of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Processes(ABC):
    """rank of `count` processes; each calls all of these methods together."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None  # of this process; None: wherever the network lies

    @abstractmethod
    def prepare(self, net: nn.Module) -> nn.Module:
        """The network as this process calls it; its parameters are what the optimiser changes."""

    @abstractmethod
    def apart(self, net: nn.Module) -> AbstractContextManager:
        """Inside, gradients are summed in this process only: for all but the last of accumulated parts."""

    @abstractmethod
    def clip(self, net: nn.Module, most: float) -> Tensor:
        """Scale the gradient to a norm of at most `most`; the norm that it had, of the whole network."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """The rows (B, ...) of all processes, in their order."""

    @abstractmethod
    def own(self, net: nn.Module) -> dict[str, Tensor]:
        """The state of a prepared network as this process holds it: whole tensors, or its shards; changing them changes the network."""

    @abstractmethod
    def whole(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, of what `own` (or an optimiser) holds, in the process that writes, rank 0; elsewhere none."""

    @abstractmethod
    def put(self, own: Tensor, whole: Tensor) -> None:
        """Copy this process's part of a whole tensor into its own."""

    def local(self, own: Tensor) -> Tensor:
        """The plain tensor behind one of `own`: the same memory."""
        return own

    def show(self, net: nn.Module, own: Mapping[str, Tensor]) -> None:
        """Copy values, given as those of `own`, into the network as it was before `prepare`."""
        with torch.no_grad():
            for name, value in net.state_dict().items():
                value.copy_(own[name])

    def meet(self) -> None:
        """Return when all have come here."""
        return None

    def lost(self, wrong: Exception) -> bool:
        """Whether an error says that another process has ended."""
        return False


class Alone(Processes):
    """One process, the network as it is, on its device, or on the one named."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = None if device is None else torch.device(device)

    def prepare(self, net: nn.Module) -> nn.Module:
        return net if self.device is None else net.to(self.device)

    def apart(self, net: nn.Module) -> AbstractContextManager:
        return nullcontext()

    def clip(self, net: nn.Module, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(net.parameters(), most)

    def gather(self, x: Tensor) -> Tensor:
        return x

    def own(self, net: nn.Module) -> dict[str, Tensor]:
        return dict(net.state_dict())

    def whole(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(own)

    def put(self, own: Tensor, whole: Tensor) -> None:
        with torch.no_grad():
            own.copy_(whole)
