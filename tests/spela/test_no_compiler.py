"""Linear networks train without torch's compiler, which takes seconds to import and does nothing for them.

Where steps go through torch's operators (other layers, or no C compiler at installation), torch imports it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spela_kernels.linear.steps import is_built

ESTIMATOR = """
from sklearn.datasets import load_digits
from spela import SpelaClassifier
SpelaClassifier((16,), max_iter=2).fit(*load_digits(return_X_y=True))
"""
LAYERS = """
import torch
from spela import SpelaLinear, SpelaSequential, optim
net = SpelaSequential(SpelaLinear(36, 8, 10), SpelaLinear(8, 8, 10))
optimizer = optim.LocalSGD(net.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
net.local_step(torch.randn(4, 36), torch.arange(4), optimizer)
schedule.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
"""
COMMAND = """
from spela.cli import main
sys.argv = "spela train --data digits --layers 16 --epochs 2 --out run".split()
try:
    main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.skipif(not is_built(), reason="without compiled steps, operators are called")
@pytest.mark.parametrize("program", [ESTIMATOR, LAYERS, COMMAND], ids=["fit", "layers", "train"])
def test_training_imports_no_compiler(program: str, tmp_path: Path) -> None:
    look = f"import sys\n{program}\nassert 'torch' in sys.modules\nprint('torch._dynamo' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"
