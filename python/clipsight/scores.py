"""The score that is explained, of a network that is known: a target (:mod:`clipsight.targets`) and the classes.

Every score is a sum of logits with signs, after the steps of logits per time step are reduced to one. What the heads
take of it: its derivative by the logits, where walks back start, and the same sum of the classifier's rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backward.walk import one_hot
from .targets import BEST_OTHER, Reading, Target, default_probability

Choice = str | int | Sequence[int] | Sequence[Sequence[int]]


class Score:
    """A target and the classes, checked.

    Args:
        target: as given to `explain`.
        choice: `classes=`, as given.
        logits: those of one clip, `[1, K]`, or as the target's layout says.
        head_classes: number of classes of each of the target's heads.
        ending: what was taken off the end of the network, `"softmax"` or `"sigmoid"`; `"none"`: they are no logits.

    Attributes:
        choice: `classes=`, as the manifest states it.
        input: whether the classes are an input.
        count: M, the number of explained classes; `None` where they are an input.
        num_classes: K.
        probability: how the logits are read.
        several: whether it is a sum of several logits.

    Raises:
        ValueError: they do not fit each other, or the logits.
    """

    def __init__(
        self,
        target: Target,
        choice: Choice,
        logits: Tensor,
        head_classes: tuple[int, ...] = (),
        ending: str | None = None,
    ) -> None:
        self.target, self.head_classes = target, head_classes
        self.ending = None if ending == "none" else ending
        self._check_shape(logits)
        self.num_classes = self.by_class(logits).shape[1]
        self.probability = target.probability or default_probability(self.num_classes, ending)
        self.several = bool(head_classes) or target.against is not None
        self._offsets = [sum(head_classes[:i]) for i in range(len(head_classes) or 1)]
        self._sizes = head_classes or (self.num_classes,)
        self._read_choice(choice)
        self._check_against()

    def _check_shape(self, logits: Tensor) -> None:
        shape, layout = list(logits.shape), self.target.layout
        if layout is None and logits.dim() != 2:
            raise ValueError(
                f"explain: the logits must have shape [N, K], got {shape}; of logits per time step "
                "target=Target(steps='mean', layout='NKT') or 'NTK' says what is explained"
            )
        if layout is not None and logits.dim() != len(layout):
            axes = ", ".join(layout)
            raise ValueError(f"explain: the logits must have shape [{axes}] by target.layout, got {shape}")
        steps, length = self.target.steps, 0 if layout is None else self._each_step(logits).shape[-1]
        if isinstance(steps, int) and not -length <= steps < length:
            raise ValueError(f"explain: target.steps must lie in {-length}..{length - 1}, got {steps}")

    def _read_choice(self, choice: Choice) -> None:
        heads, least = len(self.head_classes), min(self._sizes)
        self.choice: str | list[int] | list[list[int]]
        self.top = 0
        if isinstance(choice, str):
            self.choice = choice
            self.top = {"predicted": 1, "input": 0}.get(choice, -1)
            if self.top < 0:
                digits = choice.removeprefix("top")
                if not (choice.startswith("top") and digits.isdigit() and 1 <= int(digits) <= least):
                    raise ValueError(
                        f"explain: classes must be 'predicted', 'input', 'top1'..'top{least}' or a list of class "
                        f"indices, got {choice!r}"
                    )
                self.top = int(digits)
            if choice == "input" and heads:
                raise ValueError(
                    "explain: classes must be chosen in advance where there are several heads, got 'input'"
                )
        elif heads:
            try:
                self.choice = [[int(c) for c in each] for each in choice]
            except TypeError as error:
                raise ValueError(
                    f"explain: classes must be tuples with an index for each of {heads} heads, got {choice}"
                ) from error
            for each in self.choice:
                if len(each) != heads or not all(0 <= c < k for c, k in zip(each, self.head_classes, strict=True)):
                    limits = ", ".join(f"0..{k - 1}" for k in self.head_classes)
                    raise ValueError(f"explain: classes must be tuples of indices in ({limits}), got {tuple(each)}")
        else:
            self.choice = [int(choice)] if isinstance(choice, int) else [int(c) for c in choice]
            if not all(0 <= c < self.num_classes for c in self.choice):
                raise ValueError(f"explain: classes must lie in 0..{self.num_classes - 1}, got {self.choice}")
        if not self.choice:
            raise ValueError("explain: classes must name at least one class, got an empty list")
        self.input = self.choice == "input"
        self.count = None if self.input else self.top or len(self.choice)

    def _check_against(self) -> None:
        against = self.target.against
        if against is None:
            return
        if min(self._sizes) < 2:
            raise ValueError(f"explain: target.against must have another class, got a network of {self._sizes[0]}")
        if isinstance(against, int) and against >= self.num_classes:
            raise ValueError(f"explain: target.against must lie in 0..{self.num_classes - 1}, got {against}")
        if isinstance(self.choice, list) and against in self.choice:
            raise ValueError(f"explain: target.against must be none of classes={self.choice}, got {against}")

    def check(self, classes: Tensor, batch: int) -> None:
        """Raises a ValueError where these are no classes for `forward`."""
        if not self.input:
            raise ValueError(f"explain: classes is no input here: the model was explained for classes={self.choice!r}")
        if classes.dtype != torch.int64 or classes.dim() != 2 or classes.shape[0] != batch:
            raise ValueError(
                f"explain: classes must be an int64 tensor [N, M] with N = {batch}, got {classes.dtype} "
                f"{list(classes.shape)}"
            )
        if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= self.num_classes):
            raise ValueError(
                f"explain: classes must lie in 0..{self.num_classes - 1}, "
                f"got {int(classes.min())}..{int(classes.max())}"
            )

    # ---- the logits of classes ----

    def _each_step(self, logits: Tensor) -> Tensor:
        """`[N, K, T]`."""
        if self.target.layout == "NT":
            return logits.unsqueeze(1)
        return logits.transpose(1, 2) if self.target.layout == "NTK" else logits

    def by_class(self, logits: Tensor) -> Tensor:
        """`[N, K]`, the steps reduced."""
        steps = self.target.steps
        if steps is None:
            return logits
        each = self._each_step(logits)
        if isinstance(steps, int):
            return each.select(-1, steps % each.shape[-1])
        return each.mean(-1) if steps == "mean" else each.amax(-1)

    def _back(self, g: Tensor, logits: Tensor) -> Tensor:
        """From the derivative by `by_class`, `[M, N, K]`, that by the logits, `[M, N, ...]`."""
        steps = self.target.steps
        if steps is None:
            return g
        each = self._each_step(logits)
        length = each.shape[-1]
        if steps == "mean":
            spread = (g / length).unsqueeze(-1).expand(*[-1] * g.dim(), length)
        else:
            at = steps % length if isinstance(steps, int) else each.argmax(-1).unsqueeze(-1)
            spread = g.unsqueeze(-1) * (torch.arange(length, device=g.device) == at).to(g.dtype)
        if self.target.layout == "NT":
            return spread.squeeze(2)
        return spread.transpose(-1, -2) if self.target.layout == "NTK" else spread

    # ---- the explained classes ----

    def chosen(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        """int64 `[N, M]`, or `[M]` where the classes are fixed; where a score is a sum, `[R, N, M]`, its terms first.

        Indices are those of all heads side by side.
        """
        if not self.several and isinstance(self.choice, list):
            return torch.tensor(self.choice, device=logits.device)
        if self.input:
            if classes is None:
                raise ValueError("explain: classes must be given: the model was explained with classes='input'")
            if not self.several:
                return classes
        scores = self.by_class(logits)
        parts = scores.split(self._sizes, 1) if self.head_classes else (scores,)
        own = [classes] if self.input else [self._own(part, i) for i, part in enumerate(parts)]
        if not self.several:
            return own[0]
        other = [self._other(part, c) for part, c in zip(parts, own, strict=True)] if self.signs[-1] < 0 else []
        offsets = self._offsets * (2 if other else 1)
        return torch.stack([c + offset if offset else c for c, offset in zip(own + other, offsets, strict=True)])

    def _own(self, scores: Tensor, head: int) -> Tensor:
        """`[N, M]`: the class of one head."""
        if isinstance(self.choice, list):
            fixed = [each[head] if self.head_classes else each for each in self.choice]
            return torch.tensor(fixed, device=scores.device).unsqueeze(0).expand(scores.shape[0], -1)
        return scores.argmax(1, keepdim=True) if self.top == 1 else scores.topk(self.top, 1).indices

    def _other(self, scores: Tensor, own: Tensor) -> Tensor:
        """`[N, M]`: the class that a contrast is against."""
        if self.target.against != BEST_OTHER:
            return torch.full_like(own, self.target.against)
        hidden = one_hot(own, scores.shape[1], scores.dtype)  # [N, M, K]
        return torch.where(hidden > 0, -torch.inf, scores.unsqueeze(1)).argmax(-1)

    @property
    def signs(self) -> tuple[int, ...]:
        """Of the terms of the sum."""
        own = (1,) * len(self._sizes)
        return own if self.target.against is None else own + (-1,) * len(own)

    def _sum(self, terms: Sequence[Tensor]) -> Tensor:
        total = terms[0]
        for sign, term in list(zip(self.signs, terms, strict=True))[1:]:
            total = total + term if sign > 0 else total - term
        return total

    # ---- what the heads start from ----

    def seed(self, logits: Tensor, chosen: Tensor, of: str = "logit") -> Tensor:
        """The derivative of each explained score by the logits, `[M, N, K]` (or `[M, N, ...]` like the logits).

        Args:
            logits: of the network.
            chosen: see there.
            of: the scores are sums of `"logit"`, or of probabilities by `"softmax"`.
        """
        batch, dtype = logits.shape[0], torch.promote_types(logits.dtype, torch.float32)
        chosen = chosen.unsqueeze(1).expand(-1, batch) if chosen.dim() == 1 else chosen.transpose(-1, -2)
        hot = one_hot(chosen, self.num_classes, dtype)  # [M, N, K], or [R, M, N, K]
        wanted = hot if hot.dim() == 3 else self._sum(hot.unbind(0))
        if of == "softmax":
            wanted = self._through_softmax(self.by_class(logits).to(dtype), wanted)
        return self._back(wanted, logits)

    def _through_softmax(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """From the derivative by the probabilities, `[M, N, K]`, that by the scores `[N, K]`."""
        if min(self._sizes) < 2:
            raise ValueError("explain: score='softmax' must have another class, got a network with a single logit")
        if self.head_classes:
            parts = zip(scores.split(self._sizes, 1), wanted.split(self._sizes, -1), strict=True)
            return torch.cat([_softmax_back(part.softmax(1), w) for part, w in parts], -1)
        return _softmax_back(scores.softmax(1), wanted)

    def rows(self, weight: Tensor, chosen: Tensor) -> Tensor:
        """The classifier's rows of each explained score, `[M, C]` or `[N, M, C]`, from those of all classes `[K, C]`.

        Only where the steps have the same rows, and the mean over them is explained.
        """
        return weight[chosen] if chosen.dim() < 3 else self._sum([weight[each] for each in chosen.unbind(0)])

    # ---- for the comparison of a file with its model ----

    def gaps(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        """`[N]`: the least difference between two logits on which it hangs what is explained; infinite for none."""
        scores = self.by_class(logits).float()
        found = [scores.new_full((scores.shape[0],), torch.inf)]
        ranks = self.top + 1 if self.top else 0
        if self.target.against == BEST_OTHER:
            ranks = max(ranks + 1, 3)
        for part in scores.split(self._sizes, 1):
            ranked = part.topk(min(ranks, part.shape[1]), 1).values
            if ranked.shape[1] > 1:
                found.append((ranked[:, :-1] - ranked[:, 1:]).amin(1))
        if self.target.steps == "max":
            ranked = self._each_step(logits).float()
            ranked = ranked.topk(min(2, ranked.shape[-1]), -1).values
            terms = self.chosen(logits, classes)
            terms = terms.expand(scores.shape[0], -1) if terms.dim() == 1 else terms
            winners = ranked[..., 0] - ranked[..., -1] if ranked.shape[-1] > 1 else torch.full_like(scores, torch.inf)
            found += [winners.gather(1, each).amin(1) for each in (terms if terms.dim() == 3 else [terms])]
        return torch.stack(found).amin(0)

    # ---- what is said of it ----

    @property
    def reading(self) -> Reading:
        return Reading(self.probability, self.target.steps, self.target.layout, self.head_classes)

    def describe(self) -> dict:
        """For the manifest; JSON-able."""
        return {"classes": self.choice, **self.describe_target()}

    def describe_target(self) -> dict:
        target = self.target.describe()
        target |= {"head_classes": list(self.head_classes)} if self.head_classes else {}
        target |= {"stripped": self.ending} if self.ending else {}
        return {"probability": self.probability, "target": target}

    def meaning_of_logits(self) -> str:
        axes = {None: "[N, K]", "NT": "[N, T]", "NTK": "[N, T, K]", "NKT": "[N, K, T]"}[self.target.layout]
        if self.ending:
            return f"class scores before the {self.ending} that the network ends in {axes}"
        if self.probability == "none":
            return f"scores {axes}"
        return f"class scores before any {self.probability} {axes}"


def _softmax_back(probability: Tensor, wanted: Tensor) -> Tensor:
    return probability * (wanted - (wanted * probability).sum(-1, keepdim=True))
