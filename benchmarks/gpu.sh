#!/usr/bin/env bash
# All measurements that need a GPU, in stages: benchmarks/gpu.sh DATA WEIGHTS OUT
#
# DATA is CamVid, WEIGHTS a folder with resnet18_imagenet1k_v1.safetensors and clip_vit_b16_text.npz.
# Writes OUT/gpu.json and OUT/gpu.log. From the environment: STAGES; CHECK_S, COST_S, MEMORY_S and
# TRAIN_S, the seconds of each; RUNS, what is trained ("best,seed=0,epochs=90 swiftnet"); DEVICE
# (cuda); MPS=1, to let processes run on the GPU at the same time instead of in turns, where NVIDIA's
# MPS is installed and works; MORE, further options of gpu.py. python3 must find camvid_lang.
set -uo pipefail
data=$1 weights=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
if [ "${MPS:-0}" = 1 ] && command -v nvidia-cuda-mps-control >/dev/null; then
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    if nvidia-cuda-mps-control -d &&
        timeout -k 2 40 python3 -c 'import torch; torch.ones(9, device="cuda").sum().item()'; then
        trap 'echo quit | nvidia-cuda-mps-control' EXIT
        echo "MPS is on"
    else
        echo quit | timeout 5 nvidia-cuda-mps-control
        unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
        echo "MPS does not work here; continuing without"
    fi
fi
for stage in ${STAGES:-check cost memory train}; do
    case $stage in
    check) limit=${CHECK_S:-45} ;;
    cost) limit=${COST_S:-110} ;;
    memory) limit=${MEMORY_S:-60} ;;
    *) limit=${TRAIN_S:-500} ;;
    esac
    # shellcheck disable=SC2086
    timeout -k 3 $((limit + 30)) python3 -u "$here/gpu.py" "$stage" --data "$data" \
        --weights "$weights" --out "$out" --limit "$limit" --began "$(date +%s)" \
        --device "${DEVICE:-cuda}" ${MORE:-} ${RUNS:+--runs $RUNS}
done 2>&1 | tee -a "$out/gpu.log"
