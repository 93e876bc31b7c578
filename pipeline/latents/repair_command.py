"""What jobs.encode was asked for, as its flags: what makes a store's latents once more or of
another model, and in what two identities differ."""

from collections.abc import Sequence
from contextlib import suppress

from pipeline import storage
from pipeline.config import EncodeConfig
from pipeline.data import Dataset
from pipeline.errors import PipelineError
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.snapshot import Pointer, read_pointer, read_snapshot
from pipeline.masking import shell_word


def encode_again(store: str, pointer: Pointer | None) -> str:
    """`python -m jobs.encode ...` in backticks, with all that decides the store's bytes.

    Where the snapshot can't be read, its options are not known; without a pointer, nothing is.
    """
    if pointer is None:
        return "the same jobs.encode"
    words = ["--model", pointer.model, "--data", pointer.data, "--output", store]
    try:
        words += _words(read_snapshot(store, pointer.snapshot).identity.options)
    except PipelineError:
        words += ["..."]
    return f"`python -m jobs.encode {_line([*words, '--actors', '0'])}`"


def encode_next(model: str, data: str, places: tuple[str, str], *, digest: str | None) -> str:
    """`vae encode ...` in backticks: this data by a new model of this digest.

    Where the first of the `places` has a store of this data, its columns, sizes and other options
    are kept. If that is of another model, or of other data, the second place is named. Labels of
    the data go into a new store: without them much of what is done with latents needs another.
    """
    output, words = places[0], _labels(data)
    with suppress(PipelineError):
        url = storage.absolute(output)
        pointer = read_pointer(url)
        if pointer is not None:
            identity = read_snapshot(url, pointer.snapshot, pointer.sha256).identity
            same_data = storage.absolute(pointer.data) == storage.absolute(data)
            # Without its precision: unasked it stays where all else does, and is found anew else.
            words = _words(identity.options)[2:] if same_data else words
            if not same_data or identity.model_digest != digest:
                output = places[1]
    line = _line(["--model", model, "--data", data, "--output", output, *words])
    return f"`vae encode {line}`"


def _labels(data: str) -> list[str]:
    """`--columns label` where the first image has one."""
    with suppress(PipelineError):
        dataset = Dataset.open(data)
        if len(dataset) and dataset[0].label is not None:
            return ["--columns", "label"]
    return []


def difference(before: Identity, after: Identity) -> str:
    """What of two identities is not the same, in the words of jobs.encode's flags."""
    asked = _flags(before.options), _flags(after.options)
    found = []
    for flag in dict.fromkeys([*asked[0], *asked[1]]):
        was, now = (_line([flag, *each[flag]]) if flag in each else "" for each in asked)
        if was != now:
            told = f"`{was}`" if was else f"no `{flag}`", f"`{now}`" if now else f"no `{flag}`"
            found.append("{} before, {} now".format(*told))
    if before.model_digest != after.model_digest:
        found.insert(0, f"model {before.model_digest[:12]} before, {after.model_digest[:12]} now")
    if before.options.also != after.options.also and "--also" not in " ".join(found):
        found.append("the weights or code of an encoder beside the VAE")
    rest = "preprocess_digest", "latent_shape", "scale"
    found += [n.replace("_", " ") for n in rest if getattr(before, n) != getattr(after, n)]
    return "; ".join(found) or "the kinds of columns"


def _line(words: Sequence[str]) -> str:
    return " ".join(map(shell_word, words))


def _words(options: EncodeOptions) -> list[str]:
    return [word for flag, values in _flags(options).items() for word in (flag, *values)]


def _flags(options: EncodeOptions) -> dict[str, list[str]]:
    """Those that differ from what jobs.encode does unasked, precision first."""
    words: dict[str, list[str]] = {"--precision": [options.precision]}
    for name in ("batch_size", "dtype", "content", "seed", "crops"):
        value = getattr(options, name)
        if value != EncodeConfig.model_fields[name].default:
            words[f"--{name.replace('_', '-')}"] = [str(value)]
    words |= {"--flip": []} if options.flip else {}
    words |= {"--where": [options.where]} if options.where else {}
    for name in ("crop", "resize"):
        words |= {f"--{name}": [getattr(options, name)]} if getattr(options, name) else {}
    words |= {"--tile": [str(options.tile)]} if options.tile else {}
    also = [each.path for each in options.also]
    buckets = [f"{view.size}:{view.step}" for view in options.views if view.step]
    sizes = [str(view.size) for view in options.views if not view.step]
    # Text is what columns are when nothing is said, in a store's files too.
    kinds = options.kinds if set(options.kinds) - {"", "string"} else ("",) * len(options.columns)
    columns = [f"{n}:{k}" if k else n for n, k in zip(options.columns, kinds, strict=True)]
    for flag, values in (("buckets", buckets), ("image-size", sizes), ("columns", columns),
                         ("also", also)):  # fmt: skip
        words |= {f"--{flag}": values} if values else {}
    return words
