"""What happened in a run, in words: the best layer, the gap from first to last, whether it still learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spela.files.text import printable
from spela.training import RunConfig

__all__ = ["answer_names", "counted", "duration", "makers", "size", "what_happened"]

# A change of the training loss in one epoch, relative, that counts as one.
_CHANGE = 0.01


def counted(number: int, thing: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "epoch"), counted(1437, "sample")
        ('1 epoch', '1,437 samples')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(0.0035), duration(0.0996), duration(0.352), duration(75), duration(9000)
        ('3.5 ms', '0.10 s', '0.35 s', '1.2 min', '2.5 h')
    """
    if seconds < 0.0995:
        return f"{1e3 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> size(2572), size(8_730_000)
        ('2.6 kB', '8.73 MB')
    """
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def makers(made_by: Sequence[dict[str, Any]]) -> str:
    """What made a run, in one line; empty where the run's files do not say.

    Args:
        made_by: What trained it, one after the other; older versions noted less of it.

    Example:
        >>> makers([{"spela": "0.1.0", "source": "3fa9c1", "torch": "2.9.0", "python": "3.12.1"}])
        'spela 0.1.0, source 3fa9c1, torch 2.9.0, Python 3.12.1'
        >>> makers([{"torch": "2.8.0"}, {"torch": "2.9.0", "processor": "EPYC 7", "threads": 2}])
        'torch 2.8.0; then torch 2.9.0, on EPYC 7, 2 threads'
    """
    return "; then ".join(_maker(maker) for maker in made_by)


def _maker(maker: dict[str, Any]) -> str:
    named = (("spela", "spela"), ("source", "source"), ("torch", "torch"), ("python", "Python"))
    words = [f"{word} {maker[name]}" for name, word in named if name in maker]
    chip = "gpu" if str(maker.get("device")).startswith("cuda") else "processor"
    words += [f"on {maker[chip]}"] if maker.get(chip) else []
    threads = maker.get("threads")
    words += [counted(threads, "thread")] if isinstance(threads, int) else []
    return printable(", ".join(words))


def answer_names(config: RunConfig, count: int) -> list[str]:
    """What the parts of a network that answer are called, first to last.

    Args:
        config: The run's settings.
        count: How many there are.
    """
    if config.method in ("backprop", "pepita"):
        return ["output"]
    kind = "block" if config.network and config.blocks != "conv" else "layer"
    return [f"{kind} {index + 1}" for index in range(count)]


def what_happened(
    config: RunConfig, records: Sequence[dict[str, Any]], samples: int, most_frequent: float
) -> str:
    """A run's result as a sentence.

    Args:
        config: Its settings.
        records: Of its epochs, at least one.
        samples: In the test set.
        most_frequent: Share 0..1 of the test samples that are of the class with most of them.

    Returns:
        Text that is true of networks with one answer and with many, and of runs of one epoch.
    """
    broken = [r["epoch"] for r in records if not _finite([*r["train_loss"], *r["weight_norm"]])]
    if broken:
        return (
            f"The weights are no longer finite from epoch {broken[0]} on: no figure on this page says "
            "anything; train again with a lower learning rate."
        )
    accuracy = records[-1]["test_accuracy"]
    names = answer_names(config, len(accuracy))
    text = _who_is_best(accuracy, names, samples)
    if max(accuracy) <= most_frequent:
        share = f"{100 * most_frequent:.2f} %"
        text += f"; naming the most frequent class each time would get {share}"
    # Before its own epochs a head on frozen convolutions has not learned anything.
    learned = records[config.epochs :] if config.head_epochs else records
    return f"{text}; {_still_learns(config, learned, names)}."


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _who_is_best(accuracy: Sequence[float], names: Sequence[str], samples: int) -> str:
    percent = [f"{100 * share:.2f} %" for share in accuracy]
    of_samples = f"of the {counted(samples, 'test sample')} right"
    if len(names) == 1:
        return f"The {names[0].removesuffix(' 1')} gets {percent[0]} {of_samples}"
    kind = names[0].split()[0]
    if min(accuracy) == max(accuracy):
        every = "Both" if len(names) == 2 else f"All {len(names)}"
        return f"{every} {kind}s get {percent[0]} {of_samples}"
    best = max(range(len(accuracy)), key=lambda k: accuracy[k])
    gap = 100 * (accuracy[-1] - accuracy[0])
    beside = f"{abs(gap):.2f} points {'more' if gap > 0 else 'less'} than the first"
    if abs(gap) < 0.005:
        beside = "as many as the first"
    if accuracy[-1] == accuracy[best]:  # on a tie the last, which answers
        return f"The last of {len(names)} {kind}s is the best: it gets {percent[-1]} {of_samples}, {beside}"
    which = f"The first of {len(names)} {kind}s"
    if best > 0:
        which = f"{names[best].capitalize()} of {len(names)}"
    return f"{which} is the best: it gets {percent[best]} {of_samples}, the last {percent[-1]}, {beside}"


def _still_learns(
    config: RunConfig, records: Sequence[dict[str, Any]], names: Sequence[str]
) -> str:
    if len(records) < 2:
        return "a single epoch does not show whether more would help"
    before, after = (record["train_loss"][-1] for record in records[-2:])
    rise = 100 * (records[-1]["test_accuracy"][-1] - records[-2]["test_accuracy"][-1])
    change = (after - before) / abs(before) if before else float(after - before)
    whose = "its" if len(names) == 1 else "the last one's"
    if abs(rise) < 0.005:
        tested = "test accuracy stayed"
    else:
        tested = f"test accuracy {'rose' if rise > 0 else 'fell'} by {abs(rise):.2f} points"
    if change <= -_CHANGE:
        told = f"training loss fell by {-100 * change:.0f} %"
        end = (
            "it was still learning"
            if rise >= 0.005
            else "it was still learning the training samples, without gain on the test's"
        )
    elif change >= _CHANGE:
        told = f"training loss rose by {100 * change:.0f} %"
        end = "it was not learning any more"
    else:
        told = f"training loss changed by less than {100 * _CHANGE:.0f} %"
        end = "it had settled"
    if change > -_CHANGE and config.schedule == "cosine":
        end += ", with the learning rate down to zero"
    return f"in the last epoch {whose} {told} and its {tested}: {end}"
