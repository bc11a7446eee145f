"""The linear autoencoder: exact where it can be, and optimal elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax.models.linear_vae import LinearVAE

PATCH = (2, 4, 4)
FULL = 2 * 4 * 4 * 3


def _clips(count=24, seed=0):
  """Smooth, coloured waves [N, 4, 8, 12, 3], each in motion."""
  rng = np.random.default_rng(seed)
  f, y, x = np.mgrid[0:4, 0:8, 0:12][..., None]
  shape = (count, 1, 1, 1, 3)
  phase, rows, columns, speed = rng.uniform(0, 1, (4, *shape))
  angle = 6.3 * phase + 0.5 * rows * y + 0.5 * columns * x + speed * f
  return np.uint8(np.round(127.5 + 110 * np.sin(angle)))


@pytest.fixture(scope="module")
def clips():
  return _clips()


@pytest.fixture(scope="module")
def codec(clips):
  return LinearVAE.fit(clips, PATCH, 8)


def _error(codec, clips):
  back = codec.decode_signal(codec.encode(clips))
  return float(jnp.mean((back - (clips / 127.5 - 1)) ** 2))


def test_what_lies_in_its_span_comes_back_unchanged():
  """Clips made of two patterns and a mean need no more than two channels."""
  rng = np.random.default_rng(1)
  patterns = rng.integers(-3, 4, (2, *PATCH, 3))
  codes = rng.integers(-15, 16, (40, 2, 2, 3, 2))  # [N, T, h, w, pattern]
  patches = 128 + np.einsum("bthwp,pijkc->btihjwkc", codes, patterns)
  clips = np.uint8(patches.reshape(40, 4, 8, 12, 3))
  codec = LinearVAE.fit(clips, PATCH, 2)
  np.testing.assert_array_equal(codec.decode(codec.encode(clips)), clips)
  assert codec.psnr(clips) == np.inf


def test_latents_come_back_unchanged_from_the_decoder(codec):
  latents = np.random.default_rng(2).standard_normal((2, 2, 2, 3, 8))
  signal = codec.decode_signal(latents.astype(np.float32))
  frames = (signal + 1) * 127.5  # float frames: nothing is rounded
  np.testing.assert_allclose(codec.encode(frames), latents, atol=1e-4)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_have_unit_variance(clips, whitening):
  latents = LinearVAE.fit(clips, PATCH, 8, whitening).encode(clips)
  channels = np.asarray(latents, np.float64).reshape(-1, 8)
  np.testing.assert_allclose(channels.mean(0), np.zeros(8), atol=1e-3)
  assert np.mean(channels**2) == pytest.approx(1, rel=1e-3)
  own = channels.var(0)
  if whitening == 1:
    np.testing.assert_allclose(own, np.ones(8), rtol=1e-2)
  else:
    assert (np.diff(own) < 0).all()  # the strongest component first
    assert own[0] > 1.5


def test_without_whitening_distances_are_those_of_pixels(clips):
  codec = LinearVAE.fit(clips, PATCH, FULL, whitening=0.0)
  latents = np.asarray(codec.encode(clips)).reshape(len(clips), -1)
  pixels = clips.reshape(len(clips), -1) / 127.5
  ratio = [
    np.linalg.norm(latents[i] - latents[i + 1])
    / np.linalg.norm(pixels[i] - pixels[i + 1])
    for i in range(5)
  ]
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_psnr_grows_with_channels_until_all_is_kept(clips):
  psnr = [LinearVAE.fit(clips, PATCH, n).psnr(clips) for n in (1, 4, 16, 48)]
  assert (np.diff(psnr) > 1).all(), psnr
  assert LinearVAE.fit(clips, PATCH, FULL).psnr(clips) > 60


def test_no_other_basis_does_better(clips, codec):
  """Eckart and Young; on the clips it was fit on."""
  rng = np.random.default_rng(3)
  best = _error(codec, clips)
  for spread in (0.05, 10.0):  # a slightly turned basis, and a random one
    noise = spread * rng.standard_normal(codec.basis.shape)
    basis, _ = np.linalg.qr(codec.basis + noise)
    arrays = codec.arrays | {"basis": basis.astype(np.float32)}
    assert _error(LinearVAE.from_arrays(codec.config, arrays), clips) > best
  shifted = codec.arrays | {"mean": codec.arrays["mean"] + 0.05}
  assert _error(LinearVAE.from_arrays(codec.config, shifted), clips) > best


def test_error_is_the_variance_left_out(clips, codec):
  full = LinearVAE.fit(clips, PATCH, FULL, whitening=0.0)
  latents = np.asarray(full.encode(clips)).reshape(-1, FULL) * full.scale
  left_out = np.sum(latents[:, 8:] ** 2, axis=1).mean() / FULL
  assert _error(codec, clips) == pytest.approx(left_out, rel=1e-3)


def test_error_is_told_without_decoding(clips, codec):
  """By Pythagoras, of each clip, in grey levels."""
  latents, errors = codec.encode_patches(codec.patchify(clips))
  np.testing.assert_array_equal(latents, codec.encode(clips))
  back = np.asarray(codec.decode_signal(latents), np.float64)
  wanted = ((back + 1) * 127.5 - clips) ** 2
  wanted = wanted.mean(axis=(1, 2, 3, 4))
  np.testing.assert_allclose(errors, wanted, rtol=1e-4)
  assert wanted.min() > 1  # something is lost of each
  full = LinearVAE.fit(clips, PATCH, FULL)
  _, errors = full.encode_patches(full.patchify(clips))
  assert 0 <= np.min(errors) <= np.max(errors) < 0.01


def test_basis_is_orthonormal(codec):
  np.testing.assert_allclose(codec.basis.T @ codec.basis, np.eye(8), atol=1e-5)


def test_a_patch_reaches_its_own_place_only(clips, codec):
  changed = clips.copy()
  changed[0, 2:4, 4:8, 8:12] = 255 - changed[0, 2:4, 4:8, 8:12]
  before, after = codec.encode(clips[:1]), codec.encode(changed[:1])
  moved = np.abs(after - before).max(-1) > 1e-6
  assert np.argwhere(moved).tolist() == [[0, 1, 1, 2]]


def test_shapes_are_as_announced(clips, codec):
  latents = codec.encode(clips[:3])
  assert latents.shape == (3, *codec.latent_shape(4, 8, 12)) == (3, 2, 2, 3, 8)
  assert latents.dtype == jnp.float32
  frames = codec.decode(latents)
  assert frames.shape == (3, 4, 8, 12, 3)
  assert frames.dtype == jnp.uint8


def test_pixels_out_of_range_are_clipped_not_wrapped(codec):
  latents = np.zeros((1, 2, 2, 3, 8), np.float32)
  latents[..., 0] = 1e3
  signal, frames = codec.decode_signal(latents), codec.decode(latents)
  assert (frames[signal > 1] == 255).all()
  assert (frames[signal < -1] == 0).all()
  assert float(jnp.abs(signal).max()) > 2


def test_compiled_codec_is_the_same(clips, codec):
  """As an argument of jit, so that a new codec needs no new compilation."""
  traces = []

  def run(codec, frames):
    traces.append(frames.shape)
    return codec.encode(frames), codec.decode(codec.encode(frames))

  jitted = jax.jit(run)
  latents, frames = jitted(codec, clips)
  np.testing.assert_allclose(latents, codec.encode(clips), atol=1e-5)
  eager = codec.decode(codec.encode(clips))
  off = np.abs(np.asarray(frames, int) - np.asarray(eager, int))
  assert off.max() <= 1  # a rounding apart at most
  other = LinearVAE.from_arrays(
    codec.config, codec.arrays | {"mean": codec.arrays["mean"] + 0.5}
  )
  assert float(jnp.abs(jitted(other, clips)[0] - latents).max()) > 0.1
  assert len(traces) == 1


def test_saved_arrays_rebuild_it(clips, codec):
  again = LinearVAE.from_arrays(codec.config, codec.arrays)
  np.testing.assert_array_equal(again.encode(clips), codec.encode(clips))
  assert codec.config == {"patch": [2, 4, 4], "channels": 8}


def test_fit_is_deterministic(clips, codec):
  again = LinearVAE.fit(clips, PATCH, 8)
  np.testing.assert_array_equal(again.basis, codec.basis)
  largest = np.abs(codec.basis).argmax(0)
  assert (codec.basis[largest, np.arange(8)] > 0).all()  # no sign is open


@pytest.mark.parametrize("clip", [(3, 8, 12), (4, 6, 12), (4, 8, 10)])
def test_clips_that_do_not_divide_are_refused(codec, clip):
  frames = np.zeros((1, *clip, 3), np.uint8)
  for use in (
    lambda: codec.encode(frames),
    lambda: codec.latent_shape(*clip),
    lambda: LinearVAE.fit(frames, PATCH, 2),
  ):
    with pytest.raises(ValueError, match="does not divide into patches"):
      use()


@pytest.mark.parametrize("shape", [(4, 8, 12, 3), (1, 4, 8, 12, 4)])
def test_what_is_no_batch_of_clips_is_refused(codec, shape):
  frames = np.zeros(shape, np.uint8)
  for use in (codec.encode, lambda f: LinearVAE.fit(f, PATCH, 2)):
    with pytest.raises(ValueError, match=r"give frames \[B, F, H, W, 3\]"):
      use(frames)


@pytest.mark.parametrize("channels", [0, FULL + 1])
def test_number_of_channels_is_checked(clips, channels):
  with pytest.raises(ValueError, match=f"is {channels}; .* hold 1 to {FULL}"):
    LinearVAE.fit(clips, PATCH, channels)
