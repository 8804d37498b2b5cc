"""Which score is explained, and how a network's scores are read as probabilities. Needs no torch: files say it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .manifest import Manifest

PROBABILITIES = ("softmax", "sigmoid", "none")
LAYOUTS = ("NKT", "NTK", "NT")  # of logits per time step
REDUCTIONS = ("mean", "max")
BEST_OTHER = "best_other"


@dataclass(frozen=True)
class Target:
    """The score that a map explains, as `clipsight.explain(target=)` takes it; by default the logit of a class.

    Which class, `classes=` says; a network with one logit has one class.

    Args:
        against: explain score(a) - score(b), what speaks for the class a of `classes=` and not for b: the index of b,
            for which a map of b itself is 0, or `"best_other"`, the class other than a with the highest score, which
            with `classes="predicted"` makes the top two.
        steps: for a network with logits per time step: the mean of a class's logits over the steps, `"mean"`; their
            `"max"`; or those of one step, by its index, negative from the end.
        layout: the axes of such logits: `"NKT"`, `"NTK"`, or `"NT"` with one logit for each step.
        heads: module paths of several classifiers (verb and noun), whose scores are added, of each the one of its own
            class. The logits `[N, K]` are then theirs side by side, and `classes=` names a class of each:
            `"predicted"`, `"top3"` (rank by rank), or a list of tuples with an index for each head.
        probability: how the logits are read where they are shown: `"softmax"` over the classes (of each head),
            `"sigmoid"` of each by itself, or `"none"`: they are no logits of probabilities, as in regression. By
            default what the network ends in, else softmax, or for a single logit sigmoid.

    Raises:
        ValueError: an option is outside its range.
    """

    against: int | str | None = None
    steps: int | str | None = None
    layout: str | None = None
    heads: tuple[str, ...] = ()
    probability: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", (self.heads,) if isinstance(self.heads, str) else tuple(self.heads))
        for name in ("against", "steps"):
            value = getattr(self, name)
            if hasattr(value, "__index__") and not isinstance(value, bool):  # NumPy has integers of its own
                object.__setattr__(self, name, int(value))
        if self.steps is not None and self.layout is None:
            object.__setattr__(self, "layout", "NKT")

        def need(holds: bool, option: str, rule: str) -> None:
            if not holds:
                raise ValueError(f"Target: {option} must be {rule}, got {getattr(self, option)!r}")

        is_index = {name: type(getattr(self, name)) is int for name in ("against", "steps")}
        at_least_0 = is_index["against"] and self.against >= 0
        need(at_least_0 or self.against in (None, BEST_OTHER), "against", f"a class index or {BEST_OTHER!r}")
        need(is_index["steps"] or self.steps in (None, *REDUCTIONS), "steps", "an index, 'mean' or 'max'")
        need(self.layout in (None, *LAYOUTS), "layout", f"one of {list(LAYOUTS)}")
        need(self.steps is not None or self.layout is None, "layout", "left out where no steps are named")
        several = not self.heads or len(set(self.heads)) == len(self.heads) > 1
        need(several, "heads", "different classifiers, two or more (explain's head= names a single one)")
        need(not self.heads or not is_index["against"], "against", f"{BEST_OTHER!r} where there are several heads")
        need(self.layout != "NT" or (self.against is None and not self.heads), "layout", "one with several classes")
        need(self.probability in (None, *PROBABILITIES), "probability", f"one of {list(PROBABILITIES)}")

    @property
    def class_axis(self) -> int:
        """Of the logits."""
        return 2 if self.layout == "NTK" else 1

    def describe(self) -> dict[str, Any]:
        """The options that are set, without the probability, which stands by itself; JSON-able."""
        options = {"against": self.against, "steps": self.steps, "layout": self.layout, "heads": list(self.heads)}
        return {name: value for name, value in options.items() if value not in (None, [])}


@dataclass(frozen=True)
class Reading:
    """How the `logits` of a file or of an explained network are read: as scores of classes, and as probabilities.

    Args:
        probability: one of `PROBABILITIES`.
        steps, layout: of the `Target`.
        head_classes: number of classes of each head, where there are several.
    """

    probability: str = "softmax"
    steps: int | str | None = None
    layout: str | None = None
    head_classes: tuple[int, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> Reading:
        steps, layout = (manifest.target.get(name) for name in ("steps", "layout"))
        return cls(manifest.probability, steps, layout, tuple(manifest.target.get("head_classes", ())))

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Of one sample: float64 `[K]`."""
        values = logits.astype(np.float64)
        if self.steps is None:
            return values
        values = {"NKT": values, "NTK": values.T, "NT": values[None]}[self.layout or "NKT"]
        if isinstance(self.steps, int):
            return values[:, self.steps]
        return values.mean(1) if self.steps == "mean" else values.max(1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of one sample: float64 `[K]`; the scores themselves where these are no logits of probabilities."""
        scores = self.scores(logits)
        if self.probability == "none":
            return scores
        if self.probability == "sigmoid":
            return np.exp(-np.logaddexp(0, -scores))
        parts = np.split(scores, np.cumsum(self.head_classes)[:-1]) if self.head_classes else [scores]
        powers = [np.exp(part - part.max()) for part in parts]
        return np.concatenate([part / part.sum() for part in powers])

    @property
    def unit(self) -> str:
        """What `probabilities` gives, as results name it: `"probability"` or `"score"`."""
        return "score" if self.probability == "none" else "probability"

    def in_words(self, value: float) -> str:
        return f"{value:.4g}" if self.probability == "none" else f"{100 * value:.1f} %"


def in_words(target: Mapping[str, Any]) -> str:
    """What a manifest's `target` adds to the name of a class; empty for its logit."""
    parts, steps, against = [], target.get("steps"), target.get("against")
    if steps is not None:
        parts.append(f"{steps} of the steps" if steps in REDUCTIONS else f"step {steps}")
    if "heads" in target:
        parts.append(f"sum over {', '.join(target['heads'])}")
    if against is not None:
        parts.append("against the best other class" if against == BEST_OTHER else f"against {against}")
    return ", ".join(parts)


def default_probability(num_classes: int, ending: str | None = None) -> str:
    """Where nobody says it: what the network ends in, else softmax, or for a single logit sigmoid."""
    return ending or ("sigmoid" if num_classes == 1 else "softmax")


def check_target(target: Mapping[str, Any], num_classes: int, classes: str | list) -> None:
    """Raises a ValueError where the target of a manifest is none: what a schema cannot say.

    csrc/session/target.cpp is the same.
    """

    def need(holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"the manifest's {rule}")

    against, steps, layout = (target.get(name) for name in ("against", "steps", "layout"))
    heads, sizes = target.get("heads", []), target.get("head_classes", [])
    need(not isinstance(against, str) or against == BEST_OTHER, f"target.against must be a class or {BEST_OTHER}")
    need(not isinstance(against, int) or against < num_classes, "target.against must be a class")
    need(not isinstance(steps, str) or steps in REDUCTIONS, "target.steps must be a step, mean or max")
    need((steps is None) == (layout is None), "target.layout must be there where steps are")
    need(layout != "NT" or num_classes == 1, "target.layout must have the classes")
    need(len(heads) == len(sizes), "target.head_classes must be one for each head")
    need(not sizes or sum(sizes) == num_classes, "target.head_classes must be num_classes together")
    for each in classes if isinstance(classes, list) else ():
        count = len(each) if isinstance(each, list) else 0
        need(count == len(sizes), "classes must name a class of each head")
