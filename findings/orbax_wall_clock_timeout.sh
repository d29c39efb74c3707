#!/usr/bin/env bash
# Orbax 0.12.8: the 20 minutes after which an asynchronous save of CheckpointManager is given up are measured by the wall
# clock (time.time), not by a steady one. A clock that is set forward in the middle of a save, or a computer that sleeps
# there, ends the save with a TimeoutError, though the write took milliseconds.
#
# Expected: the save ends well; only time that passes counts.
# Seen: "TimeoutError: ... timed out after 3600..." of wait_until_finished.
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/save.py" <<'PYTHON'
import itertools
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

now, calls = time.time, itertools.count()
manager = ocp.CheckpointManager(sys.argv[1])
if sys.argv[2] == "set":
    # The clock is an hour later each time that somebody looks; nothing else is slow.
    time.time = lambda: now() + 3600 * next(calls)
try:
    manager.save(1, args=ocp.args.StandardSave({"weights": np.arange(4096.0)}))
    manager.wait_until_finished()
    print("saved")
except TimeoutError as error:
    print("TimeoutError:", error)
PYTHON
steady=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/save.py" "$folder/steady" steady 2>/dev/null | head -1)
set=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/save.py" "$folder/set" set 2>/dev/null | head -1)
echo "a steady clock:        $steady"
echo "a clock that is set:   $set"
[[ $steady == saved && $set == TimeoutError:* ]]
