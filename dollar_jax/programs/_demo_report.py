"""What the demo shows: its two HTML reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dollar_jax.evaluation import plots
from dollar_jax.evaluation.report import (
  ClipGrid,
  Code,
  Figure,
  Highlights,
  Section,
  Table,
  Text,
  write_report,
)
from dollar_jax.parallel import machine
from dollar_jax.train import metrics as metrics_log

SHOWN_PROMPTS, PICTURED_PROMPTS = 8, 4
"""Prompts whose clips stand side by side, in the page and in the picture."""

_QUALITY = {
  "name": "model",
  "network_evaluations": "network evaluations",
  "frechet": "Fréchet distance (lower is nearer to real)",
  "caption_accuracy": "caption accuracy",
  "diversity": "diversity",
  "distinct_shapes": "distinct shapes",
  "one_digit": "keeps one digit",
  "true_reward": "true reward (−kB of JPEG)",
}
_GAIN = {
  "before": "setting",
  "after": "with the reward",
  "gain": "gain of true reward",
  "standard_error": "standard error",
  "gain_in_standard_errors": "gain in standard errors",
}
_SPEED = {
  "name": "model",
  "network_evaluations": "network evaluations",
  "seconds_per_video": "seconds a video",
  "speedup_over_teacher": "times faster than the teacher",
}


def write_demo_report(
  workdir: Path,
  result: Mapping[str, Any],
  clips: Mapping[str, np.ndarray],
  real: Mapping[str, Any],
  prompts: Sequence[str],
  fps: float,
) -> None:
  """Writes `workdir/report.html` and the picture `clips.png`.

  Args:
    workdir: the demo's folder, with a folder for each training run.
    result: what metrics.json holds.
    clips: model → uint8 [N, F, H, W, 3], one for each prompt in turn.
    real: the row that as many held-out real clips get.
    prompts: N prompts.
    fps: frames a second.
  """
  rows = [result["teacher"], *result["students"]]
  reward = result["reward"]
  names = list(clips)
  # spread over digits and directions
  chosen = [i * 5 % 40 + i // 8 for i in range(SHOWN_PROMPTS)]
  grid = np.stack([clips[name][chosen] for name in names])
  few = chosen[:PICTURED_PROMPTS]
  picture = plots.contact_sheet(
    grid[:, :PICTURED_PROMPTS], names, [prompts[i] for i in few]
  )
  (workdir / "clips.png").write_bytes(picture)
  one = next(row for row in rows if row["name"] == "student-1")
  four = next(row for row in rows if row["name"] == "student-4")
  runs = {row["name"]: workdir / row["name"] for row in rows}
  curves = [
    block
    for name, folder in runs.items()
    if (folder / "metrics.jsonl").exists()
    for block in _curves(name, metrics_log.read(str(folder)))
  ]
  tuned = metrics_log.read(str(workdir / "student-4-reward"))
  sections = [
    Section(
      "Side by side",
      [
        Highlights(
          [
            (f"{four['caption_accuracy']:.1%}", "captions right, 4 steps"),
            (
              f"{rows[0]['caption_accuracy']:.1%}",
              "captions right, teacher (100 evaluations)",
            ),
            (
              f"{one['speedup_over_teacher']:.0f}x",
              "one step against the teacher, end to end",
            ),
          ]
        ),
        ClipGrid(grid, names, [prompts[i] for i in chosen], fps),
      ],
    ),
    Section(
      "Quality",
      [
        Table(
          [{**real, "name": "real clips, held out"}, *rows],
          _QUALITY,
          f"{rows[0]['samples']} clips a model, the same noise for all; 95 % "
          "intervals. The judge was fitted to real clips of training digits "
          "and has never been part of a training. Only the true reward was "
          "optimised, and by student-4-reward alone.",
        )
      ],
    ),
    Section(
      "Reward",
      [
        Text(
          "The size of the frames as JPEG files cannot be differentiated. The "
          "latent reward model learns it from decoded samples of the student, "
          "and the student climbs the model's gradient."
        ),
        Highlights(
          [
            (f"{-reward['student_before']:.3f} kB", "a frame before"),
            (f"{-reward['student_after']:.3f} kB", "a frame after"),
            (
              f"{reward['lrm_spearman']:.3f}",
              "rank correlation on fresh samples",
            ),
          ]
        ),
        Figure(plots.reward_curves(tuned), "Latent and true reward"),
      ],
    ),
    Section("Speed", [Table(rows, _SPEED, "Noise to pixels, batch of 64.")]),
    Section("Training", curves),
    Section("Setting", [Code(_versions())]),
  ]
  write_report(
    workdir / "report.html",
    "dollar_jax: a text-to-video teacher, distilled",
    sections,
    summary="Moving handwritten digits: a 50-step guided teacher against its "
    "students of 4, 2 and 1 step.",
    footer=f"dollar demo --workdir={workdir}",
  )


def write_ablation_report(workdir: Path, result: Mapping[str, Any]) -> None:
  """Writes `workdir/report.html` and `workdir/table.md` of the ablation."""
  rows = [_with_errors(row) for row in result["settings"]]
  columns = {key: name for key, name in _QUALITY.items() if key in rows[0]}
  columns |= {"lrm_spearman": "latent against true reward, Spearman"}
  write_report(
    workdir / "report.html",
    "dollar_jax: what each loss does",
    [
      Section(
        "4-step students",
        [
          Table(
            rows,
            columns,
            f"Mean ± standard error over {result['seeds']} seeds.",
          ),
          Table(
            result["reward_gains"],
            _GAIN,
            "Errors are those of the clips of all seeds.",
          ),
        ],
      ),
      Section("Setting", [Code(_versions())]),
    ],
    footer=f"dollar demo --ablation --workdir={workdir}",
  )
  head = list(columns.values())
  lines = [
    "| " + " | ".join(cells) + " |"
    for cells in (
      head,
      ["---"] * len(head),
      *([str(row.get(key, "")) for key in columns] for row in rows),
    )
  ]
  (workdir / "table.md").write_text("\n".join(lines) + "\n")


def _with_errors(row: Mapping[str, Any]) -> dict[str, str]:
  """Numbers as text, with the error over seeds where there is one."""
  out = {"name": row["name"]}
  for key in (*_QUALITY, "lrm_spearman"):
    if isinstance(row.get(key), float):
      error = row.get(f"{key}_seed_error")
      tail = "" if error is None else f" ± {error:.3f}"
      out[key] = f"{row[key]:.3f}{tail}"
  return out


def _curves(name: str, rows: list[dict[str, float]]) -> list[Any]:
  """The losses of one run that were logged at all."""
  keys = {
    key: title
    for key, title in metrics_log.TITLES.items()
    if any(key in row for row in rows)
  }
  return [Figure(plots.curves(rows, keys), f"Curves of {name}", name)]


def _versions() -> str:
  found = machine.describe()
  return (
    f"Python {found['python']}, jax {found['jax']}, "
    f"{found['devices']} x {found['device']}"
  )
