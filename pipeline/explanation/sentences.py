"""A sentence is made together with the check that holds it, or it is a definition.

`Check` names what a sentence claims. tests/support/claims.py has a function for each name, which
computes the claim by other means from model and images; a sentence without a name can't be made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Check(StrEnum):
    """What is claimed about this run; `DEFINITION`: nothing, it is what a word means, or a theorem.

    A theorem's sentence holds for every model, so that no run can contradict it.
    """

    DEFINITION = "definition"
    TRAINING_AGAINST_HOLDOUT = "training_against_holdout"
    EVIDENCE_AND_GAP = "evidence_and_gap"
    EXACT_EVIDENCE = "exact_evidence"
    BOUND_IMAGES = "bound_images"
    GAP_ON_DRAWN_IMAGES = "gap_on_drawn_images"
    GAP_AGAINST_KL = "gap_against_kl"
    GAP_SPLIT = "gap_split"
    ELBO_TERMS = "elbo_terms"
    KL_TERMS = "kl_terms"
    KL_PER_DIMENSION = "kl_per_dimension"
    AT_MEAN = "at_mean"
    OBJECTIVE = "objective"
    DRAWS = "draws"
    JUMPS = "jumps"
    COVERAGE = "coverage"
    SIMILAR_CODES = "similar_codes"
    LABELS = "labels"
    INFORMATION = "information"
    ACTIVE = "active"
    SAMPLES = "samples"
    BITS = "bits"
    RECONSTRUCTION = "reconstruction"
    COLLAPSED = "collapsed"
    FEW_ACTIVE = "few_active"
    DECODER_IGNORES_Z = "decoder_ignores_z"
    NOT_FINITE = "not_finite"
    POSITIVE_ELBO = "positive_elbo"
    FEW_EFFECTIVE_DRAWS = "few_effective_draws"
    DEVIATION_AT_ITS_FLOOR = "deviation_at_its_floor"
    NO_SIGN_OF_ILLNESS = "no_sign_of_illness"


@dataclass(frozen=True)
class Sentence:
    """One or more sentences of plain English; `figures` are the numbers of this run in it."""

    text: str
    check: Check
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.check, Check):
            raise TypeError(f"{self.text!r} has no check: name what holds it, or a definition")
        if (self.check is Check.DEFINITION) == bool(self.figures):
            raise TypeError(
                f"{self.text!r}: a definition has no figures of a run, a claim has some"
            )


def definition(text: str) -> Sentence:
    """What holds for every model: the meaning of a symbol, an identity, a theorem, a command."""
    return Sentence(text, Check.DEFINITION)


def claim(check: Check, text: str, **figures: float) -> Sentence:
    """What is said of this run: `text` with its figures in their {places}, as `str.format` does."""
    return Sentence(text.format(**figures), check, figures)


@dataclass(frozen=True)
class Formula:
    """One line of mathematics: `plain` for a terminal, `tex` for a page."""

    plain: str
    tex: str


@dataclass(frozen=True)
class Part:
    """The answer to one question: its formulas, its sentences, and a picture's file name.

    is_list: each sentence stands for itself, as a line.
    """

    name: str
    title: str
    sentences: Sequence[Sentence]
    formulas: Sequence[Formula] = ()
    picture: str | None = None
    is_list: bool = False

    @property
    def text(self) -> str:
        """All sentences."""
        told = [sentence.text for sentence in self.sentences]
        return "\n".join(f"- {each}" for each in told) if self.is_list else " ".join(told)

    @property
    def numbers(self) -> dict[str, float]:
        """This run's figures in it."""
        found: dict[str, float] = {}
        for sentence in self.sentences:
            found |= sentence.figures
        return found
