"""Weights: safetensors files, whose header is compared with what is expected before any of their numbers is read.

Numbers are read into memory: a mapped file that is overwritten in place takes the process with it at the next forward.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from io import BufferedReader
from pathlib import Path

import torch
from safetensors import safe_open

from mull.checkpoints.files import damaged, open_regular, shown, trouble_of

MAX_HEADER = 8 << 20  # bytes, some 80,000 tensors
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NO_SAFETENSORS = "is no safetensors file"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        name: its name in there.
        kind: its type by the name that safetensors gives it, such as F32.
        shape: the shape that it is to have; one of as many numbers as the stored one.
        start: the first byte in the file.
        size: bytes.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


def stored_in(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, in the order of their bytes; only the header is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or damaged: shapes, types and places do not fill it exactly.
    """
    with open_regular(file) as opened, trouble_of(file, NO_SAFETENSORS):
        size = int.from_bytes(opened.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes, more than {MAX_HEADER:,}")
        with safe_open(file, framework="pt"):
            pass  # the library has checked the header
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        tensors = [
            Stored(file, name, about["dtype"], tuple(about["shape"]), 8 + size + begin, end - begin)
            for name, about in header.items()
            for begin, end in [about["data_offsets"]]
        ]
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.start)}


def check_floating_point(tensors: Mapping[str, Stored]) -> None:
    """Raise a ValueError for a tensor of another type than models compute with; names are those of the messages."""
    for name, tensor in tensors.items():
        if tensor.kind not in FLOATS:
            kind = {"I64": "torch.int64", "I32": "torch.int32"}.get(tensor.kind, tensor.kind)
            raise damaged(tensor.file, f"{shown(name)} is of {kind}, not floating-point ({', '.join(FLOATS)})")


def check_memory(tensors: Mapping[str, Stored]) -> None:
    """Raise a ValueError if the stored numbers are more than this machine has memory for."""
    needed = sum(tensor.size for tensor in tensors.values())
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not say
        return
    if needed > there:
        raise ValueError(
            f"the weights need {needed / 1e9:,.0f} GB and this machine has {there / 1e9:,.0f}; "
            "load them on a larger one, or with mapped=True"
        )


def read_tensors(
    tensors: Mapping[str, Stored], device: torch.device, dtype: torch.dtype | None, mapped: bool = False
) -> dict[str, torch.Tensor]:
    """The tensors themselves; at most the result and one stored tensor are in memory at once.

    Args:
        tensors: where they lie, by the names that they get.
        device: where they go.
        dtype: what they are converted to; None keeps the stored type, the widest if there are several.
        mapped: map the file where nothing has to be moved or converted.
    """
    kinds = {FLOATS[tensor.kind] for tensor in tensors.values()}
    if dtype is None and len(kinds) > 1:
        dtype = reduce(torch.promote_types, sorted(kinds, key=str))
    if mapped and device.type == "cpu" and (dtype is None or kinds == {dtype}):
        return map_tensors(tensors)
    check_memory(tensors)
    if device.type == "cpu" and (dtype is None or kinds == {dtype}):
        return dict(stream(tensors))
    return {name: tensor.to(device, dtype, copy=True) for name, tensor in stream(tensors, reuse=True)}


def map_tensors(tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Tensors whose numbers stay in their files."""
    opened, mapped = {}, {}
    for name, tensor in tensors.items():
        with trouble_of(tensor.file, NO_SAFETENSORS):
            if tensor.file not in opened:
                opened[tensor.file] = safe_open(tensor.file, framework="pt")
            mapped[name] = opened[tensor.file].get_tensor(tensor.name).reshape(tensor.shape)
    return mapped


def stream(tensors: Mapping[str, Stored], reuse: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor, one at a time, in their stored type and in the order of the files.

    Args:
        tensors: where they lie.
        reuse: every tensor is read into the same memory, so that it is gone with the next one.
    """
    largest = max((tensor.size for tensor in tensors.values()), default=0)
    files: dict[Path, list[str]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (str(item[1].file), item[1].start)):
        files.setdefault(tensor.file, []).append(name)
    memory = empty(largest) if reuse else None
    for file, names in files.items():
        with open_regular(file) as opened:
            for name in names:
                size = tensors[name].size
                yield name, read_tensor(opened, tensors[name], empty(size) if memory is None else memory[:size])


def empty(size: int) -> torch.Tensor:
    """Memory for so many bytes; a ValueError if there is none."""
    try:
        return torch.empty(size, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"there is no memory for a tensor of {size:,} bytes; load on a larger machine") from error


def read_tensor(opened: BufferedReader, tensor: Stored, numbers: torch.Tensor) -> torch.Tensor:
    """One tensor out of an open file, read into the given bytes."""
    with trouble_of(tensor.file, "cannot be read"):
        opened.seek(tensor.start)
        if opened.readinto(numbers.numpy().data) != tensor.size:
            raise ValueError("it has become shorter")
        return numbers.view(FLOATS[tensor.kind]).reshape(tensor.shape)
