"""Figures are JSON that any program reads."""

import json
import math

from dual_head.files.figures import figures_json


def test_what_is_no_number_is_null():
    figures = {"kl": math.nan, "rows": [{"gain": (-math.inf, 0.5)}], "name": "NaN", "finished": True, "count": 3}
    read = json.loads(figures_json(figures), parse_constant=lambda name: 1 / 0)
    assert read == {"kl": None, "rows": [{"gain": [None, 0.5]}], "name": "NaN", "finished": True, "count": 3}
