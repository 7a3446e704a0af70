"""What the processor can do that torch takes longer for without saying so."""

from __future__ import annotations

from pathlib import Path

__all__ = ["multiplies_bf16"]


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has instructions for products in bfloat16; None: not known.

    Without them, torch converts back and forth, and products in bfloat16 take several times as long as in
    float32.

    Args:
        cpuinfo: Where Linux lists them (avx512_bf16 and amx_bf16 on x86, bf16 on Arm).

    Example:
        >>> multiplies_bf16(Path("nowhere")) is None
        True
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    names = [line.partition(":") for line in text.splitlines()]
    found = {
        word
        for name, _, words in names
        if name.strip() in ("flags", "Features")
        for word in words.split()
    }
    return bool(found & {"avx512_bf16", "amx_bf16", "bf16"}) if found else None
