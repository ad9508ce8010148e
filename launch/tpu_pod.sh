#!/usr/bin/env bash
# Runs a command on every worker of a TPU slice: creates the slice if needed, installs this repository, runs the command
# and streams its logs.
#
#   launch/tpu_pod.sh --name=sqlr1 --type=v5litepod-16 --zone=us-west4-a --bucket=gs://my-bucket/runs -- \
#       python -m sqlr1_jax.main --distributed --config=configs/grpo.py:7b --workdir=/runs/first --config.mesh.tensor=4 \
#       --config.model.path=/runs/qwen7b --config.data.train=synsql:/runs/synsql --config.data.evaluate=spider:/runs/spider
#
# The bucket is mounted at /runs on every worker, so that all hosts share one workdir. The run continues if this script
# ends. With the same arguments again, the script follows a run in progress, or resumes one that ended. The slice costs
# money until it is deleted (--delete).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/tpu_pod.sh --name=NAME --type=TYPE --zone=ZONE [options] -- COMMAND ...

  --name=NAME        name of the TPU slice; an existing slice of this name is used
  --type=TYPE        accelerator type, such as v5litepod-16, v5p-32 or v6e-16
  --zone=ZONE        zone of the slice, such as us-west4-a
  --project=PROJECT  Google Cloud project (default: gcloud's)
  --version=VERSION  TPU software version (default: chosen by type)
  --bucket=gs://...  bucket to mount at /runs on every worker; required for a slice of several hosts, which share a workdir
  --spot             create a preemptible slice; with --restarts it is created again when it is taken away
  --restarts=N       run the command again, at most N times, unless it exits with 0, 2 or 78 (default: 0). 2 and 78 mean
                     that an argument, setting or file has to be mended first
  --delete           delete the slice after the command has succeeded
  --dry-run          print the commands, ready to paste, and run none
  --help             print this text
TEXT
}

# Prints an error and exits.
fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Prints its arguments, quoted, as one line of shell code.
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

# Runs a command, or prints it in a dry run.
run() {
    if [[ $dry_run == 1 ]]; then
        printf '%s\n' "$(quoted "$@")"
    else
        "$@"
    fi
}

# Runs shell code on every worker.
on_workers() {
    run "${tpu[@]}" ssh "$name" "${location[@]}" --worker=all --command="$1"
}

# Prints the TPU software version of an accelerator type.
software() {
    case $1 in
        v4-*) echo tpu-ubuntu2204-base ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        *) fail "--type=$1 is unknown (known: v4-N, v5litepod-N, v5p-N, v6e-N). Set its software version with --version." ;;
    esac
}

name='' type='' zone='' project='' version='' bucket='' spot=0 restarts=0 delete=0 dry_run=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --name=*) name=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --bucket=*) bucket=${1#*=} ;;
        --spot) spot=1 ;;
        --restarts=*) restarts=${1#*=} ;;
        --delete) delete=1 ;;
        --dry-run) dry_run=1 ;;
        --help) usage; exit 0 ;;
        --) shift; break ;;
        --name | --type | --zone | --project | --version | --bucket) fail "$1 takes its value after =, as in $1=VALUE." ;;
        *) fail "$1 is not an option. Put the command to run after --. See --help." ;;
    esac
    shift
done
[[ -n $name ]] || fail "--name is missing, as in --name=sqlr1."
[[ -n $type ]] || fail "--type is missing, as in --type=v5litepod-16."
[[ -n $zone ]] || fail "--zone is missing, as in --zone=us-west4-a."
[[ $# -gt 0 ]] || fail "no command. Put it after --, as in -- python -m sqlr1_jax.main --distributed --config=configs/grpo.py:7b …"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts=$restarts takes a number, as in --restarts=10."
[[ -z $bucket || $bucket == gs://?* ]] || fail "--bucket=$bucket takes gs://NAME or gs://NAME/FOLDER."
[[ $dry_run == 1 ]] || command -v gcloud > /dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
if [[ -z $version ]]; then
    version=$(software "$type")
fi

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tpu=(gcloud compute tpus tpu-vm)
location=("--zone=$zone")
if [[ -n $project ]]; then
    location+=("--project=$project")
fi
create=("${tpu[@]}" create "$name" "${location[@]}" "--accelerator-type=$type" "--version=$version")
if [[ $spot == 1 ]]; then
    create+=(--spot)
fi
remove=("${tpu[@]}" delete "$name" "${location[@]}" --quiet)
describe=("${tpu[@]}" describe "$name" "${location[@]}" '--format=value(state,acceleratorType.basename())')

# Creates the slice, unless it is ready.
create_slice() {
    if [[ $dry_run == 1 ]]; then
        printf '# Skip the next command if this prints READY: %s\n' "$(quoted "${describe[@]}")"
        run "${create[@]}"
        return
    fi
    local state actual_type
    read -r state actual_type <<< "$("${describe[@]}" 2> /dev/null || true)" || true
    case $state in
        READY) [[ $actual_type == "$type" ]] || fail "slice $name is a $actual_type, not a $type. Change --name or --type." ;;
        '') "${create[@]}" ;;
        PREEMPTED | TERMINATED) "${remove[@]}" && "${create[@]}" ;;
        *) fail "slice $name is $state. Wait until it is READY, or delete it: $(quoted "${remove[@]}")" ;;
    esac
}

# Copies the files that git tracks to every worker; runs and virtual environments are not copied.
copy_repository() {
    if [[ -n $(git -C "$repository" status --porcelain --untracked-files=no) ]]; then
        echo "note: uncommitted changes are not copied" >&2
    fi
    local archive=${TMPDIR:-/tmp}/sqlr1_jax.tar.gz
    run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD &&
        run "${tpu[@]}" scp "$archive" "$name:sqlr1_jax.tar.gz" "${location[@]}" --worker=all
}

# Installs the copy on every worker. uv provides Python 3.11, since some images have an older one.
install() {
    # shellcheck disable=SC2016 # the workers expand the variables
    on_workers 'set -e
if kill -0 "$(cat run.pid 2> /dev/null)" 2> /dev/null; then exit 0; fi
rm -rf sqlr1_jax && mkdir sqlr1_jax && tar -xzf sqlr1_jax.tar.gz -C sqlr1_jax
test -x .local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -d venv || .local/bin/uv venv --python=3.11 venv
VIRTUAL_ENV=$HOME/venv .local/bin/uv pip install --quiet -e "./sqlr1_jax[tpu]"'
}

# Mounts the folder that all workers share.
mount_bucket() {
    local bucket_path=${bucket#gs://}
    local mount=(gcsfuse --implicit-dirs --rename-dir-limit=200000) # checkpoints are written by renaming a folder
    if [[ $bucket_path == */?* ]]; then
        mount+=("--only-dir=${bucket_path#*/}")
    fi
    mount+=("${bucket_path%%/*}" /runs)
    on_workers "set -e
command -v gcsfuse > /dev/null || { echo 'gcsfuse is not installed on this image: https://cloud.google.com/storage/docs/gcsfuse-install' >&2; exit 1; }
sudo mkdir -p /runs && sudo chown \"\$USER\" /runs
mountpoint -q /runs || $(quoted "${mount[@]}")"
}

# Runs the command in its own session, so that a lost connection does not end it, and follows its log to the end.
run_command() {
    local job
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
}

# Whether a worker's command ended with a status that a restart cannot help. gcloud's own status may be another.
must_be_mended() {
    # shellcheck disable=SC2016 # the workers expand it
    on_workers 'echo "status $(cat run.status 2> /dev/null)"' 2> /dev/null | grep -qE 'status (2|78)$'
}

# All of the above, in order, up to the first that fails.
launch() {
    create_slice && copy_repository && install && { [[ -z $bucket ]] || mount_bucket; } && run_command "$@"
}

for ((restart = 0; ; restart++)); do
    status=0
    (launch "$@") || status=$?
    if [[ $status == 0 || $status == 2 || $restart -ge $restarts ]] || must_be_mended; then
        break
    fi
    echo "tpu_pod.sh: the command ended with status $status; restart $((restart + 1)) of $restarts" >&2
    sleep "${RESTART_SECONDS:-30}"
done
if [[ $status != 0 ]]; then
    exit "$status"
fi
if [[ $delete == 1 ]]; then
    run "${remove[@]}"
fi
