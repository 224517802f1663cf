#!/usr/bin/env bash
# gan on v5litepod-16 in us-east5-a. Made by python -m launch.tpu_vm; run it where the code and gcloud are.
# The command is run again, 10 times at most, after exit code 75 (stopped after saving), 77 (another host died)
# and 255 (connection lost), and when the machines were taken away. The script itself goes on where it was interrupted.
set -uo pipefail

create() {
  gcloud compute tpus queued-resources create gan --node-id=gan --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot --quiet --zone=us-east5-a
}
state() {
  gcloud compute tpus queued-resources describe gan --format='value(state.state)' --zone=us-east5-a 2> /dev/null
}
remove() {
  gcloud compute tpus queued-resources delete gan --force --quiet --zone=us-east5-a
}
pack() {  # the working tree, without what git ignores: once, so that a run goes on with the code that it began with
  git ls-files -z --cached --others --exclude-standard |
    tar --create --gzip --null --files-from=- --ignore-failed-read --file="$folder/gan.tar.gz"
}
copy() (
  cd "$folder" || exit
  gcloud compute tpus tpu-vm scp gan.tar.gz gan: --worker=all --quiet --zone=us-east5-a
)
prepare() {
  gcloud compute tpus tpu-vm ssh gan --worker=all --quiet --command='set -e; mkdir -p flagship/runs; cd flagship; tar xzf ../gan.tar.gz; mountpoint -q runs || gcsfuse --implicit-dirs my-runs runs; PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv; python3 -m uv venv --quiet --allow-existing --python=3.12 .venv; python3 -m uv pip install --quiet --constraint constraints.txt --editable '"'"'.[text,tpu]'"'"'' --zone=us-east5-a
}
run() {
  gcloud compute tpus tpu-vm ssh gan --worker=all --quiet --command='cd flagship || exit 2; if [ -s pid ] && kill -TERM "$(cat pid)" 2> /dev/null; then timeout 300 tail --pid="$(cat pid)" -f /dev/null; fi; echo $$ > pid; . .venv/bin/activate; exec python -m experiments.gan --config=cifar10_sngan' --zone=us-east5-a
}

say() { echo "launch: $*" >&2; }
pause() { sleep "${LAUNCH_PAUSE:-30}"; }

finish() {  # with a code; nothing costs money afterwards
  remove
  exit "$1"
}

# Makes the machines unless they are there, and waits for them. Fails where they can't be had.
have() {
  local now
  while :; do
    now=$(state)
    case "$now" in
      ACTIVE) return 0 ;;
      "") create || return 1 ;;
      SUSPENDED) say "taken away; making them anew"; remove || return 1 ;;
      FAILED) say "no machines: gcloud says FAILED"; return 1 ;;
      *) pause ;;  # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, CREATING, SUSPENDING, DELETING
    esac
  done
}

trap 'say "interrupted; the machines are still there: gcloud compute tpus queued-resources delete gan --force --quiet --zone=us-east5-a"; exit 75' INT TERM
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
pack || exit 2
restarts=0
while :; do
  have || finish 1
  if copy && prepare; then
    run 2> >(tee "$folder/log" >&2)
    returned=$?
    wait "$!"
    # The code that counts is of the first worker to end badly; gcloud returns that of the worker of lowest number.
    first=$(sed -n 's/.*Command execution on worker .* failed with exit status \([0-9]*\).*/\1/p' "$folder/log")
    code=${first%%$'\n'*}
    code=${code:-$returned}
  else
    code=$?
  fi
  say "ended with $code"
  [ "$code" -eq 0 ] && finish 0
  pause  # until it is known whether they were taken away
  case "$code" in
    75 | 77 | 255) ;;
    *) [ "$(state)" = ACTIVE ] && finish "$code" ;;
  esac
  if [ "$restarts" -ge 10 ]; then
    say "after $restarts restarts"
    finish "$code"
  fi
  restarts=$((restarts + 1))
  say "starting again ($restarts of 10)"
done
