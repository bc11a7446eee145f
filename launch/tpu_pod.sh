#!/usr/bin/env bash
# Trains on TPU slices that Google Cloud lends through its queue:
#   launch/tpu_pod.sh create NAME --zone=ZONE --accelerator_type=TYPE [--spot]
#   launch/tpu_pod.sh setup  NAME --zone=ZONE     the last commit, with its packages
#   launch/tpu_pod.sh train  NAME --zone=ZONE -- --config=CONFIG --workdir=WORKDIR [FLAG ...]
#   launch/tpu_pod.sh run    NAME --zone=ZONE --accelerator_type=TYPE [--spot] -- FLAG ...
#   launch/tpu_pod.sh status|logs|stop|delete NAME --zone=ZONE
# `train` returns once the run has started on every worker; what stands behind
# `--` goes to `dollar train`. `stop` lets it save first. `run` is create, setup
# and train, again after each preemption, until the training has ended; only
# `delete` gives the TPUs back. WORKDIR must be a folder that all workers see.
#   --dry_run            prints the commands and runs none
#   --node_count=N       slices, 1 unless given; with every command
#   --project=PROJECT    that of `gcloud config` unless given
#   --runtime_version=V  the one for TYPE unless given
#   --create_flag=FLAG   goes to `gcloud compute tpus queued-resources create`
#   --ssh_flag=FLAG      goes to `gcloud compute tpus tpu-vm ssh` and `scp`
#   --worker=N           whose log to follow, 0 unless given
#   --poll_seconds=S     between two looks at the queue, 30 unless given
#   --max_restarts=N     how often `run` starts again after a crash, 5 unless given
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
worker_script=dollar/code/launch/worker.sh # on a worker, from its home

fail() {
  echo "tpu_pod.sh: error: $*" >&2
  exit 1
}

say() {
  echo "tpu_pod.sh: $*" >&2
}

# Prints words so that a shell reads them as they are.
quote() {
  local word text=""
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      text+=" $word"
    else
      text+=" ${word@Q}"
    fi
  done
  echo "${text:1}"
}

call() {
  if [[ $dry_run ]]; then
    quote "$@"
  else
    "$@"
  fi
}

tpus() {
  call gcloud compute tpus "$@" "${place[@]}"
}

# Names of the slices: the queue numbers those of a request for several.
nodes() {
  local number
  if ((node_count == 1)); then
    echo "$name"
  else
    for ((number = 0; number < node_count; number++)); do
      echo "$name-$number"
    done
  fi
}

# Does the same on every slice at once; fails if it fails on one.
on_every_node() {
  local node child children=() result=0
  for node in $(nodes); do
    # Alone, it may ask something, such as for a passphrase.
    if [[ $dry_run || $node_count == 1 ]]; then
      "$@" "$node" || result=$?
    else
      "$@" "$node" &
      children+=($!)
    fi
  done
  for child in "${children[@]}"; do
    wait "$child" || result=$?
  done
  return "$result"
}

on_workers() {
  local workers=$1 command=$2 node=$3
  tpus tpu-vm ssh "$node" --worker="$workers" --command="$command" "${ssh_flags[@]}"
}

copy_to_workers() {
  local file=$1 node=$2
  tpus tpu-vm scp "$file" "$node:dollar.tar.gz" --worker=all "${ssh_flags[@]}"
}

# The state of the request, such as ACTIVE; MISSING if there is none.
state() {
  if tpus queued-resources describe "$name" --format="value(state.state)" 2>"$scratch/errors"; then
    return
  fi
  grep -q NOT_FOUND "$scratch/errors" || {
    cat "$scratch/errors" >&2
    return 1
  }
  echo MISSING
}

ask_for() {
  local flags=(--accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  if ((node_count == 1)); then
    flags+=(--node-id="$name")
  else
    flags+=(--node-count="$node_count" --node-prefix="$name")
  fi
  [[ ! $spot ]] || flags+=(--spot)
  tpus queued-resources create "$name" "${flags[@]}" "${create_flags[@]}"
}

create() {
  local now before=""
  ask_for
  if [[ $dry_run ]]; then
    tpus queued-resources describe "$name" --format="value(state.state)"
    return
  fi
  while true; do
    now=$(state) || fail "cannot see what became of $name; look again with: launch/tpu_pod.sh status"
    [[ $now == "$before" ]] || say "$name is $now"
    before=$now
    case $now in
    ACTIVE) return ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | MISSING)
      fail "$name is $now and will not become ACTIVE; delete it and create it again"
      ;;
    esac
    sleep "$poll_seconds"
  done
}

setup() {
  local archive=${scratch:-/tmp}/dollar.tar.gz
  [[ $dry_run ]] || git -C "$root" diff --quiet HEAD ||
    say "what is not committed is not copied"
  call git -C "$root" archive --prefix=dollar.new/ --output="$archive" HEAD &&
    on_every_node copy_to_workers "$archive" &&
    on_every_node on_workers all \
      "rm -rf dollar.new && tar -xzf dollar.tar.gz && bash dollar.new/launch/worker.sh install"
}

train() {
  on_every_node on_workers all "bash $worker_script start $(quote "${train_flags[@]}")"
}

status_of() {
  on_workers "$1" "if [ -e $worker_script ]; then bash $worker_script status; else echo not set up; fi" "$2"
}

status() {
  local now=ACTIVE
  if [[ $dry_run ]]; then
    tpus queued-resources describe "$name" --format="value(state.state)"
  else
    now=$(state)
    echo "$name: $now"
  fi
  [[ $now != ACTIVE ]] || on_every_node status_of all
}

logs() {
  on_workers "$worker" "tail -n 100 -F dollar/train.log" "$first_node"
}

stop() {
  on_every_node on_workers all "bash $worker_script stop"
}

delete() {
  tpus queued-resources delete "$name" --force --quiet
}

# Keeps a training going until it ends by itself or by `stop`.
run() {
  local now text restarts=0 set_up=""
  if [[ $dry_run ]]; then
    create && setup && train
    return
  fi
  while true; do
    now=$(state) || now="out of sight"
    say "$name is $now"
    case $now in
    MISSING)
      ask_for || fail "the request was refused; see above"
      set_up=""
      ;;
    SUSPENDED) delete || true ;; # taken away
    FAILED)
      count_restart "the request for TPUs has failed"
      delete || true
      ;;
    ACTIVE)
      # Where the connection fails, there is nothing to go by but the next look.
      text=$(status_of 0 "$first_node") || text=unknown
      act_upon "$text"
      ;;
    esac
    sleep "$poll_seconds"
  done
}

# Does what the status of worker 0 asks for.
act_upon() {
  local text=$1 code=""
  say "${text##*$'\n'}"
  [[ ! $text =~ "exit code "([0-9]+) ]] || code=${BASH_REMATCH[1]}
  case ${set_up:-new}:$text in
  *:unknown) ;;
  *": running"*) set_up=yes ;;
  new:*)
    # What ended before is not the run that is asked for.
    if setup && train; then
      set_up=yes
    else
      count_restart "it could not be started on every worker"
    fi
    ;;
  *": stopped"*)
    say "somebody stopped the training"
    exit "${code:-1}"
    ;;
  *": ended"*)
    case $code in
    0)
      say "the training has ended; the TPUs cost money until: $(quote "$0" delete "$name" "${place[@]}")"
      exit
      ;;
    1 | 2) fail "the training refused with exit code $code; its log tells why: $(quote "$0" logs "$name" "${place[@]}")" ;;
    143) ;; # asked to make room, and saved
    *) count_restart "the training crashed" ;;
    esac
    if ! { stop && train; }; then
      count_restart "it could not be started again on every worker"
    fi
    ;;
  *)
    count_restart "a worker has lost its run"
    set_up=""
    ;;
  esac
}

count_restart() {
  restarts=$((restarts + 1))
  ((restarts <= max_restarts)) || fail "$1, and that $restarts times; --max_restarts=$max_restarts allows no more"
}

is_count() {
  [[ $1 =~ ^[0-9]+$ ]]
}

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi
((BASH_VERSINFO[0] > 4)) || fail "bash $BASH_VERSION is too old; install bash 5"
command=${1:-}
case $command in
create | setup | train | run | status | logs | stop | delete) shift ;;
"") fail "no command given; launch/tpu_pod.sh --help lists them" ;;
*) fail "there is no command '$command'; launch/tpu_pod.sh --help lists them" ;;
esac
name=${1:-}
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "'$name' is no name of a TPU; give one of small letters, digits and dashes after '$command'"
shift

dry_run="" spot="" zone="" project="" accelerator_type="" runtime_version=""
node_count=1 worker=0 poll_seconds=30 max_restarts=5
create_flags=() ssh_flags=() train_flags=()
while (($#)); do
  value=${1#*=}
  flag=${1%%=*}
  # --node-count is as good as --node_count
  case ${flag:0:2}$(tr - _ <<<"${flag:2}")${1:${#flag}:1} in
  --dry_run) dry_run=yes ;;
  --spot) spot=yes ;;
  --zone=) zone=$value ;;
  --project=) project=$value ;;
  --accelerator_type=) accelerator_type=$value ;;
  --runtime_version=) runtime_version=$value ;;
  --node_count=) node_count=$value ;;
  --worker=) worker=$value ;;
  --poll_seconds=) poll_seconds=$value ;;
  --max_restarts=) max_restarts=$value ;;
  --create_flag=) create_flags+=("$value") ;;
  --ssh_flag=) ssh_flags+=("$value") ;;
  --)
    train_flags=("${@:2}")
    break
    ;;
  *) fail "unexpected '$1'; flags are written --name=value, those of \`dollar train\` stand behind --" ;;
  esac
  shift
done

[[ $zone ]] || fail "--zone=ZONE is missing"
[[ $node_count =~ ^[1-9][0-9]*$ ]] ||
  fail "--node_count=$node_count is not a number of slices; give 1 or more"
is_count "$worker" || fail "--worker=$worker is not a number; workers count from 0"
is_count "$poll_seconds" || fail "--poll_seconds=$poll_seconds is not a number of seconds"
is_count "$max_restarts" || fail "--max_restarts=$max_restarts is not a number"
case $command in
create | run)
  [[ $accelerator_type ]] || fail "--accelerator_type=TYPE is missing, such as v5p-32"
  ;;
esac
case $command in
train | run)
  [[ " ${train_flags[*]}" == *" --config="* ]] || fail "--config=FILE is missing behind --"
  [[ " ${train_flags[*]}" == *" --workdir="* ]] || fail "--workdir=FOLDER is missing behind --"
  ;;
*) ((${#train_flags[@]} == 0)) || fail "'$command' takes nothing behind --" ;;
esac
case $accelerator_type in
tpu7x* | v7*) fail "$accelerator_type is lent through GKE only; use launch/gke_jobset.yaml" ;;
v6e-*) : "${runtime_version:=v2-alpha-tpuv6e}" ;;
v5p-*) : "${runtime_version:=v2-alpha-tpuv5}" ;;
v5litepod-*) : "${runtime_version:=v2-alpha-tpuv5-lite}" ;;
*) : "${runtime_version:=tpu-ubuntu2204-base}" ;;
esac
place=(--zone="$zone")
[[ ! $project ]] || place+=(--project="$project")
first_node=$name
((node_count == 1)) || first_node=$name-0

scratch=""
if [[ ! $dry_run ]]; then
  command -v gcloud >/dev/null ||
    fail "there is no gcloud; install Google Cloud's command line, or give --dry_run"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
"$command"
