#!/usr/bin/env bash
# Two machines train one model. On both of them, with the same code, data and flags:
#   HEAD=address-of-the-first MACHINE=0 bash examples/two_machines.sh --config configs/cifar10-ddpm.yaml    # MACHINE=1 on the other
# The run folder is written by the first machine; the cache of decoded images by each that does not share a disk.
set -eu
exec torchrun --nnodes 2 --node_rank "$MACHINE" --master_addr "$HEAD" --master_port "${PORT:-29500}" \
    --nproc_per_node "${GPUS:-8}" -- train.py "$@"
