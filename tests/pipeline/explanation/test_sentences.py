import pytest

from pipeline.explanation.sentences import Check, Sentence, claim, definition


def test_a_sentence_without_a_check_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="has no check"):
        Sentence("The decoder is good.", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no check"):
        Sentence("The decoder is good.", "good")  # type: ignore[arg-type]


def test_a_claim_has_figures_and_a_definition_has_none() -> None:
    with pytest.raises(TypeError, match="a claim has some"):
        claim(Check.BITS, "Bits are few.")
    with pytest.raises(TypeError, match="a definition has no figures"):
        Sentence("It is 4.", Check.DEFINITION, {"it": 4.0})
    assert claim(Check.BITS, "{bits:.1f} bits", bits=3.25).text == "3.2 bits"
    assert definition("A nat is 1.44 bits.").figures == {}
