"""Learning from a stream: a sample at a time, with a bounded memory, and classes that come later."""

from spela.streaming.classes import ClassTable, Label
from spela.streaming.classifier import StreamingClassifier, StreamPrediction
from spela.streaming.replay import ReplayBuffer

__all__ = ["ClassTable", "Label", "ReplayBuffer", "StreamPrediction", "StreamingClassifier"]
