"""How many damaged files a test tries."""

from __future__ import annotations

import pytest

few_or_many = pytest.mark.parametrize(
    "count", [50, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
