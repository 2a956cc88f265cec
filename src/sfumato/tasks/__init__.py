"""A user's verbs: generate, evaluate; more will come beside them."""

from sfumato.tasks.evaluate import evaluate
from sfumato.tasks.generate import Samples, generate
from sfumato.tasks.pictures import film, write

__all__ = ["Samples", "evaluate", "film", "generate", "write"]
