"""Train a teacher, or distil a few-step student from one.

  dollar train --config=configs/digits/teacher.py --workdir=runs/teacher
  dollar train --config=configs/digits/student.py --workdir=runs/student

The config decides what is trained. Entries are overridden on the command
line: --config.steps=100 --config.optimizer.learning_rate=1e-4. A workdir that
holds a checkpoint of the same run is continued from it. The finished model
lies in WORKDIR/model, in diffusers' layout.

On a cluster start it once on every node: SLURM, OpenMPI, TPU pods and indexed
jobs of Kubernetes are recognised. Elsewhere say who is who:

  dollar train … --coordinator=HOST:PORT --num_processes=2 --process_id=0
"""

import sys

from absl import flags
from ml_collections import config_flags

from dollar_jax.programs._flags import define_processes, processes_of
from dollar_jax.train.config import from_config_dict

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  "config", None, "What to train.", flag_values=FLAGS
)
flags.DEFINE_string(
  "workdir", None, "Folder of the run.", required=True, flag_values=FLAGS
)
define_processes(FLAGS)
flags.DEFINE_bool("progress", True, "Show a progress bar.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> None:
  """Runs the training.

  Raises:
    ValueError: for anything in the config that does not fit.
    OSError: if the disk is full, or the processes do not find, or lose, each
      other.
  """
  if values.config is None:
    raise ValueError("no --config given; name one, e.g. a file in configs/")
  config = from_config_dict(values.config.to_dict())
  if values.progress and sys.stderr.isatty():  # who looks at it waits for JAX
    text = f"{config.task}: {config.steps} updates in {values.workdir}"
    print(text, file=sys.stderr, flush=True)
  # JAX comes with them; a mistake in the config is told before
  from dollar_jax.parallel import distributed
  from dollar_jax.train.runs import train

  with distributed.joined(*processes_of(values)):
    train(config, values.workdir, values.progress)
