"""Classes that come later: digits 0 to 4, then 5 to 9, one sample of the stream at a time.

    python examples/growing_classes.py [--seeds 3] [--memory 500]

Prints, with and without replay, how well the old digits are known before and after the new ones came.
"""

from __future__ import annotations

import argparse
from statistics import mean

import torch

from spela import RowNorm, SpelaLinear, SpelaSequential
from spela.data import load_dataset
from spela.streaming import StreamingClassifier


def build(seed: int, max_classes: int = 10) -> SpelaSequential:
    """Two layers with vectors for ten classes, of which none is known yet."""
    generator = torch.Generator().manual_seed(seed)
    return SpelaSequential(
        torch.nn.Flatten(),
        RowNorm(),
        SpelaLinear(
            64, 256, max_classes, activation="gelu", objective="softmax", generator=generator
        ),
        RowNorm(),
        SpelaLinear(
            256, 256, max_classes, activation="gelu", objective="softmax", generator=generator
        ),
    )


def accuracy(stream: StreamingClassifier, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of samples named rightly among all classes known, 0..1."""
    named = stream.predict(x).labels
    return mean(name == f"digit {label}" for name, label in zip(named, y.tolist(), strict=True))


def run(seed: int, memory: int, batch: int = 10) -> dict[str, float]:
    """One stream: the old digits, then the new; accuracies on test samples, 0..1."""
    data = load_dataset("digits")
    stream = StreamingClassifier(build(seed), memory=memory, seed=seed)
    order = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))
    old_test, found = data.test_y < 5, {}
    for part, classes in (("before", range(5)), ("after", range(5, 10))):
        rows = order[torch.isin(data.train_y[order], torch.tensor(list(classes)))]
        for few in rows.split(batch):
            names = [f"digit {label}" for label in data.train_y[few].tolist()]
            stream.observe(data.train_x[few], names)
        found[f"old, {part}"] = accuracy(stream, data.test_x[old_test], data.test_y[old_test])
    found["new, after"] = accuracy(stream, data.test_x[~old_test], data.test_y[~old_test])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=500, help="samples to remember")
    options = parser.parse_args()
    print("test accuracy in %, mean over seeds   old digits before   old digits after   new digits")
    for memory in (options.memory, 0):
        runs = [run(seed, memory) for seed in range(options.seeds)]
        shares = [100 * mean(found[name] for found in runs) for name in runs[0]]
        what = f"{memory} samples remembered" if memory else "none remembered"
        print(f"{what:37}" + "".join(f"{share:>18.1f} " for share in shares))


if __name__ == "__main__":
    main()
