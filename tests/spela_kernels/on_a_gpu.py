"""What every module of tests of kernels on a real GPU marks its tests with."""

from __future__ import annotations

import pytest

from tests.devices import ON_A_GPU

NEEDS_GPU = [*ON_A_GPU, pytest.mark.usefixtures("exact_reference_and_nan_filled_outputs")]
