"""One HTML page of any runs, clips and scores, that needs nothing else.

  dollar report --runs=runs/teacher,runs/student --out=report.html
  dollar report --clips=teacher=runs/a,student=runs/b --out=report.html
  dollar report --clips=runs/a,runs/b --scores=runs/a.json --out=report.html

Clips stand side by side, prompt by prompt, and play in step; curves of several
runs share their axes; what `dollar evaluate` wrote becomes a table with
intervals, and what `dollar sample` wrote one of speed.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_list(
  "runs",
  [],
  "Folders of training runs, comma-separated; [NAME=]FOLDER.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "clips",
  [],
  "Folders of .mp4 files, a row each; [NAME=]FOLDER.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "scores",
  [],
  "JSON files of `dollar evaluate` or `dollar vbench`; [NAME=]FILE.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "out", None, "HTML file to write.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
  "title", "Distillation", "Heading of the page.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "prompts",
  8,
  "Prompts whose clips are shown.",
  lower_bound=1,
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "max_side",
  256,
  "Pixels of a clip's longer side; less where the page would pass 20 MB.",
  lower_bound=16,
  flag_values=FLAGS,
)


def main(values: flags.FlagValues) -> None:
  """Writes the page.

  Raises:
    ValueError: if there is nothing to show, what is named cannot be read, or
      the page would be too large.
  """
  from dollar_jax.programs import _report

  _report.main(values)
