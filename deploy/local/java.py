"""Find a Java that runs Kafka. Only the standard library is used, because set-up asks before anything is installed."""

import os
import re
import shutil
import subprocess
from typing import Final

LEAST: Final = 17


def find_java() -> str | None:
    """Return the path of a Java of version 17 or newer, from JAVA_HOME or PATH, or None."""
    home = os.environ.get("JAVA_HOME")
    candidates = [shutil.which("java", path=os.path.join(home, "bin")) if home else None, shutil.which("java")]
    return next((java for java in candidates if java is not None and version(java) >= LEAST), None)


def version(java: str) -> int:
    """Return the main version of a Java, 0 where it does not run (macOS has a stub that only asks to install one)."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return main_version(done.stderr + done.stdout) if done.returncode == 0 else 0


def main_version(output: str) -> int:
    """Return the main version that `java -version` printed.

    >>> main_version('openjdk version "17.0.15" 2025-04-15'), main_version('java version "1.8.0_391"')
    (17, 8)
    """
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found[1]) if found else 0
