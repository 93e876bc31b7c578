"""The weight files of a diffusers folder: one safetensors, or shards with an index, or a variant.

Names are diffusers' own: diffusion_pytorch_model[.VARIANT].safetensors, or
diffusion_pytorch_model.safetensors.index[.VARIANT].json, which says in which shard a weight is.
"""

import re
from dataclasses import dataclass

import safetensors
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline import storage
from pipeline.errors import ModelError, ObjectNotFoundError, PipelineError, first_refusal

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"

_WHOLE = re.compile(rf"{STEM}(?:\.([\w-]+))?\.safetensors")
_INDEX = re.compile(rf"{STEM}\.safetensors\.index(?:\.([\w-]+))?\.json")
_SHARD = re.compile(rf"{STEM}(?:\.[\w-]+)?-\d+-of-\d+(?:\.[\w-]+)?\.safetensors")
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt)")


@dataclass(frozen=True)
class _Index:
    """A sharded checkpoint: the file that each weight is in."""

    weight_map: dict[str, str]


def read_weights(folder: str) -> dict[str, Tensor]:
    """Every weight by its name, as float32.

    The plain file, else the only variant. Raises `ModelError` where there is none, more than one,
    or only files that are pickles.
    """
    names = _names(folder)
    whole = [_WHOLE.fullmatch(name) for name in names if _SHARD.fullmatch(name) is None]
    matches = [match for match in (*whole, *map(_INDEX.fullmatch, names)) if match is not None]
    found = {match[1] or "": match[0] for match in matches}
    chosen = found.get("") or (next(iter(found.values())) if len(found) == 1 else None)
    if chosen is None:
        raise ModelError(f"{folder}: {_why_none(names, sorted(found))}")
    where = storage.join(folder, chosen)
    return _sharded(folder, where) if chosen.endswith(".json") else _whole(where)


def _why_none(names: list[str], variants: list[str]) -> str:
    if variants:
        return (
            f"has weights in the variants {', '.join(variants)} and none without a variant's name. "
            "Keep the one that is meant."
        )
    pickles = [name for name in names if _PICKLE.fullmatch(name)]
    if pickles:
        return (
            f"its weights are {pickles[0]}, a pickle, which runs code when it is read: it was not "
            "opened. Take the folder's safetensors, or convert it with diffusers: "
            "save_pretrained(..., safe_serialization=True)."
        )
    return f"holds no {WEIGHTS}, nor a sharded or variant one. Fetch the folder whole."


def _names(folder: str) -> list[str]:
    root = storage.absolute(folder)
    try:
        below = [info.url.removeprefix(root).lstrip("/") for info in storage.list_objects(root)]
    except ObjectNotFoundError:
        return []
    return sorted(name for name in below if "/" not in name)


def _sharded(folder: str, where: str) -> dict[str, Tensor]:
    try:
        index = TypeAdapter(_Index).validate_python(storage.read_json(where))
        shards = sorted(set(index.weight_map.values()))
        urls = {name: storage.below(folder, name) for name in shards}
    except (ValidationError, PipelineError) as error:
        said = first_refusal(error)[:300]
        raise ModelError(f"{where}: is no index of sharded weights: {said}") from None
    weights: dict[str, Tensor] = {}
    for name in shards:
        found = _whole(urls[name])
        odd = found.keys() ^ {key for key, shard in index.weight_map.items() if shard == name}
        if odd:
            raise ModelError(
                f"{where}: it and {name} differ in {sorted(odd)[:5]}. Fetch the folder "
                "again, whole."
            )
        weights |= found
    return weights


def _whole(where: str) -> dict[str, Tensor]:
    try:
        return {n: t.float() for n, t in safetensors.torch.load(storage.read(where)).items()}
    except safetensors.SafetensorError as error:
        raise ModelError(
            f"{where}: is no whole safetensors file: {error}. Fetch it again."
        ) from None
