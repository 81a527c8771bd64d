#!/usr/bin/env bash
# The whole distillation on one GPU without a network: traces, filter, pack, SFT by sequence and by
# logits at equal tokens, the same without a filter, and scores on GSM8K test and MATH-500.
#   benchmarks/qwen_distill.sh DATA TEACHER STUDENT WORK [KEY=VALUE]...
# DATA holds gsm8k_train.jsonl, math_train.jsonl, gsm8k_test.jsonl, math500.jsonl; TEACHER and STUDENT
# are checkpoint folders; WORK gets artifacts and traces. Results: results/qwen-distill.json.
# Every step is a stage: run again, it goes on where it stopped.
set -euo pipefail
data=$(realpath "$1") teacher=$(realpath "$2") student=$(realpath "$3") work=$(realpath -m "$4")
shift 4
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mkdir -p "$work" results
{ cat "$data/gsm8k_train.jsonl"; head -n 2000 "$data/math_train.jsonl"; } > "$work/train.jsonl"
common=(-c configs/qwen-distill.yaml "prepare.problems=$work/train.jsonl"
        "evaluate.benchmarks=[$data/gsm8k_test.jsonl, $data/math500.jsonl]"
        "generate.teacher.model=$teacher" "logits.teacher=$teacher" "student.model=$student"
        "runtime.artifacts=$work/artifacts" "runtime.traces=$work/traces" "$@")
# An unpacked vLLM brings the module without its command.
command -v vllm >/dev/null || { mkdir -p "$work/bin"; export PATH="$work/bin:$PATH"
  printf '#!/bin/sh\nexec %s -m vllm.entrypoints.cli.main "$@"\n' "$python" > "$work/bin/vllm"
  chmod +x "$work/bin/vllm"; }
limbeck() { local -a words; read -ra words <<< "$1"; shift
  "$python" -m stages "${words[@]}" "${common[@]}" "$@"; }

sequence=(sft.method.type=sequence)
logits=(sft.method.type=logits sft.method.cross_entropy=0.1)
unfiltered=(sft.method.type=sequence 'filter.keep=tokens > 0')
for recipe in sequence logits unfiltered; do
  declare -n given=$recipe
  only=$([ "$recipe" = sequence ] && echo '[untrained, sft]' || echo '[sft]')
  limbeck evaluate "${given[@]}" "evaluate.models=$only"
  limbeck "path evaluate" "${given[@]}" "evaluate.models=$only" > "$work/$recipe.path"
done
# The teacher is scored as the students are: as the untrained student of a run of its own.
limbeck evaluate "student.model=$teacher" 'evaluate.models=[untrained]'
limbeck "path evaluate" "student.model=$teacher" 'evaluate.models=[untrained]' > "$work/teacher.path"
"$python" benchmarks/qwen_results.py "$work" results/qwen-distill.json
