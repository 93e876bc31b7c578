import json
import math

from pipeline.runs.json_numbers import plain_json


def test_what_is_not_finite_is_null_at_any_depth_and_all_else_stays() -> None:
    value = {"a": [1, math.nan, (math.inf, "x")], "b": {"c": -math.inf, "d": None, "e": 0.5}}
    plain = plain_json(value)
    assert plain == {"a": [1, None, [None, "x"]], "b": {"c": None, "d": None, "e": 0.5}}
    json.dumps(plain, allow_nan=False)
