#!/usr/bin/env bash
# Runs a command on every worker of a TPU slice: makes the slice unless it is there, installs this tree, streams the logs.
#
#   launch/tpu_pod.sh --name=sqlr1 --type=v5litepod-16 --zone=us-west4-a --bucket=gs://mine/runs -- \
#       python -m sqlr1_jax.main --distributed --config=configs/grpo.py:7b --workdir=/runs/first --config.mesh.tensor=4 \
#       --config.model.path=/runs/qwen7b --config.data.train=synsql:/runs/synsql --config.data.evaluate=spider:/runs/spider
#
# The bucket is mounted at /runs on every worker, so that all hosts share one workdir. The run outlives this script:
# started again with the same arguments it follows a run that is going, or goes on with the same workdir. The slice costs
# money until it is deleted (--delete).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/tpu_pod.sh --name=NAME --type=TYPE --zone=ZONE [options] -- COMMAND ...

  --name=NAME        of the TPU slice; one of that name is used as it is
  --type=TYPE        accelerator type, as in v5litepod-16, v5p-32, v6e-16
  --zone=ZONE        as in us-west4-a
  --project=PROJECT  Google Cloud project (default: gcloud's own)
  --version=VERSION  TPU software (default: by type)
  --bucket=gs://...  mounted at /runs on every worker; a slice of several hosts needs it for its workdir
  --spot             a slice that may be taken away; run this again to go on
  --delete           delete the slice when the command has ended well
  --dry-run          print each command, ready to be pasted, and run none
  --help
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Words as one line that a shell reads back as the same words.
quoted() {
    local word separator=''
    for word in "$@"; do
        if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
            word="'${word//\'/\'\\\'\'}'"
        fi
        printf '%s%s' "$separator" "$word"
        separator=' '
    done
}

run() {
    if [[ $dry_run == 1 ]]; then
        printf '%s\n' "$(quoted "$@")"
    else
        "$@"
    fi
}

on_workers() {
    run "${tpu[@]}" ssh "$name" "${place[@]}" --worker=all --command="$1"
}

software() {
    case $1 in
        v4-*) echo tpu-ubuntu2204-base ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        *) fail "--type=$1 is of no kind known here (v4-N, v5litepod-N, v5p-N, v6e-N): name its software by --version." ;;
    esac
}

name='' type='' zone='' project='' version='' bucket='' spot=0 delete=0 dry_run=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --name=*) name=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --bucket=*) bucket=${1#*=} ;;
        --spot) spot=1 ;;
        --delete) delete=1 ;;
        --dry-run) dry_run=1 ;;
        --help) usage; exit 0 ;;
        --) shift; break ;;
        --name | --type | --zone | --project | --version | --bucket) fail "$1 takes its value behind =, as in $1=VALUE." ;;
        *) fail "$1 is no option here; the command to run comes behind --. See --help." ;;
    esac
    shift
done
[[ -n $name ]] || fail "--name is missing: what is the slice called?"
[[ -n $type ]] || fail "--type is missing, as in --type=v5litepod-16."
[[ -n $zone ]] || fail "--zone is missing, as in --zone=us-west4-a."
[[ $# -gt 0 ]] || fail "no command: put it behind --, as in -- python -m sqlr1_jax.main --distributed --config=configs/grpo.py:7b …"
[[ -z $bucket || $bucket == gs://?* ]] || fail "--bucket=$bucket: it takes gs://NAME or gs://NAME/FOLDER."
[[ $dry_run == 1 ]] || command -v gcloud > /dev/null || fail "gcloud is not here: https://cloud.google.com/sdk/docs/install"
if [[ -z $version ]]; then
    version=$(software "$type")
fi

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tpu=(gcloud compute tpus tpu-vm)
place=("--zone=$zone")
if [[ -n $project ]]; then
    place+=("--project=$project")
fi
create=("${tpu[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--version=$version")
if [[ $spot == 1 ]]; then
    create+=(--spot)
fi
remove=("${tpu[@]}" delete "$name" "${place[@]}" --quiet)
describe=("${tpu[@]}" describe "$name" "${place[@]}" '--format=value(state,acceleratorType.basename())')

# 1. The slice.
if [[ $dry_run == 1 ]]; then
    printf '# unless this says READY: %s\n' "$(quoted "${describe[@]}")"
    run "${create[@]}"
else
    read -r state there <<< "$("${describe[@]}" 2> /dev/null || true)" || true
    case $state in
        READY) [[ $there == "$type" ]] || fail "slice $name is a $there, not a $type: choose another --name or --type." ;;
        '') "${create[@]}" ;;
        PREEMPTED | TERMINATED) "${remove[@]}" && "${create[@]}" ;;
        *) fail "slice $name is $state: wait until it is READY, or delete it: $(quoted "${remove[@]}")" ;;
    esac
fi

# 2. This tree, as git knows it: run folders and environments stay here.
if [[ -n $(git -C "$repository" status --porcelain --untracked-files=no) ]]; then
    echo "note: changes that are not committed stay here" >&2
fi
archive=${TMPDIR:-/tmp}/sqlr1_jax.tar.gz
run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD
run "${tpu[@]}" scp "$archive" "$name:sqlr1_jax.tar.gz" "${place[@]}" --worker=all

# 3. Its environment. uv brings a Python: some images have one older than 3.11.
on_workers 'set -e
if kill -0 "$(cat run.pid 2> /dev/null)" 2> /dev/null; then exit 0; fi
rm -rf sqlr1_jax && mkdir sqlr1_jax && tar -xzf sqlr1_jax.tar.gz -C sqlr1_jax
test -x .local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -d venv || .local/bin/uv venv --python=3.11 venv
VIRTUAL_ENV=$HOME/venv .local/bin/uv pip install --quiet -e "./sqlr1_jax[tpu]"'

# 4. The folder that all workers share.
if [[ -n $bucket ]]; then
    inside=${bucket#gs://}
    mount=(gcsfuse --implicit-dirs --rename-dir-limit=200000) # a checkpoint appears by a rename
    if [[ $inside == */?* ]]; then
        mount+=("--only-dir=${inside#*/}")
    fi
    mount+=("${inside%%/*}" /runs)
    on_workers "set -e
command -v gcsfuse > /dev/null || { echo 'gcsfuse is not on this image: https://cloud.google.com/storage/docs/gcsfuse-install' >&2; exit 1; }
sudo mkdir -p /runs && sudo chown \"\$USER\" /runs
mountpoint -q /runs || $(quoted "${mount[@]}")"
fi

# 5. The command, under a process of its own that a lost connection does not end; its log is followed to its end.
job="$(quoted "$@"); echo \$? > ~/run.status"
on_workers "cd sqlr1_jax || exit
if ! kill -0 \"\$(cat ~/run.pid 2> /dev/null)\" 2> /dev/null; then
    rm -f ~/run.status
    : > ~/run.log
    PATH=~/venv/bin:\$PATH PYTHONUNBUFFERED=1 setsid nohup bash -c $(quoted "$job") >> ~/run.log 2>&1 < /dev/null &
    echo \$! > ~/run.pid
fi
tail -n +1 -f --pid=\"\$(cat ~/run.pid)\" ~/run.log | sed -u \"s/^/\$(hostname): /\"
exit \"\$(cat ~/run.status 2> /dev/null || echo 1)\""

if [[ $delete == 1 ]]; then
    run "${remove[@]}"
fi
