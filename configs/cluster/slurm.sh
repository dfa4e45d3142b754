#!/bin/sh
# A job on a SLURM cluster: mull train by srun, one task for each device.
#   CONFIG=text OUTPUT=checkpoints/text-16 sbatch configs/cluster/slurm.sh
# Two minutes before its time is over the tasks get SIGTERM: the step is finished and saved, and the job queues again,
# where the same line goes on. Nodes, tasks and devices of a node are those of the lines below; change them together.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
: "${CONFIG:?name a configuration: CONFIG=text}" "${OUTPUT:?name a folder: OUTPUT=checkpoints/text-16}"
srun mull train --config "$CONFIG" --config "configs/cluster/${STRATEGY:-ddp}.yaml" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES" --output "$OUTPUT" "$@"
status=$?
[ $status -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"  # ended by the signal, with its state saved
exit $status
