"""What was optimised, which is not always the ELBO: in a formula, and in this run's numbers."""

from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.sentences import Check, Formula, Sentence, claim
from pipeline.json_value import Json, JsonValue
from pipeline.vae import Optimised

_FORMULAS = {
    "beta": Formula(
        "E_q log p(x|z) - beta KL(q(z|x) || p(z))",
        r"E_q \log p(x|z) - \beta \, KL(q(z|x) \, \| \, p(z))",
    ),
    "free_bits": Formula(
        "E_q log p(x|z) - beta sum_d max(KL_d, lambda)",
        r"E_q \log p(x|z) - \beta \, \sum_d \max(KL_d, \lambda)",
    ),
    "geco": Formula(
        "E_q log p(x|z) - b KL(q(z|x) || p(z)), b moved at each step",
        r"E_q \log p(x|z) - b \, KL(q(z|x) \, \| \, p(z))",
    ),
    "iwae": Formula(
        "E log 1/K sum_k p(x, z_k) / q(z_k|x)",
        r"E \, \log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k|x)}",
    ),
    "autoencoder": Formula(
        "log p(x | z = mean of q)", r"\log p(x \, | \, z = \mathrm{mean \, of} \, q)"
    ),
}


def recorded(metadata: Json | None) -> Optimised | None:
    """What a bundle's metadata tell of its objective; None where they don't tell it."""
    record = (metadata or {}).get("objective")
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(kind, str) or kind not in _FORMULAS:
        return None
    samples = _number(record.get("samples"))
    return Optimised(
        kind=kind,
        beta=_number(record.get("beta")),
        samples=1 if samples is None else round(samples),
        full_beta=_number(record.get("full_beta")),
        free_nats=_number(record.get("free_nats")),
        target_bits_per_dim=_number(record.get("target_bits_per_dim")),
    )


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def formula_of(optimised: Optimised) -> Formula:
    """What training made as large as it could."""
    return _FORMULAS[optimised.kind]


def sentences_of(optimised: Optimised, n: Numbers) -> list[Sentence]:
    """What that is here."""
    figures = {"elbo": n.elbo}
    beta = 1.0 if optimised.beta is None else optimised.beta
    match optimised.kind:
        case "beta":
            text = (
                "Training maximised log-likelihood - {beta:g} x KL, which is {objective:.3f} here; "
                "the ELBO, with weight 1, is {elbo:.3f}."
            )
            figures |= {"beta": beta, "objective": n.log_likelihood - beta * n.kl}
        case "free_bits":
            text = (
                "Training maximised log-likelihood - {beta:g} x the sum over dimensions of the "
                "larger of the KL and {free_nats:g} nats, image by image: a dimension below that "
                "pays no less for falling further. The ELBO is {elbo:.3f}."
            )
            figures |= {"beta": beta, "free_nats": float(optimised.free_nats or 0)}
        case "geco":
            text = (
                "Training looked for the least KL with -log p(x|z) held at {target:g} bits per "
                "pixel and channel; the KL's weight moved at each step and ended at {beta:.4g}. "
                "The ELBO is {elbo:.3f}."
            )
            figures |= {"beta": beta, "target": float(optimised.target_bits_per_dim or 0)}
        case "iwae":
            text = (
                "Training maximised the importance-weighted bound of {samples} draws, not the "
                "ELBO, which is {elbo:.3f} here. There is no weight of the KL in it."
            )
            figures |= {"samples": optimised.samples}
        case _:
            text = (
                "Training maximised log p(x|z) at the mean of q, {objective:.3f} here, and charged "
                "nothing for the code: this is a plain autoencoder, and its ELBO of {elbo:.3f} is "
                "a by-product."
            )
            figures |= {"objective": n.log_likelihood_at_mean}
    found = [claim(Check.OBJECTIVE, text, **figures)]
    full = optimised.full_beta
    if full is not None and optimised.kind in ("beta", "free_bits"):
        told = "The weight rose with a warm-up, to {full_beta:g}, so early steps optimised less KL."
        if full != beta:
            told = (
                "That is the last step's weight: its warm-up leads to {full_beta:g} and had not "
                "come there."
            )
        found.append(claim(Check.OBJECTIVE, told, full_beta=full))
    return found
