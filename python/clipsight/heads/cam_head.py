"""What heads with a small cam share: Saliency Tubes and Grad-CAM."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .base import EXTRAS, Evidence, Head


class CamHead(Head):
    """A head whose one map is a :class:`Cam`, at the clip's size, at a size of its own, or as it is."""

    def compute(self, evidence: Evidence) -> dict[str, Tensor]:
        results = {}
        if self.size == "features":
            results[self.name] = self.relevance(evidence)[""].small(evidence.ops)
        if self.size != "features" or self.extras:
            tube = self.map_of("", evidence)
            results.setdefault(self.name, tube)
            results |= {f"{self.name}_{e}": EXTRAS[e][1](tube) for e in self.extras}
        return results

    def maps(self) -> tuple[str, ...]:
        return ("",)

    def key(self) -> CamHead:
        return replace(self, extras=(), size="clip" if self.size == "features" else self.size)
