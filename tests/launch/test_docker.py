"""launch/Dockerfile.*: what they copy, install and run as."""

import importlib.metadata
import json
import pathlib
import re

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from tests.test_house import read_pins

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROLES = ("cuda", "tpu")
SECRET = re.compile(r"token|secret|passw|credential|api_?key", re.IGNORECASE)


def read(role):
  """The instructions of a Dockerfile, as pairs."""
  with (ROOT / f"launch/Dockerfile.{role}").open("rb") as file:
    structure = DockerfileParser(fileobj=file).structure
  steps = [(step["instruction"], step["value"]) for step in structure]
  return [step for step in steps if step[0] != "COMMENT"]


def values(role, instruction):
  return [value for name, value in read(role) if name == instruction]


@pytest.mark.parametrize("role", ROLES)
def test_what_is_copied_is_there(role):
  copies = values(role, "COPY")
  assert copies
  for copied in copies:
    *sources, target = copied.split()
    for source in sources:
      assert (ROOT / source).exists(), source
      if (ROOT / source).is_dir():  # its content is copied, not the folder
        assert target.rstrip("/") == source
  copied = " ".join(copies).split()
  assert {"setup.py", "README.md", "dollar_jax", "configs"} <= set(copied)


@pytest.mark.parametrize("role", ROLES)
def test_packages_are_the_pinned_ones_and_a_layer_below_the_code(role):
  steps = read(role)
  file = f"requirements/{role}.txt"
  install = f"pip install --no-cache-dir --requirement {file}"
  pins, code = steps.index(("RUN", install)), ("COPY", "dollar_jax dollar_jax")
  assert steps.index(("COPY", f"{file} requirements/")) < pins
  assert pins < steps.index(code)
  others = [v for v in values(role, "RUN") if "pip install" in v]
  others.remove(install)
  [package] = others
  assert {"--no-deps", "--no-build-isolation", "."} <= set(package.split())


@pytest.mark.parametrize("role", ROLES)
def test_it_runs_dollar_and_not_as_root(role):
  steps = read(role)
  names = [name for name, _ in steps]
  assert values(role, "USER") == ["1000:1000"]
  assert names.index("USER") > max(
    index for index, name in enumerate(names) if name in ("RUN", "COPY")
  )
  assert "useradd --uid=1000" in " ".join(values(role, "RUN"))
  [entry] = values(role, "ENTRYPOINT")
  # As process 1, Python would not get a SIGTERM before it asks for it.
  assert json.loads(entry) == ["tini", "--", "dollar"]


@pytest.mark.parametrize("role", ROLES)
def test_the_base_is_of_a_fixed_python_and_nothing_is_secret(role):
  [base] = values(role, "FROM")
  assert re.fullmatch(r"python:3\.11-slim-[a-z]+", base)
  assert values(role, "ARG") == values(role, "ADD") == []
  for instruction in ("ENV", "RUN"):
    assert not SECRET.search(" ".join(values(role, instruction)))


@pytest.mark.parametrize(
  "role, extra, package",
  [("tpu", "tpu", "libtpu"), ("cuda", "cuda12", "jax-cuda12-plugin")],
)
def test_pins_add_to_those_of_the_demo_what_jax_asks_for(role, extra, package):
  demo, pins = read_pins("demo"), read_pins(role)
  assert demo.items() < pins.items()
  if importlib.metadata.version("jax") != pins["jax"]:
    pytest.skip("another jax is installed")
  wanted = map(Requirement, importlib.metadata.requires("jax"))
  [plugin] = [
    requirement
    for requirement in wanted
    if requirement.name == package
    and requirement.marker.evaluate({"extra": extra})
  ]
  assert plugin.specifier.contains(pins[package]), (plugin, pins[package])
