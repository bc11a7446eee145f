"""VBench's quality, semantic and total score from its 16 dimensions.

  dollar vbench --results=evaluation_results
  dollar vbench --results=scores.json [--out=vbench.json]

Reads what the package vbench writes (*_eval_results.json, one dimension a file
or several), or tables of names and numbers in JSON or CSV; several files are
taken together. Prints each dimension beside the paper's teacher and student,
and the scores beside those that others have published. docs/vbench.md tells how
to run the package on samples of ours.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_list(
  "results",
  None,
  "Files with the dimensions, or a folder of *_eval_results.json.",
  required=True,
  flag_values=FLAGS,
)
flags.DEFINE_string("out", None, "JSON file for the scores.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
  """Reads the dimensions, prints and writes the scores.

  Raises:
    ValueError: if a file is no such result, or dimensions are missing.
  """
  from dollar_jax.programs import _vbench

  _vbench.main(values)
