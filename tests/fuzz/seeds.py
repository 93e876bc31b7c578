"""Forgeries that once ended in a traceback, a death or a hang, by the name of their target."""

from typing import Any

from tests.fuzz.mutations import Edit, Raw

_STATISTICS = "shards.0.receipt.parts.0.statistics"
_DEEP = Raw("[" * 900 + "]" * 900)
_HALF = Raw('"\ud800"')


def _set(**values: Any) -> tuple[tuple[Edit, ...], tuple[()]]:
    """Values by their paths, with `__` for a dot."""
    return tuple(Edit(path.replace("__", "."), "set", new) for path, new in values.items()), ()


def _statistics(name: str, value: float) -> tuple[tuple[Edit, ...], tuple[()]]:
    return (Edit(f"{_STATISTICS}.{name}.0", "set", value),), ()


SEEDS: dict[str, tuple[Any, ...]] = {
    "manifest": (_set(format=_DEEP), _set(format="a" * 5000), _set(shards__0__path=_HALF)),
    "receipt of latents": (
        _set(
            samples=2**40,
            parts__0__bytes=2**50,
            parts__0__held={"samples": 2**40, "bits": None},
            parts__0__record_batches=[[8, 2**49, 2**40, "a" * 16]],
            parts__0__failed=[],
            parts__0__statistics={
                "rows": 2**40,
                "count": 2**42,
                "mean": [0.0] * 3,
                "squares": [0.0] * 3,
                "posterior_variance": [0.0] * 3,
            },
        ),
        _set(parts__0__shape=[3, 0, 0]),
        _set(shard=_HALF),
    ),
    "receipt of a pack": (_set(rows__0__width=10**12), _set(rows__0__message=_HALF)),
    "snapshot": (
        _statistics("squares", -1.0),
        _statistics("squares", 1e308),
        _statistics("mean", 1e308),
        _statistics("posterior_variance", -1e300),
        _set(identity__latent_shape=[10**18, 2, 2], shards=[]),
        _set(identity__options__views=[{"size": 10**18, "step": 1}]),
        _set(shards__0__receipt__shard=_HALF),
    ),
    "annotations": ((b"ARROW1\0\0\0l\xc9", "arrow"), (b"\xff\xda", "arrow")),
    "bundle": (
        _set(digest="a" * 5000),
        _set(files={"config.json": "a" * 5000}),
        _set(scale__scaling_factor="nan"),
        _set(scale__shift_factor="inf"),
    ),
    "network of a bundle": (
        _set(kind="autoencoder_kl", width=None, layers=10**9),
        _set(kind="autoencoder_kl", width=None, widths=[1] * 40),
        _set(width=10**18),
    ),
    "preprocess": (_set(image_size=10**9), _set(crop=_HALF)),
}
