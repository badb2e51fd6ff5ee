#!/usr/bin/env bash
# The published DDPM recipe on CIFAR-10 on the GPUs of this machine, for a number of minutes: speed, loss curve, grid.
#
#   benchmarks/cifar10_gpu.sh SOURCE MINUTES      # SOURCE: hub:uoft-cs/cifar10, or parquet files, or a folder
#
# Run it again to go on: each piece resumes from the newest checkpoint of the one before.
set -euo pipefail
source=$1 minutes=$2 run=runs/cifar10
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
timeout "${minutes}m" accelerate launch train.py --config configs/cifar10-ddpm.yaml --run "$run" --data.source "$source" \
    --train.checkpoint_every_images 400000 --train.eval_every_images 4000000 || [ $? -eq 124 ]
python -m benchmarks.run_report "$run"
python sample.py "$run" --num 64 --steps 100
