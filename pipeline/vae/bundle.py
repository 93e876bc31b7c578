"""The model as files: config.json, preprocess.json, model.safetensors, and bundle.json last.

No pickle. `bundle.json` names the checksum of each file; a folder without it is no bundle, so a
half-written one is never loaded. The digest is over contents (names, types, shapes and bytes of the
weights, both configs, the latents' scale), not over how safetensors happens to lay them out.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import safetensors
import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from pipeline import storage
from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError, StorageError, first_refusal, is_shortage
from pipeline.json_value import Json
from pipeline.latent_scale import LatentScale
from pipeline.masking import shell_word
from pipeline.vae.vae import VAE, build_vae

BUNDLE = storage.DocumentKind("vae-pipeline/model", 3, ModelError, "Pull or save the bundle again.")
FILES = ("config.json", "preprocess.json", "model.safetensors")
RECEIPT = "bundle.json"
_WEIGHTS_FAULTS = (
    safetensors.SafetensorError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""What safetensors and torch are seen to raise on a header that makes no sense."""
_MOST_SAID = 1000
"""Characters of what is wrong with a config: it may be wrong in as many places as it likes."""


def save_bundle(vae: VAE, folder: storage.Place, metadata: Json | None = None) -> str:
    """Writes the bundle into `folder` (path or URL) and returns its digest, also as `vae.digest`.

    Saving the same model with the same metadata again changes no byte.
    """
    place, weights = storage.named(folder, "save_bundle"), _weights(vae)
    config, preprocess = _configs(vae)
    contents = {
        "config.json": config,
        "preprocess.json": preprocess,
        "model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt"}),
    }
    digest = _digest(weights, config, preprocess, vae.scale)
    receipt: Json = {
        "digest": digest,
        "scale": vae.scale.to_json(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        "metadata": dict(metadata or {}),
    }
    for name, data in contents.items():
        storage.publish(storage.join(place, name), data)
    storage.publish(storage.join(place, RECEIPT), BUNDLE.encode(receipt))
    vae.digest, vae.metadata = digest, dict(metadata or {})
    return digest


def load_bundle(
    url: storage.Place, allow_custom: Collection[str] = (), *, digest: str | None = None
) -> VAE:
    """The model in evaluation mode on the CPU, with every checksum and the digest verified.

    `allow_custom`: the classes of their own that the user named, as package.module:Class. A bundle
    that needs another one is refused before anything is imported. `digest`: what the bundle must
    be, compared with the receipt's before another file is read.
    """
    url = storage.named(url, "load_bundle")
    receipt = _receipt(url)
    if digest is not None and receipt.digest != digest:
        raise ModelError(
            f"{url}: has digest {str(receipt.digest)[:16]}, asked for was {digest[:16]}: "
            "another model lies there now. Name the model that was meant."
        )
    model, preprocess, weights = _contents(url, receipt)
    _check_custom(model, allow_custom, url)
    if model.kind != "custom":  # Nobody knows whether it can be built without memory.
        check_weights(claimed_vae(model, preprocess, url), weights, url)
    with torch.random.fork_rng(devices=[]):
        vae = build_vae(model, preprocess).to(_weights_dtype(weights))
    put_weights(vae, weights, url)
    vae.digest, vae.metadata, vae.scale = receipt.digest, dict(receipt.metadata), receipt.scale
    return vae.eval()


def digest_of(vae: VAE) -> str:
    """The digest that the model's bundle would have; nothing is written."""
    config, preprocess = _configs(vae)
    return _digest(_weights(vae), config, preprocess, vae.scale)


def _configs(vae: VAE) -> tuple[bytes, bytes]:
    sections = vae.model_config, vae.preprocess
    config, preprocess = (storage.canonical_json(s.model_dump(mode="json")) for s in sections)
    return config, preprocess


def _contents(
    url: str, receipt: "_Receipt"
) -> tuple[ModelConfig, PreprocessConfig, dict[str, Tensor]]:
    """What a bundle's files hold, every checksum and the digest compared; nothing is built."""
    contents = {name: _verified(url, name, receipt) for name in FILES}
    try:
        model = ModelConfig.model_validate(storage.parse_json(contents["config.json"], url))
        parsed = storage.parse_json(contents["preprocess.json"], url)
        preprocess = PreprocessConfig.model_validate(parsed)
        weights = safetensors.torch.load(contents["model.safetensors"])
    except (ValidationError, StorageError, *_WEIGHTS_FAULTS) as error:
        if is_shortage(error):
            raise
        said = first_refusal(error)[:_MOST_SAID].rstrip(".")
        raise ModelError(
            f"{url}: this version can't read the bundle: {said}. It was made by another version: "
            "install that one, or train again."
        ) from None
    config, parts = contents["config.json"], contents["preprocess.json"]
    digest = _digest(weights, config, parts, receipt.scale)
    if digest != receipt.digest:
        raise ModelError(
            f"{url}: bundle.json says digest {receipt.digest}, its contents have {digest}. "
            "The bundle was changed after it was written: pull or save it again."
        )
    return model, preprocess, weights


def is_bundle(url: Path | str) -> bool:
    """Whether a folder holds a bundle."""
    return storage.exists(storage.join(str(url), RECEIPT))


def bundle_scale(url: Path | str) -> LatentScale:
    """What a bundle says of its latents' scale; reads bundle.json alone."""
    return _receipt(str(url)).scale


def verify_bundle(url: Path | str) -> str:
    """The digest, after every file and the whole were compared with theirs; nothing is built."""
    receipt = _receipt(str(url))
    _contents(str(url), receipt)
    return str(receipt.digest)


def _check_custom(model: ModelConfig, allowed: Collection[str], url: str) -> None:
    """Data makes no code run: whoever wants a class to be imported names it."""
    if model.kind == "custom" and model.custom not in allowed:
        raise ModelError(
            f"{url}: its network is the class {model.custom!r}, which is no part of this program. "
            "Look at that class; if you trust it, name it yourself: "
            f"`--allow-custom {shell_word(str(model.custom))}` (in Python: allow_custom=)."
        )


def put_weights(vae: VAE, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies named weights into `vae`; every name and shape must fit, every number be finite.

    Buffers may hold infinities: masks do.
    """
    check_weights(vae, weights, source)
    odd = [name for name, _ in vae.named_parameters() if not bool(weights[name].isfinite().all())]
    if odd:
        raise ModelError(
            f"{source}: its weights hold numbers that are not finite, in {odd[:5]}: nothing "
            "that it computes means anything. Fetch the files again, or take a model that did not "
            "diverge."
        )
    vae.load_state_dict(dict(weights))


def check_weights(vae: VAE, weights: Mapping[str, Tensor], source: str) -> None:
    """Raises `ModelError` unless every name and shape fits `vae`, which may lie on no device."""
    own = vae.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    other = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if missing or unknown or other:
        raise ModelError(
            f"{source}: the weights don't fit this model: missing {missing[:5]}, unknown "
            f"{unknown[:5]}, of other shape {other[:5]}. Use the ModelConfig they were made with."
        )


def claimed_vae(model: ModelConfig, preprocess: PreprocessConfig, url: str) -> VAE:
    """The VAE without memory, to be compared with weights: a config may claim one of any size."""
    try:
        with torch.device("meta"):
            return build_vae(model, preprocess)
    except (RuntimeError, ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise ModelError(f"{url}: its config.json claims an impossible network: {error}") from None


def _weights(vae: VAE) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in sorted(vae.state_dict().items())
    }


def _weights_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in weights.values())
    return torch.float64 if wide else torch.float32


def _digest(
    weights: Mapping[str, Tensor], config: bytes, preprocess: bytes, scale: LatentScale
) -> str:
    """Over what is stored, not over what it is read as: a later knob must not change it."""
    hashed = hashlib.sha256()
    hashed.update(config)
    hashed.update(preprocess)
    if scale != LatentScale():
        hashed.update(storage.canonical_json(scale.to_json()))
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        hashed.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _receipt(url: str) -> "_Receipt":
    where = storage.join(url, RECEIPT)
    if not is_bundle(url):
        raise ModelError(
            f"{url}: no bundle.json, so this is no model bundle, or writing it was cut short; nor "
            "is it a diffusers autoencoder's folder. Name the folder that jobs.pull or a training "
            "run wrote, or a registered model as models:/NAME@ALIAS; for a run by its name give "
            "its `--storage URL` too; a bundle to register is a folder: `--register FOLDER`."
        )
    return BUNDLE.typed(_Receipt, storage.read_document(BUNDLE, where), where)


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Receipt:
    """`bundle.json`: the digest of the whole, each file's checksum, and what is told of it."""

    digest: Sha256
    scale: LatentScale
    files: dict[str, Sha256]
    metadata: dict[str, JsonValue]


def _verified(url: str, name: str, receipt: _Receipt) -> bytes:
    data = storage.read(storage.join(url, name))
    found, wanted = hashlib.sha256(data).hexdigest(), receipt.files.get(name)
    if found != wanted:
        raise ModelError(
            f"{storage.join(url, name)}: sha256 {found}, bundle.json says {wanted}. The file was "
            f"changed or cut short. Restore it; or `rm -r {shell_word(url)}`, and `python -m "
            f"jobs.pull --model URI --output {shell_word(url)}`."
        )
    return data
