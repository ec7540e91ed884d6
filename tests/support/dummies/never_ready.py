"""A stand-in process for tests of the supervisor: ends with exit code 4 before it is ever ready."""

import json
import sys

if __name__ == "__main__":
    sys.stderr.write(json.dumps({"event": "stopped", "error": "no disk left", "fix": "buy one"}) + "\n")
    sys.exit(4)
