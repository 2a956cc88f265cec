"""sfumato: denoising diffusion, from the first equation to a trained model.

    import sfumato
    model = sfumato.load("digits")
    x = model.sample(10, label=3)

Rooms are imported as they are used (`from sfumato import schedules, samplers`); see docs/architecture.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]

if TYPE_CHECKING:
    from sfumato.model import Model, load


def __getattr__(name: str) -> Any:
    """`load` and `Model`, imported when first asked for, so that `import sfumato` costs nothing."""
    if name in ("Model", "load"):
        from sfumato import model

        return getattr(model, name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
