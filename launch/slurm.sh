#!/usr/bin/env bash
# A batch job that trains with one process a GPU: sbatch --nodes=N … slurm.sh launch/train.py ARGUMENTS
# Started by launch/slurm.py, which asks for the machines. JAX finds the processes by SLURM's variables. When the time
# is nearly up SLURM sends them SIGTERM; they save, exit with 75, and the same job waits for its next turn.
set -uo pipefail

saved=75

srun --kill-on-bad-exit=0 --wait=600 "${PYTHON:-python}" -u "$@"
code=$?

if [[ "$code" == "$saved" ]]; then
  echo "everything is saved; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit
fi
exit "$code"
