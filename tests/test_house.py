"""Rules of the house that no single room can check."""

import ast
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from packaging.requirements import Requirement

import dollar_jax
from dollar_jax import cli
from tests.conftest import PARITY_PACKAGES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = sorted(ROOT.glob("dollar_jax/**/*.py"))
CODE = [
  *PACKAGE,
  *sorted(ROOT.glob("benchmarks/**/*.py")),
  *sorted(ROOT.glob("configs/**/*.py")),
]
FOREIGN = ("diffusers", "tensorflow", "torch", "transformers")

# Whatever runs code that a file or a string carries.
FORBIDDEN_CALLS = (
  "eval",
  "exec",
  "os.popen",
  "os.system",
  "joblib.load",
  "pandas.read_pickle",
  "torch.load",
)
FORBIDDEN_MODULES = ("cloudpickle", "dill", "marshal", "pickle", "shelve")
FORBIDDEN_KEYWORDS = ("allow_pickle", "shell", "trust_remote_code")


def read_tree(path):
  return ast.parse(path.read_text(encoding="utf-8"), path)


def name_of(path):
  return str(path.relative_to(ROOT))


def dotted(node):
  """Returns the source of a dotted name, such as `os.system`."""
  return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def public_definitions(node, prefix=""):
  """Yields name and node of each public class, function and method."""
  for child in node.body:
    if not isinstance(child, ast.ClassDef | ast.FunctionDef):
      continue
    if child.name.startswith("_"):
      continue
    decorators = [dotted(decorator) for decorator in child.decorator_list]
    # What these say is said where the name was first defined.
    if any(d.endswith((".setter", "override", "overload")) for d in decorators):
      continue
    yield prefix + child.name, child
    if isinstance(child, ast.ClassDef):
      yield from public_definitions(child, f"{prefix}{child.name}.")


def faults_of_signature(function):
  """Yields what a function's signature leaves without annotation."""
  arguments = function.args
  positional = [*arguments.posonlyargs, *arguments.args]
  if positional and positional[0].arg in ("self", "cls"):
    positional = positional[1:]
  others = [*arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
  for argument in [*positional, *filter(None, others)]:
    if argument.annotation is None:
      yield f"argument {argument.arg} has no annotation"
  if function.returns is None:
    yield "the result has no annotation"


def faults_of_documentation(tree):
  """Yields what the public names of a module leave unsaid."""
  if not ast.get_docstring(tree):
    yield "the module has no docstring"
  for name, node in public_definitions(tree):
    if not ast.get_docstring(node):
      yield f"{name} has no docstring"
    if isinstance(node, ast.FunctionDef):
      for fault in faults_of_signature(node):
        yield f"{name}: {fault}"


def faults_of_safety(tree):
  """Yields the places of a module that could run a stranger's code."""
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    for name in names:
      if name.partition(".")[0] in FORBIDDEN_MODULES:
        yield f"line {node.lineno} imports {name}"
    if isinstance(node, ast.Call):
      if dotted(node.func) in FORBIDDEN_CALLS:
        yield f"line {node.lineno} calls {dotted(node.func)}"
      for keyword in node.keywords:
        constant = getattr(keyword.value, "value", True)
        if keyword.arg in FORBIDDEN_KEYWORDS and constant is not False:
          yield f"line {node.lineno} passes {keyword.arg}"


def faults_by_file(check, paths):
  """Returns what `check` finds in each file where it finds something."""
  found = {name_of(path): list(check(read_tree(path))) for path in paths}
  return {name: faults for name, faults in found.items() if faults}


def test_public_names_have_docstrings_and_annotations():
  assert faults_by_file(faults_of_documentation, PACKAGE) == {}


def test_documentation_check_sees_faults():
  source = textwrap.dedent('''
    class Room:
      """A room."""

      def enter(self, who, *rest, how: str = "", **more) -> None:
        """Enters."""

      def leave(self) -> None: ...

      def _wait(self, who): ...

    def build(size: int):
      """Builds."""
    ''')
  assert list(faults_of_documentation(ast.parse(source))) == [
    "the module has no docstring",
    "Room.enter: argument who has no annotation",
    "Room.enter: argument rest has no annotation",
    "Room.enter: argument more has no annotation",
    "Room.leave has no docstring",
    "build: the result has no annotation",
  ]


def test_nothing_runs_code_that_a_file_carries():
  assert faults_by_file(faults_of_safety, CODE) == {}


@pytest.mark.parametrize(
  "line",
  [
    "import pickle",
    "from pickle import loads",
    "eval(text)",
    "exec(text)",
    "os.system(text)",
    "torch.load(path)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=choice)",
    "subprocess.run(text, shell=True)",
  ],
)
def test_safety_check_sees_faults(line):
  assert len(list(faults_of_safety(ast.parse(line)))) == 1


@pytest.mark.parametrize(
  "line", ["np.load(path, allow_pickle=False)", "model.eval()", "a.exec(b)"]
)
def test_safety_check_lets_harmless_lines_pass(line):
  assert list(faults_of_safety(ast.parse(line))) == []


def test_every_module_imports_where_no_foreign_framework_is_installed():
  code = textwrap.dedent(f"""
    import importlib, pkgutil, sys

    class Absent:
      def find_spec(self, name, path=None, target=None):
        if name in {FOREIGN}:
          raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Absent())
    import dollar_jax
    assert "jax" not in sys.modules, "import dollar_jax alone imports jax"
    for module in pkgutil.walk_packages(dollar_jax.__path__, "dollar_jax."):
      importlib.import_module(module.name)
      print(module.name)
    """)
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr[-2000:]
  modules = {name_of(path)[:-3].replace("/", ".") for path in PACKAGE}
  modules = {module.removesuffix(".__init__") for module in modules}
  assert set(done.stdout.split()) == modules - {"dollar_jax"}


def early_imports(tree):
  """Yields the foreign frameworks that a module's import imports."""
  pending = [tree]
  while pending:
    node = pending.pop()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
      continue
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or ""]
    for name in names:
      if name.partition(".")[0] in FOREIGN:
        yield f"line {node.lineno} imports {name}"
    pending += ast.iter_child_nodes(node)


def test_foreign_frameworks_are_imported_inside_functions():
  assert faults_by_file(early_imports, PACKAGE) == {}
  # A guarded import is an import, too.
  guarded = "try:\n  import torch.nn\nexcept ImportError:\n  torch = None"
  assert list(early_imports(ast.parse(guarded))) == ["line 2 imports torch.nn"]
  assert list(early_imports(ast.parse("def f():\n  import torch"))) == []


def test_parity_packages_are_installed_where_parity_is_tested():
  missing = [
    name for name in PARITY_PACKAGES if importlib.util.find_spec(name) is None
  ]
  if missing and sys.version_info >= (3, 12):
    pytest.skip(f"{', '.join(missing)} not installed on this Python")
  assert missing == [], "run launch/test.sh, which installs them"


def test_version_is_in_the_change_log():
  log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  headings = re.findall(r"^## \[(.+?)\]", log, re.MULTILINE)
  assert headings[0] == "Unreleased"
  assert headings[1:2] in ([], [dollar_jax.__version__])


def read_pins(role):
  """Returns the pins of a role that hold on this Python, by package."""
  pins = {}
  for line in (ROOT / "requirements" / f"{role}.txt").read_text().splitlines():
    if line and not line.startswith("#"):
      pin = Requirement(line)
      if pin.marker is None or pin.marker.evaluate():
        [version] = pin.specifier
        assert version.operator == "==", line
        pins[pin.name.replace("_", "-")] = version.version
  return pins


def test_requirements_pin_what_setup_asks_for():
  pins = read_pins("demo")
  setup = read_tree(ROOT / "setup.py").body
  assigned = [node for node in setup if isinstance(node, ast.Assign)]
  tables = {dotted(node.targets[0]): node.value for node in assigned}
  for line in ast.literal_eval(tables["INSTALL"]):
    wanted = Requirement(line)
    assert wanted.specifier.contains(pins[wanted.name]), line


def test_test_requirements_add_to_those_of_the_demo():
  demo, test = read_pins("demo"), read_pins("test")
  assert demo.items() <= test.items()
  assert "pytest" in test
  assert ("torch" in test) == (sys.version_info < (3, 12))
  assert set(FOREIGN).isdisjoint(demo)


def test_requirements_of_the_tests_agree():
  """launch/test.sh installs both files into one environment."""
  test, rewards = read_pins("test"), read_pins("rewards")
  assert "brisque" in rewards
  for name in test.keys() & rewards.keys():
    assert test[name] == rewards[name], name


def read_commands(text):
  """Yields the command lines in the fenced shell blocks of a Markdown text."""
  for block in re.findall(
    r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
  ):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line.strip().removeprefix("$ "), comments=True)
      if words:
        yield words


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += sorted(ROOT.glob("docs/**/*.md"))
FOLDERS = (
  ".ci benchmarks configs docs dollar_jax launch notebooks requirements tests"
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_in_documents_name_what_exists(path):
  commands = list(read_commands(path.read_text(encoding="utf-8")))
  assert commands, f"{path.name} shows no command"
  for words in commands:
    line = " ".join(words)
    for word in words:
      # `--config=configs/digits/student.py:tiny` names a file, too.
      file = re.split("[:*]", word.rpartition("=")[2].removeprefix("./"))[0]
      if file.partition("/")[0] in FOLDERS.split() and "/" in file:
        assert (ROOT / file).exists(), f"no {file}, in: {line}"
    if "dollar" in words[:-1]:
      command = words[words.index("dollar") + 1]
      known = [*cli.commands(), "help", "--help", "--version", "COMMAND"]
      assert command in known, f"no command {command}, in: {line}"
