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

    def blank(self, evidence: Evidence) -> str:
        cam = self.relevance(evidence)[""]
        small = cam.small(evidence.ops)
        if small.numel() == 0 or not bool(small.isfinite().all()):
            return ""
        span = small.amax((2, 3, 4)) - small.amin((2, 3, 4))
        if bool((span > 1e-6 * small.abs().amax((2, 3, 4))).any()):
            return ""
        if small[0, 0].numel() == 1:
            return "whose grid is a single place; explain an earlier layer"
        if not bool(cam["features"].any()):
            return "all features are 0"
        if not bool(cam["weight"].any()):
            return "nothing arrives from the class: its gradient there is 0"
        if cam["relu"] and not bool(small.any()):
            return "all evidence is against the class, which relu=True leaves out"
        return "every place says the same"

    def maps(self) -> tuple[str, ...]:
        return ("",)

    def key(self) -> CamHead:
        return replace(self, extras=(), size="clip" if self.size == "features" else self.size)
