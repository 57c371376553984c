"""Weights of other people's networks, read as tensors and nothing else, and hashes that recognise them."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checkpoint import check_weights
from ..names import UserError

PUBLISHED = (
    "pt_inception-2015-12-05-6726825d.pth (95 MB, github.com/mseitzer/pytorch-fid/releases/tag/fid_weights) or "
    "weights-inception-2015-12-05-6726825d.pth (the same, github.com/toshas/torch-fidelity/releases/tag/v0.2.0)"
)
_NAMED = re.compile(r"-([0-9a-f]{8})\.(pth|pt|th)$")  # torch.hub's way: the first digits of the file's own sha256


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth state dict read with weights_only. `UserError` for anything else.

    A file that carries the beginning of its sha256 in its name, as published ones do, must have it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give the path of a state dict (.pth or .safetensors).")
    if _is_torchscript(path):
        raise UserError(f"{path} is TorchScript, which is code and not only weights: give a state dict (.pth or .safetensors).")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as wrong:
        code = re.search("GLOBAL|Unsupported (global|class)|instantiate", str(wrong))
        what = "holds more than tensors, and reading such a file would run its code" if code else "is no state dict, or a damaged one"
        raise UserError(f"{path} {what}: give a plain state dict (.pth or .safetensors).") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, SafetensorError) as wrong:
        raise UserError(f"{path} is no state dict, or a damaged one ({_line(wrong)}): copy it again.") from None
    named = _NAMED.search(path.name)
    if named and file_hash(path)[:8] != named[1]:
        raise UserError(f"{path} is not the file that its name says: its sha256 begins with {file_hash(path)[:8]}. Copy it again.")
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict, names with a tensor each: give one (.pth or .safetensors).")
    return {str(k): v for k, v in state.items()}


def fill(net: nn.Module, state: Mapping[str, Tensor], path: str | Path, without: tuple[str, ...] = ()) -> None:
    """Give a network the tensors of `state`, all of its own but those whose names begin with `without`. `UserError` if they do not fit."""
    own = {k: v for k, v in net.state_dict().items() if not k.startswith(without)} if without else net.state_dict()
    check_weights(own, state, path)
    with torch.no_grad():
        for k, v in own.items():
            v.copy_(state[k])


def mark_of(*parts: str | Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of sha256 over texts and named tensors; counters of batches do not count."""
    hashed = hashlib.sha256()
    for part in parts:
        named = {"": part} if isinstance(part, str) else part
        for key in sorted(named):
            value = named[key]
            if key.endswith("num_batches_tracked"):
                continue
            if isinstance(value, str):
                hashed.update(f"text {value}\0".encode())
            else:
                hashed.update(f"tensor {key} {value.dtype} {tuple(value.shape)}\0".encode())
                hashed.update(bytes_of(value))
    return hashed.hexdigest()[:16]


def bytes_of(x: Tensor) -> bytes:
    """The bytes of a tensor, in order."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _line(wrong: BaseException) -> str:
    return (str(wrong).splitlines() or [type(wrong).__name__])[0][:100]
