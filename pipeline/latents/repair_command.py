"""The encoding that makes what a store has lost once more: a command, for messages."""

import shlex

from pipeline import storage
from pipeline.config import EncodeConfig
from pipeline.errors import PipelineError
from pipeline.latents.identity import EncodeOptions
from pipeline.latents.snapshot import Pointer, read_snapshot


def encode_again(store: str, pointer: Pointer | None) -> str:
    """`python -m jobs.encode ...` in backticks, with all that decides the store's bytes.

    Where the snapshot can't be read, its options are not known; without a pointer, nothing is.
    """
    if pointer is None:
        return "the same jobs.encode"
    words = ["--model", pointer.model, "--data", pointer.data, "--output", store]
    try:
        words += _flags(read_snapshot(store, pointer.snapshot).identity.options)
    except PipelineError:
        words += ["..."]
    said = " ".join(shlex.quote(storage.shown(word)) for word in words)
    return f"`python -m jobs.encode {said} --actors 0`"


def _flags(options: EncodeOptions) -> list[str]:
    """Those that differ from what jobs.encode does unasked."""
    words = ["--precision", options.precision]
    for name in ("batch_size", "dtype", "content", "seed"):
        value = getattr(options, name)
        if value != EncodeConfig.model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--flip"] if options.flip else []
    words += ["--where", options.where] if options.where else []
    for name in ("crop", "resize"):
        words += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    words += ["--tile", str(options.tile)] if options.tile else []
    also = [each.path for each in options.also]
    buckets = [f"{view.size}:{view.step}" for view in options.views if view.step]
    sizes = [str(view.size) for view in options.views if not view.step]
    kinds = dict(zip(options.columns, options.kinds or ("",) * len(options.columns), strict=True))
    columns = [f"{name}:{kind}" if kind else name for name, kind in kinds.items()]
    for flag, values in (("buckets", buckets), ("image-size", sizes), ("columns", columns),
                         ("also", also)):  # fmt: skip
        words += [f"--{flag}", *values] if values else []
    return words
