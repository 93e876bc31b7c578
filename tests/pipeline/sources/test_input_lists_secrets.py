"""What a row names is kept in the ledger: an address that holds a secret is not."""

from pathlib import Path

import pytest

from pipeline.sources.listing import list_sources


@pytest.mark.parametrize(
    "address",
    ["https://me:pl4nted@127.0.0.1:9/x.png", "https://pl4nted@127.0.0.1:9/x.png",
     "https://127.0.0.1:9/x.png?sig=pl4nted", "https://127.0.0.1:9/x.png?token=pl4nted"],
)  # fmt: skip
def test_a_row_with_a_secret_is_rejected_without_repeating_it(tmp_path: Path, address: str) -> None:
    (tmp_path / "list.csv").write_text(f"path\n{address}\n")
    (found,) = list_sources((str(tmp_path / "list.csv"),))
    assert (found.status, found.reason) == ("rejected", "secret")
    assert "pl4nted" not in repr(found)
