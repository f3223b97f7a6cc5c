#!/usr/bin/env bash
# One worker of a TPU slice: installs the clone it lies in, and keeps one run of launch/train.py that outlives ssh.
#   worker.sh install [HOST:/SHARE] | start ARGUMENTS... | status | stop
# In the home directory: posttrain_jax.log, .pid while it runs, .exit when it ended.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$HOME/posttrain_jax.venv"
log="$HOME/posttrain_jax.log"
pid="$HOME/posttrain_jax.pid"
ended="$HOME/posttrain_jax.exit"

# The system's Python is older than the project takes, so uv brings one. An NFS share is mounted for the runs.
install() {
  if [[ -n "${1:-}" ]] && ! mountpoint --quiet /mnt/runs; then
    command -v mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common
    sudo mkdir -p /mnt/runs
    sudo mount -t nfs "$1" /mnt/runs
  fi
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [[ -x "$venv/bin/python" ]] || uv venv --quiet --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" --editable "${root}[tpu]"
}

running() {
  [[ -s "$pid" && "$(ps -o args= -p "$(<"$pid")" || true)" == *worker.sh\ attend* ]]
}

# SIGTERM, upon which the run saves everything and exits with 75; SIGKILL to one that hangs on lost workers.
stop() {
  local patience=${PATIENCE:-600} # seconds
  running || return 0
  kill -TERM -- "-$(<"$pid")"
  for ((tick = 0; tick < 5 * patience; tick++)); do
    running || return 0
    sleep 0.2
  done
  kill -KILL -- "-$(<"$pid")"
}

start() {
  stop
  rm -f "$ended"
  setsid nohup bash "${BASH_SOURCE[0]}" attend "$@" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid"
}

# Runs detached, in a process group of its own; outlives the SIGTERM of that group to leave the exit code for `status`.
attend() {
  local code=0
  trap '' TERM
  cd "$root"
  env --default-signal=TERM "$venv/bin/python" -u launch/train.py "$@" || code=$?
  echo "$code" >"$ended.new"
  mv "$ended.new" "$ended"
}

status() {
  if running; then
    echo "posttrain_jax: running"
  elif [[ -s "$ended" ]]; then
    echo "posttrain_jax: exited $(<"$ended")"
  elif [[ -e "$pid" ]]; then
    echo "posttrain_jax: exited 137" # killed before it could say why
  else
    echo "posttrain_jax: absent"
  fi
}

case "${1:-}" in
  status | stop) "$1" ;;
  install | start | attend) "$@" ;;
  *)
    echo "usage: worker.sh install [HOST:/SHARE] | start ARGUMENTS... | status | stop" >&2
    exit 2
    ;;
esac
