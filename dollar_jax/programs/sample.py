"""Sample videos from a model, a finished run or the embedded teacher.

  dollar sample --model=embedded --prompts="a 3 moving left" --out=clips
  dollar sample --model=runs/student --prompts=prompts.txt --seed=1 --out=clips
  dollar sample --model=embedded --steps=50 --guidance=3 --prompts=... --out=...
  dollar sample --model=runs/student --suite=VBench_full_info.json --out=clips

Prompts are a text, or a file with one a line; a suite is VBench's, with as many
videos of each prompt as it wants. Videos are named {prompt}-{index}.mp4, as
VBench expects them; those already there are kept.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "model",
  "embedded",
  "Model folder, run folder, name in the Hugging Face cache, or 'embedded'.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "prompts", None, "A prompt, or a file with one a line.", flag_values=FLAGS
)
flags.DEFINE_string(
  "suite",
  None,
  "VBench's prompts instead: VBench_full_info.json, or a file of its "
  "prompts_per_dimension.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "steps", None, "Network steps; the model's own if absent.", flag_values=FLAGS
)
flags.DEFINE_float(
  "guidance",
  None,
  "Guidance scale w of u + w (c - u): samples as a teacher, along the ODE.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "negative_prompt",
  None,
  "What guidance leads away from; the model's own if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "video_size",
  None,
  "FRAMESxHEIGHTxWIDTH of the videos, such as 81x480x832; the model's own if "
  "absent.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "samples_per_prompt",
  None,
  "Videos a prompt; 1 if absent, and of a suite 5, or 25 for temporal "
  "flickering.",
  lower_bound=1,
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "seed", 0, "Seed of the noise.", 0, 2**32 - 1, flag_values=FLAGS
)
flags.DEFINE_integer(
  "batch_size", 16, "Videos at a time.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
  "out", None, "Folder of the videos.", required=True, flag_values=FLAGS
)
flags.DEFINE_bool(
  "save_latents", False, "Also write each latent as .npy.", flag_values=FLAGS
)
flags.DEFINE_string(
  "initial_latents",
  None,
  "Start from this noise instead: .npy of [N, T, H, W, C].",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "text_embeddings",
  None,
  "Embeddings of the prompts, where the model has no text encoder: .npz with "
  "text [N, S, D], text_mask [N, S] and, for guidance, null_text, null_mask.",
  flag_values=FLAGS,
)


def main(values: flags.FlagValues) -> None:
  """Samples and writes the videos.

  Raises:
    ValueError: for prompts, shapes or settings that do not fit the model.
  """
  from dollar_jax.programs import _sample

  _sample.main(values)
