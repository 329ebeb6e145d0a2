#!/usr/bin/env bash
# What one GPU makes of this package, in about ten minutes: its tests, its speed beside peers, a real run and its probe.
#
#   benchmarks/gpu_check.sh [--small] [--output DIR] [--data DIR] [--labels COLUMN] [PART ...]
#
# Parts, in this order and all by default; each has a limit of its own, and writes to DIR as it goes:
#   tests     pytest -m gpu: golden vectors, every phase, modality and quantizer, attention, runs, fine-tuning, a pipeline
#   steps     ViT-B of each modality, each phase, batches of 64 and 256: speed, memory, host waits   (benchmarks/gpu.py)
#   peers     AST, ViTMAE, VideoMAE and vector-quantize-pytorch beside ours; fbank on the device
#   compiled  the same steps with torch.compile; and the tests of compiled steps
#   train     audio/esc10_tiny on all of ESC-50, from --data, a folder as on the Hub; then linear probes of its encoders.
#             Other sets have other --labels (target). Without --data: audio/demo on synthesized sounds
# --small is a trial of all parts at tiny sizes, for machines without a GPU; its figures mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

small='' data='' labels='' output=runs/gpu_check parts=()
while (($#)); do
    case $1 in
        --small) small=--small ;;
        --output) output=$2; shift ;;
        --data) data=$2; shift ;;
        --labels) labels=$2; shift ;;
        tests | steps | peers | compiled | train) parts+=("$1") ;;
        *) echo "gpu_check.sh: $1 is no option and no part; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done
((${#parts[@]})) || parts=(tests steps peers compiled train)
mkdir -p "$output"
output=$(cd "$output" && pwd)
failed=0
export PYTHONUNBUFFERED=1

run() { # NAME SECONDS COMMAND...: runs it for so long at most; its output goes to DIR/NAME.log as well
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$output/$name.log"
    code=$?
    ((code)) && failed=1
    echo "== $name: exit code $code after $((SECONDS - start)) of at most $limit s"
}

wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

bench() { # PART SECONDS OPTIONS...
    local part=$1 limit=$2
    shift 2
    [[ $small ]] && set -- --small --rounds 1 --batch-sizes 1,2
    run "$part" "$limit" python3 benchmarks/gpu.py --parts "$part" --output "$output/$part" "$@"
}

tests() { # NAME SECONDS MARKS: pytest, in several processes where pytest-xdist is installed
    local several=()
    python3 -c 'import xdist' 2>/dev/null && several=(-n 8)
    run "$1" "$2" python3 -m pytest -m "$3" -q -p no:cacheprovider "${several[@]}" tests/test_golden.py tests/test_on_device.py
}

wanted tests && tests tests 120 "gpu and not slow"
wanted steps && bench steps 120 --batch-sizes 64,256
wanted peers && bench peers 60
if wanted compiled; then
    bench compiled 100 --batch-sizes 256 --modalities audio --rounds 5
    [[ $small ]] || tests compiled-tests 80 "gpu and slow"
fi
if wanted train; then
    set=(output_dir="$output/train" training.tracker=null) recipe=audio/demo
    if [[ $data ]]; then
        [[ $small ]] || recipe=audio/esc10_tiny set+=(data.exclude={})
        set+=(data.dataset="$data")
    fi
    [[ $small ]] && set+=(training.max_steps_per_phase=2 training.batch_size=2)
    labels=${labels:-$([[ $data ]] && echo target || echo label)}
    run train 300 python3 -m bridle_hf.cli pretrain "$recipe" "${set[@]}"
    for iteration in $([[ $small ]] && echo 2 || echo 1 2); do
        run "probe-$iteration" 300 python3 -m bridle_hf.cli probe --model "$output/train/encoder-iter$iteration" \
            --dataset "${data:-$output/train/synthetic}" --label-column "$labels" --fold-column fold --pooling mean_std
    done
fi
exit $failed
