"""How many clips a Fréchet distance needs: plain and extrapolated.

  python -m benchmarks.frechet_bias --out=DIR

Real clips of moving digits against other real ones, in the judge's features:
what is found is bias alone, since the truth is nearly 0. Writes bias.json and
bias.png, in which bars are the spread (one deviation) of one such estimate.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

from dollar_jax.data import moving_digits
from dollar_jax.evaluation import frechet
from dollar_jax.evaluation.judges import EMBEDDED, ClipJudge

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COUNTS = (130, 200, 400, 800, 1600)
REFERENCE = 2000
DRAWS = 8


def estimates(
  features: np.ndarray, counts: tuple[int, ...], draws: int, seed: int = 0
) -> list[dict[str, float]]:
  """Mean and deviation of both estimates, for each number of clips.

  Args:
    features: [M, D] of real clips; those that are not drawn are compared with.
    counts: numbers of clips to draw, each from 2 D to M / 2.
    draws: how often.
    seed: of the draws.
  """
  rng, rows = np.random.default_rng(seed), []
  bar = tqdm(total=len(counts) * draws, desc="draws", disable=None)
  for count in counts:
    found: dict[str, list[float]] = {"frechet": [], "frechet_extrapolated": []}
    for _ in range(draws):
      order = rng.permutation(len(features))
      drawn, rest = features[order[:count]], features[order[count:]]
      for name, values in found.items():
        fn = {
          "frechet": frechet.frechet_distance,
          "frechet_extrapolated": frechet.frechet_extrapolated,
        }[name]
        values.append(fn(drawn, rest))
      bar.update()
    row = {"clips": count}
    for name, values in found.items():
      row[name] = float(np.mean(values))
      row[f"{name}_deviation"] = float(np.std(values, ddof=1))
    rows.append(row)
  return rows


def main() -> None:
  """Measures, prints, and writes both files."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder to write to")
  out = Path(parser.parse_args().out)
  out.mkdir(parents=True, exist_ok=True)
  judge = ClipJudge.load(EMBEDDED)
  total = REFERENCE + max(COUNTS)
  clips = moving_digits.make_clips("test", total, seed=1)
  rows = estimates(judge.features(clips.frames), COUNTS, DRAWS)
  (out / "bias.json").write_text(json.dumps(rows, indent=2) + "\n")
  print(f"{'clips':>6}{'plain':>18}{'extrapolated':>18}")
  for row in rows:
    cells = [
      f"{row[name]:.3f} ± {row[f'{name}_deviation']:.3f}"
      for name in ("frechet", "frechet_extrapolated")
    ]
    print(f"{row['clips']:6}{cells[0]:>18}{cells[1]:>18}")
  figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
  for name, label in (
    ("frechet", "plain"),
    ("frechet_extrapolated", "extrapolated"),
  ):
    axes.errorbar(
      COUNTS,
      [row[name] for row in rows],
      [row[f"{name}_deviation"] for row in rows],
      label=label,
      marker="o",
      capsize=3,
    )
  axes.axhline(0, color="grey", linewidth=0.8)
  axes.set_xscale("log")
  axes.set_xticks(COUNTS, [str(count) for count in COUNTS], minor=False)
  axes.set_xticks([], minor=True)
  axes.set(xlabel="clips drawn", ylabel="Fréchet distance of real from real")
  axes.legend()
  figure.savefig(out / "bias.png", dpi=110)


if __name__ == "__main__":
  main()
