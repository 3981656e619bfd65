#!/bin/sh
# demo.sh FOLDER: the whole example on this machine's local cloud; results are left in FOLDER.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
results=${1:-demo-results}
rm -rf "$results"
mkdir -p "$results"
results=$(cd "$results" && pwd)

# A cloud of its own, so that the demo touches nothing of yours.
export SCAR_CONFIG_FOLDER="$results/.scar" SCAR_TARGET=local
trap 'scar local stop >/dev/null 2>&1 || true' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }

say "1. deploy two functions: gc-split (on Batch) and gc-count (on Lambda)"
scar init -f "$here/genome-gc.yaml"

say "2. drop one FASTA file with 200 sequences into genome/input"
sh "$here/make-genome.sh" 200 > "$results/sample.fasta"
scar put -b genome/input -p "$results/sample.fasta"

say "3. the file is split by a Batch job, each part is counted by a Lambda invocation"
waited=0
until [ "$(scar ls -b genome/gc 2>/dev/null | grep -c '\.tsv')" -ge 8 ]; do
    waited=$((waited + 1))
    if [ "$waited" -gt 100 ]; then
        echo "no results after a minute; the log says:" >&2
        scar log -n gc-split >&2
        scar log -n gc-count >&2
        exit 1
    fi
    sleep 0.2
done
scar log -n gc-split | grep -E 'sequences in|delegated'
scar log -n gc-count | grep 'measured'

say "4. fetch the results"
scar get -b genome/gc -p "$results/gc"
say "the first lines of $results/gc/sample-001.tsv:"
head -n 4 "$results/gc/sample-001.tsv"

say "5. remove the functions (the buckets and their files stay)"
scar rm -f "$here/genome-gc.yaml"
