#!/usr/bin/env bash
# Pretrain on nodes of a Kubernetes cluster: fill in launch/kubernetes_gpu.yaml or launch/kubernetes_tpu.yaml, apply it.
#
#   export NAME=awcl CLAIM=shared REPOSITORY=URL           # of the job, of a ReadWriteMany volume; what git can clone
#   export NODES=2 GPUS=8                                  # nodes, and GPUs of each
#   launch/kubernetes.sh gpu --config=configs/fine.py --workdir=/mnt/awcl/runs/fine
#   kubectl logs --prefix --follow --selector=jobset.sigs.k8s.io/jobset-name=awcl
#   kubectl delete jobset awcl                             # frees the nodes; the folder of the run stays
#
# The volume is mounted at /mnt/awcl. The manifest lists the variables for tpu.
#
#   IMAGE=python:3.11    with git; the code is cloned and installed into it at each start
#   DRY_RUN=1            print the manifest without applying it, for example: | kubectl apply --dry-run=server -f -
set -euo pipefail

kind=${1:-}
case $kind in
  gpu) variables=(GPUS) ;;
  tpu) variables=(CHIPS ACCELERATOR TOPOLOGY) ;;
  '' | help | -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;;
  *)
    echo "error: unknown kind $kind. One of gpu and tpu; \`help\` explains them" >&2
    exit 1
    ;;
esac
shift
variables+=(NAME NODES CLAIM REPOSITORY IMAGE ARGUMENTS)
IMAGE=${IMAGE:-python:3.11}
arguments="$*"
arguments=${arguments//-workdir /-workdir=}
if [[ $arguments != *-config[=\ ]* || $arguments != *-workdir=/mnt/awcl/* ]]; then
  echo "error: pass --config=..., and --workdir=/mnt/awcl/... on the volume that all nodes share" >&2
  exit 1
fi
ARGUMENTS=$(printf '%q ' "$@")
ARGUMENTS=${ARGUMENTS% }

manifest=$(< "$(dirname "$0")/kubernetes_$kind.yaml")
manifest=apiVersion${manifest#*$'\n'apiVersion} # without the comment above
for variable in "${variables[@]}"; do
  if [[ -z ${!variable:-} ]]; then
    echo "error: $variable is not set. See the head of launch/kubernetes_$kind.yaml" >&2
    exit 1
  fi
  manifest=${manifest//"\${$variable}"/"${!variable}"}
done
if [[ -n ${DRY_RUN:-} ]]; then echo "$manifest"; else kubectl apply -f - <<< "$manifest"; fi
