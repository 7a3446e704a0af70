"""Up to the Hub and down again, through huggingface_hub itself and a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spela import SpelaLinear, SpelaSequential

STAND_IN = Path(__file__).with_name("hub_stand_in.py")
ROUND_TRIP = """
import json, torch
from spela import SpelaLinear, SpelaSequential

net, x = SpelaSequential(SpelaLinear(4, 8, 3)), torch.randn(5, 4)
found = {"address": net.push_to_hub("me/net", token="hf_any")}
loaded = SpelaSequential.from_pretrained("me/net")
cached = SpelaSequential.from_pretrained("me/net", local_files_only=True)
found["same"] = torch.equal(loaded(x), net(x)) and torch.equal(cached(x), net(x))
found["trains"] = loaded.training

from huggingface_hub import HfApi, hf_hub_download
card = lambda: open(hf_hub_download("me/net", "README.md", force_download=True)).read()
found["card"] = card()
HfApi().upload_file(path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id="me/net", token="hf_any")
net.push_to_hub("me/net", token="hf_any")
found["kept"] = card()
net.push_to_hub("me/net", token="hf_any", card="# Given")
found["given"] = card()
try:
    SpelaSequential.from_pretrained("me/none")
except ValueError as error:
    found["none"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, str(STAND_IN)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.kill()
    server.wait()


def test_up_and_down(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["address"].startswith(f"{hub}/me/net/commit/")
    assert found["same"]
    assert not found["trains"]
    assert "SpelaSequential.from_pretrained('me/net')" in found["card"]
    assert (found["kept"], found["given"]) == ("# Mine", "# Given")
    assert found["none"].startswith(
        "cannot load 'me/none', which is no folder here, from the Hub: "
    )
    assert "\n" not in found["none"]


def test_without_the_extra_it_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    net = SpelaSequential(SpelaLinear(4, 8, 3))
    with pytest.raises(ValueError, match=r"push_to_hub needs huggingface_hub: pip install"):
        net.push_to_hub("me/net")
    with pytest.raises(ValueError, match=r"'me/net' is no folder here, .* needs huggingface_hub"):
        SpelaSequential.from_pretrained("me/net")


def test_a_saved_network_needs_no_hub(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    net, x = SpelaSequential(SpelaLinear(4, 8, 3)), torch.randn(5, 4)
    net.save_pretrained(tmp_path)
    assert torch.equal(SpelaSequential.from_pretrained(tmp_path)(x), net(x))
