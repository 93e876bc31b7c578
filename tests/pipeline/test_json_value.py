from pipeline.json_value import Json, flat


def test_keys_of_sections_are_joined_by_dots_and_values_stay() -> None:
    nested: Json = {"a": 1, "b": {"c": None, "d": {"e": [1, {"f": 2}]}}, "g": {}}
    assert flat(nested) == {"a": 1, "b.c": None, "b.d.e": [1, {"f": 2}]}
