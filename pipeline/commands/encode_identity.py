"""What an encoding is asked for, as the identity of what it makes."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline import storage
from pipeline.config import EncodeConfig
from pipeline.data import Dataset
from pipeline.data.column_types import arrow_type, is_kind, kept_kind
from pipeline.data.preprocess import preprocess_digest
from pipeline.encoding.also import load_also
from pipeline.encoding.cutting import check_views, latent_shape_of, seen
from pipeline.encoding.precision import Rounding, Unmeasured
from pipeline.errors import ConfigError
from pipeline.latents.identity import EncodeOptions, Identity, Precision, View
from pipeline.latents.receipt import receipts_present
from pipeline.latents.repair_command import difference, encode_again
from pipeline.latents.snapshot import Pointer
from pipeline.storage.row_filter import parse_where
from pipeline.vae import VAE

logger = logging.getLogger(__name__)

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
Try = Callable[[EncodeOptions], Rounding | Unmeasured]
"""Tries bf16 on some images, where they will be encoded."""


def identity_of(
    vae: VAE, config: EncodeConfig, dataset: Dataset, pointer: Pointer | None, try_bf16: Try
) -> Identity:
    """What the store's bytes depend on; `pointer` is the store's as it is."""
    if vae.model_config.posterior == "full" and config.content == "moments":
        raise ConfigError(
            f"{config.model}: its posterior has a full covariance, of which moments keep only the "
            "variances. Encode with `--content mean` or `--content sample`."
        )
    if not vae.has_posterior and config.content != "mean":
        raise ConfigError(
            f"{config.model}: its network gives one latent per image and no posterior. Encode with "
            "`--content mean`."
        )
    where = parse_where(config.where) if config.where else None
    asked = dict(map(_column, config.columns))
    found = dataset.column_kinds(tuple(asked))
    if where is not None:
        found |= dataset.column_kinds(where.columns, asked_by="--where EXPRESSION")
    kinds = {name: asked.get(name) or kept_kind(kind) for name, kind in found.items()}
    if where is not None:
        where.check({name: arrow_type(kinds[name]) for name in where.columns})
    options = EncodeOptions(
        precision="fp32" if config.precision == "auto" else config.precision,
        batch_size=config.batch_size,
        dtype=config.dtype,
        content=config.content,
        seed=config.seed,
        flip=config.flip,
        crops=config.crops,
        columns=tuple(asked),
        kinds=tuple(kinds[name] for name in asked),
        where=where.text if where else "",
        where_kinds=tuple((name, kinds[name]) for name in where.columns) if where else (),
        views=_views(config),
        crop=config.crop,
        resize=config.resize,
        also=tuple(load_also(path, torch.device("cpu")).said for path in sorted(set(config.also))),
        tile=config.tile or 0,
    )
    check_views(vae, options)
    cut = preprocess_digest(seen(vae.preprocess, options))
    # That a network needs fp32 is no word on its latents: what was computed stands in the options.
    scale = replace(vae.scale, force_upcast=None)
    shape = vae.latent_shape
    if options.views:
        side = options.views[0].size
        shape = latent_shape_of(vae, (side, side))
    identity = Identity(str(vae.digest), cut, shape, options, scale)
    if config.precision != "auto":
        return identity
    if vae.scale.force_upcast:
        logger.info("precision fp32: the model says that its networks need it (force_upcast)")
        return identity
    each = [replace(identity, options=replace(options, precision=p)) for p in _PRECISIONS]
    return _begun(each, storage.absolute(config.output), pointer) or _chosen(each, try_bf16)


def allow_another(
    store: str, pointer: Pointer, present: Identity, asked: Identity, config: EncodeConfig
) -> None:
    """Says what becomes current in place of what; nothing where it is the same identity.

    Raises `ConfigError` for another model's, unless that is asked for: whoever reads the store
    would get other latents under the same keys, and nothing would say so.
    """
    if present.digest == asked.digest:
        return
    if present.model_digest != asked.model_digest and not config.replace_model:
        raise ConfigError(
            f"{storage.shown(store)}: its current snapshot is of the model {pointer.model} (digest "
            f"{present.model_digest[:12]}), and {config.model} is another one (digest "
            f"{asked.model_digest[:12]}). Nothing was changed. Give another `--output URL`, or "
            "`--replace-model` to make the store this model's; the older snapshot stays: "
            "`snapshot=` of LatentStore.open reads it."
        )
    logger.warning(
        "%s: another identity becomes current. What differs: %s. Until now it was %s (%s latents "
        "of %s), which stays; %s makes it current again",
        storage.shown(store), difference(present, asked), present.digest[:12],
        f"{pointer.samples:,}", pointer.model, encode_again(store, pointer),
    )  # fmt: skip


def _begun(each: list[Identity], store: str, pointer: Pointer | None) -> Identity | None:
    """The one that the store is of, or that an encoding which never ended has begun."""
    for known in each:
        if pointer is not None and pointer.identity == known.digest:
            return known
    begun = [known for known in each if receipts_present(store, known.digest)]
    return begun[0] if begun else None


def _chosen(each: list[Identity], try_bf16: Try) -> Identity:
    """Fp32, unless bf16 changes nothing that is stored."""
    options = each[0].options
    found = try_bf16(options)
    if isinstance(found, Unmeasured):
        logger.info("precision fp32: %s. `--precision` says otherwise", found.reason)
        return each[0]
    chosen = each[1] if found.is_within else each[0]
    logger.info(
        "precision %s: bf16 would move the means of the first %d images by %.2g at most, %s than "
        "%s rounds them. `--precision` says otherwise",
        chosen.options.precision, found.images, found.largest,
        "no more" if found.is_within else "more", options.dtype,
    )  # fmt: skip
    return chosen


def _views(config: EncodeConfig) -> tuple[View, ...]:
    if config.buckets:
        pairs = [bucket.split(":") for bucket in config.buckets]
        return tuple(View(size, step) for size, step in sorted((int(s), int(t)) for s, t in pairs))
    return tuple(View(size) for size in sorted(config.image_size))


def _column(text: str) -> tuple[str, str]:
    """Name and kind, "" where none is given, of a column as people write it: NAME or NAME:KIND."""
    name, _, kind = text.rpartition(":")
    return (name, kind) if name and is_kind(kind) else (text, "")
