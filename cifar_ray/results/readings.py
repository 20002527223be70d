"""How often each test split has been read: a ledger in the user's cache folder.

Whoever looks at a test split, changes something and looks again chooses by it, and its scores flatter from then on.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from cifar_ray.errors import one_line
from cifar_ray.files import cache_folder

LEDGER = "test_readings.jsonl"


def note_reading(fingerprint: str, run: Path) -> dict[str, Any]:
    """Note that a run reads a test split.

    Args:
        fingerprint: of the test split, such as :func:`~cifar_ray.data.labelled.split_fingerprint` gives.
        run: its folder.

    Returns:
        How often the split has been read with this time, `readings`, and by how many `runs`; or why that cannot be
        known, `error`.
    """
    ledger = cache_folder() / LEDGER
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two runs may come to it at once
            file.write(json.dumps({"fingerprint": fingerprint, "run": str(run)}) + "\n")
            file.flush()
            file.seek(0)
            entries = [json.loads(line) for line in file]
            runs = [entry["run"] for entry in entries if entry["fingerprint"] == fingerprint]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"error": f"{ledger}: {one_line(error)}"}
    return {"readings": len(runs), "runs": len(set(runs))}
