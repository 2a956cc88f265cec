"""A user's verbs: generate, evaluate; more will come beside them."""

from sfumato.tasks.evaluate import evaluate
from sfumato.tasks.generate import Draw, Samples, generate
from sfumato.tasks.pictures import film
from sfumato.tasks.to_disk import check_out, stream, write

__all__ = ["Draw", "Samples", "check_out", "evaluate", "film", "generate", "stream", "write"]
