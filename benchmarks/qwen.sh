#!/usr/bin/env bash
# The seeds' table on real models, without a network: a 1.5B teacher, a 0.5B student, GSM8K and MATH.
#   DATA=… TEACHER=… STUDENT=… WORK=… benchmarks/qwen.sh STAGE RECIPE [KEY=VALUE]...
#   … benchmarks/qwen.sh all               every recipe for one GPU, one after the other
# DATA holds gsm8k_train.jsonl, math_train.jsonl, gsm8k_test.jsonl, math500.jsonl; TEACHER and STUDENT
# are checkpoint folders; WORK gets artifacts and traces, and RESULTS (or WORK/results) the files of
# benchmarks/qwen_results.py, after each evaluate or rl. A recipe's stages go on where they stopped, and
# recipes on several GPUs may run side by side (CUDA_VISIBLE_DEVICES) once what they share is made.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} math=${MATH_PROBLEMS:-3000} every=
results=${RESULTS:-$WORK/results}
mkdir -p "$WORK/bin" "$results"
[ -f "$WORK/train.jsonl" ] ||
  { cat "$DATA/gsm8k_train.jsonl"; head -n "$math" "$DATA/math_train.jsonl"; } > "$WORK/train.jsonl"
common=(-c configs/qwen-distill.yaml "prepare.problems=$WORK/train.jsonl"
        "evaluate.benchmarks=[$DATA/gsm8k_test.jsonl, $DATA/math500.jsonl]"
        "prepare.decontaminate=[$DATA/gsm8k_test.jsonl, $DATA/math500.jsonl]"
        "generate.teacher.model=$TEACHER" "logits.teacher=$TEACHER" "student.model=$STUDENT"
        "runtime.artifacts=$WORK/artifacts" "runtime.traces=$WORK/traces")
# An unpacked vLLM brings the module without its command.
command -v vllm >/dev/null || { export PATH="$WORK/bin:$PATH"
  printf '#!/bin/sh\nexec %s -m vllm.entrypoints.cli.main "$@"\n' "$python" > "$WORK/bin/vllm"
  chmod +x "$WORK/bin/vllm"; }

# What a recipe is, and which of its models is scored.
base=('evaluate.models=[untrained]')
teacher=('evaluate.models=[untrained]' "student.model=$TEACHER")
sequence=('evaluate.models=[sft]' sft.method.type=sequence)
logits=('evaluate.models=[sft]' sft.method.type=logits sft.method.cross_entropy=0.1
        sft.trainer.per_device_train_batch_size=16 sft.trainer.gradient_accumulation_steps=2)
# The distilled student goes on by itself: it answers, and learns the teacher's distribution there.
on_policy=('evaluate.models=[sft]' sft.method.type=on_policy "sft.method.teacher=$TEACHER"
           sft.held_out=0 sft.minutes=7 sft.trainer.max_steps=100
           sft.trainer.beta=1.0 sft.trainer.temperature=1.0 sft.trainer.max_completion_length=640
           sft.trainer.use_vllm=true sft.trainer.vllm_gpu_memory_utilization=0.25
           sft.trainer.vllm_max_model_length=4096
           sft.trainer.per_device_train_batch_size=32 sft.trainer.gradient_accumulation_steps=3
           sft.trainer.warmup_steps=5 sft.trainer.logging_steps=1)
unfiltered=('evaluate.models=[sft]' sft.method.type=sequence 'filter.keep=tokens > 0')
rl_only=('evaluate.models=[rl]' rl.start=base)
distilled_rl=('evaluate.models=[rl]' rl.start=sft "${sequence[@]:1}")
two_gpus=("${distilled_rl[@]}" rl.trainer.gradient_accumulation_steps=16
          'runtime.launch={num_processes: 2, multi_gpu: true, mixed_precision: bf16}')
# The same from one distilled student with three seeds: other orders of problems, other samples.
seed_0=("${distilled_rl[@]}" rl.trainer.seed=0)
seed_1=("${distilled_rl[@]}" rl.trainer.seed=1)
seed_2=("${distilled_rl[@]}" rl.trainer.seed=2)
on_policy_rl=('evaluate.models=[rl]' rl.start=sft "${on_policy[@]:1}")
r1_zero=('evaluate.models=[rl]' rl.start=base generate.prompt=r1_zero student.chat_template=bare
         'rl.difficulty='
         rl.rewards.r1_format=0.05 rl.trainer.scale_rewards=batch
         rl.keep_completions=10)
fixed=("${distilled_rl[@]}" rl.trainer.max_steps=40)
growing=("${fixed[@]}" 'rl.phases=[{until_step: 20, trainer: {max_completion_length: 256}}, {}]')
recipes=(base teacher sequence logits on_policy unfiltered rl_only distilled_rl on_policy_rl fixed growing
         r1_zero)

# The ablation trains on as many tokens as `sequence` does, not as many epochs.
tokens_of() { local folder; limbeck pack "$@" >&2; folder=$(limbeck "path pack" "$@")
  "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["counts"]["tokens"])' "$folder/manifest.json"; }
epochs_of() { "$python" - "$@" <<'PY'
import sys, yaml
epochs = yaml.safe_load(open("configs/qwen-distill.yaml"))["sft"]["trainer"]["num_train_epochs"]
for pair in sys.argv[3:]:
    key, _, value = pair.partition("=")
    epochs = float(value) if key == "sft.trainer.num_train_epochs" else epochs
print(round(epochs * int(sys.argv[1]) / int(sys.argv[2]), 3))
PY
}
equal_tokens() { local epochs
  epochs=$(epochs_of "$(tokens_of sequence "$@")" "$(tokens_of unfiltered "$@")" "$@")
  more=("sft.trainer.num_train_epochs=$epochs"); }
after_sequence() { local one shared=()       # sft.* given to one recipe is of the training that follows
  for one; do [[ ! $every && $one == sft.* ]] || shared+=("$one"); done
  limbeck sft sequence "${shared[@]}" >&2
  more=("student.model=$(limbeck "path sft" sequence "${shared[@]}")/model"); }

limbeck() { local stage=$1; declare -n given=$2; shift 2
  local -a words; read -ra words <<< "$stage"
  "$python" -m stages "${words[@]}" "${common[@]}" "${given[@]}" "$@"; }

# `limbeck` for a recipe; `more` are the settings of it that follow from another's artifacts.
recipe() { local stage=$1 name=$2; shift 2; more=()
  case $name/$stage in
    unfiltered/sft | unfiltered/*evaluate) equal_tokens "$@" ;;
    on_policy/* | on_policy_rl/*) after_sequence "$@" ;;
  esac
  limbeck "$stage" "$name" "$@" "${more[@]}"; }

# Where a recipe's artifact lies, then what the recipe was made with, an override a line.
noted() { recipe "path $1" "${@:2}"; declare -n own=$2; printf '%s\n' "${own[@]}" "${@:3}" "${more[@]}"; }

if [ "$1" = all ]; then
  stage=evaluate every=yes; shift
  for name in "${recipes[@]}"; do recipe evaluate "$name" "$@"; done
else
  stage=$1 recipes=("$2"); shift 2
  recipe "$stage" "${recipes[0]}" "$@"
  case $stage in rl | evaluate) ;; *) exit 0 ;; esac
fi
for name in "${recipes[@]}"; do      # renamed when whole: one beside this may be gathering
  noted "$stage" "$name" "$@" > "$WORK/$name.partial"
  mv "$WORK/$name.partial" "$WORK/$name.$stage"
done
"$python" -m benchmarks.qwen_results "$WORK" "$results"
