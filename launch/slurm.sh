#!/usr/bin/env bash
# Train under Slurm. One node's loss ends neither the job nor the training: Ray keeps the other nodes, and the manager
# moves the lost ranks' work to them.
#
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh configs/run/mine.yaml run_dir=/shared/runs/mine
#   LAUNCHER=torchrun sbatch --requeue …    restart with resume instead of carrying on
#
# Submit it from the repository's folder, or set TRAINSYS_HOME to that: Slurm runs a copy of this file from elsewhere.
#
# Slurm signals SIGUSR1 a minute before the time is up (see --signal below); the run then stops at a step boundary with a
# checkpoint, and the next job with the same run_dir goes on from there.
#SBATCH --job-name trainsys
#SBATCH --no-kill
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode append
set -euo pipefail

LAUNCHER=${LAUNCHER:-ray}
PORT=${PORT:-6379}
: "${SLURM_JOB_NODELIST:?run it with sbatch or in an salloc}"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
here=${TRAINSYS_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
[[ -f $here/launch/ray.py ]] || { echo "no launch/ray.py in $here; set TRAINSYS_HOME to the repository" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# stop at a step boundary, with a checkpoint
stop() { [[ -n ${main:-} ]] && kill -TERM "$main" 2>/dev/null || true; }
trap stop USR1 TERM

case $LAUNCHER in
ray)
  srun --nodes 1 --ntasks 1 --nodelist "$head" ray start --head --port "$PORT" --disable-usage-stats --block &
  ray_head=$!
  for host in "${hosts[@]:1}"; do
    srun --nodes 1 --ntasks 1 --nodelist "$host" --no-kill \
      ray start --address "$head:$PORT" --disable-usage-stats --block &
  done
  export RAY_ADDRESS="$head:$PORT"
  until ray status >/dev/null 2>&1; do
    kill -0 "$ray_head" 2>/dev/null || { echo "Ray did not start on $head; is PORT=$PORT free there?" >&2; exit 1; }
    sleep 1
  done
  python "$here/launch/ray.py" "$@" "cluster.nodes=${#hosts[@]}" &
  ;;
torchrun)
  srun --ntasks-per-node 1 torchrun --nnodes "${#hosts[@]}" --nproc-per-node "${RANKS_PER_NODE:-gpu}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$head:$PORT" --rdzv-id "$SLURM_JOB_ID" \
    "$here/launch/train.py" "$@" "cluster.nodes=${#hosts[@]}" &
  ;;
*)
  echo "LAUNCHER=$LAUNCHER is not known; set LAUNCHER=ray or LAUNCHER=torchrun" >&2
  exit 2
  ;;
esac
main=$!
code=0
wait "$main" || code=$?
while kill -0 "$main" 2>/dev/null; do  # the signal interrupted the wait, not the run
  code=0
  wait "$main" || code=$?
done
jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true
exit "$code"
