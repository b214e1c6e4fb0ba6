#!/usr/bin/env bash
# Starts training on TPU slices of a GKE cluster, as launch/gke_jobset.yaml describes it.
#
#   launch/gke.sh --name=NAME --image=IMAGE --bucket=BUCKET [FLAGS] -- FLAGS OF launch/run.py
#
#   --name             of the JobSet
#   --image            made from launch/Dockerfile, in a registry that the cluster can read
#   --bucket           a bucket that every worker reads at /bucket: teacher, data
#   --accelerator=tpu-v5-lite-podslice   node label cloud.google.com/gke-tpu-accelerator; others are
#                      tpu-v6e-slice, tpu-v5p-slice, tpu7x
#   --topology=4x4     of a slice, in chips: node label cloud.google.com/gke-tpu-topology
#   --chips_per_host=4 of its machine type: 4 of ct5lp-hightpu-4t or tpu7x-standard-4t
#   --slices=1
#   --max_restarts=100
#   --service_account=default   of Kubernetes; needs access to the bucket
#   --dry_run          prints the manifest instead of creating it; needs no cluster and no kubectl
#
# Exit codes: 2 wrong flags, else that of kubectl.
set -euo pipefail

fail() {
  echo "gke.sh: $1" >&2
  exit 2
}

readonly NAMES='name image bucket accelerator topology chips_per_host slices max_restarts service_account'
if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
fi
name='' image='' bucket='' dry_run='' service_account=default
accelerator=tpu-v5-lite-podslice topology=4x4 chips_per_host=4 slices=1 max_restarts=100
run_flags=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --)
      shift
      run_flags=("$@")
      break
      ;;
    --*=*)
      flag=${1%%=*}
      flag=${flag#--}
      [[ " $NAMES " == *" $flag "* ]] ||
        fail "there is no flag --$flag; there are --dry_run and, with a value, ${NAMES// /, }."
      printf -v "$flag" '%s' "${1#*=}"
      ;;
    *) fail "unexpected '$1'; flags are --name=value, those of launch/run.py come after --." ;;
  esac
  shift
done
for flag in name image bucket; do
  [[ -n ${!flag} ]] || fail "--$flag=… is required."
done
[[ ${#run_flags[@]} -gt 0 ]] || fail 'the flags of launch/run.py must follow after --.'
for flag in chips_per_host slices; do
  [[ ${!flag} =~ ^[1-9][0-9]{0,5}$ ]] || fail "--$flag must be a positive number, got '${!flag}'."
done
[[ $max_restarts =~ ^[0-9]{1,9}$ ]] || fail "--max_restarts must be a whole number, got '$max_restarts'."
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
  fail "--topology must be like 4x4 or 2x2x4, got '$topology'."
case $accelerator:$topology in
  tpu-v5p-slice:*x*x* | tpu7x:*x*x*) ;;
  tpu-v5p-slice:* | tpu7x:*)
    fail "--topology of $accelerator has three sizes, such as 2x2x1; got '$topology'."
    ;;
  tpu-v5-lite-podslice:*x*x* | tpu-v6e-slice:*x*x*)
    fail "--topology of $accelerator has two sizes, such as 4x4; got '$topology'."
    ;;
esac
bucket=${bucket#gs://}
for flag in name image bucket accelerator service_account; do
  [[ ${!flag} =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] ||
    fail "--$flag must be letters, digits and . _ : / @ -, got '${!flag}'."
done
chips=$((${topology//x/*}))
((chips % chips_per_host == 0)) ||
  fail "--topology=$topology has $chips chips, which --chips_per_host=$chips_per_host does not divide."
hosts=$((chips / chips_per_host))

# A list of YAML strings. Kubernetes would read $(NAME) as a variable; $$( is how to write $(.
quote="'" args=''
for word in "${run_flags[@]}"; do
  [[ $word != *$'\n'* ]] || fail "a flag of launch/run.py has more than one line: $word"
  # shellcheck disable=SC2016 # Meant literally.
  word=${word//'$('/'$$('}
  args+="
                    - '${word//$quote/$quote$quote}'"
done

manifest=$(<"$(dirname "$0")/gke_jobset.yaml")
fill() {
  manifest=${manifest//"\${$1}"/"$2"}
}
fill NAME "$name"
fill MAX_RESTARTS "$max_restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill SERVICE_ACCOUNT "$service_account"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill IMAGE "$image"
fill CHIPS_PER_HOST "$chips_per_host"
fill BUCKET "$bucket"
fill ARGS "$args"

if [[ -n $dry_run ]]; then
  echo "# kubectl create -f - would get:"
  printf '%s\n' "$manifest"
else
  type kubectl >/dev/null 2>&1 || fail 'kubectl is not installed; --dry_run works without it.'
  # Not apply: a JobSet cannot be changed, and one that has ended must be deleted first.
  printf '%s\n' "$manifest" | kubectl create -f -
fi
