"""The word encoder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollar_jax.interop.text_encoders import TextEncoder, WordEncoder

WORDS = ["a", "moving", "left", "right", "3", "7"]


@pytest.fixture(scope="module")
def encoder():
  return WordEncoder.create(WORDS, dim=16, max_length=4, seed=5)


def test_it_is_a_text_encoder(encoder):
  assert isinstance(encoder, TextEncoder)
  assert (encoder.dim, encoder.max_length) == (16, 4)


def test_each_word_is_its_row_and_padding_is_zero(encoder):
  text, mask = encoder.encode(["a 3 moving left", "7 Right", ""])
  assert text.shape == (3, 4, 16)
  assert text.dtype == np.float32
  assert mask.dtype == bool
  np.testing.assert_array_equal(
    mask, [[True] * 4, [True, True, False, False], [False] * 4]
  )
  assert not text[~mask].any()
  assert text[mask].any(axis=-1).all()
  row = encoder.words.index("right")
  np.testing.assert_array_equal(text[1, 1], encoder.table[row])


@settings(max_examples=25, deadline=None)
@given(
  count=st.integers(1, 40), dim=st.integers(1, 48), seed=st.integers(0, 2**31)
)
def test_rows_have_unit_mean_square_and_are_orthogonal(count, dim, seed):
  words = [f"w{i}" for i in range(count)]
  table = WordEncoder.create(words, dim, 1, seed).table.astype(np.float64)
  np.testing.assert_allclose(np.mean(table**2, axis=1), 1.0, rtol=1e-5)
  if count <= dim:
    gram = table @ table.T / dim
    np.testing.assert_allclose(gram, np.eye(count), atol=1e-5)


def test_the_table_is_fixed_by_its_seed(encoder):
  again = WordEncoder.create(reversed(WORDS * 2), 16, 4, seed=5)
  assert again.words == encoder.words == tuple(sorted(WORDS))
  np.testing.assert_array_equal(again.table, encoder.table)
  other = WordEncoder.create(WORDS, 16, 4, seed=6)
  assert np.abs(other.table - encoder.table).max() > 0.1
  # written down once, so that another numpy must give the same
  first, last = [0.2890633, 0.3550966, -0.9413918], [0.5252408, -1.0646189]
  np.testing.assert_allclose(encoder.table[0, :3], first, atol=1e-6)
  np.testing.assert_allclose(encoder.table[-1, -2:], last, atol=1e-6)


def test_arrays_and_config_rebuild_it(encoder):
  back = WordEncoder.from_arrays(encoder.config, encoder.arrays)
  assert back.config == encoder.config
  np.testing.assert_array_equal(
    back.encode(["7 left"])[0], encoder.encode(["7 left"])[0]
  )


@pytest.mark.parametrize(
  "prompts, message",
  [
    (["a 3", "a 3 movin left"], "'movin' .* did you mean 'moving'"),
    (["zebra"], "'zebra' .* it knows: 3 7 a left moving right"),
    (["a 3 moving left left"], "has 5 words; .* at most 4"),
    ("a 3", "give a list of strings"),
    ([3], "give a list of strings"),
  ],
)
def test_prompts_it_cannot_read_are_named(encoder, prompts, message):
  with pytest.raises(ValueError, match=message):
    encoder.encode(prompts)


def test_a_long_vocabulary_is_not_printed_whole():
  encoder = WordEncoder.create([f"w{i:03d}" for i in range(300)], 4, 1)
  with pytest.raises(ValueError, match=r"\(300 in all\)") as error:
    encoder.encode(["zebra"])
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  "options, message",
  [
    ({"words": []}, "not usable"),
    ({"words": ["two words"]}, "not usable"),
    ({"words": ["Left"]}, "not usable"),
    ({"dim": 0}, "dim is 0"),
    ({"max_length": 0}, "max_length is 0"),
  ],
)
def test_unusable_vocabularies_are_refused(options, message):
  good = {"words": WORDS, "dim": 4, "max_length": 2}
  with pytest.raises(ValueError, match=message):
    WordEncoder.create(**good | options)


def test_a_table_of_other_words_is_refused(encoder):
  arrays = {"table": encoder.table[:-1]}
  with pytest.raises(ValueError, match="6 words need"):
    WordEncoder.from_arrays(encoder.config, arrays)
