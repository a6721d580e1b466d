"""Cases of a parametrisation: a few run daily, the others in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def cases(every: Iterable, *daily: object) -> list:
    """Every case, all but `daily` with the marker `long`. A case of several arguments is a tuple."""
    every = list(every)
    unknown = [case for case in daily if not any(case is other or case == other for other in every)]
    if unknown or not daily:
        raise ValueError(f"daily: expected at least one of the cases, got {unknown or 'none'}. Name one that is there.")
    return [case if any(case is one or case == one for one in daily) else _long(case) for case in every]


def _long(case: object) -> object:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
