"""Reading weights files safely: tensors by name, and nothing that runs code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from topwork.errors import WeightsError

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt")

# Under these keys checkpoints keep the state dict, next to an epoch, an optimizer and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model", "params")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU, floating point as float32.

    Reads ``.safetensors`` and, without running any code from it, PyTorch's own format (``.pth``,
    ``.pt``, ``.th``, ``.bin``, ``.ckpt``). Integer tensors, such as batch counters, keep theirs.

    Raises:
        WeightsError: the file is absent, damaged, not a weights file, or needs code to be opened.
    """
    path = Path(path)
    _check_readable(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise WeightsError(f"{path}: entry {name!r} is not a plain tensor; keep only tensors")
    if not state:
        raise WeightsError(f"{path}: holds no tensors; is it the right file?")
    return {name: _as_float32(tensor.detach()) for name, tensor in state.items()}


def _check_readable(path: Path) -> None:
    if path.is_dir():
        inside = next(iter(sorted(path.glob("*.safetensors"))), path / "model.safetensors")
        raise WeightsError(f"{path}: is a folder; name the weights file in it, such as {inside}")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise WeightsError(f"{path}: is not a weights file that topwork reads ({known})")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise WeightsError(f"{path}: does not exist; check the path") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check its mode") from error
    if not start:
        raise WeightsError(f"{path}: is empty; fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is only a Git LFS pointer; fetch the file with `git lfs pull`")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise WeightsError(
            f"{path}: truncated, or not a safetensors file; fetch or convert it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    zipped = is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a hostile or damaged file can make the reader raise anything
        if _needs_code(path, error):
            raise WeightsError(
                f"{path}: holds pickled objects besides tensors, and opening those would run code"
                " from the file; convert it to safetensors where you trust it"
            ) from error
        raise WeightsError(
            f"{path}: truncated, or not a PyTorch weights file; fetch or convert it again"
        ) from error
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if _is_mapping(content.get(key))), None)
        if inner is None:
            return dict(content)
        content = inner
    raise WeightsError(f"{path}: holds a {type(content).__name__}, not tensors by name")


def _needs_code(path: Path, error: Exception) -> bool:
    """Tell a file of pickled objects from a damaged one: zip or pickle bytes, refused on sight."""
    if not isinstance(error, UnpicklingError):
        return "TorchScript" in str(error)
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80" or "Unsupported global" in str(error)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
        and value.device.type == "cpu"
    )


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
