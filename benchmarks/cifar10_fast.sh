#!/usr/bin/env bash
# configs/cifar10-fast.yaml beside diffusers' network and training recipe, for equal minutes on one GPU; both scored by one judge.
#
#   benchmarks/cifar10_fast.sh SOURCE [IMAGES]   # SOURCE: hub:uoft-cs/cifar10, or a folder with train.parquet and test.parquet
#
# IMAGES shortens our run (1,900,000 are about ten minutes on an H200). A command may be cut off: run it again, and judge and our
# run go on from their newest checkpoints.
set -euo pipefail
source=$1 images=${2:-1900000} out=runs/cifar10-fast-comparison
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
judge=(--quality.judge $out/judge --quality.steps 18 --quality.sampler heun --quality.num 4000)
data=(--data.source "$source" --data.validation test)

python train.py --config configs/resnet18-cifar10-fast.yaml --run $out/judge "${data[@]}" --train.images 600000 --train.compile false
python train.py --config configs/cifar10-fast.yaml --run $out/ours "${data[@]}" --train.images "$images"
python -m tasks.report $out/ours | tee $out/report.txt
seconds=$(awk -F ': ' '/^seconds of training/ {print $2}' $out/report.txt)
python -m benchmarks.plain_loop --config configs/cifar10-v-minsnr.yaml --unet2d "${data[@]}" --seconds "$seconds" \
    --batch 128 --learning-rate 2e-4 --device cuda --out $out/theirs
for guidance in 1 2; do
    python evaluate.py $out/ours "${judge[@]}" --quality.guidance $guidance
done
python evaluate.py $out/theirs "${judge[@]}" "${data[@]}"
python sample.py $out/ours --num 64 --steps 18 --guidance 2 --out $out/ours-grid
python sample.py $out/theirs --num 64 --steps 18 --sampler heun --out $out/theirs-grid
