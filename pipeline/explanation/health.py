"""Does a model look healthy? Each sign of illness is a claim: what was found, and what to try."""

from pipeline.evaluation.alarms import COLLAPSED_NATS
from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.sentences import Check, Part, Sentence, claim

IGNORED_DB = 0.1
"""What an image's own code must win over another's; a decoder that ignores z wins nothing."""
FLOOR = 1.05 / 256
"""A likelihood's deviation below this stands at its bound of one level."""
FEW_DRAWS = 1.5
"""Effective draws below this say that one weight outweighs all others for most images."""


def health(n: Numbers, sigma: float | None) -> Part:
    """The signs that show, or the one sentence that none does.

    `sigma`: the likelihood's one deviation, where it has one (1 is the whole range of levels).
    """
    return Part("health", "Health", _signs(n, sigma) or [_nothing(n)], is_list=True)


def warnings_of(part: Part) -> list[str]:
    """The signs of illness in words; empty where none showed."""
    return [each.text for each in part.sentences if each.check is not Check.NO_SIGN_OF_ILLNESS]


def _signs(n: Numbers, sigma: float | None) -> list[Sentence]:
    found = [*_of_codes(n), *_of_bounds(n)]
    if sigma is not None and sigma < FLOOR:
        found.append(
            claim(
                Check.DEVIATION_AT_ITS_FLOOR,
                "The likelihood's deviation is at its floor ({levels:.3f} levels): the variance is "
                "clamped, and the ELBO no longer tells models apart. Is the data synthetic or "
                "constant?",
                levels=sigma * 256,
            )
        )
    return found


def _nothing(n: Numbers) -> Sentence:
    return claim(
        Check.NO_SIGN_OF_ILLNESS,
        "Nothing unusual: the KL is {kl:.3f} nats, {active_units} of {latent_dimensions} "
        "dimensions are active, and every image's ELBO is finite.",
        kl=n.kl,
        active_units=n.active_units,
        latent_dimensions=n.latent_dimensions,
    )


def _of_codes(n: Numbers) -> list[Sentence]:
    found = []
    several = n.images > 1  # over one image no mean varies, whatever z says of it
    collapsed = n.kl < COLLAPSED_NATS or (n.active_units == 0 and several)
    units = {"active_units": n.active_units, "latent_dimensions": n.latent_dimensions}
    if collapsed:
        found.append(
            claim(
                Check.COLLAPSED,
                "Posterior collapse: the KL is {kl:.4f} nats and {active_units} of "
                "{latent_dimensions} dimensions are active, so z says next to nothing. Try "
                "`--objective.beta` below 1, a slower start of the KL, or a higher learning rate.",
                kl=n.kl,
                **units,
            )
        )
    elif several and n.active_units < n.latent_dimensions / 10:
        found.append(
            claim(
                Check.FEW_ACTIVE,
                "Over-regularised: only {active_units} of {latent_dimensions} dimensions are "
                "active. Try a lower `--objective.beta`, or accept it and use a smaller latent.",
                **units,
            )
        )
    codes = n.codes
    if codes and codes.psnr_own - codes.psnr_other < IGNORED_DB and not collapsed:
        found.append(
            claim(
                Check.DECODER_IGNORES_Z,
                "The decoder ignores z: from its own code an image comes back at {own:.2f} dB, "
                "from another image's at {other:.2f} dB. Train longer, or try "
                "`--objective.beta` below 1 or a smaller decoder.",
                own=codes.psnr_own,
                other=codes.psnr_other,
            )
        )
    return found


def _of_bounds(n: Numbers) -> list[Sentence]:
    found = []
    if n.not_finite:
        found.append(
            claim(
                Check.NOT_FINITE,
                "{not_finite:,} of {images:,} images have an ELBO that is not finite and are in no "
                "mean: the model diverged on them. Take an earlier checkpoint, or train with a "
                "lower `--optimizer.learning-rate RATE` or `--precision fp32`.",
                not_finite=n.not_finite,
                images=n.images,
            )
        )
    if n.elbo > 0:
        found.append(
            claim(
                Check.POSITIVE_ELBO,
                "The ELBO is positive ({elbo:.3f}), which no probability of levels allows: look "
                "for missing constants in a likelihood of your own.",
                elbo=n.elbo,
            )
        )
    if n.effective_samples < FEW_DRAWS and n.importance_samples >= 16:
        found.append(
            claim(
                Check.FEW_EFFECTIVE_DRAWS,
                "Of {samples} draws only {effective_samples:.2f} count: IWAE by them may lie far "
                "below log p(x), more draws hardly raise it, and its error over images says "
                "nothing of that. The bound to state is log p(x) >= {evidence:.3f}, by "
                f"{n.gap.how}.",
                samples=n.importance_samples,
                effective_samples=n.effective_samples,
                evidence=n.gap.evidence,
            )
        )
    return found
