#!/usr/bin/env bash
# Makes .venv and installs one of the locks into it with uv: `core` (light, wheels only), `cpu` (the full stack), or `uv` alone.
# Does nothing where that lock is installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
what="$1"

fail() { echo "error: $1" >&2; exit 1; }

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) ;;
  Darwin-arm64) [ "$what" != cpu ] || fail "the full stack (vLLM on CPU) needs Linux x86-64; on macOS use 'make demo'" ;;
  *) fail "rlcore runs on Linux x86-64 (WSL included) and, its light core, on macOS arm64; this is $(uname -s) $(uname -m)" ;;
esac

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || fail "Python 3.11 or newer is needed as '$python'; install it, or name another with PYTHON=python3.12 make ..."

if [ "$what" = cpu ]; then # DeepSpeed and vLLM compile small pieces when they run
  command -v c++ >/dev/null || fail "a C/C++ compiler is needed: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora)"
  header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
  [ -f "$header" ] || fail "Python's headers are needed: apt-get install python3-dev (Debian, Ubuntu), dnf install python3-devel (Fedora)"
fi

if [ ! -x .venv/bin/python ]; then
  "$python" -m venv .venv || fail "python's venv module is needed: apt-get install python3-venv"
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
[ "$what" != uv ] || exit 0

lock="locks/$what.txt"
stamp=".venv/.installed-$what"
cmp -s "$lock" "$stamp" && exit 0

# pip's own settings may know a CPU build of torch (PIP_FIND_LINKS, which uv does not read); elsewhere uv fetches one.
install() { .venv/bin/uv pip install --python .venv/bin/python --quiet "$@"; }
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
torch=$(grep '^torch==' "$lock")
started=$(date +%s)
if [ -n "$UV_FIND_LINKS" ] && install --no-deps --no-index "$torch" 2>/dev/null; then
  echo "torch: the CPU build that pip's settings name"
else
  echo "torch: the CPU build that uv finds for this machine"
  install --no-deps --torch-backend=cpu "$torch"
fi
echo "installing $lock"
only_wheels=()
[ "$what" = cpu ] || only_wheels=(--only-binary :all:)
install --no-deps "${only_wheels[@]}" -r "$lock"
install --no-deps -e .
cp "$lock" "$stamp"
echo "installed in $(($(date +%s) - started)) s"
