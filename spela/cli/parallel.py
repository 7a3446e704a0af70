"""The command line in several processes: joining their job, and printing once an error that all see."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from spela.choices import PARALLEL
from spela.cli.options import COMPUTING, number_in, one_of

if TYPE_CHECKING:
    from spela.distributed import Ranks

__all__ = ["Parallel", "RankTimeout", "join", "main_first", "may_speak"]

YEAR_S = 365 * 24 * 3600.0
USUAL_TIMEOUT_S = 600.0

Parallel = Annotated[
    str | None,
    one_of(
        PARALLEL,
        help="What the processes of torchrun share, each doing a part",
        panel=COMPUTING,
    ),
]
RankTimeout = Annotated[
    float | None,
    number_in(
        1,
        YEAR_S,
        help="Seconds after which a silent process of torchrun counts as lost (default: "
        f"{USUAL_TIMEOUT_S:g}).",
        panel=COMPUTING,
    ),
]

_joined: list[Ranks] = []


def _on_terminate(signum: int, frame: FrameType | None) -> None:
    from spela.distributed import LostRankError

    raise LostRankError(
        "stopped from outside: the job was cancelled, or torchrun ended it because another rank "
        "failed; go on from the last finished epoch with the same command and --resume"
    )


def join(parallel: str | None, device: str, timeout: float | None) -> Ranks | None:
    """Join torchrun's job; None where `parallel` is None and there is no job.

    Raises:
        ValueError: If one is there without the other, or `parallel` is unknown.
        LostRankError: If the other processes do not come.
    """
    if parallel is None:
        size = os.environ.get("WORLD_SIZE", "1")
        if size != "1" and "TORCHELASTIC_RUN_ID" in os.environ:
            raise ValueError(
                f"torchrun started {size} processes: say --parallel {' or '.join(PARALLEL)}"
            )
        return None
    if parallel not in PARALLEL:
        raise ValueError(f"unknown --parallel {parallel!r}: use one of {', '.join(PARALLEL)}")
    from spela.distributed import Ranks

    ranks = Ranks.join(device, USUAL_TIMEOUT_S if timeout is None else timeout)
    _joined.append(ranks)
    signal.signal(signal.SIGTERM, _on_terminate)
    return ranks


def may_speak() -> bool:
    """Whether an error is this process's to print: every process of a job sees most of them."""
    if not _joined:
        return "WORLD_SIZE" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it would cut the message off
    return _joined[-1].claim("error")


@contextmanager
def main_first(ranks: Ranks | None) -> Iterator[None]:
    """Rank 0 before the others, so that a dataset is downloaded once."""
    if ranks is not None and not ranks.is_main:
        ranks.from_main(lambda: None)
    yield
    if ranks is not None and ranks.is_main:
        ranks.from_main(lambda: None)
