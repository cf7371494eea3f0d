#!/usr/bin/env bash
# Quantize a model, verify every artifact against gates, leave reports for CI.
#
#   MODEL=my-llama TO="gguf safetensors" examples/ci/verify.sh
#
# MODEL    the float model (without it, the embedded one)
# TO       containers, each verified in its own runtime        OUT      where artifacts go (dist)
# GATES    what to demand                                      REPORTS  where reports go (reports)
# TOKENS   tokens to measure on                                BASELINE report of an earlier release, if any
#
# Exit code: 0 every gate passed, 3 one failed, 4 something could not be measured, 1 or 2 as the tool says.
set -euo pipefail

TO=${TO:-gguf safetensors}
OUT=${OUT:-dist}
REPORTS=${REPORTS:-reports}
GATES=${GATES:-kl_mean<=0.08 top1>=0.85 perplexity_ratio<=1.05}
mkdir -p "$REPORTS"

containers=() gates=()
for container in $TO; do containers+=(--to "$container"); done
for gate in $GATES; do gates+=(--gate "$gate"); done
if [ -n "${BASELINE:-}" ]; then gates+=(--baseline "$BASELINE"); fi

gpt54-convert quantize ${MODEL:+"$MODEL"} --bits 4 "${containers[@]}" -o "$OUT" --no-verify

worst=0
for container in $TO; do
    code=0
    gpt54-convert verify "$OUT/$container" "${gates[@]}" --tokens "${TOKENS:-4096}" --json \
        --junit "$REPORTS/$container.xml" --markdown "$REPORTS/$container.md" \
        --html "$REPORTS/$container.html" > "$REPORTS/$container.json" || code=$?
    echo "$container: exit code $code" >&2
    # A gate that failed says more than one that could not be measured.
    if [ "$code" -ne 0 ] && { [ "$worst" -eq 0 ] || [ "$code" -eq 3 ]; }; then worst=$code; fi
done

for summary in "$REPORTS"/*.md; do
    if [ -f "$summary" ]; then cat "$summary" >> "${GITHUB_STEP_SUMMARY:-/dev/stderr}"; fi
done
exit "$worst"
