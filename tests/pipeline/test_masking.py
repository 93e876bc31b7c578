"""No message shows a secret of a URL, or a character that a terminal would obey."""

import pytest

from pipeline.masking import is_secret_query, markdown, masked, one_line, printable, secret_in


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:pass@db:5432/x", "at postgresql://...@db:5432/x"),
        ("s3://KEY:a/b+c@bucket/x failed", "s3://...@bucket/x failed"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?..."),
        ("https://h/x?page=2", "https://h/x?page=2"),
        ("http://127.0.0.1:8265/api", "http://127.0.0.1:8265/api"),
        ("AWS_SECRET_ACCESS_KEY=abc/d and more", "AWS_SECRET_ACCESS_KEY=... and more"),
        ("Authorization: Bearer abc", "Authorization: Bearer ..."),
        ("{'Authorization': 'Basic abc=='}", "{'Authorization': 'Basic ...'}"),
        ("refused Bearer abcdefgh.i", "refused Bearer ..."),
        ("a bearer of news", "a bearer of news"),
        ('{"password": "pass", "x": 1}', '{"password": "...", "x": 1}'),
        ("elbo: -3.5", "elbo: -3.5"),
    ],
)
def test_what_opens_a_door_is_left_out_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("s3://bucket/prefix", None),
        ("./runs", None),
        ("https://me:pass@host/x", "a password"),
        ("https://token@host/x", "a user, which may be a token"),
        ("https://host/x?sig=abc", "a signature or a token"),
        ("simplecache::s3://bucket/x", "a chained URL"),
    ],
)
def test_a_flag_is_refused_by_the_kind_of_its_secret(flag: str, kind: str | None) -> None:
    found = secret_in(flag)
    assert found == kind or (kind is not None and found is not None and found.startswith(kind))


def test_a_query_is_harmless_only_if_each_part_is_short_and_named_for_no_secret() -> None:
    assert not is_secret_query("https://h/x?page=2&sort=asc")
    assert is_secret_query("https://h/x?page=2&code=1")
    assert is_secret_query("https://h/x?v=" + "a" * 9)
    assert not is_secret_query("https://h/x")


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"
    assert printable("zwölf\n\tlines") == "zwölf\n\tlines"
    assert one_line("a\nb") == "a\\nb"
    assert markdown("<b>|") == "&#60;b&#62;&#124;"
