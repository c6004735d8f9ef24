#!/usr/bin/env bash
# Pre-train on several processes of this machine, one per GPU unless -n says otherwise:
#   launch/local.sh [-n PROCESSES] [--dry-run] RECIPE [key=value …] [--out RUN] [--resume]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
usage() {
  echo "usage: launch/local.sh [-n PROCESSES] [--dry-run] RECIPE [key=value …]" >&2
  exit 2
}
processes="" dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    -n) [ $# -ge 2 ] || usage; processes=$2; shift 2 ;;
    --dry-run) dry=yes; shift ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || usage
if [ -z "$processes" ]; then
  # without an NVIDIA driver there is no nvidia-smi
  processes=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
  [ "$processes" -gt 0 ] || processes=1
fi
case "$processes" in
  *[!0-9]* | 0*) echo "error: -n $processes: not a number of processes" >&2; exit 2 ;;
esac
torchrun=torchrun
[ -x "$here/.venv/bin/torchrun" ] && torchrun="$here/.venv/bin/torchrun"
# without this each process would start a thread for every core
threads=$(($(nproc) / processes))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
command=("$torchrun" --standalone --nproc-per-node "$processes" -m crossloom pretrain "$@")
if [ -n "$dry" ]; then
  printf 'OMP_NUM_THREADS=%s' "$OMP_NUM_THREADS"
  printf ' %q' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
