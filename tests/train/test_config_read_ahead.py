"""What a config says of reading ahead, and what is wrong with it."""

import pytest

from dollar_jax.data.pipeline import ReadAhead
from dollar_jax.train.config import from_config_dict


def test_entries_become_what_the_loader_takes():
  entries = {"read_ahead": 5, "read_ahead_gib": 0.5}
  config = from_config_dict({"data": entries})
  assert config.data.ahead == ReadAhead(5, 2**29)


@pytest.mark.parametrize(
  "entry, value, said",
  [
    ("read_ahead", -1, "config.data.read_ahead is -1; it must be 0 or more"),
    ("read_ahead", 0.5, "config.data.read_ahead is 0.5; it must be of type"),
    ("read_ahead_gib", -0.5, "read_ahead_gib is -0.5; it must be 0 or more"),
    ("read_ahead_gib", float("inf"), "read_ahead_gib is inf; it must be"),
  ],
)
def test_what_is_wrong_is_said_in_a_sentence(entry, value, said):
  with pytest.raises(ValueError, match=r"config\.data") as caught:
    from_config_dict({"data": {entry: value}})
  assert said in str(caught.value)
