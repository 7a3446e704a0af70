"""Tests that need Triton's interpreter, which must be switched on before triton is imported.

`test_triton_parity.py` runs this folder in a process of its own; elsewhere it is empty.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]
