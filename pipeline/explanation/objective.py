"""What was optimised, which is not always the ELBO: in a formula, and in this run's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.config import ObjectiveConfig
from pipeline.explanation.sentences import Check, Formula, Sentence, claim

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Optimised:
    """A run's objective; `beta`: the KL's weight in it at the end, None where it has none."""

    config: ObjectiveConfig
    beta: float | None

    @staticmethod
    def of(config: Mapping[str, Any], last_beta: float | None = None) -> "Optimised | None":
        """From a run's or a bundle's record; None where there is none that says it whole.

        `last_beta`: geco's, which moves as it goes.
        """
        try:
            read = ObjectiveConfig.model_validate(dict(config))
        except ValidationError:
            return None
        betas = {"beta": read.beta, "free_bits": read.beta, "geco": last_beta}
        return Optimised(read, betas.get(read.kind))

    def formula(self) -> Formula:
        """What training made as large as it could."""
        match self.config.kind:
            case "beta":
                return Formula(
                    "E_q log p(x|z) - beta KL(q(z|x) || p(z))",
                    r"E_q \log p(x|z) - \beta \, KL(q(z|x) \, \| \, p(z))",
                )
            case "free_bits":
                return Formula(
                    "E_q log p(x|z) - beta sum_d max(KL_d, lambda)",
                    r"E_q \log p(x|z) - \beta \, \sum_d \max(KL_d, \lambda)",
                )
            case "geco":
                return Formula(
                    "E_q log p(x|z) - b KL(q(z|x) || p(z)), b moved at each step",
                    r"E_q \log p(x|z) - b \, KL(q(z|x) \, \| \, p(z))",
                )
            case "iwae":
                return Formula(
                    "E log 1/K sum_k p(x, z_k) / q(z_k|x)",
                    r"E \, \log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k|x)}",
                )
            case "autoencoder":
                return Formula("log p(x | z = mean of q)", r"\log p(x \, | \, z = \mathrm{mean})")

    def sentences(self, n: Numbers) -> list[Sentence]:
        """What that is here."""
        config, beta = self.config, self.beta
        match config.kind:
            case "beta":
                value = n["log_likelihood"] - config.beta * n["kl"]
                found = [
                    claim(
                        Check.OBJECTIVE,
                        "Training maximised log-likelihood - {beta:g} x KL, which is "
                        "{objective:.3f} here; the ELBO, with weight 1, is {elbo:.3f}.",
                        beta=config.beta,
                        objective=value,
                        elbo=n["elbo"],
                    )
                ]
            case "free_bits":
                found = [
                    claim(
                        Check.OBJECTIVE,
                        "Training maximised log-likelihood - {beta:g} x the sum over dimensions of "
                        "the larger of the KL and {free_nats:g} nats, image by image: a dimension "
                        "below {free_nats:g} nats pays no less for falling further. The ELBO is "
                        "{elbo:.3f}.",
                        beta=config.beta,
                        free_nats=float(config.free_nats or 0),
                        elbo=n["elbo"],
                    )
                ]
            case "geco":
                found = [
                    claim(
                        Check.OBJECTIVE,
                        "Training looked for the least KL with -log p(x|z) held at {target:g} bits "
                        "per pixel and channel; the KL's weight moved at each step. The ELBO is "
                        "{elbo:.3f}.",
                        target=float(config.target_bits_per_dim or 0),
                        elbo=n["elbo"],
                    )
                ]
                if beta is not None:
                    found.append(
                        claim(Check.OBJECTIVE, "It ended at a weight of {beta:.4g}.", beta=beta)
                    )
            case "iwae":
                found = [
                    claim(
                        Check.OBJECTIVE,
                        "Training maximised the importance-weighted bound of {samples:.0f} draws, "
                        "not the ELBO, which is {elbo:.3f} here. There is no weight of the KL in "
                        "it.",
                        samples=config.samples,
                        elbo=n["elbo"],
                    )
                ]
            case "autoencoder":
                found = [
                    claim(
                        Check.OBJECTIVE,
                        "Training maximised log p(x|z) at the mean of q, {objective:.3f} here, and "
                        "charged nothing for the code: this is a plain autoencoder, and its ELBO "
                        "of {elbo:.3f} is a by-product.",
                        objective=n["log_likelihood_at_mean"],
                        elbo=n["elbo"],
                    )
                ]
        return [*found, *(_warmed_up(config) if config.warmup != "none" else ())]


def _warmed_up(config: ObjectiveConfig) -> list[Sentence]:
    how = "once" if config.warmup == "linear" else "again in each cycle"
    return [
        claim(
            Check.OBJECTIVE,
            "That weight is the full one: it rose from zero " + how + ", over {warmup_steps:.0f} "
            "steps, so early steps optimised something else.",
            warmup_steps=float(config.warmup_steps or 0),
        )
    ]
