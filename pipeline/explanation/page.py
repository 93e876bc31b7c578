"""The whole explanation: every part for one run's numbers, for a terminal and as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.evaluation.numbers import Numbers
from pipeline.explanation import bound_answers as bounds
from pipeline.explanation import code_answers as codes
from pipeline.explanation.health import health
from pipeline.explanation.sentences import Part
from pipeline.vae import Optimised


@dataclass(frozen=True)
class Term:
    """A row of the walk: symbol, name, what it is in this run, value in nats per image.

    relation: "=", or ">=" where the value is a lower bound on what the symbol means.
    """

    symbol: str
    name: str
    here: str
    relation: str
    value: float


def walk(n: Numbers) -> list[Term]:
    """The terms from Bayes' rule to the ELBO, in the order in which they are met."""
    gap = n.gap
    which = f"{gap.images:,} images, ELBO {gap.elbo:.3f}"
    return [
        Term("log p(x)", "evidence", f"{which}; {gap.how}", ">=", gap.evidence),
        Term("ELBO", "evidence lower bound", "one draw of z per image", "=", n.elbo),
        Term("E_q log p(x|z)", "log-likelihood", "the decoder's", "=", n.log_likelihood),
        Term("KL(q || p(z))", "KL to the prior", "what the code costs", "=", n.kl),
        Term(
            "H(q, p(z))",
            "cross-entropy",
            "q against the prior",
            "=",
            n.cross_entropy_q_prior,
        ),
        Term("H(q)", "entropy of q", "how wide the codes are", "=", n.entropy_q),
        Term("KL(q || p(z|x))", "posterior gap", which, ">=", n.posterior_gap),
    ]


@dataclass(frozen=True)
class Known:
    """What is known of a model besides its numbers.

    `optimised` None: nobody knows what was. `sigma`: the likelihood's one deviation, if it has one.
    `has_way`: it is a run's model, whose curves are drawn beside the page.
    """

    optimised: Optimised | None = None
    sigma: float | None = None
    has_way: bool = False


def explain(n: Numbers, known: Known) -> list[Part]:
    """Every part of the page, its health first, for the numbers of an evaluation."""
    makers: Sequence[Callable[[Numbers], Part | None]] = (
        lambda found: health(found, known.sigma),
        bounds.training_or_holdout,
        bounds.bayes,
        bounds.elbo,
        codes.at_mean,
        bounds.cross_entropy,
        bounds.kl,
        lambda found: bounds.pull(found, known.has_way),
        bounds.which_posterior,
        codes.continuity,
        codes.coverage,
        codes.similar_codes,
        codes.classes,
        lambda found: bounds.weight(found, known.optimised),
        bounds.draws,
        bounds.encoder_or_decoder,
        codes.information,
        codes.active,
        codes.samples,
        codes.bits,
        codes.reconstruction,
    )
    parts = [make(n) for make in makers]
    return [part for part in parts if part is not None]


def to_text(n: Numbers, parts: Sequence[Part], pictures: Sequence[str]) -> str:
    """The page for a terminal: formulas as plain lines, the pictures that there are by name."""
    rows = [f"  {t.symbol:<16}{t.relation:>2} {t.value:14.3f}  {t.name}: {t.here}" for t in walk(n)]
    blocks = ["\n".join([_headline(n), *rows])]
    for part in parts:
        lines = [part.title, *(f"    {formula.plain}" for formula in part.formulas), part.text]
        if part.picture in pictures:
            lines.append(f"Picture: {part.picture}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def to_markdown(n: Numbers, parts: Sequence[Part], pictures: Sequence[str]) -> str:
    """The page with its formulas as mathematics and the pictures, those that there are, in it."""
    # U+2223 looks like the bar of a condition, and does not end a cell of a table.
    rows = [
        f"| {t.symbol.replace('|', '∣')} | {t.name} | {t.here} | {t.relation} {t.value:.3f} |"
        for t in walk(n)
    ]
    head = [
        f"# {_headline(n)}",
        "",
        "| symbol | name | here | value |",
        "|---|---|---|---|",
        *rows,
    ]
    blocks = ["\n".join(head)]
    for part in parts:
        lines = [f"## {part.title}", "", *(f"$$ {f.tex} $$\n" for f in part.formulas), part.text]
        if part.picture in pictures:
            lines += ["", f"![{part.title}]({part.picture})"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _headline(n: Numbers) -> str:
    step = f", step {n.step:,}" if n.step is not None else ""
    return f"What this model's numbers mean ({n.images:,} images{step}, nats per image)"
