"""The registry: list, register, export, promote, roll back models; show where one came from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import ModelsConfig

if TYPE_CHECKING:
    from pipeline.registry.catalogue import Model
    from pipeline.registry.model_export import Exported


def main(config: ModelsConfig) -> Outcome:
    """Does the one thing that was asked for, else lists; the result always holds the list."""
    from pipeline.registry.catalogue import lineage, list_models, register_folder
    from pipeline.registry.promotion import promote, roll_back

    result: dict[str, str] = {}
    if config.lineage is not None:
        found = asdict(lineage(config.lineage))
        return Outcome(found, summary=[f"{name:<24}{value}" for name, value in found.items()])
    if config.export is not None:
        from pipeline.registry.model_export import export_model

        return _exported(export_model(str(config.model), str(config.output), config.allow_custom))
    if config.register is not None:
        result["registered"] = register_folder(
            config.register, config.model, config.allow_custom
        ).uri
    if config.promote is not None:
        result["champion"] = promote(
            config.promote,
            config.data,
            allow_custom=config.allow_custom,
            shards_below=config.shards_below,
        ).uri
    if config.rollback is not None:
        result["champion"] = roll_back(config.rollback).uri
    models = list_models()
    now = [f"{result['champion']} is the champion of its name."] if "champion" in result else []
    return Outcome(
        {**result, "models": [asdict(model) for model in models]}, summary=[*now, *_table(models)]
    )


def _exported(found: "Exported") -> Outcome:
    said = ", ".join(f"{name} {value}" for name, value in found.scale.items() if value is not None)
    lines = [f"{found.output}: the model {found.digest[:12]} as a diffusers AutoencoderKL."]
    lines += [f"Its latents: {said}."] if said else [
        "Its latents' scale is not known, so its scaling_factor is 1. A store of its latents knows "
        "their deviation (LatentStore.std)."
    ]  # fmt: skip
    return Outcome(asdict(found), summary=lines)


def _table(models: Sequence["Model"]) -> list[str]:
    if not models:
        from pipeline import storage
        from pipeline.tracking.mlflow_client import asked_uri

        return [
            f"No model yet in MLflow at {storage.shown(asked_uri())}: a training that ends "
            "registers one (`vae train`). Of another folder or server: "
            "`export MLFLOW_TRACKING_URI=URI`."
        ]
    lines = [f"{'model':<24}{'held-out ELBO':>14}  {'digest':<14}{'aliases':<24}run"]
    for model in models:
        for row in model.versions:
            elbo = "-" if row.holdout_elbo is None else f"{row.holdout_elbo:.3f}"
            lines.append(
                f"{model.name}/{row.version}".ljust(24)
                + f"{elbo:>14}  {(row.digest or '-')[:12]:<14}"
                + f"{' '.join(row.aliases):<24}{row.run or '-'}"
            )
    return lines


if __name__ == "__main__":
    run_job(ModelsConfig, main)
