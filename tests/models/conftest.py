"""Networks here run once or twice."""

import pytest


@pytest.fixture(autouse=True)
def _quick_compiles(quick_compiles):
  """Compiles every network quickly."""
