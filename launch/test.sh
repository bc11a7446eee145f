#!/usr/bin/env bash
# Every check from a clean checkout: makes the environment, then runs ruff, the
# import contracts and the tests.
#   launch/test.sh [PYTEST ARGUMENT ...]     `-m slow` runs the slow tests
# PYTHON names another python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=()

# Runs one stage; the later ones run whatever becomes of it.
stage() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

prepare_environment test
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
