#!/bin/sh
# One machine, or several by the same line on each: mull train by torchrun.
#   CONFIG=text OUTPUT=checkpoints/text-8 sh configs/cluster/torchrun.sh
# Several machines: MACHINES=2 HEAD=name-of-the-first:29500 on both, and a folder that all of them see.
# Ends with the first process that fails; the same line goes on from the last state.
: "${CONFIG:?name a configuration: CONFIG=text}" "${OUTPUT:?name a folder: OUTPUT=checkpoints/text-8}"
exec torchrun \
  --nnodes "${MACHINES:-1}" --nproc-per-node "${DEVICES:-8}" \
  --rdzv-backend c10d --rdzv-id "$(basename "$OUTPUT")" --rdzv-endpoint "${HEAD:-localhost:0}" \
  -m mull train --config "$CONFIG" --config "$(dirname "$0")/${STRATEGY:-ddp}.yaml" \
  --trainer.devices "${DEVICES:-8}" --trainer.num_nodes "${MACHINES:-1}" --output "$OUTPUT" "$@"
