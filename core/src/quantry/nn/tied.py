"""An output head that multiplies by its embedding's packed weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from quantry.kernel import Op
from quantry.nn.embedding import QuantEmbedding
from quantry.nn.linear import packed_linear

__all__ = ["TiedHead"]


class TiedHead(nn.Module):
    """hidden [*, K] → logits [*, N] through the packed table of `embedding`.

    It registers nothing: codes are saved once, moved once, and deepcopy or pickle keep the tie.
    """

    def __init__(self, embedding: QuantEmbedding) -> None:
        super().__init__()
        self.__dict__["owner"] = (
            embedding  # past nn.Module's registration: two owners of one buffer break saving
        )
        needs: tuple[Op, ...] = ("embedding", "linear")
        embedding.needs = needs
        embedding._plan = embedding._bound = None

    @property
    def owner(self) -> QuantEmbedding:
        """The embedding whose weight this is."""
        owner: QuantEmbedding = self.__dict__["owner"]
        return owner

    @property
    def weight(self) -> Tensor:
        """As `PackedModule.weight`."""
        return self.owner.weight

    @property
    def in_features(self) -> int:
        """Width of the hidden state."""
        return self.owner.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the vocabulary."""
        return self.owner.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits in x's dtype."""
        return packed_linear(self.owner, x, None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "owner":
            self.__dict__["owner"] = value
            return
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Names the tie."""
        return f"tied to an embedding of {'x'.join(map(str, self.owner.shape))}, {self.owner.layout}"
