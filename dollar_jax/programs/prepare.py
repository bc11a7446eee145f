"""Make a data set of latents from captioned videos, or from prompts.

  dollar prepare --videos=clips --model=Wan2.1-T2V-1.3B-Diffusers --out=data
  dollar prepare --videos=clips --codec=linear --fit --out=data
  dollar prepare --prompts=prompts.txt --model=DIR --out=data [--synthesize]

Videos are a folder with Hugging Face's metadata.jsonl (file_name, text) or
metadata.csv, or a .csv file. They are cut into clips of one size and rate, and
encoded by a model's codec or by the linear one, fitted to them. Prompts, one a
line, become embeddings, and with --synthesize the model's own samples, too.

OUT is what config.data.source takes. What was not taken stands in
OUT/skipped.jsonl, with the reason. The same command goes on where it was
stopped; on a cluster, start it on every node.
"""

from absl import flags

from dollar_jax.files import DTYPES
from dollar_jax.programs._flags import define_processes

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "videos", None, "Folder with metadata.jsonl, or .csv file.", flag_values=FLAGS
)
flags.DEFINE_string(
  "prompts", None, "File with one prompt a line.", flag_values=FLAGS
)
flags.DEFINE_string(
  "out", None, "Folder of the data set.", flag_values=FLAGS, required=True
)
flags.DEFINE_string(
  "model",
  None,
  "Model whose codec and text encoder are used: a folder, a finished run, a "
  "name in the Hugging Face cache, or 'embedded'.",
  flag_values=FLAGS,
)
flags.DEFINE_enum(
  "codec", None, ["linear"], "Codec to use without a model.", flag_values=FLAGS
)
flags.DEFINE_bool(
  "fit", False, "Fit that codec to the clips.", flag_values=FLAGS
)
flags.DEFINE_integer(
  "fit_clips", 32, "Clips it is fitted to.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_integer(
  "channels", 32, "Its latent channels.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_integer(
  "text_dim",
  64,
  "Width of the word embeddings made with it.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_string(
  "video_size",
  None,
  "FRAMESxHEIGHTxWIDTH of a clip, such as 81x480x832; the model's own if "
  "absent, without a model 16 frames as large as most videos are.",
  flag_values=FLAGS,
)
flags.DEFINE_float(
  "fps",
  None,
  "Frames a second; the model's own if absent, without a model that of most "
  "videos.",
  flag_values=FLAGS,
)
flags.DEFINE_enum(
  "dtype",
  "float32",
  DTYPES,
  "What latents and embeddings are stored as.",
  flag_values=FLAGS,
)
flags.DEFINE_bool(
  "synthesize",
  False,
  "Have the model sample latents of the prompts.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "steps", None, "Steps of its sampler; its own if absent.", flag_values=FLAGS
)
flags.DEFINE_float(
  "guidance",
  None,
  "Guidance scale; the model's own if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "samples_per_prompt",
  1,
  "Samples of each prompt.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "seed", 0, "Of their noise.", 0, 2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_integer(
  "batch_size",
  None,
  "Clips or samples at a time; 1 with a model's codec, else 8, if absent.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "shard_size",
  32,
  "Videos or prompts a shard, which is what is kept when stopped.",
  flag_values=FLAGS,
  lower_bound=1,
)
flags.DEFINE_integer(
  "threads", 4, "Videos decoded at a time.", flag_values=FLAGS, lower_bound=1
)
flags.DEFINE_float(
  "max_skipped",
  0.5,
  "Share of the videos or prompts of which nothing may be taken.",
  0.0,
  1.0,
  flag_values=FLAGS,
)
define_processes(FLAGS)


def main(values: flags.FlagValues) -> None:
  """Makes the set, or what is missing of it.

  Raises:
    ValueError: for flags, lists or files that do not fit.
    OSError: if OUT cannot be written, or the processes lose each other.
  """
  from dollar_jax.programs import _prepare

  _prepare.main(values)
