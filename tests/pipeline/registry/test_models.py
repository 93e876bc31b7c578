import pytest

from pipeline.errors import ModelError
from pipeline.registry.models import _parse


@pytest.mark.parametrize("uri", ["models:/@champion", "models:/vae@", "models:/vae", "vae/1"])
def test_a_uri_without_a_name_or_without_alias_and_version_is_refused(uri: str) -> None:
    with pytest.raises(ModelError, match="is neither models:/NAME@ALIAS nor models:/NAME/VERSION"):
        _parse(uri)


def test_a_uri_names_an_alias_or_a_version() -> None:
    assert _parse("models:/vae@champion") == ("vae", "champion", None)
    assert _parse("models:/vae/12") == ("vae", None, "12")
