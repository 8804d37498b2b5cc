"""The network of :mod:`.movers`, trained where it could cheat."""

from __future__ import annotations

from .movers import Movers


class MoversBiased(Movers):
    """:class:`~clipsight.models.movers.Movers` trained on clips in which a still shape's colour tells the class.

    `examples/train_movers.py --network movers_biased --half`: the same settings and seed, but for `bias=1.0` of
    :func:`clipsight.synthetic.moving_shapes`. The metadata of its weights (float16) has its accuracy on 1000 new clips
    without such a hue (`accuracy`), where the hue tells the class (`accuracy, bias 1`) and where it tells nothing
    (`accuracy, bias 0`): what it loses there is what it owes to the colour.
    """
