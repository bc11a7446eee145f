"""Have people compare the clips of two models, and count what they say.

  dollar study --a=runs/one --b=runs/two --out=runs/study
  dollar study --votes=anna.json,ben.json [--out=runs/study.json]

The first writes OUT/index.html, a page that holds all it shows: pairs of clips
of one prompt, side by side, in an order and on sides that tell nothing. It asks
for arrow keys, keeps what was answered in the browser and saves it as a file of
votes; it needs no server and reaches none. The second tells who wins, by how
much, whether that may be chance, and whether raters agree.
"""

from absl import flags

from dollar_jax.evaluation.votes import QUESTIONS

FLAGS = flags.FlagValues()
flags.DEFINE_string("a", None, "Folder of .mp4 files.", flag_values=FLAGS)
flags.DEFINE_string(
  "b", None, "Folder of others, of the same prompts.", flag_values=FLAGS
)
flags.DEFINE_list(
  "votes", [], "Files of votes that the page saved.", flag_values=FLAGS
)
flags.DEFINE_string(
  "out",
  None,
  "Folder of the page; with --votes a JSON file, if wanted.",
  flag_values=FLAGS,
)
flags.DEFINE_list(
  "questions",
  list(QUESTIONS),
  f"What is asked of each pair: {', '.join(QUESTIONS)}.",
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "pairs",
  0,
  "Pairs shown, as evenly over the prompts as can be; 0 shows all.",
  lower_bound=0,
  flag_values=FLAGS,
)
flags.DEFINE_integer(
  "seed", 0, "Of the order and of the sides.", 0, flag_values=FLAGS
)


def main(values: flags.FlagValues) -> None:
  """Makes the page, or counts the votes.

  Raises:
    ValueError: for flags that do not go together, or files that cannot be used.
    OSError: if nothing can be written.
  """
  from dollar_jax.programs import _study

  _study.main(values)
