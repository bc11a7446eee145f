#!/usr/bin/env bash
# Every check from a clean checkout: makes the environment, then runs ruff, the
# import contracts and the tests.
#   launch/test.sh [PYTEST ARGUMENT ...]     `-m slow` runs the slow tests
# PYTHON names another python3.
set -euo pipefail

# Many tests compile what another process has compiled: every program is kept,
# not only those that take long.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=()

# Runs one stage; the later ones run whatever becomes of it.
stage() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

# Can a package be installed that is partly C++?
can_compile() {
  local include='import sysconfig; print(sysconfig.get_path("include"))'
  command -v c++ >/dev/null && [[ -e $("$venv/bin/python" -c "$include")/Python.h ]]
}

prepare_environment test
if can_compile; then
  prepare_environment rewards
fi
export PATH=$venv/bin:$PATH
cd "$root"
stage "ruff check" ruff check --quiet
stage "ruff format" ruff format --check
stage "lint-imports" lint-imports --no-cache --no-logo
# Two processes; another -n or -m among the arguments counts instead.
stage "pytest" python -m pytest -n 2 -m "not slow" "$@"

if ((${#failed[@]})); then
  printf -v list ', %s' "${failed[@]}"
  fail "these checks failed: ${list:2}"
fi
