"""A stand-in process for tests of the supervisor: refuses its settings with one log line and exit code 2."""

import json
import sys

if __name__ == "__main__":
    sys.stderr.write(
        json.dumps({"event": "stopped", "error": "MILLRACE_PARTITIONS=x: no", "fix": "set a number"}) + "\n"
    )
    sys.exit(2)
