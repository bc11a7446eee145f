"""The `dollar` command: finding programs, reading flags, reporting faults."""

import os
import subprocess
import sys
import textwrap

import pytest

import dollar_jax
from dollar_jax import cli, programs

PROGRAM = '''
"""Cooks one dish.

A dish needs a config.
"""

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The dish.", FLAGS)
flags.DEFINE_string("workdir", None, "Folder.", FLAGS, required=True)
flags.DEFINE_integer(
  "steps", 4, "How many steps.", short_name="s", flag_values=FLAGS
)
flags.DEFINE_bool("hot", True, "Serves it hot.", flag_values=FLAGS)
flags.DEFINE_enum("pan", "iron", ["iron", "clay"], "Pan.", flag_values=FLAGS)


def main(flags):
  if flags.workdir == "value":
    raise ValueError("steps is 9,\\n  at most 4: set --steps=4")
  if flags.workdir == "file":
    open("/no/such/file")
  if flags.workdir == "ours":
    raise RuntimeError("a fault of ours")
  if flags.workdir == "stop":
    raise KeyboardInterrupt
  if flags.workdir == "torch":
    raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
  if flags.workdir == "other":
    raise ModuleNotFoundError("No module named 'x'", name="x")
  if flags.workdir == "bar":
    for bun in tqdm(range(3)):
      if bun == 1:
        raise ValueError("the oven is cold")
  print(flags.workdir, flags.steps, flags.hot, flags.pan)
  if flags.config:
    print(flags.config.rate, flags.config.model.width, flags.config.model.deep)
'''

CONFIG = """
from ml_collections import config_dict


def get_config():
  model = config_dict.ConfigDict({"width": 8, "deep": False})
  return config_dict.ConfigDict({"rate": 0.1, "model": model})
"""


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
  """Adds the command `cook` and the config files it reads."""
  folder = tmp_path / "programs"
  folder.mkdir()
  (folder / "cook.py").write_text(PROGRAM)
  (folder / "_notes.py").write_text('"""Not a command."""\n')
  (tmp_path / "soup.py").write_text(CONFIG)
  (tmp_path / "empty.py").write_text("x = 1\n")
  (tmp_path / "typo.py").write_text("x = = 1\n")
  (tmp_path / "refuses.py").write_text(
    "def get_config():\n  raise ValueError('no salt')\n"
  )
  monkeypatch.setattr(programs, "__path__", [*programs.__path__, str(folder)])
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  sys.modules.pop("dollar_jax.programs.cook", None)
  if hasattr(programs, "cook"):
    del programs.cook


@pytest.fixture
def dollar(kitchen, capsys):
  """Runs a command line; returns exit code, stdout and stderr."""

  def run(line):
    code = cli.main(line.split())
    return code, *capsys.readouterr()

  return run


def test_help_lists_each_command_with_its_first_line(dollar):
  for line in ("--help", "-h", "help"):
    code, out, err = dollar(line)
    assert (code, err) == (0, "")
    [row] = [row for row in out.splitlines() if row.startswith("  cook ")]
    assert row.split(maxsplit=1) == ["cook", "Cooks one dish."]
    assert "notes" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_every_program_has_a_line_for_the_list():
  for name in cli.commands():
    assert cli._summary(name).endswith("."), name


def test_version(dollar):
  assert dollar("--version") == (
    0,
    f"dollar_jax {dollar_jax.__version__}\n",
    "",
  )


def test_program_help_shows_docstring_and_flags_with_defaults(dollar):
  expected = textwrap.dedent("""\
    Usage: dollar cook --workdir=TEXT [--flag=value ...]

    Cooks one dish.

    A dish needs a config.

    Flags:
      --config=FILE  (optional)
          The dish. Set its entries by --config.ENTRY=VALUE, behind this flag.
      --workdir=TEXT  (required)
          Folder.
      --steps=INTEGER  (default: 4)
          How many steps.
      --[no]hot  (default: true)
          Serves it hot.
      --pan=iron|clay  (default: iron)
          Pan.
    """)
  assert dollar("cook --help") == (0, expected, "")
  assert dollar("help cook") == (0, expected, "")
  assert dollar("cook --workdir=W -h") == (0, expected, "")


def test_flags_reach_the_program(dollar):
  line = "cook --workdir=W --steps 7 --nohot --pan=clay"
  assert dollar(line) == (0, "W 7 False clay\n", "")


def test_flags_of_an_earlier_command_are_forgotten(dollar):
  dollar("cook --workdir=W --steps=7 --nohot --config=soup.py --config.rate=9")
  assert dollar("cook --workdir=V") == (0, "V 4 True iron\n", "")
  code, out, _ = dollar("cook --workdir=V --config=soup.py")
  assert (code, out) == (0, "V 4 True iron\n0.1 8 False\n")
  code, _, err = dollar("cook --workdir=V --config.rate=9")
  assert code == 2, "the override of the earlier command was taken"
  assert "--config.rate needs --config=FILE before it" in err
  code, _, err = dollar("cook --workdir=V --config=empty.py")
  assert code == 2, "the config of the earlier command was taken"
  assert "get_config" in err


def test_config_entries_are_overridden(dollar, monkeypatch):
  before = list(sys.argv)
  line = "cook --config=soup.py --config.rate=2 --config.model.width=16"
  code, out, err = dollar(f"{line} --config.model.deep --workdir=W")
  assert (code, out, err) == (0, "W 4 True iron\n2.0 16 True\n", "")
  assert sys.argv == before


@pytest.mark.parametrize(
  ("line", "sentence"),
  [
    ("", "no command given; `dollar --help` lists the commands"),
    ("--steps=3 cook", "expected a command before '--steps=3'; `dollar"),
    ("coook", "there is no command 'coook', did you mean cook?; `dollar"),
    ("fly", "there is no command 'fly'; `dollar"),
    ("cook", "missing --workdir=TEXT"),
    ("cook --workdir=W plate", "unexpected argument 'plate'; flags are"),
    ("cook --stpes=3", "there is no flag --stpes, did you mean --steps?"),
    ("cook --workdir=W --steps=x", "--steps takes an integer, not 'x'"),
    ("cook --workdir=W --hot=x", "--hot takes true or false, not 'x'"),
    ("cook --workdir=W --pan=tin", "flag --pan=tin: value should be one of"),
    ("cook --workdir", "Missing value for flag --workdir"),
    ("cook --config", "--config needs a file: --config=FILE"),
    ("cook --config=no.py", "--config=no.py: there is no such file"),
    ("cook --config no.py", "--config=no.py: there is no such file"),
    (
      "cook --config=soup.py --config.rade=1",
      "config has no entry 'rade', did you mean rate?",
    ),
    (
      "cook --config=soup.py --config.model.heat=1",
      "config.model has no entry 'heat'",
    ),
    (
      "cook --config=soup.py --config.rate.x=1",
      "config.rate has no entries, so there is no config.rate.x",
    ),
    (
      "cook --config=soup.py --config.rate=much",
      "--config.rate takes a number, not 'much'",
    ),
    (
      "cook --config=soup.py --config.model.width=1.5",
      "--config.model.width takes an integer, not '1.5'",
    ),
    (
      "cook --config.rate=1 --config=soup.py",
      "Found --config.rate=1 in argv before a value for --config",
    ),
    ("cook --config=refuses.py", "parsing config file: ValueError: no salt"),
    ("cook --config=typo.py", "the config cannot be read: SyntaxError: "),
    ("cook --config=empty.py", "the config cannot be read: AttributeError: "),
  ],
)
def test_wrong_usage_is_one_sentence(dollar, line, sentence):
  code, out, err = dollar(line)
  name = "dollar cook" if line.startswith("cook") else "dollar"
  assert code == 2
  assert out == ""
  assert err.startswith(f"{name}: error: ")
  assert err.count("\n") == 1
  assert err.endswith("\n")
  assert sentence in err


NO_TORCH = (
  "this needs torch, which is not installed: pip install 'dollar_jax[torch]'"
)


@pytest.mark.parametrize(
  ("fault", "code", "sentence"),
  [
    ("value", 1, "steps is 9, at most 4: set --steps=4"),
    ("file", 1, "/no/such/file: No such file or directory"),
    ("stop", 130, "stopped by Ctrl-C"),
    ("torch", 1, NO_TORCH),
  ],
)
def test_faults_of_the_user_end_in_one_line(dollar, fault, code, sentence):
  expected = (code, "", f"dollar cook: error: {sentence}\n")
  assert dollar(f"cook --workdir={fault}") == expected


def test_progress_bars_end_before_the_sentence(dollar):
  _, _, err = dollar("cook --workdir=bar")
  assert "1/3" in err
  assert err.splitlines()[-1] == "dollar cook: error: the oven is cold"


def test_traceback_on_demand_comes_before_the_line(dollar, monkeypatch):
  monkeypatch.setenv("DOLLAR_TRACEBACK", "1")
  code, _, err = dollar("cook --workdir=value")
  assert code == 1
  assert err.startswith("Traceback")
  assert err.splitlines()[-1].startswith("dollar cook: error: steps is 9")


def test_our_own_faults_keep_their_traceback(dollar):
  with pytest.raises(RuntimeError, match="a fault of ours"):
    dollar("cook --workdir=ours")
  with pytest.raises(ModuleNotFoundError, match="No module named 'x'"):
    dollar("cook --workdir=other")


def test_a_faulty_program_does_not_hide_the_others(dollar, kitchen):
  (kitchen / "programs" / "broken.py").write_text("x = = 1\n")
  assert dollar("cook --workdir=W")[:2] == (0, "W 4 True iron\n")


def test_help_imports_nothing_slow():
  code = textwrap.dedent("""
    import sys
    from dollar_jax import cli
    code = cli.main(["--help"])
    loaded = {"absl", "jax", "numpy"} & set(sys.modules)
    sys.exit(code or f"imported {loaded}" if loaded else code)
  """)
  done = subprocess.run([sys.executable, "-c", code], capture_output=True)
  assert (done.returncode, done.stderr) == (0, b"")


def test_module_is_the_command():
  done = subprocess.run(
    [sys.executable, "-m", "dollar_jax", "nothing-of-the-kind"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("dollar: error: there is no command")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_away_is_no_error(unbuffered):
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, "-m", "dollar_jax", "--help"],
    stdout=writer,
    stderr=subprocess.PIPE,
    env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (141, b"")
