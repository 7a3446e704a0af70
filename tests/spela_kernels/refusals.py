"""How the ops' functions refuse what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def check_refused(
    step: Callable[..., object],
    loss: Callable[..., object],
    arguments: dict[str, Any],
    updated: str,
    error: type[Exception],
    message: str,
) -> None:
    """Both functions raise the error, and the step leaves the parameter `updated` as it was."""
    before = arguments[updated].clone()
    with pytest.raises(error, match=message):
        step(lr=0.1, **arguments)
    assert torch.equal(arguments[updated], before)
    with pytest.raises(error, match=message):
        loss(**arguments)
