#!/usr/bin/env bash
#SBATCH --job-name=gan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --partition=h100
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Made by python -m launch.slurm. Runs the command as one process for each task; jax finds the others by itself.
# Exit codes 75 (stopped after saving) and 77 (another host died) queue the job again, 10 times at most.
set -uo pipefail
# shellcheck disable=SC1091
{
. .venv/bin/activate
} || { echo 'launch: the setup failed'; exit 2; }

# The code that counts is of the first process to end badly. srun tells the greatest, which is that of those it killed.
export FIRST_CODE="$PWD/.$SLURM_JOB_NAME-$SLURM_JOB_ID.code"
rm -f "$FIRST_CODE"
# shellcheck disable=SC2016
task='trap : TERM INT
"$@"
code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber; echo "$code" > "$FIRST_CODE") 2> /dev/null
  sleep "${LAUNCH_GRACE:-10}"  # before srun ends the others: they may be saving, or write their report
fi
exit "$code"'

# scancel, and SLURM when another job has precedence, end this script too; then it is theirs to queue it again.
cancelled=
trap 'cancelled=yes' TERM
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 \
  bash -c "$task" task \
  python -m experiments.gan --config=cifar10_sngan
code=$?
if [ "$code" -ne 0 ] && [ -s "$FIRST_CODE" ]; then code=$(< "$FIRST_CODE"); fi
rm -f "$FIRST_CODE"

restarts=${SLURM_RESTART_COUNT:-0}
case "$code" in
  75 | 77)
    if [ "$cancelled" ]; then
      echo "launch: ended with $code, and the job was cancelled"
    elif [ "$restarts" -lt 10 ]; then
      echo "launch: ended with $code; queued again ($((restarts + 1)) of 10)"
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "launch: ended with $code after $restarts restarts; sbatch the script again to go on"
    fi
    ;;
  *) echo "launch: ended with $code" ;;
esac
exit "$code"
