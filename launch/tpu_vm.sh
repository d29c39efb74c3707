#!/usr/bin/env bash
# Pretrain on a Cloud TPU VM or on all hosts of a slice: create, set up, run, follow, delete.
#
#   export TPU_NAME=awcl ZONE=ZONE ACCELERATOR=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   export REPOSITORY=URL NFS=10.0.0.2:/share            # what the hosts clone; what they mount at /mnt/awcl, if any
#   launch/tpu_vm.sh create && launch/tpu_vm.sh setup
#   launch/tpu_vm.sh run --config=configs/fine.py --workdir=/mnt/awcl/runs/fine
#   launch/tpu_vm.sh logs 0                              # of the first host; `status`: its exit status, nothing while it runs
#   launch/tpu_vm.sh keep --config=configs/fine.py --workdir=/mnt/awcl/runs/fine    # until it is done, see below
#   launch/tpu_vm.sh delete                              # until then you pay for it
#
# SPOT=1      cheaper, and may be taken away at any time
# QUEUED=1    wait in the queue for a slice that is not free now
# DRY_RUN=1   print the commands without running them
#
# `keep` does all of this, and repeats it whenever the slice was taken away; the run resumes from its last checkpoint,
# which therefore must be on the shared disk, or in a bucket: --workdir=gs://BUCKET/runs/fine. It does not delete the
# slice: run `delete`. Project and account are gcloud's.
set -euo pipefail

readonly SHARED=/mnt/awcl # where the hosts mount $NFS

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

gcloud() {
  if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' gcloud "$@" && echo; else command gcloud "$@"; fi
}

tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$TPU_NAME" --zone="$ZONE" "$@"
}

on_hosts() { # WORKER|all COMMAND
  tpu ssh --worker="$1" --command="$2"
}

state() { # READY, CREATING, PREEMPTED, ...; nothing if the TPU does not exist; UNKNOWN if that could not be asked
  if [[ -n ${DRY_RUN:-} ]]; then return; fi
  local errors
  errors=$(mktemp)
  if ! tpu describe --format='value(state)' 2> "$errors" && ! grep -q NOT_FOUND "$errors"; then
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

create() {
  : "${ACCELERATOR:?set the type and size, such as v5litepod-16}" "${RUNTIME:?set the image, such as v2-alpha-tpuv5-lite}"
  local options=(--zone="$ZONE" --accelerator-type="$ACCELERATOR")
  if [[ -n ${SPOT:-} ]]; then options+=(--spot); fi
  if [[ -n ${QUEUED:-} ]]; then
    gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" --runtime-version="$RUNTIME" \
      "${options[@]}"
    wait_until_ready
  else
    gcloud compute tpus tpu-vm create "$TPU_NAME" --version="$RUNTIME" "${options[@]}"
  fi
}

wait_until_ready() {
  if [[ -n ${DRY_RUN:-} ]]; then return; fi
  echo "waiting for $TPU_NAME"
  until [[ $(state) == READY ]]; do sleep "${POLL:-60}"; done
}

setup() {
  : "${REPOSITORY:?set an address that git can clone}"
  # The images' Python is too old; uv installs another.
  local steps="set -e; cd ~; python3 -m pip install --quiet --user uv; [ -d awcl ] || git clone --depth 1"
  steps+=" $(printf %q "$REPOSITORY") awcl"
  steps+="; cd awcl; ~/.local/bin/uv venv --quiet --allow-existing --python 3.11"
  steps+="; ~/.local/bin/uv pip install --quiet -c constraints.txt -e '.[tpu,gcs]'"
  if [[ -n ${NFS:-} ]]; then
    steps+="; sudo apt-get install -y -qq nfs-common; sudo mkdir -p $SHARED"
    steps+="; mountpoint -q $SHARED || sudo mount $(printf %q "$NFS") $SHARED; sudo chmod a+rwx $SHARED"
  fi
  on_hosts all "$steps"
}

run() {
  local training
  training="flock ~/awcl.lock .venv/bin/python -m awcl_jax.main $(printf '%q ' "$@")"
  # Detached, so that it outlives the connection; it writes its exit status to the file that `status` reads.
  on_hosts all "cd ~/awcl; if ! flock -n ~/awcl.lock true; then echo Already running.; else rm -f ~/awcl.status; \
($training > ~/awcl.log 2>&1; echo \$? > ~/awcl.status) < /dev/null > /dev/null 2>&1 & fi"
}

status() { # exit status of the first host's training; nothing while it runs
  on_hosts 0 'cat ~/awcl.status 2>/dev/null || true'
}

delete() {
  if [[ -n ${QUEUED:-} ]]; then
    gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" --force --quiet
  else
    tpu delete --quiet
  fi
}

keep() {
  local arguments="$*" ended tries=0
  arguments=${arguments//-workdir /-workdir=}
  if [[ $arguments != *-workdir=gs://* ]]; then
    : "${NFS:?set the shared disk, HOST:/SHARE, unless the run is in a bucket: the disks of the hosts are deleted with them}"
    if [[ $arguments != *-workdir=$SHARED/* ]]; then
      echo "error: pass --workdir=$SHARED/..., on the disk that outlives the hosts, or --workdir=gs://..." >&2
      exit 1
    fi
  fi
  if [[ $(state) == UNKNOWN ]]; then
    echo "error: gcloud cannot tell of $TPU_NAME. Check its account, project and ZONE" >&2
    exit 1
  fi
  while true; do
    case $(state) in
      READY) ;;
      UNKNOWN)
        sleep "${POLL:-60}"
        continue
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING) wait_until_ready ;;
      '') create ;;
      *) # PREEMPTED, TERMINATED
        delete
        create
        ;;
    esac
    ended=''
    if setup && run "$@"; then
      tries=0
      if [[ -n ${DRY_RUN:-} ]]; then return; fi
      follow && return
    else
      tries=$((tries + 1)) # hosts that were just made may not answer yet
    fi
    # A failure while the hosts exist would repeat; a host that is taken away ends the others, too.
    sleep "${POLL:-60}"
    if [[ $(state) != READY ]]; then continue; fi
    if [[ $tries -ge 3 ]]; then
      echo "error: the hosts exist and could not be set up, $tries times. See above" >&2
      exit 1
    fi
    if [[ -n $ended && ! $ended =~ ^(75|134)$ ]]; then # asked to stop, and saved; lost another host
      echo "error: the training failed, though its hosts exist. See $0 logs 0" >&2
      exit 1
    fi
  done
}

follow() { # 0 once the training has ended well; 1 if it failed, with its status in `ended`, or the hosts are gone
  while [[ -z $ended ]]; do
    sleep "${POLL:-60}"
    case $(state) in
      READY) ended=$(status || true) ;;
      UNKNOWN) ;;
      *) return 1 ;;
    esac
  done
  [[ $ended == 0 ]]
}

verb=${1:-help}
case $verb in
  create | setup | run | status | keep | delete | logs) shift ;;
  help | -h | --help) usage && exit 0 ;;
  *)
    echo "error: unknown verb $verb. One of create, setup, run, status, keep, delete, logs; \`help\` explains them" >&2
    exit 1
    ;;
esac
: "${TPU_NAME:?set a name of your choice}" "${ZONE:?set a zone that has the accelerator}"
case $verb in
  logs) on_hosts "${1:-0}" 'tail -n 100 -F ~/awcl.log' ;;
  run | keep)
    if [[ $# == 0 ]]; then
      echo "error: pass $verb the arguments of awcl_jax.main, such as --config=configs/fine.py" >&2
      exit 1
    fi
    "$verb" "$@"
    ;;
  *) "$verb" ;;
esac
