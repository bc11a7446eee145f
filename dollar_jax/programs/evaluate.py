"""Judge a folder of videos: rewards, flicker, Fréchet distance, diversity.

  dollar evaluate --videos=clips --rewards=jpeg_size,sharpness --out=scores.json
  dollar evaluate --videos=clips --reference=real --features=NAME --out=s.json

Prompts are read from metadata.jsonl, or from file names {prompt}-{index}.mp4.
Clips of the embedded digits model are judged on digit and direction too, and
compared with held-out real clips.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_string(
  "videos", None, "Folder of .mp4 files.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
  "reference",
  None,
  "Folder of real .mp4 files to compare with; for the digits model, held-out "
  "real clips if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "features",
  None,
  "What clips are compared in: digits, thumbnails (colours and layout; needs "
  "no weights), videomae:FOLDER (a fine-tuned VideoMAE of transformers), or "
  "MODULE:FUNCTION; digits for the digits model, else none, if absent.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "rewards",
  ["temporal_flickering"],
  "Rewards, comma-separated: names, or MODULE:FUNCTION.",
  flag_values=FLAGS,
)
flags.DEFINE_string(
  "out", None, "JSON file to write.", required=True, flag_values=FLAGS
)


def main(values: flags.FlagValues) -> None:
  """Judges the videos and writes the JSON file.

  Raises:
    ValueError: for a folder without videos, or an unknown reward or extractor.
  """
  from dollar_jax.programs import _evaluate

  _evaluate.main(values)
