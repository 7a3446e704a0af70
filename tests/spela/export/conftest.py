"""A session of onnxruntime's plain inference engine over what `write_onnx` wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from spela.export import Program, write_onnx


@pytest.fixture
def session_of(tmp_path: Path) -> Callable[[Program], onnxruntime.InferenceSession]:
    def open_session(program: Program) -> onnxruntime.InferenceSession:
        path = tmp_path / "program.onnx"
        write_onnx(program, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    return open_session
