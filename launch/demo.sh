#!/usr/bin/env bash
# The main job from a clean checkout: makes the environment, then runs
# `dollar demo`, which writes report.html and metrics.json.
#   launch/demo.sh [--workdir=FOLDER] [FLAG ...]     default folder: runs/demo
# PYTHON names another python3; `launch/demo.sh --help` lists the flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment demo
# The last --workdir counts, so that one of the caller's own is taken.
exec "$venv/bin/dollar" demo --workdir="$root/runs/demo" "$@"
