"""Move a model between diffusers' form and Orbax, or take it out of a run.

  dollar convert --source=Wan2.1-T2V-14B-Diffusers --out=wan-orbax
  dollar convert --source=wan-orbax --out=wan-diffusers --dtype=bfloat16
  dollar convert --source=runs/student --out=student

A folder with safetensors weights becomes one with Orbax checkpoints, and the
other way; a run becomes a folder in diffusers' layout, of its newest checkpoint
if it is not finished. A folder's weights pass one by one, so that a model need
not fit into memory, and its other parts are copied as they are. All commands
read either form.
"""

from absl import flags

from dollar_jax.files import DTYPES

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "source", None, "Model or run folder.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
  "out", None, "Folder to write.", required=True, flag_values=FLAGS
)
flags.DEFINE_enum(
  "dtype",
  None,
  DTYPES,
  "Type to store transformers in; what is stored if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "verify",
  False,
  "Read OUT again and compare it with SOURCE, bit for bit.",
  flag_values=FLAGS,
)


def main(values: flags.FlagValues) -> None:
  """Writes the folder.

  Raises:
    ValueError: if SOURCE is not a whole model, or OUT differs from it.
    OSError: if OUT cannot be written.
  """
  from dollar_jax.programs import _convert

  _convert.main(values)
