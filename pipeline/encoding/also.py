"""A user's own encoder beside the VAE: vectors of each image, or of its columns, in the same pass.

The class is named by its import path, and built without arguments. It has `columns`, the names of
what it gives with how many numbers each has; `digest()`, a text that changes with its weights and
its code; and `encode(images, columns)`, with images uint8 [n, C, H, W] as they are cut for the VAE,
on its device, and the copied columns as lists of n, to one array [n, N] for each name. A torch
module is moved to the VAE's device and put into evaluation mode.
"""

import hashlib
import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config.import_path import OWN_CODE, find_named, told
from pipeline.errors import ConfigError, StoreError, is_shortage
from pipeline.json_value import JsonValue
from pipeline.latents.identity import AlsoEncoder

Vectors = npt.NDArray[np.float32]
_EXAMPLE = "A whole example: docs/extend.md."


def weights_and_code(module: nn.Module) -> str:
    """A digest for `digest()`: over a module's weights, and the file that its class is written in.

    What else its numbers depend on (a tokenizer's files, a library) is the user's to add.
    """
    hashed = hashlib.sha256(Path(inspect.getfile(type(module))).read_bytes())
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
        hashed.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


@dataclass(frozen=True)
class Also:
    """One such encoder, built; `said` is what a store's identity says of it."""

    said: AlsoEncoder
    encoder: Any
    # Shards are encoded by several threads, and nobody promised that this one bears that.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def vectors(self, images: Tensor, columns: Mapping[str, list[JsonValue]]) -> dict[str, Vectors]:
        """float32 [n, N] for each of its columns; raises `StoreError` for anything else."""
        path, count = self.said.path, len(images)
        try:
            with self._lock, torch.inference_mode():
                found = self.encoder.encode(images, columns)
            plain = {name: _plain(found[name]) for name, _ in self.said.columns}
        except OWN_CODE as error:  # Somebody's own class raises what it likes.
            if is_shortage(error):
                raise
            raise StoreError(
                f"--also {path}: failed on {count} images: {told(error)} It is called as "
                f"encode(images, columns) with uint8 {tuple(images.shape)}. {_EXAMPLE}"
            ) from error
        for name, size in self.said.columns:
            if plain[name].shape != (count, size):
                raise StoreError(
                    f"--also {path}: gave {name} {plain[name].shape} for {count} images, its "
                    f"`columns` say {(count, size)}. {_EXAMPLE}"
                )
        return plain


def load_also(path: str, device: torch.device) -> Also:
    """The encoder at `package.module:Class`; raises `ConfigError` for one that is none."""
    where = f"--also {path}"
    made_by = find_named(path, "--also", ConfigError)
    # Before it is called: the path may come from what a store says of itself.
    if not isinstance(made_by, type):
        raise ConfigError(f"{where}: is no class, but {made_by!r}. {_EXAMPLE}")
    try:
        encoder = made_by()
        if isinstance(encoder, nn.Module):
            encoder = encoder.eval().to(device)
        columns = {str(name): int(size) for name, size in dict(encoder.columns).items()}
        digest = encoder.digest()
        encode = encoder.encode
    except OWN_CODE as error:  # As above.
        if is_shortage(error):
            raise
        raise ConfigError(
            f"{where}: is no encoder: {told(error)} It needs `columns` (a dictionary of names and "
            "how many numbers), `digest()` over its weights and code, and `encode(images, "
            f"columns)`. {_EXAMPLE}"
        ) from error
    if not isinstance(digest, str) or not 16 <= len(digest) <= 128 or not digest.isalnum():
        raise ConfigError(
            f"{where}: its digest() gives {digest!r}, and a store must tell by it whether weights "
            "or code have changed: give a hash's hexadecimal digits, as "
            "pipeline.encoding.also.weights_and_code(self) does."
        )
    if not columns or min(columns.values()) < 1 or not callable(encode):
        raise ConfigError(f"{where}: its `columns` {columns} name no vectors. {_EXAMPLE}")
    return Also(AlsoEncoder(path, digest, tuple(sorted(columns.items()))), encoder)


def load_again(said: Sequence[AlsoEncoder], device: torch.device) -> tuple[Also, ...]:
    """The encoders of an identity, on this machine; raises `StoreError` where one is another."""
    found = tuple(load_also(each.path, device) for each in said)
    for each, one in zip(said, found, strict=True):
        if one.said != each:
            raise StoreError(
                f"--also {each.path}: is another encoder here (digest {one.said.digest[:16]}) than "
                f"where the encoding began ({each.digest[:16]}). Give every node the same code and "
                "weights."
            )
    return found


def _plain(values: Any) -> Vectors:
    if isinstance(values, Tensor):
        values = values.float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)
