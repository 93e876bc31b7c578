"""Answers about the ELBO, its terms, and how far below log p(x) it lies."""

from pipeline.evaluation.evidence import ENOUGH_EFFECTIVE
from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.objective import formula_of, sentences_of
from pipeline.explanation.sentences import Check, Formula, Part, Sentence, claim, definition
from pipeline.vae import Optimised


def training_or_holdout(n: Numbers) -> Part | None:
    """Before anything else: does the model know the images it was trained on better than others?"""
    found = n.training
    if found is None:
        return None
    difference = found.elbo - n.elbo
    error = (found.elbo_error**2 + n.elbo_error**2) ** 0.5
    figures = {
        "training": found.elbo,
        "training_images": found.images,
        "holdout": n.elbo,
        "holdout_images": n.images,
        "difference": difference,
        "error": error,
    }
    told = (
        "The ELBO is {training:.3f} on {training_images:,} images of the training set and "
        "{holdout:.3f} on the {holdout_images:,} held out: {difference:+.3f}, standard error "
        "{error:.3f}. "
    )
    if difference > 2 * error:
        told += (
            "The model describes the images it was trained on better than others: a part of what "
            "it learnt is about these images alone."
        )
    elif difference < -2 * error:
        told += "The held-out images are the easier ones for this model."
    else:
        told += "That is no difference: nothing says that it learnt its images by heart."
    return Part(
        "training",
        "Does it know new images as well as those it was trained on?",
        (
            claim(Check.TRAINING_AGAINST_HOLDOUT, told, **figures),
            definition("All numbers below are of the held-out images, unless they say otherwise."),
        ),
        picture="training_curves.png",
    )


def bayes(n: Numbers) -> Part:
    """Where the ELBO comes from, and what is known of log p(x)."""
    sentences = [
        definition(
            "Bayes' rule gives p(z|x), the true posterior, but its denominator p(x) is an integral "
            "over all z, so the encoder's q(z|x) stands in for it. For any q, log p(x) is the ELBO "
            "plus the KL from q to p(z|x); a KL is never negative, hence a lower bound. The sum "
            "is log p(x), not p(x)."
        ),
        evidence(n),
    ]
    exact = n.quadrature
    if exact:
        sentences.append(
            claim(
                Check.EXACT_EVIDENCE,
                "With so few latent dimensions the integral can be done: for {images} images "
                "log p(x) = {log_evidence:.4f} = ELBO {elbo:.4f} + KL(q || p(z|x)) "
                "{kl_q_posterior:.4f}.",
                images=exact.images,
                log_evidence=exact.log_evidence,
                elbo=exact.elbo,
                kl_q_posterior=exact.kl_q_posterior,
            )
        )
    sentences += _on_drawn_images(n)
    return Part(
        "bayes",
        "Where does the ELBO come from?",
        sentences,
        (
            Formula("p(z|x) = p(x|z) p(z) / p(x)", r"p(z|x) = \frac{p(x|z) \, p(z)}{p(x)}"),
            Formula(
                "log p(x) = ELBO + KL(q(z|x) || p(z|x))",
                r"\log p(x) = ELBO + KL(q(z|x) \, \| \, p(z|x))",
            ),
            Formula(
                "ELBO = E_q log p(x|z) - KL(q(z|x) || p(z))",
                r"ELBO = E_q \log p(x|z) - KL(q(z|x) \, \| \, p(z))",
            ),
        ),
    )


def _on_drawn_images(n: Numbers) -> list[Sentence]:
    """log p(x) from both sides, and of how many images."""
    bracket, found = n.bracket, []
    if bracket is None:
        return []
    if n.gap.images < min(n.bound_images, n.images):
        found.append(
            claim(
                Check.BOUND_IMAGES,
                "{images} images got these bounds and not the {asked} asked for: by a short trial "
                "more would take this machine more than a minute.",
                images=n.gap.images,
                asked=n.bound_images,
            )
        )
    found.append(
        claim(
            Check.GAP_ON_DRAWN_IMAGES,
            "On {images} images that were drawn from the model itself log p(x) is known from both "
            "sides, {lower:.3f} to {upper:.3f}, and KL(q || p(z|x)) lies between {gap_lower:.3f} "
            "and {gap_upper:.3f} there.",
            images=bracket.images,
            lower=bracket.lower,
            upper=bracket.upper,
            gap_lower=bracket.lower - bracket.elbo,
            gap_upper=bracket.upper - bracket.elbo,
        )
    )
    return found


def evidence(n: Numbers) -> Sentence:
    """The one gap, with its direction, its images and how it was had."""
    gap = n.gap
    few = gap.effective_samples < ENOUGH_EFFECTIVE and gap.method == "importance"
    text = (
        "On {images:,} images the ELBO is {elbo:.3f} and log p(x) >= {evidence:.3f}, so that "
        "KL(q || p(z|x)) >= {posterior_gap:.3f} nats. Both are lower bounds, by "
        f"{gap.how}; how far below the truth they lie they do not say."
    )
    figures = {
        "images": gap.images,
        "elbo": gap.elbo,
        "evidence": gap.evidence,
        "posterior_gap": n.posterior_gap,
    }
    if few:
        text += " Only {effective_samples:.2f} draws count on average, so it may be very far."
        figures["effective_samples"] = gap.effective_samples
    return claim(Check.EVIDENCE_AND_GAP, text, **figures)


def elbo(n: Numbers) -> Part:
    """Its two terms."""
    return Part(
        "elbo",
        "What is the ELBO made of?",
        (
            claim(
                Check.ELBO_TERMS,
                "ELBO {elbo:.3f} = log-likelihood {log_likelihood:.3f} - KL {kl:.3f} nats per "
                "image.",
                elbo=n.elbo,
                log_likelihood=n.log_likelihood,
                kl=n.kl,
            ),
            definition(
                "The first term asks that z can say what x is, the second charges for saying it. "
                "The loss that programs print is the negative of the ELBO."
            ),
        ),
    )


def kl(n: Numbers) -> Part:
    """The KL to the prior, and the line that everybody copies."""
    return Part(
        "kl",
        "What does the KL to the prior measure, and what is the line with logvar?",
        (
            claim(
                Check.KL_TERMS,
                "It is {kl:.3f} nats per image: the cross-entropy of q and the prior less the "
                "entropy of q, {cross_entropy_q_prior:.3f} less {entropy_q:.3f}.",
                kl=n.kl,
                cross_entropy_q_prior=n.cross_entropy_q_prior,
                entropy_q=n.entropy_q,
            ),
            definition(
                "It is what telling z costs somebody who knows only the prior, and never negative. "
                "The line that everybody copies is one dimension's MINUS KL: put a minus before "
                "it, add the dimensions up, then take the mean over images; a mean over dimensions "
                "is another objective. A dimension at mu = 0, logvar = 0 costs nothing and says "
                "nothing."
            ),
            claim(
                Check.KL_PER_DIMENSION,
                "Here {latent_dimensions} dimensions share it: the dearest takes {largest:.4f} "
                "nats, and {active_units} have a mean that varies over images by more than 0.01.",
                latent_dimensions=n.latent_dimensions,
                largest=n.kl_largest_dimension,
                active_units=n.active_units,
            ),
        ),
        (
            Formula(
                "-KL_d = 0.5 * (1 + logvar - mu^2 - exp(logvar))",
                r"-KL_d = \frac{1}{2} \, (1 + logvar - \mu^2 - e^{logvar})",
            ),
        ),
        "kl_per_dimension.png",
    )


def pull(n: Numbers, has_way: bool) -> Part:
    """To the prior or to the posterior."""
    gap = n.posterior_gap
    text = (
        "Here KL(q || p(z)) is {kl:.3f} and KL(q || p(z|x)) is at least {posterior_gap:.3f} nats: "
    )
    if gap > n.kl:
        text += "q is farther from the true posterior than from the prior."
    else:
        text += "as the second is a lower bound, which of the two is larger stays open."
    return Part(
        "pull",
        "Does maximising the ELBO pull q to the prior or to the posterior?",
        (
            definition(
                "For one image and a fixed decoder log p(x) is fixed, so the q of the highest ELBO "
                "is the one of its family with the least KL to the true posterior. Of its two "
                "terms, the KL to the prior alone would pull q to the prior, where z says nothing, "
                "and the likelihood pulls it away; the true posterior is where both are in "
                "balance. That is so at weight 1: with weight beta the balance lies at a density "
                "in proportion to p(z) p(x|z)^(1/beta)."
            ),
            claim(Check.GAP_AGAINST_KL, text, kl=n.kl, posterior_gap=gap),
        ),
        picture="pull.png" if has_way else None,
    )


def which_posterior(n: Numbers) -> Part:
    """p(z|x) or p(x|z)."""
    return Part(
        "which_posterior",
        "Do I compare q(z|x) with p(z|x) or with p(x|z)?",
        (
            definition(
                "With p(z|x): both are densities over z for one x. p(x|z) is a density over images "
                "for one z; it enters the ELBO as E_q log p(x|z) and is not compared with q. And "
                "p(z|x) is p(x|z) p(z) / p(x), not p(x|z) p(z)."
            ),
            evidence(n),
        ),
    )


def cross_entropy(n: Numbers) -> Part:
    """Between which distributions."""
    return Part(
        "cross_entropy",
        "What has cross-entropy to do with E[log p(x|z)]?",
        (
            claim(
                Check.ELBO_TERMS,
                "-E_q log p(x|z) is {distortion:.3f} nats per image.",
                distortion=n.distortion,
            ),
            definition(
                "Averaged over the data it is a cross-entropy between two distributions over "
                "images for each z: q(x|z), the data as the encoder sorts them (data(x) q(z|x) / "
                "q(z)), and the decoder's p(x|z). For a single x it is no cross-entropy, but the "
                "expected code length of that x. With Bernoulli pixels it is what programs call "
                "binary cross-entropy, summed over pixels and not averaged. A second cross-entropy "
                "sits in the KL: that between q(z|x) and the prior."
            ),
        ),
    )


def weight(n: Numbers, optimised: Optimised | None) -> Part | None:
    """What was optimised, and the trade that its weight sets."""
    if optimised is None:
        return None
    return Part(
        "weight",
        "What was optimised, and what does the weight of the KL do?",
        (
            *sentences_of(optimised, n),
            definition(
                "Rate (the KL) and distortion (minus the log-likelihood) are the two ends of one "
                "trade: at its optimum a larger weight of the KL never has a larger rate, nor a "
                "smaller distortion. With a Gaussian of fixed deviation, weight beta is the same "
                "as weight 1 with a variance beta times as large."
            ),
            definition(
                "To see it, train again with `--objective.beta 0.5` or 4 and set the runs side by "
                "side: `python -m jobs.evaluate --compare`."
            ),
        ),
        (formula_of(optimised),),
    )


def draws(n: Numbers) -> Part:
    """One draw or many."""
    return Part(
        "draws",
        "One sample of z or many?",
        (
            claim(
                Check.DRAWS,
                "One draw per image gave the ELBO of {elbo:.3f}; {samples} draws differ from it by "
                "{difference:+.3f}, and images by themselves leave a standard error of "
                "{elbo_error:.3f}.",
                elbo=n.elbo,
                samples=n.importance_samples,
                difference=n.mean_log_weight - n.elbo,
                elbo_error=n.elbo_error,
            ),
            definition(
                "One draw is enough for the ELBO: it has no bias, and images average its noise "
                "out. Many draws give another bound, IWAE, which rises to log p(x) with their "
                "number."
            ),
            claim(
                Check.DRAWS,
                "Of {samples} draws {effective_samples:.2f} count on average.",
                samples=n.importance_samples,
                effective_samples=n.effective_samples,
            ),
        ),
    )


def encoder_or_decoder(n: Numbers) -> Part | None:
    """The gap split in two."""
    gap = n.gap
    if gap.amortisation is None:
        return None
    return Part(
        "encoder_or_decoder",
        "Is my encoder wrong, or my decoder?",
        (
            claim(
                Check.GAP_SPLIT,
                "On {images:,} images KL(q || p(z|x)) >= {posterior_gap:.3f}. Of it optimising q "
                "for each image wins {amortisation:.3f}, which the encoder could have given; the q "
                "found is still {remaining:+.3f} nats or more from the true posterior.",
                images=gap.images,
                posterior_gap=n.posterior_gap,
                amortisation=gap.amortisation,
                remaining=gap.nats - gap.amortisation,
            ),
            definition(
                "A larger encoder can win the first; only another family of q (a full covariance) "
                "the second. log p(x) itself is the decoder's and the prior's: no encoder changes "
                "it."
            ),
        ),
    )
