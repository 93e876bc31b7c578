"""From image archives to registered VAEs and verified latent stores, exact at every step."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.runs.result import TrainingResult
    from pipeline.vae import VAE


def load_model(uri: str, allow_custom: "Collection[str]" = ()) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a bundle's path.

    Its checksums are verified. A network of somebody's own is built only if `allow_custom` names
    its class, as package.module:Class. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError`
    saying which names, aliases or versions there are.
    """
    from pipeline.registry.models import load_model as load

    return load(uri, allow_custom=allow_custom)


def train(data: str, *, run: str, **settings: Any) -> "TrainingResult":
    """What `jobs.train` does, from Python: the same run, folder, model and numbers.

    `settings` are the keys of `pipeline.config.TrainConfig`, sections as dictionaries:
    `train("runs/data/train", run="first", steps=400, workers=0, model={"kind": "conv"})`. Called
    again, it goes on or says that the run is finished. Raises `ConfigError` for a wrong key.
    """
    from pydantic import ValidationError

    from pipeline.commands.train import run_training
    from pipeline.config import TrainConfig
    from pipeline.errors import ConfigError

    try:
        config = TrainConfig.model_validate({"data": data, "run": run, **settings})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(f"train: {'; '.join(wrong)}.") from None
    return run_training(config)
