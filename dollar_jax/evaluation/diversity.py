"""Does a model draw different clips for one caption, and whole ones?

A student that collapses scores well on accuracy, so accuracy is read beside
these: mean feature distance, number of distinct digit shapes, and whether a
clip stays with one digit.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from dollar_jax.evaluation import intervals
from dollar_jax.evaluation.intervals import Estimate


def diversity(
  features: np.ndarray, captions: Sequence[str], level: float = 0.95
) -> Estimate:
  """Mean Euclidean distance between two samples of one caption.

  Every caption with at least two samples counts once; the interval is about
  drawing other captions, since pairs of one caption are not independent.

  Args:
    features: [N, D].
    captions: N captions.
    level: probability that the interval is to cover.

  Raises:
    ValueError: if no caption has two samples, or the lengths differ.
  """
  means = [distance.pdist(x).mean() for x in _groups(features, captions)]
  return intervals.mean(np.array(means), level, (0, np.inf))


def distinct_shapes(
  shapes: np.ndarray,
  captions: Sequence[str],
  threshold: float,
  shown: np.ndarray | None = None,
  level: float = 0.95,
) -> Estimate:
  """Number of different shapes among a caption's samples, per sample.

  Samples nearer than `threshold` to each other are one shape (single
  linkage); ten copies score 0.1, ten different ones 1. Depends on the number
  of samples a caption: compare at equal numbers, and with real clips, which
  repeat a shape now and then.

  Args:
    shapes: [N, D], aligned pictures of what moves.
    captions: N captions.
    threshold: distance below which two shapes are the same; see
      `shape_threshold`.
    shown: bool [N], samples that show a shape at all (default all); the
      others are no shape but count as samples.
    level: probability that the interval is to cover.

  Raises:
    ValueError: if no caption has two samples, or the lengths differ.
  """
  shown = np.ones(len(shapes), bool) if shown is None else np.asarray(shown)
  shares = []
  for index in _groups(np.arange(len(shapes)), captions):
    seen = shapes[index[shown[index]]]
    if len(seen) > 1:
      tree = hierarchy.linkage(seen, "single")
      count = hierarchy.fcluster(tree, threshold, "distance").max()
    else:
      count = len(seen)
    shares.append(count / len(index))
  return intervals.mean(np.array(shares), level, (0, 1))


def shape_threshold(shapes: np.ndarray, labels: np.ndarray) -> float:
  """Half of all different real shapes are nearer than this to another.

  The median distance of a shape [N, D] to its nearest neighbour with the same
  label [N]; a model that draws anew is rarely so near itself.

  Raises:
    ValueError: if no label has two shapes.
  """
  nearest = []
  for group in _groups(shapes, labels):
    distances = distance.squareform(distance.pdist(group))
    np.fill_diagonal(distances, np.inf)
    nearest.append(distances.min(1))
  return float(np.median(np.concatenate(nearest)))


def digit_consistency(
  frame_digits: np.ndarray, level: float = 0.95
) -> tuple[Estimate, Estimate]:
  """Whether clips keep one digit from the first frame to the last.

  Args:
    frame_digits: int [N, F]; a negative one stands for no digit and agrees
      with nothing.
    level: probability that the intervals are to cover.

  Returns:
    (share of clips whose frames all show the same digit, mean share of a
    clip's frames that show its most frequent digit).
  """
  kinds = np.arange(max(int(frame_digits.max()), 0) + 1)
  votes = (frame_digits[:, :, None] == kinds).sum(1)
  agreement = votes.max(1) / frame_digits.shape[1]
  return (
    intervals.share(agreement == 1, level),
    intervals.mean(agreement, level, (0, 1)),
  )


def _groups(
  samples: np.ndarray, labels: Sequence[str] | np.ndarray
) -> Iterator[np.ndarray]:
  """Yields the samples of every label that has two or more."""
  if len(samples) != len(labels):
    raise ValueError(
      f"{len(samples)} samples have {len(labels)} captions; give one for each"
    )
  _, index, counts = np.unique(
    np.asarray(labels), return_inverse=True, return_counts=True
  )
  if not (counts > 1).any():
    raise ValueError(
      f"none of {len(counts)} captions has two samples to compare; draw more "
      "samples for each"
    )
  for label in np.flatnonzero(counts > 1):
    yield np.asarray(samples)[index == label]
