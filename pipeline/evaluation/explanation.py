"""From Bayes' rule to the ELBO with one run's numbers in each term, and what people ask of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One answer: `numbers` are the run's own (they stand in the text), `picture` a file name."""

    name: str
    title: str
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    change: str = ""
    picture: str | None = None

    def render(self) -> str:
        """Markdown that reads well in a terminal too."""
        lines = [f"## {self.title}", "", self.text]
        if self.change:
            lines += ["", f"What would change it: {self.change}"]
        if self.picture:
            lines += ["", f"Picture: {self.picture}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Term:
    """A row of the walk: symbol, name, what it is in this run, value in nats per image."""

    symbol: str
    name: str
    here: str
    value: float


def walk(numbers: Numbers) -> list[Term]:
    """The terms from Bayes' rule to the ELBO, in the order in which they are met."""
    k = numbers["importance_samples"]
    return [
        Term("log p(x)", "evidence", f"at least this: IWAE, {k} draws", numbers["iwae"]),
        Term("ELBO", "evidence lower bound", "what training pushes up", numbers["elbo"]),
        Term("E_q log p(x|z)", "log-likelihood", "the decoder's", numbers["log_likelihood"]),
        Term("KL(q || p(z))", "KL to the prior", "the code's price", numbers["kl"]),
        Term(
            "H(q, p(z))", "cross-entropy", "q against the prior", numbers["cross_entropy_q_prior"]
        ),
        Term("H(q)", "entropy of q", "how wide the codes are", numbers["entropy_q"]),
        Term(
            "KL(q || p(z|x))",
            "posterior gap",
            "at least this: IWAE - ELBO",
            numbers["posterior_gap"],
        ),
    ]


def explain(numbers: Numbers, beta: float = 1.0, has_way: bool = False) -> list[Part]:
    """Every part of the page, for the numbers of an evaluation's report.

    `beta`: the weight of the KL in what was optimised. `has_way`: they are a run's, whose curves
    are drawn beside the page.
    """
    makers: Sequence[Callable[[Numbers], Part | None]] = (
        _bayes,
        _elbo,
        _likelihood,
        _cross_entropy,
        _kl,
        lambda found: _pull(found, has_way),
        _which_posterior,
        _continuity,
        _classes,
        lambda found: _weight(found, beta),
        _draws,
        _encoder_or_decoder,
        _information,
        _active,
        _samples,
        _bits,
        _reconstruction,
    )
    parts = [make(numbers) for make in makers]
    return [part for part in parts if part is not None]


def render(numbers: Numbers, parts: Sequence[Part], warnings: Sequence[str]) -> str:
    """The whole page as Markdown."""
    # U+2223 looks like the bar of a condition, and does not end a cell of a table.
    rows = [
        f"| {term.symbol.replace('|', '∣')} | {term.name} | {term.here} | {term.value:.3f} |"
        for term in walk(numbers)
    ]
    health = [f"- {line}" for line in warnings] or ["- Nothing unusual."]
    head = [
        f"# What this model's numbers mean ({numbers['images']:,} images, nats per image)",
        "",
        "| symbol | name | here | value |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Health",
        "",
        *health,
    ]
    return "\n\n".join(["\n".join(head), *(part.render() for part in parts)]) + "\n"


def _bayes(n: Numbers) -> Part:
    exact = n.get("quadrature")
    known = (
        f" With so few latent dimensions the integral is known: for {exact['images']} images "
        f"log p(x) = {exact['log_evidence']:.4f} = ELBO {exact['elbo']:.4f} + KL(q || p(z|x)) "
        f"{exact['kl_q_posterior']:.4f}."
        if exact
        else ""
    )
    return Part(
        "bayes",
        "Where does the ELBO come from?",
        "Bayes: p(z|x) = p(x|z) p(z) / p(x). The denominator is an integral over all z, so q(z|x) "
        "stands in for p(z|x). Put into log p(x), for any q:\n"
        "    log p(x) = ELBO + KL(q(z|x) || p(z|x)),    ELBO = E_q log p(x|z) - KL(q(z|x) || "
        f"p(z)).\nHere: log p(x) >= {n['iwae']:.3f}, ELBO = {n['elbo_averaged']:.3f} (averaged "
        f"over {n['importance_samples']} draws), so the second KL is at least "
        f"{n['posterior_gap']:.3f}. A KL is never negative, hence *lower bound*. All three are "
        "logs: p(x) itself is e to that power, far too small to write down." + known,
        {name: n[name] for name in ("iwae", "elbo_averaged", "posterior_gap")},
        "more draws K raise the bound on log p(x); a better q raises the ELBO towards it.",
    )


def _elbo(n: Numbers) -> Part:
    return Part(
        "elbo",
        "What is the ELBO made of?",
        f"ELBO {n['elbo']:.3f} = log-likelihood {n['log_likelihood']:.3f} - KL {n['kl']:.3f} nats "
        "per image. The first term asks that z can say what x is, the second charges for saying "
        "it. The loss that programs print is its negative.",
        {name: n[name] for name in ("elbo", "log_likelihood", "kl")},
        "a larger decoder raises the first term; the second falls when codes carry less.",
    )


def _likelihood(n: Numbers) -> Part:
    lift = n["log_likelihood_at_mean"] - n["log_likelihood"]
    return Part(
        "at_mean",
        "Can I put the mean of q into the decoder instead of a draw?",
        f"E_q log p(x|z) = {n['log_likelihood']:.3f}; log p(x|z) at the mean of q = "
        f"{n['log_likelihood_at_mean']:.3f}, which is {lift:+.3f}. The second is fine for pictures "
        "but it is no term of any bound: an ELBO with it would be too high by that much.",
        {name: n[name] for name in ("log_likelihood", "log_likelihood_at_mean")} | {"lift": lift},
        "narrower posteriors bring the two together.",
    )


def _cross_entropy(n: Numbers) -> Part:
    return Part(
        "cross_entropy",
        "What has cross-entropy to do with E[log p(x|z)]?",
        f"-E_q log p(x|z) = {n['distortion']:.3f} is a cross-entropy: the nats that the decoder "
        "needs for x when told z. (With Bernoulli pixels it is the binary cross-entropy, summed "
        "over pixels.) A second cross-entropy sits in the KL: KL(q || p(z)) = H(q, p(z)) - H(q) = "
        f"{n['cross_entropy_q_prior']:.3f} - {n['entropy_q']:.3f} = {n['kl']:.3f}.",
        {name: n[name] for name in ("distortion", "cross_entropy_q_prior", "entropy_q", "kl")},
        "its value depends on the pixels' unit and number; compare only equal ones.",
    )


def _kl(n: Numbers) -> Part:
    per_dimension = n["kl"] / n["latent_dimensions"]
    return Part(
        "kl",
        "What does the KL to the prior measure?",
        f"{n['kl']:.3f} nats per image, summed over {n['latent_dimensions']} dimensions "
        f"({per_dimension:.4f} each on average): what it costs to tell z to somebody who knows "
        "only the prior. It is never negative, and a mean over dimensions in place of the sum is "
        "another objective.",
        {"kl": n["kl"], "latent_dimensions": n["latent_dimensions"]},
        "a smaller latent or a larger KL weight lowers it.",
        "kl_per_dimension.png",
    )


def _pull(n: Numbers, has_way: bool) -> Part:
    low, high = n["posterior_gap_interval"]
    return Part(
        "pull",
        "Does maximising the ELBO pull q to the prior or to the posterior?",
        "To the posterior. ELBO = log p(x) - KL(q || p(z|x)): for a fixed decoder only that gap "
        f"can shrink, and here it is {n['posterior_gap']:.3f} nats (95%: {low:.3f} to {high:.3f}; "
        f"a lower estimate). The distance to the prior stays at {n['kl']:.3f} nats: it is a price "
        "that the likelihood outweighs, not a goal. Were q the prior for every x, z would say "
        "nothing.",
        {name: n[name] for name in ("posterior_gap", "kl")},
        "both curves are tracked at every validation (`posterior_gap` and `kl`).",
        "pull.png" if has_way else None,
    )


def _which_posterior(n: Numbers) -> Part:
    return Part(
        "which_posterior",
        "Do I compare q(z|x) with p(z|x) or with p(x|z)?",
        "With p(z|x): both are densities over z for one x. p(x|z) is a density over images for one "
        f"z; it enters the ELBO as E_q log p(x|z) = {n['log_likelihood']:.3f}, it is not compared "
        "with q. And p(z|x) is p(x|z) p(z) / p(x), not p(x|z) p(z). KL(q || p(z|x)) here: at least "
        f"{n['posterior_gap']:.3f}.",
        {name: n[name] for name in ("log_likelihood", "posterior_gap")},
        "nothing: it is a matter of what the symbols are densities of.",
    )


def _continuity(n: Numbers) -> Part | None:
    path = n.get("interpolation")
    if path is None:
        return None
    return Part(
        "continuity",
        "Is the latent space continuous, and why?",
        f"Along {path['pairs']} straight walks between codes the largest step is "
        f"{path['jump']:.4f} (root-mean-square pixel difference, images in [0, 1]), and taking "
        f"twice as many steps leaves {path['jump_ratio']:.3f} of it: 0.5 is continuous, 1 is a "
        f"jump. Paths are {path['length']:.4f} long where a straight cross-fade has "
        f"{path['direct']:.4f}. Why: the decoder is a continuous function, and q(z|x) is a cloud, "
        "so every point of the cloud must decode to x; clouds of different images overlap only "
        "where their images may blend.",
        {name: path[name] for name in ("jump", "jump_ratio", "length", "direct")},
        "a plain autoencoder (no noise, no KL) leaves holes between codes.",
        "interpolations.png",
    )


def _classes(n: Numbers) -> Part | None:
    found = n.get("neighbours")
    if found is None:
        return None
    return Part(
        "classes",
        "Where do classes in latent space come from, when the loss has never seen one?",
        f"{found['agreement']:.3f} of the images have the label of most of their "
        f"{found['neighbours']} nearest codes (a blind guess: {found['chance']:.3f}). The KL pays "
        "for every nat of code, so images that the same decoder features explain are cheapest when "
        "they lie together; images of one class share such features.",
        {name: found[name] for name in ("agreement", "chance")},
        "classes that look alike stay mixed whatever the training does.",
        "latent_means.png",
    )


def _weight(n: Numbers, beta: float) -> Part:
    objective = n["log_likelihood"] - beta * n["kl"]
    return Part(
        "weight",
        "What does the weight of the KL (beta) do?",
        f"Training maximised log-likelihood - {beta:g} x KL = {objective:.3f}; the ELBO always has "
        f"weight 1 and is {n['elbo']:.3f}. Rate (KL) {n['rate']:.3f} and distortion "
        f"{n['distortion']:.3f} are the two ends of one trade: a larger beta lowers the rate and "
        "raises the distortion. With a unit-variance Gaussian, beta is the decoder's variance.",
        {"beta": beta, "objective": objective, "rate": n["rate"], "distortion": n["distortion"]},
        "run again with --objective.beta 0.5 or 4 and compare (`jobs.evaluate --compare`).",
    )


def _draws(n: Numbers) -> Part:
    difference = n["elbo"] - n["elbo_averaged"]
    return Part(
        "draws",
        "One sample of z or many?",
        f"One draw per image gave an ELBO of {n['elbo']:.3f} (standard error over images "
        f"{n['elbo_error']:.3f}), {n['importance_samples']} draws {n['elbo_averaged']:.3f}: "
        f"{difference:+.3f} apart. One is enough for the ELBO, as images average the noise out. "
        f"Many draws buy another, tighter bound: IWAE {n['iwae']:.3f}. Of "
        f"{n['importance_samples']} draws {n['effective_samples']:.2f} count on average.",
        {
            name: n[name]
            for name in ("elbo", "elbo_averaged", "elbo_error", "iwae", "effective_samples")
        },
        "--importance-samples 5000 for a tighter bound.",
    )


def _encoder_or_decoder(n: Numbers) -> Part | None:
    split = n.get("gap_split")
    if split is None:
        return None
    worse = "encoder" if split["amortisation"] > split["approximation"] else "family of q"
    return Part(
        "encoder_or_decoder",
        "Is my encoder wrong, or my decoder?",
        f"On the first {split['images']} images the gap of {split['gap']:.3f} nats is "
        f"{split['amortisation']:.3f} that optimising q for each image wins (the encoder's fault) "
        f"and {split['approximation']:.3f} that even the best q of this family misses. Most of it "
        f"is the {worse}'s. What neither explains, log p(x) >= {n['iwae']:.3f} itself, is the "
        "decoder's.",
        {name: split[name] for name in ("gap", "amortisation", "approximation")},
        "a larger encoder lowers the first, posterior full or more draws the second.",
    )


def _information(n: Numbers) -> Part | None:
    found = n.get("surgery")
    if found is None:
        return None
    capped = found["mutual_information"] > 0.95 * found["cap"]
    remark = (
        " It is at its cap, so the split is a lower estimate: use more images." if capped else ""
    )
    return Part(
        "information",
        "How much does z know about x?",
        f"The mean KL {found['kl']:.3f} = mutual information {found['mutual_information']:.3f} + "
        f"KL(q(z) || p(z)) {found['marginal_kl']:.3f}. The first can't show more than log N = "
        f"{found['cap']:.3f} with {found['images']:,} images.{remark} The second is what samples "
        "from the prior suffer from: places where no image's code lies.",
        {name: found[name] for name in ("mutual_information", "marginal_kl", "cap")},
        "more images lift the cap; a better prior lowers the marginal KL.",
        "aggregated_posterior.png",
    )


def _active(n: Numbers) -> Part:
    return Part(
        "active",
        "How many latent dimensions are used?",
        f"{n['active_units']} of {n['latent_dimensions']}: those whose posterior mean varies over "
        "images by more than 0.01 (Burda et al. 2016). The others sit at the prior and the decoder "
        "ignores them; it costs nothing and is not an error.",
        {name: n[name] for name in ("active_units", "latent_dimensions")},
        "a lower KL weight, a warm-up, or a stronger decoder's opposite: a weaker one.",
        "kl_per_dimension.png",
    )


def _samples(n: Numbers) -> Part:
    found, mixture = n["generation"], n.get("mixture")
    better = (
        f" A mixture fitted to the codes describes unseen ones {mixture['gain']:+.3f} nats better "
        "than the prior: positive says that its samples should look better."
        if mixture
        else ""
    )
    return Part(
        "samples",
        "Why do samples look worse than reconstructions?",
        f"A sample's nearest real image (of {found['compared_with']}) is at "
        f"{found['psnr_nearest']:.2f} dB; reconstructions reach "
        f"{n['reconstruction']['psnr_mean']:.2f} dB. The prior also draws z where no image's code "
        f"lies.{better}",
        {"psnr_nearest": found["psnr_nearest"], "psnr_mean": n["reconstruction"]["psnr_mean"]},
        "train longer, or sample from the mixture.",
        "samples.png",
    )


def _bits(n: Numbers) -> Part:
    if n["bits_per_dim"] is None:
        return Part(
            "bits",
            "Can I state bits per dimension?",
            f"No: Bernoulli scores the binarised image, so {n['elbo']:.3f} nats are not of the "
            "uint8 image. State nats, with how it was binarised.",
            {"elbo": n["elbo"]},
            "a likelihood over 256 levels (gaussian, logistic, ...).",
        )
    return Part(
        "bits",
        "Can I state bits per dimension?",
        f"Yes: {n['bits_per_dim']:.4f} = -ELBO / (D ln 2), D = {n['pixels']:,} pixels and "
        "channels, of the uint8 image. 8 is a model that knows nothing.",
        {"bits_per_dim": n["bits_per_dim"], "pixels": n["pixels"]},
        "only the ELBO does; the unit is fixed.",
    )


def _reconstruction(n: Numbers) -> Part:
    found = n["reconstruction"]
    return Part(
        "reconstruction",
        "Why are reconstructions blurred?",
        f"At the mean of q they reach {found['psnr_mean']:.2f} dB, at a draw "
        f"{found['psnr_sample']:.2f} dB. What is shown is the mean of p(x|z), an average over "
        "every image that this z allows; an independent likelihood per pixel has no texture beyond "
        "it.",
        {name: found[name] for name in ("psnr_mean", "psnr_sample")},
        "more latent dimensions, or a smaller sigma.",
        "reconstructions.png",
    )
