#!/bin/bash
# A run on two machines of a Slurm cluster with four GPUs each, which is what recipes/cluster/gpus.yaml asks for:
#
#     sbatch docs/cluster/slurm.sh
#
# Submit it again and the run goes on from its last checkpoint. RUNS and the environment that has rlcore (active when this is
# submitted) must lie where all machines see them.
#SBATCH --job-name=rlcore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
set -euo pipefail

RUNS=${RUNS:-$PWD/runs}

# Ray's own token: whoever has it can run code on these machines. It is this job's alone.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(hostname --all-ip-addresses | awk '{print $1}') # of the first node, where this script runs
port=$((20000 + SLURM_JOB_ID % 10000))               # other jobs on the machine have another one
folder=/tmp/ray-$SLURM_JOB_ID                        # short: the paths of sockets may have 107 bytes
export RAY_ADDRESS=$ip:$port

cleanup() {
  jobs -p | xargs --no-run-if-empty kill 2> /dev/null || true # Ray ends its processes when it is told to end
  wait
  srun rm -rf "$folder" # on every node
}
trap cleanup EXIT

on_node=(srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")
options=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --temp-dir="$folder")
steps=()
"${on_node[@]}" --nodelist="${nodes[0]}" \
  ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false "${options[@]}" &
steps+=($!)
timeout 120 bash -c "until (: < /dev/tcp/$ip/$port) 2> /dev/null; do sleep 1; done"
for node in "${nodes[@]:1}"; do
  "${on_node[@]}" --nodelist="$node" ray start --address="$RAY_ADDRESS" "${options[@]}" &
  steps+=($!)
done

# Workers and ranks start on the other machines as soon as these have joined.
rlcore train grpo_gsm8k cluster/gpus --cluster auto --resume output="$RUNS/grpo_gsm8k" &
driver=$!
trap 'kill -INT "$driver"' USR1 # ten minutes before the time is up: finish the step and checkpoint
while kill -0 "$driver" 2> /dev/null; do
  wait -n "$driver" "${steps[@]}" || true # ends at a signal too
  for step in "${steps[@]}"; do
    kill -0 "$step" 2> /dev/null || { echo "Ray ended on a node; its output stands above" >&2; exit 1; }
  done
done
wait "$driver"
