"""The `dollar` command: finds a program, reads its flags, reports faults.

`dollar COMMAND --flag=value ...` runs `dollar_jax.programs.COMMAND`, a module
that holds `FLAGS`, an `absl.flags.FlagValues` of its own (so that one process
can run several programs), and `main(flags) -> None`. Whatever a user can get
wrong ends as one line on stderr; any other exception keeps its traceback,
because then the fault is ours.

Exit codes: 0 done, 1 the program could not do it, 2 wrong usage, 75 another
process of the run was lost or did not come (try again), 130 stopped by Ctrl-C,
141 the reader of stdout went away, 143 stopped by SIGTERM, all saved.
"""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import itertools
import os
import pathlib
import pkgutil
import re
import select
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence

import dollar_jax
from dollar_jax import programs, startup

# absl and the programs (which import jax) are imported once a command is about
# to run, so that `dollar --help` answers at once.
if typing.TYPE_CHECKING:
  from absl import flags as absl_flags

_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")

# The extra of setup.py that installs a package, by the package's import name.
_EXTRAS = {
  "diffusers": "torch",
  "jax_cuda12_plugin": "cuda",
  "libtpu": "tpu",
  "sentencepiece": "torch",
  "tensorboard": "tensorboard",
  "tensorflow": "tensorboard",
  "torch": "torch",
  "transformers": "torch",
}

_PLACEHOLDERS = {
  "comma separated list of strings": "A,B,...",
  "config object": "FILE",
  "float": "NUMBER",
  "int": "INTEGER",
}

# How absl begins to say that a value is not of the flag's type, and ours.
_KINDS = {
  "invalid literal for int": "an integer",
  "could not convert string to float": "a number",
  "('Non-boolean argument": "true or false",
}


class UsageError(Exception):
  """A command line that cannot be carried out; its text is for the user."""


class ProgramError(Exception):
  """A program refused what it was given; the cause's text is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one `dollar` command.

  Args:
    argv: the arguments after `dollar`; None takes those of the process.

  Returns:
    The exit code; the docstring of this module lists them.
  """
  args = list(sys.argv[1:] if argv is None else argv)
  if args[:1] == ["help"]:
    args = [*args[1:2], "--help"]
  command = args[0] if args and args[0] in commands() else ""
  try:
    if command:
      _run(command, args[1:])
    elif args and args[0] in _HELP:
      print(overview())
    elif args == ["--version"]:
      print(f"dollar_jax {dollar_jax.__version__}")
    else:
      raise UsageError(_why_no_command(args))
    sys.stdout.flush()
  except UsageError as error:
    return _report(command, str(error), error.__cause__, 2)
  except ProgramError as error:
    cause = error.__cause__
    code = {InterruptedError: 143, ConnectionError: os.EX_TEMPFAIL}
    return _report(command, _sentence(cause), cause, code.get(type(cause), 1))
  except BrokenPipeError as error:
    if _stdout_is_gone():
      _flush_stdout()
      return 141
    return _report(command, _sentence(error), error, 1)
  except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
      raise
    install = f"pip install 'dollar_jax[{_EXTRAS[package]}]'"
    text = f"this needs {package}, which is not installed: {install}"
    return _report(command, text, error, 1)
  except KeyboardInterrupt as error:
    return _report(command, "stopped by Ctrl-C", error, 130)
  return 0


def commands() -> list[str]:
  """Returns the names of the programs there are."""
  names = [module.name for module in pkgutil.iter_modules(programs.__path__)]
  return [name for name in names if not name.startswith("_")]


def overview() -> str:
  """Returns the text of `dollar --help`."""
  names = commands()
  width = max(map(len, names), default=0)
  lines = [
    "Usage: dollar COMMAND [--flag=value ...]",
    "",
    f"dollar_jax {dollar_jax.__version__}, few-step video generation in JAX.",
    "",
    "Commands:",
  ]
  for name in names:
    lines += _wrap(f"{name:{width}}  {_summary(name)}", 2, 4 + width)
  lines += [
    "",
    "`dollar COMMAND --help` explains a command and its flags.",
    "DOLLAR_TRACEBACK=1 in the environment shows where an error comes from.",
  ]
  return "\n".join(lines)


def describe(command: str, program: types.ModuleType) -> str:
  """Returns the text of `dollar COMMAND --help`.

  Args:
    command: the program's name on the command line.
    program: the program's module.
  """
  flags = _flags_of(program.FLAGS)
  needed = [_form(flag) for flag in flags if _is_required(flag)]
  usage = " ".join(["Usage: dollar", command, *needed, "[--flag=value ...]"])
  docstring = inspect.cleandoc(program.__doc__ or "").strip()
  lines = [*_wrap(usage, 0, 4), "", docstring, "", "Flags:"]
  for flag in flags:
    lines.append(f"  {_form(flag)}  ({_default(flag)})")
    lines += _wrap(_help(flag), 6, 6)
  return "\n".join(lines)


def _run(command: str, args: Sequence[str]) -> None:
  # ml_collections reads overrides of a config from sys.argv and nowhere else.
  with _process_arguments([f"dollar {command}", *args]):
    program = importlib.import_module(f"{programs.__name__}.{command}")
    if any(arg in _HELP for arg in args):
      print(describe(command, program))
      return
    startup.prepare()
    _parse(program.FLAGS, args)
    from absl import flags as absl_flags

    try:
      program.main(program.FLAGS)
    except BrokenPipeError:
      raise
    except (ValueError, OSError, absl_flags.Error) as error:
      raise ProgramError from error


def _parse(flags: "absl_flags.FlagValues", args: Sequence[str]) -> None:
  # Flags live as long as their module: forget what an earlier command in this
  # process has set, its config overrides, and its config file, which
  # ml_collections would execute the next one on top of.
  for name in list(flags):
    if "." in name:
      delattr(flags, name)
    else:
      flags[name].unparse()
  for flag in _flags_of(flags):
    if _is_config(flag):
      _check_config_file(flag.name, args)
      sys.modules.pop(f"{flag.name}_config", None)
  try:
    rest = flags(["dollar", *args])[1:]
  except Exception as error:  # A config file is the user's own Python.
    raise UsageError(_why_no_flags(flags, args, error)) from error
  if rest:
    text = f"unexpected argument {rest[0]!r}; flags are written --name=value"
    raise UsageError(text)


def _check_config_file(name: str, args: Sequence[str]) -> None:
  # ml_collections reports a missing file late, where an entry is first read.
  path = _value_of(name, args)
  if path == "":
    raise UsageError(f"--{name} needs a file: --{name}=FILE")
  path = (path or "").partition(":")[0]
  if path and not os.path.isfile(path):
    raise UsageError(f"--{name}={path}: there is no such file")


def _value_of(name: str, args: Sequence[str]) -> str | None:
  value = None
  for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
    key, equals, text = arg.partition("=")
    if key in (f"--{name}", f"-{name}"):
      value = text if equals else following
  return value


def _why_no_command(args: Sequence[str]) -> str:
  hint = "`dollar --help` lists the commands"
  if not args:
    return f"no command given; {hint}"
  if args[0].startswith("-"):
    return f"expected a command before {args[0]!r}; {hint}"
  guess = _guess(args[0], commands())
  return f"there is no command {args[0]!r}{guess}; {hint}"


def _why_no_flags(
  flags: "absl_flags.FlagValues", args: Sequence[str], error: Exception
) -> str:
  from absl import flags as absl_flags

  text = _sentence(error)
  if isinstance(error, absl_flags.UnrecognizedFlagError):
    name = error.flagname.lstrip("-")
    config = name.partition(".")[0]
    if config in flags and config != name:
      return f"--{name} needs --{config}=FILE before it"
    return f"there is no flag --{name}{_guess(name, flags, '--')}"
  if "must have a value other than None" in text:
    needed = [flag for flag in _flags_of(flags) if _is_required(flag)]
    absent = [_form(flag) for flag in needed if flag.value is None]
    return f"missing {' and '.join(absent)}"
  for begin, kind in _KINDS.items():
    wrong = re.match(rf"flag --([\w.]+)=(.*): {re.escape(begin)}", text)
    if wrong:
      return f"--{wrong[1]} takes {kind}, not {wrong[2]!r}"
  if isinstance(error, KeyError | AttributeError):
    reason = _why_no_entry(flags, args)
    if reason:
      return reason
  if isinstance(error, ValueError | OSError | absl_flags.Error):
    return text
  return f"the config cannot be read: {type(error).__name__}: {text}"


def _why_no_entry(
  flags: "absl_flags.FlagValues", args: Sequence[str]
) -> str | None:
  """Returns what is wrong with the first override of an unknown entry."""
  for flag in _flags_of(flags):
    path = _value_of(flag.name, args)
    if not _is_config(flag) or path is None:
      continue
    try:
      config = flag.parser.parse(path)
    except Exception:  # The config itself fails: its entries are not known.
      return None
    for arg in args:
      override = re.match(rf"--?(?:no)?{flag.name}\.([^=]+)", arg)
      parts = override[1].split(".") if override else []
      node, place = config, flag.name
      for part in parts:
        if not hasattr(node, "keys"):
          return f"{place} has no entries, so there is no {place}.{part}"
        if part not in node:
          return f"{place} has no entry {part!r}{_guess(part, node)}"
        node, place = node[part], f"{place}.{part}"
  return None


def _guess(name: str, names: Iterable[str], prefix: str = "") -> str:
  close = difflib.get_close_matches(name, list(names), n=1)
  return f", did you mean {prefix}{close[0]}?" if close else ""


@contextlib.contextmanager
def _process_arguments(argv: Sequence[str]) -> Iterator[None]:
  before, sys.argv = sys.argv, list(argv)
  try:
    yield
  finally:
    sys.argv = before


def _report(
  command: str, text: str, error: BaseException | None, code: int
) -> int:
  # What was printed so far comes first: the error is the last line.
  _flush_stdout()
  if error is not None and os.environ.get("DOLLAR_TRACEBACK"):
    traceback.print_exception(error)
  if error is not None:
    # progress bars that it holds open would else close, and print, after it
    traceback.clear_frames(error.__traceback__)
  name = f"dollar {command}".rstrip()
  print(f"{name}: error: {text}", file=sys.stderr, flush=True)
  return code


def _sentence(error: BaseException) -> str:
  """Returns one line that tells a user what `error` is about."""
  if isinstance(error, OSError) and error.strerror:
    parts = (error.filename, error.filename2, error.strerror)
    return ": ".join(str(part) for part in parts if part is not None)
  # str() of a KeyError is the repr of its message.
  of_key = isinstance(error, KeyError) and len(error.args) == 1
  text = str(error.args[0] if of_key else error)
  head, _, trace = text.partition("Traceback (most recent call last):")
  if trace:  # ml_collections puts the whole traceback into its message.
    text = f"{head} {trace.strip().splitlines()[-1]}"
  return " ".join(text.split()) or type(error).__name__


def _stdout_is_gone() -> bool:
  poll = select.poll()
  poll.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush_stdout() -> None:
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    # Python flushes again when it exits; that must not fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _summary(command: str) -> str:
  # The file is read, not imported: importing a program imports jax.
  spec = importlib.util.find_spec(f"{programs.__name__}.{command}")
  source = pathlib.Path(spec.origin).read_text(encoding="utf-8")
  docstring = ast.get_docstring(ast.parse(source, spec.origin)) or ""
  return docstring.partition("\n")[0]


def _flags_of(flags: "absl_flags.FlagValues") -> list["absl_flags.Flag"]:
  # A flag with a short name is listed under both names.
  return list({id(flags[name]): flags[name] for name in flags}.values())


def _is_config(flag: "absl_flags.Flag") -> bool:
  return flag.flag_type() == "config object"


def _is_required(flag: "absl_flags.Flag") -> bool:
  # absl keeps "required" as a validator and nowhere else.
  texts = [getattr(check, "message", "") for check in flag.validators]
  return flag.default is None and any("other than None" in t for t in texts)


def _form(flag: "absl_flags.Flag") -> str:
  if flag.boolean:
    return f"--[no]{flag.name}"
  choices = getattr(flag.parser, "enum_values", None)
  kind = flag.flag_type().removeprefix("multi ")
  value = "|".join(choices) if choices else _PLACEHOLDERS.get(kind, "TEXT")
  return f"--{flag.name}={value}"


def _default(flag: "absl_flags.Flag") -> str:
  if _is_required(flag):
    return "required"
  if flag.default is None:
    return "optional"
  return f"default: {flag.default_as_str.strip(chr(39)) or 'empty'}"


def _help(flag: "absl_flags.Flag") -> str:
  # absl writes the choices in front and how to repeat a flag behind.
  text = re.sub(r"^<[^>]*>: ", "", flag.help or "")
  text, repeated, _ = text.partition(";\n    repeat this option")
  if repeated:
    text += " May be given several times."
  if _is_config(flag):
    text += f" Set its entries by --{flag.name}.ENTRY=VALUE, behind this flag."
  return text


def _wrap(text: str, first: int, rest: int) -> list[str]:
  return textwrap.wrap(
    text,
    width=80,
    initial_indent=" " * first,
    subsequent_indent=" " * rest,
    break_long_words=False,
    break_on_hyphens=False,
  )
