#!/usr/bin/env bash
# Run the fast tier with another release of torch: tests/versions/run.sh VERSION [PYTEST-ARGUMENT ...]
#
# The virtual environment is made once, in $VENV or in the user's cache directory. Torch comes from
# the registry, with its CUDA libraries: 5.5 GB. PYTHON names the interpreter.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: tests/versions/run.sh VERSION [PYTEST-ARGUMENT ...]" >&2
  exit 2
fi
version=$1
shift
cd "$(dirname "$0")/../.."
venv=${VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/aoti_eager-torch-$version}
python=$venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
# By the package's own metadata: pip refuses a torch that the package does not take.
"$python" -m pip install --quiet --disable-pip-version-check "torch==$version" -e '.[test-tools]'
"$python" -c "import torch; print('torch', torch.__version__)"
if [ $# -eq 0 ]; then
  set -- -n 2
fi
exec "$python" -m pytest "$@"
