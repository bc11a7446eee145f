r"""Plan a run: what it needs of a machine that you do not have.

  dollar plan --topology=v5e:16x16 --out=plan.json \
    --config=configs/wan/distill.py:t2v_1_3b,v5e

Every program of the run is compiled for that machine, which need not be there:
memory a device, matmul FLOPs beside those that cannot be done without,
collectives beside those that must be sent, and the shortest time that an
update can take at the chip's peak. If it does not fit, remedies are tried,
cheapest first. Weights and data need not be there either: the teacher is a
model folder or the name of a published model, and --config.data.clip tells the
size of a clip (frames, height, width).

With --best rematerialisation, microbatches and the mesh are looked through for
the strategy that computes least and fits; few are compiled.

TPUs are v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4 or, in slices,
2*v5e:16x16, and need pip install 'dollar_jax[tpu]'; GPUs are h100:8x8 (hosts
x GPUs), and need pip install 'dollar_jax[cuda]'; cpu:8 needs nothing. Large
models take minutes a program; what is finished is kept, and found again.
"""

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  "config", None, "What to plan.", flag_values=FLAGS
)
flags.DEFINE_string(
  "topology",
  None,
  "The machine, such as v5e:16x16, v5p:4x4x4, 2*v6e:8x8, h100:8x8 or cpu:8.",
  required=True,
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "out", None, "JSON file to write.", required=True, flag_values=FLAGS
)
flags.DEFINE_list(
  "programs",
  [],
  "Which programs to compile, comma-separated, such as student; all if empty.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "remedies",
  True,
  "If it does not fit, look for what would.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "best",
  False,
  "Look for the strategy that computes least and fits, and say its flags.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "cache", True, "Take finished programs from earlier plans.", flag_values=FLAGS
)
flags.DEFINE_bool("progress", True, "Show a progress bar.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
  """Makes the plan.

  Raises:
    ValueError: for anything in the config that does not fit, an unknown
      machine, and a run that does not fit into it.
    ModuleNotFoundError: if the compiler for that machine is not installed.
    OSError: if the file cannot be written.
  """
  from dollar_jax.programs import _plan

  _plan.main(values)
