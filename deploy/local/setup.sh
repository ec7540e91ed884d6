#!/bin/sh
# Finds a Python that runs Millrace and hands over to deploy/local/bootstrap.py. Needs nothing but a shell.
set -eu
cd "$(dirname "$0")/../.."

suits() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

for python in "${PYTHON:-python3}" "${PYTHON:-python3.13}" "${PYTHON:-python3.12}" "${PYTHON:-python3.11}"; do
    if suits "$python"; then
        exec "$python" -m deploy.local.bootstrap "$@"
    fi
done
echo "setup: ${PYTHON:-python3} is not Python 3.11, 3.12 or 3.13; install one (Debian and Ubuntu: sudo apt-get install" \
    "python3 python3-venv; macOS: brew install python@3.13; or by Docker, which needs none: docker compose up)" \
    "or name it: make setup PYTHON=/path/to/python3" >&2
exit 4
