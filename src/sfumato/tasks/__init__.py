"""A user's verbs: generate, evaluate; more will come beside them."""

from sfumato.tasks.evaluate import evaluate
from sfumato.tasks.generate import Samples, generate
from sfumato.tasks.pictures import check_out, film, write

__all__ = ["Samples", "check_out", "evaluate", "film", "generate", "write"]
