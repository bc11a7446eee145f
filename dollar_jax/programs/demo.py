"""The whole method on embedded data: teacher, students, reward, report.

  dollar demo --workdir=runs/demo
  dollar demo --workdir=runs/ablation --ablation --seeds=3

Distils the embedded teacher (moving digits, 50 guided steps) into students of
4, 2 and 1 step with VSD + 0.5 CD, tunes the 4-step student to a reward that
cannot be differentiated (smaller JPEGs), judges all of them with networks
that training never sees, and writes report.html and metrics.json. What is
finished in the workdir is not done again.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "workdir", None, "Folder of the demo.", required=True, flag_values=FLAGS
)
flags.DEFINE_bool(
  "from_scratch",
  False,
  "Train the teacher anew (about 20 minutes on 2 cores).",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "ablation",
  False,
  "Compare VSD, CD, VSD+CD, VSD+LRM and VSD+CD+LRM instead.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "seeds", 3, "Seeds of the ablation.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
  "samples", 400, "Clips judged a model.", lower_bound=80, flag_values=FLAGS
)
flags.DEFINE_float(
  "scale",
  1.0,
  "Share of the configs' updates and labels to spend; small for a quick look.",
  lower_bound=0.0,
  upper_bound=1.0,
  flag_values=FLAGS,
)


def main(values: flags.FlagValues) -> None:
  """Runs the demo or the ablation.

  Raises:
    ValueError: for a number that does not fit, or outside a checkout.
    OSError: if the workdir cannot be written.
  """
  from dollar_jax.programs import _demo

  _demo.main(values)
