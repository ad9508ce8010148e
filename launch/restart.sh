#!/usr/bin/env bash
# Runs a command on one machine, and runs it again when its exit status says that this can help:
#
#   launch/restart.sh -- python -m sqlr1_jax.main --config=configs/grpo.py:7b --workdir=/runs/first …
#
# A run resumes from its last checkpoint, so the same command goes on. On a GPU node this is all that is needed: one
# process uses all GPUs of the machine.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: launch/restart.sh [options] -- COMMAND ...

  --restarts=N   at most this many restarts (default: 10)
  --seconds=N    wait before each restart (default: 30)
  --dry-run      print the command and when it would be run again, and run nothing
  --help         print this text

exit status of the command   what happens
  0                          done
  2, 78                      stops: an argument, setting or file has to be mended first
  75                         again: a signal stopped the run, and it is saved
  any other                  again: a crash, or a machine that failed

SIGINT and SIGTERM reach the command as SIGTERM, and it is then not run again.
TEXT
}

# Prints an error and exits.
fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

restarts=10 seconds=30 dry_run=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --restarts=*) restarts=${1#*=} ;;
        --seconds=*) seconds=${1#*=} ;;
        --dry-run) dry_run=1 ;;
        --help) usage; exit 0 ;;
        --) shift; break ;;
        *) fail "$1 is not an option. Put the command to run after --. See --help." ;;
    esac
    shift
done
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts=$restarts takes a number, as in --restarts=10."
[[ $seconds =~ ^[0-9]+$ ]] || fail "--seconds=$seconds takes a number, as in --seconds=30."
[[ $# -gt 0 ]] || fail "no command. Put it after --, as in -- python -m sqlr1_jax.main --config=configs/grpo.py:7b …"
if [[ $dry_run == 1 ]]; then
    printf '%q ' "$@"
    printf '\n# unless it exits with 0, 2 or 78, again after %s s, at most %s times\n' "$seconds" "$restarts"
    exit 0
fi

stopping=0 child=''
# Ends the command; between two runs, ends the wait for the next one. bash lets its background commands ignore SIGINT.
stop() {
    stopping=1
    [[ -z $child ]] || kill -TERM "$child" 2> /dev/null
}
trap stop INT TERM

for ((restart = 0; ; restart++)); do
    "$@" &
    child=$!
    [[ $stopping == 0 ]] || stop # a signal came before the command's number was known
    wait "$child"
    status=$?
    while kill -0 "$child" 2> /dev/null; do # a signal ended the wait, and the command saves its state
        wait "$child"
        status=$?
    done
    child=''
    case $status in
        0 | 2 | 78) exit "$status" ;;
    esac
    [[ $stopping == 0 && $restart -lt $restarts ]] || exit "$status"
    echo "restart.sh: the command ended with status $status; restart $((restart + 1)) of $restarts in $seconds s" >&2
    for ((second = 0; second < seconds && stopping == 0; second++)); do
        sleep 1 &
        wait $!
    done
    [[ $stopping == 0 ]] || exit "$status"
done
