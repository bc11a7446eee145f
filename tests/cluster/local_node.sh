#!/usr/bin/env bash
# Makes $NODE fail or boot, where all slurmd of a SLURM run on this machine:
#   FAIL_NODE_COMMAND='tests/cluster/local_node.sh fail'
#   RESTORE_NODE_COMMAND='tests/cluster/local_node.sh boot'
set -euo pipefail

case ${1:-} in
fail)
  file=$(scontrol show config | sed -n 's/^SlurmdPidFile *= *//p')
  kill -KILL "$(<"${file//%n/$NODE}")"
  for process in /proc/[0-9]*; do
    # the job's own processes know their node, and their parent is SLURM's
    grep -qsxz "SLURMD_NODENAME=$NODE" "$process/environ" || continue
    parent=$(ps -o ppid= -p "${process#/proc/}" | tr -d ' ')
    [[ $(ps -o comm= -p "$parent") != slurmstepd ]] || kill -KILL "$parent"
    kill -KILL "${process#/proc/}" || true
  done
  ;;
boot) slurmd -N "$NODE" ;;
*)
  sed -n '2,4s/^# //p' "$0"
  exit 2
  ;;
esac
