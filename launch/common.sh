# shellcheck shell=bash
# Sourced by the other scripts of this folder: what each of them needs to start processes.
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# what the head of a script says of it
help() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
  exit 0
}

# a program of the project's own environment, where there is one
program() {
  if [ -x "$here/.venv/bin/$1" ]; then echo "$here/.venv/bin/$1"; else echo "$1"; fi
}

# count_processes WANTED: as wanted, or one for each GPU; one on a machine without any
count_processes() {
  local processes=$1
  if [ -z "$processes" ]; then
    # without an NVIDIA driver there is no nvidia-smi
    processes=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
    [ "$processes" -gt 0 ] || processes=1
  fi
  case "$processes" in
    *[!0-9]* | 0*) echo "error: -n $processes: not a number of processes" >&2; exit 2 ;;
  esac
  echo "$processes"
}

# settings PROCESSES: what the processes of this machine are started with
settings() {
  # without this each process would start a thread for every core
  local threads=$(($(nproc) / $1))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
  # how long torchrun waits for processes that were told to stop: they write a checkpoint
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}"
  # torchrun would keep one store for all restarts, and processes that are started again would wait
  # for ever at the addresses of those that died (pytorch/pytorch#135712)
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
}

# what torchrun hands on to its processes: Slurm says SIGUSR1
# shellcheck disable=SC2034
signals=(--signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")

# start DRY COMMAND…: become the command, or print it with its settings
start() {
  local dry=$1
  shift
  if [ -n "$dry" ]; then
    printf 'OMP_NUM_THREADS=%s' "$OMP_NUM_THREADS"
    printf ' %q' "$@"
    echo
  else
    exec "$@"
  fi
}
