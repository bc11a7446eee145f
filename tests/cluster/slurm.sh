#!/usr/bin/env bash
# Interrupts training on a SLURM cluster and compares the results bit by bit:
#   tests/cluster/slurm.sh FOLDER
# It needs a cluster with two free nodes, and starts none: run it where sbatch
# works, from a checkout that every node sees, with a new FOLDER that they see,
# too. SLURM_CONF, SBATCH_PARTITION and the like choose the cluster; PYTHON is
# the interpreter that dollar_jax is installed in.
#
# launch/slurm.sbatch trains a tiny teacher on two nodes, once to the end and then
# interrupted by `scancel --signal=TERM`, by `scontrol requeue`, and by the
# failure of either node. Two commands say how the node $NODE fails and how it
# boots; without them no node fails. With root's ssh, or, where all slurmd run on
# one machine, with tests/cluster/local_node.sh fail and boot:
#   FAIL_NODE_COMMAND='ssh $NODE "pkill -KILL slurm; pkill -KILL -f dollar_jax"'
#   RESTORE_NODE_COMMAND='ssh $NODE systemctl start slurmd'
# Exit code 0: each run was completed, with the weights and metrics of the first.
set -euo pipefail

fail() {
  echo "slurm.sh: error: $*" >&2
  exit 2
}

if [[ $# != 1 || $1 == --help ]]; then
  sed -n '2,18s/^# \{0,1\}//p' "$0"
  exit 2
fi
for tool in sbatch scontrol scancel; do
  command -v "$tool" >/dev/null || fail "there is no $tool here"
done
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[[ -z $(ls -A "$folder") ]] || fail "$folder is not empty; name a new folder"

flags=(--config="$root/configs/digits/teacher.py")
for entry in model.{num_layers,num_attention_heads}=1 model.ffn_dim=32 \
  model.attention_head_dim=12 model.freq_dim=16 model.{in,out}_channels=8 \
  data.channels=8 data.clips=80 data.batch_size=4 optimizer.name=adamw \
  steps=1000 checkpoint.every=50 log_every=10; do
  flags+=("--config.$entry")
done

# What SLURM says of job $1 under $2.
entry() {
  scontrol show job "$1" | grep -oP "(?<=\b$2=)\S+"
}

# Whether job $1 has come to $2, or has ended otherwise.
has() {
  case $(entry "$1" JobState) in
  COMPLETED | FAILED | CANCELLED | TIMEOUT | OUT_OF_MEMORY) return 0 ;;
  esac
  case $2 in
  trained)
    find "$workdir/checkpoints" -maxdepth 1 -name '[2-9][05]0' 2>/dev/null |
      grep -q .
    ;;
  "come back") (($(entry "$1" Restarts) > 0)) ;;
  *) return 1 ;;
  esac
}

await() {
  local end=$((SECONDS + 1800))
  until has "$@"; do
    ((SECONDS < end)) || fail "job $1 has not $2 in half an hour"
    sleep 1
  done
}

fail_node() {
  NODE=$(scontrol show hostnames "$(entry "$1" NodeList)" | sed -n "$2p")
  export NODE
  bash -c "$FAIL_NODE_COMMAND"
  await "$1" "come back"
  bash -c "$RESTORE_NODE_COMMAND"
}

same() {
  if cmp -s "$folder"/{uninterrupted,"$run"}/"$1"; then
    echo same
  else
    echo DIFFERENT
  fi
}

row() {
  printf '%-15s %-10s %8s %8s  %-9s  %-9s\n' "$@"
}

wrong=0
row run state restarts seconds weights metrics
for run in uninterrupted terminated requeued node-1-fails node-2-fails; do
  if [[ $run == node-* && -z ${FAIL_NODE_COMMAND:-} ]]; then
    echo "$run: left out, for FAIL_NODE_COMMAND is not set"
    continue
  fi
  began=$SECONDS expected=1 workdir=$folder/$run
  job=$(
    cd "$root"
    sbatch --parsable --nodes=2 --output="$folder/$run.log" \
      launch/slurm.sbatch --workdir="$workdir" "${flags[@]}"
  )
  job=${job%%;*}
  [[ $run == uninterrupted ]] || await "$job" trained
  case $run in
  uninterrupted) expected=0 ;;
  terminated) scancel --signal=TERM "$job" ;;
  requeued) scontrol requeue "$job" ;;
  node-1-fails) fail_node "$job" 1 ;;
  node-2-fails) fail_node "$job" 2 ;;
  esac
  await "$job" ended
  state=$(entry "$job" JobState) restarts=$(entry "$job" Restarts)
  weights=$(same model/transformer/diffusion_pytorch_model.safetensors)
  metrics=$(same metrics.jsonl)
  row "$run" "$state" "$restarts" $((SECONDS - began)) "$weights" "$metrics"
  [[ $state-$restarts-$weights-$metrics == COMPLETED-$expected-same-same ]] ||
    wrong=1
done
exit "$wrong"
