"""Fréchet distance between the Gaussians that fit two sets of features.

    |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)

(Dowson and Landau, 1982; Heusel et al., arXiv 1706.08500.) With C = R'R from
the QR factors of the centred features, the last trace is the sum of the
singular values of R_a R_b': no matrix root is taken, so nothing turns complex
and fewer samples than features are no special case.

A finite number of samples biases the distance upwards. Compare sets of equal
size, beside the distance of real data from itself (`frechet_floor`).
"""

from collections.abc import Callable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dollar_jax.evaluation import intervals

# Where other work keeps the cores busy, OpenBLAS's threads make factors as
# small as these a thousand times slower.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@_one_thread
def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
  """Fréchet distance of two sets of features, in the features' unit squared.

  Args:
    features_a: [N, D], N >= 2.
    features_b: [M, D], M >= 2.

  Raises:
    ValueError: if a set is too small, not finite, or the widths D differ.
  """
  return _distance_from(features_b, features_a)(_checked(features_a))


@_one_thread
def frechet_interval(
  features_a: np.ndarray,
  features_b: np.ndarray,
  captions_a: Sequence[str] | None = None,
  *,
  level: float = 0.95,
  resamples: int = 100,
  seed: int = 0,
) -> intervals.Estimate:
  """The distance with its bootstrap interval, `features_b` being fixed.

  The interval is about drawing other samples a; the reference b, which all
  that are compared share, is taken as it is.

  Args:
    features_a: [N, D], N >= 2.
    features_b: [M, D], M >= 2.
    captions_a: N captions, if a has equally many of each, two or more.
    level: probability that the interval is to cover.
    resamples: number of bootstrap resamples.
    seed: seed of the resampling.

  Raises:
    ValueError: as `frechet_distance` does.
  """
  distance = _distance_from(features_b, features_a)
  estimate = intervals.bootstrap(
    distance,
    _checked(features_a),
    captions_a,
    level=level,
    resamples=resamples,
    seed=seed,
  )
  return estimate._replace(low=max(estimate.low, 0.0))


@_one_thread
def frechet_extrapolated(
  features_a: np.ndarray,
  features_b: np.ndarray,
  captions_a: Sequence[str] | None = None,
  captions_b: Sequence[str] | None = None,
  *,
  subsets: int = 16,
  seed: int = 0,
) -> float:
  """The distance extrapolated to infinitely many samples of both sets.

  The bias falls as 1/N: subsets of both, from a half to all, are fitted by a
  line in the inverse of their share, read off at 0 (Chong and Forsyth, arXiv
  1911.07023, who shrink one set). Nearly unbiased, hence below 0 at times,
  but noisier than `frechet_distance`.

  Args:
    features_a: [N, D], N >= 2 D.
    features_b: [M, D], M >= 2 D.
    captions_a: N captions, if a has equally many of each; a subset then has
      too, as otherwise it would be less even than the whole.
    captions_b: M captions, likewise.
    subsets: number of subsets.
    seed: seed of the subsets.

  Raises:
    ValueError: as `frechet_distance` does, or if a set is too small, where
      the bias is no longer linear.
  """
  a, b = _checked(features_a), _checked(features_b)
  fewest = min(len(a), len(b))
  if fewest < 2 * a.shape[1]:
    raise ValueError(
      f"{fewest} samples of {a.shape[1]} features are too few to extrapolate; "
      f"give at least {2 * a.shape[1]}"
    )
  rng = np.random.default_rng(seed)
  shares = np.linspace(0.5, 1.0, subsets)
  distances = [
    frechet_distance(
      a[_drawn(rng, len(a), round(share * len(a)), captions_a)],
      b[_drawn(rng, len(b), round(share * len(b)), captions_b)],
    )
    for share in shares
  ]
  return float(np.polyfit(1 / shares, distances, 1)[1])


def frechet_extrapolated_interval(
  features_a: np.ndarray,
  features_b: np.ndarray,
  captions_a: Sequence[str] | None = None,
  captions_b: Sequence[str] | None = None,
  *,
  subsets: int = 16,
  level: float = 0.95,
  resamples: int = 50,
  seed: int = 0,
) -> intervals.Estimate:
  """`frechet_extrapolated` with its bootstrap interval, b being fixed.

  Args:
    features_a: [N, D], N >= 2 D.
    features_b: [M, D], M >= 2 D.
    captions_a: as there.
    captions_b: as there.
    subsets: as there; every resample costs so many distances.
    level: probability that the interval is to cover.
    resamples: number of bootstrap resamples.
    seed: seed of subsets and resampling.

  Raises:
    ValueError: as `frechet_extrapolated` does.
  """
  features_a = _checked(features_a)
  names = None if captions_a is None else np.asarray(captions_a)

  def distance(rows: np.ndarray) -> float:
    return frechet_extrapolated(
      features_a[rows],
      features_b,
      None if names is None else names[rows],
      captions_b,
      subsets=subsets,
      seed=seed,
    )

  return intervals.bootstrap(
    distance,
    np.arange(len(features_a)),
    names,
    level=level,
    resamples=resamples,
    seed=seed,
  )


@_one_thread
def frechet_floor(
  features: np.ndarray,
  count: int,
  captions: Sequence[str] | None = None,
  *,
  splits: int = 8,
  seed: int = 0,
) -> float:
  """Distance of `count` real samples from the other real samples.

  What a perfect generator would score with that many samples; the mean over
  random splits.

  Args:
    features: [M, D] of real data.
    count: size of the smaller part.
    captions: M captions, if the generator is asked for equally many samples
      of each; the smaller part then has equally many, too.
    splits: number of splits.
    seed: seed of the splits.

  Raises:
    ValueError: if count is not within [2, M / 2].
  """
  features = _checked(features)
  if not 2 <= count <= len(features) // 2:
    raise ValueError(
      f"{count} of {len(features)} real samples cannot be set against the "
      f"rest; take 2 to {len(features) // 2}"
    )
  rng = np.random.default_rng(seed)
  distances = []
  for _ in range(splits):
    index = _drawn(rng, len(features), count, captions)
    rest = np.delete(features, index, axis=0)
    distances.append(frechet_distance(features[index], rest))
  return float(np.mean(distances))


def _drawn(
  rng: np.random.Generator,
  total: int,
  count: int,
  groups: Sequence[str] | None,
) -> np.ndarray:
  """Indices of `count` of `total` samples, the same share of every group."""
  order = rng.permutation(total)
  if groups is not None:
    order = order[np.argsort(np.asarray(groups)[order], kind="stable")]
  # every (total / count)-th of the sorted samples, from a random start
  return order[((np.arange(count) + rng.random()) * total / count).astype(int)]


def _distance_from(
  reference: np.ndarray, other: np.ndarray
) -> Callable[[np.ndarray], float]:
  """`frechet_distance(., reference)` with the reference factored once."""
  reference = _checked(reference)
  if np.shape(other)[1:] != reference.shape[1:]:
    raise ValueError(
      f"features of width {np.shape(other)[1:]} cannot be compared with "
      f"{reference.shape[1:]}; use one feature extractor for both sets"
    )
  mean_b, root_b = _moments(reference)

  def distance(samples: np.ndarray) -> float:
    mean_a, root_a = _moments(samples)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    total = np.sum((mean_a - mean_b) ** 2)
    total += np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap
    return max(float(total), 0.0)  # rounding can leave -1e-14

  return distance


def _moments(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean [D] and R [min(N, D), D] with R'R = the unbiased covariance."""
  mean = samples.mean(0)
  return mean, np.linalg.qr((samples - mean) / np.sqrt(len(samples) - 1), "r")


def _checked(features: np.ndarray) -> np.ndarray:
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(
      f"features of shape {features.shape} have no covariance; give [N, D] "
      "with N >= 2"
    )
  if not np.isfinite(features).all():
    broken = len(features) - np.isfinite(features).all(1).sum()
    raise ValueError(
      f"{broken} of {len(features)} samples have features that are not finite; "
      "look at the clips they come from"
    )
  return features
