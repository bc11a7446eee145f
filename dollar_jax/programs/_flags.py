"""Flags that several programs have."""

import re

from absl import flags


def define_processes(values: flags.FlagValues) -> None:
  """Flags that say who is who where no cluster tells."""
  flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT at which process 0 listens, where no cluster tells.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_processes", None, "Processes in all.", flag_values=values
  )
  flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", flag_values=values
  )
  flags.DEFINE_integer(
    "start_seconds",
    300,
    "How long to wait for the other processes.",
    lower_bound=1,
    flag_values=values,
  )


def processes_of(
  values: flags.FlagValues,
) -> tuple[str | None, int | None, int | None, int]:
  """What `parallel.distributed.joined` takes, of those flags."""
  return (
    values.coordinator,
    values.num_processes,
    values.process_id,
    values.start_seconds,
  )


def parse_video_size(text: str) -> tuple[int, int, int]:
  """Frames, height and width of `--video_size`, such as 81x480x832.

  Raises:
    ValueError: if it is no size.
  """
  match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
  if match is None:
    raise ValueError(
      f"--video_size={text} is no size; give frames, height and width, such "
      "as 81x480x832"
    )
  frames, height, width = map(int, match.groups())
  return frames, height, width
