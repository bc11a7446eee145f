#!/usr/bin/env bash
# What tpu_pod.sh does on each worker, which has its checkout, its packages and
# its log in ~/dollar. To be called by hand after `gcloud compute tpus tpu-vm ssh`:
#   dollar/code/launch/worker.sh install         packages for the checkout that holds this file
#   dollar/code/launch/worker.sh start FLAG ...  `dollar train FLAG ...`, which outlives the connection
#   dollar/code/launch/worker.sh status          whether it runs, or how it ended
#   dollar/code/launch/worker.sh stop            asks it to save and end; waits for that
set -euo pipefail

base=$HOME/dollar
# Held for as long as a run lasts; who holds it may touch what else is in $base.
lock=$base/lock
STOP_SECONDS=${STOP_SECONDS:-600}

fail() {
  echo "worker.sh: error: $(hostname): $*" >&2
  exit 1
}

hold_lock() {
  mkdir -p "$base"
  exec 9>"$lock"
  flock -n 9 || fail "a run is under way here; stop it first"
}

is_running() {
  [[ -e $lock ]] && ! flock -n "$lock" true
}

install() {
  local source
  source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
  hold_lock
  if [[ $source != "$(realpath -m "$base/code")" ]]; then
    rm -rf "$base/code"
    mv "$source" "$base/code"
  fi
  # The Python of the machine may be older than 3.11; uv brings one.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet "uv>=0.8,<1"
  local into=(--quiet --python "$base/venv/bin/python")
  [[ -x $base/venv/bin/python ]] ||
    python3 -m uv venv --quiet --python 3.11 "$base/venv"
  python3 -m uv pip sync "${into[@]}" "$base/code/requirements/tpu.txt"
  python3 -m uv pip install "${into[@]}" --no-deps --no-build-isolation \
    --editable "$base/code"
  echo "$(hostname): installed"
}

start() {
  [[ -x $base/venv/bin/dollar ]] || fail "nothing is installed here; run tpu_pod.sh setup first"
  hold_lock
  rm -f "$base/pid" "$base/exit_code" "$base/stopped"
  # The lock goes on to what is started here.
  setsid nohup bash "$base/code/launch/worker.sh" attend "$@" \
    </dev/null >>"$base/train.log" 2>&1 &
  echo "$(hostname): started"
}

# Sees a run through.
attend() {
  local code=0
  cd "$base/code"
  PYTHONUNBUFFERED=1 "$base/venv/bin/dollar" train "$@" 9>&- &
  echo $! >"$base/pid"
  wait $! || code=$?
  echo "$code" >"$base/exit_code"
}

status() {
  local text="no run" code=""
  [[ ! -s $base/exit_code ]] || code=$(<"$base/exit_code")
  if is_running; then
    text="running"
  elif [[ -e $base/stopped ]]; then
    text="stopped, exit code ${code:-unknown}"
  elif [[ -e $base/pid ]]; then
    text="ended, exit code ${code:-unknown}"
  fi
  echo "$(hostname): $text"
}

stop() {
  local deadline=$((SECONDS + STOP_SECONDS))
  if is_running; then
    touch "$base/stopped"
    # Started a moment ago, it may not have a number yet.
    until [[ -s $base/pid ]]; do sleep 0.1; done
    kill -TERM "$(<"$base/pid")" 2>/dev/null || true
    while is_running; do
      ((SECONDS < deadline)) ||
        fail "still not ended after $STOP_SECONDS s; look into its log, or stop it again"
      sleep 0.5
    done
  fi
  status
}

case ${1:-} in
install | start | attend | status | stop) "$@" ;;
--help) sed -n '2,7s/^# \{0,1\}//p' "$0" ;;
*) fail "there is no command '${1:-}'; worker.sh --help lists them" ;;
esac
