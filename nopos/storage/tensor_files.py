"""Weights on disk: verified when read, and never executed.

A checkpoint is `NAME.safetensors` with `NAME.json` beside it. The manifest holds the length and SHA-256 of the weights
and is written last, so it is the commit record: weights of ours without one were never finished.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nopos.errors import CheckpointError
from nopos.storage.files import json_bytes, partial_file, sha256, sync_folder

_OURS = {"format": "nopos"}
_TORCH_SUFFIXES = (".pt", ".pth")


def manifest_path(weights: Path) -> Path:
    """The manifest that belongs to a weights file."""
    return weights.with_suffix(".json")


def serialise(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a weights file; equal tensors give equal bytes."""
    return safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, metadata=_OURS)


def write_checkpoint(weights: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write weights and then their manifest, to which the length and digest of the weights are added.

    Both are on disk in full before anything that was there is touched, so a full disk costs no older checkpoint.

    Raises:
        StorageError: the folder or a file cannot be written.
    """
    write_serialised(weights, serialise(tensors), manifest)


def write_serialised(weights: Path, data: bytes, manifest: Mapping[str, Any]) -> None:
    """The same of weights that `serialise` has made into bytes."""
    record = {**manifest, "weights": {"bytes": len(data), "sha256": sha256(data)}}
    committing = json_bytes(record)
    with partial_file(weights, data) as new_weights, partial_file(manifest_path(weights), committing) as new_manifest:
        manifest_path(weights).unlink(missing_ok=True)  # an older record must not vouch for newer weights
        new_weights.replace(weights)
        sync_folder(weights.parent)
        new_manifest.replace(manifest_path(weights))
        sync_folder(weights.parent)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, str]:
    """Read weights of ours or another's.

    Returns:
        Tensors by name, the manifest (None for a file that is not ours), and the SHA-256 of the weights file.

    Raises:
        CheckpointError: missing, not a file, damaged, incomplete, or not a plain table of tensors.
    """
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        ending = "is a folder" if _is_folder(path) else f"ends in {path.suffix or 'nothing'}"
        raise CheckpointError(f"{path}: {ending}; a checkpoint is a .safetensors, .pt or .pth file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a checkpoint that exists") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if path.suffix in _TORCH_SUFFIXES:
        return _torch_tensors(path, data), None, sha256(data)
    manifest = _read_manifest(path) if _is_ours(data) else None
    if manifest is not None:
        _verify(path, data, manifest)
    return deserialised(str(path), data), manifest, sha256(data)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file system takes
        return False


def _is_ours(data: bytes) -> bool:
    """Whether the header of a safetensors file, as far as it can be read, says that nopos wrote it."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        return bool(header["__metadata__"]["format"] == _OURS["format"])
    except (ValueError, KeyError, TypeError):
        return False


def deserialised(where: str, data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a weights file.

    Raises:
        CheckpointError: they are not all of one; `where` is what the message calls them.
    """
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # safetensors raises types of its own, KeyError and OSError
        raise CheckpointError(f"{where}: is not a whole safetensors file ({_first_line(error)})") from None


def _torch_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle can fail in any way; with weights_only nothing in it runs
        raise CheckpointError(
            f"{path}: is not a state dict that loads without running code ({_first_line(error)})"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path}: holds something other than tensors by name; a state dict is needed")
    return dict(loaded)


def _read_manifest(weights: Path) -> dict[str, Any]:
    path = manifest_path(weights)
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{weights}: has no manifest {path.name}; its writing was never finished") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a manifest ({_first_line(error)})") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: is not a manifest; it must be a JSON object")
    return manifest


def _verify(path: Path, data: bytes, manifest: dict[str, Any]) -> None:
    record = manifest.get("weights")
    if not isinstance(record, dict) or not {"bytes", "sha256"} <= record.keys():
        raise CheckpointError(f"{manifest_path(path)}: does not record the length and SHA-256 of the weights")
    if record["bytes"] != len(data):
        raise CheckpointError(f"{path}: has {len(data)} bytes; its manifest records {record['bytes']}")
    if record["sha256"] != sha256(data):
        raise CheckpointError(f"{path}: its SHA-256 is not the one that its manifest records; the file was changed")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
