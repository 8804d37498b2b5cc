"""Measures that ask the network take an exported file as well."""

from __future__ import annotations

import numpy as np
import torch

import clipsight
import networks as net
from clipsight import SaliencyTube
from clipsight.metrics import insertion_auc
from networks import seeded


def test_callables_of_every_kind(tmp_path):
    """A network, an explained one, a file by NumPy and by torch, a function: the same area."""
    network, clip = seeded(net.ModulePool), net.clip(2, (4, 16, 16))
    explained = clipsight.explain(network, SaliencyTube(), clip[:1])
    with torch.no_grad():
        logits, tube = explained(clip)
    classes, tube = logits.argmax(1).numpy(), tube[:, 0].numpy()
    clipsight.export(explained, tmp_path / "x.pt", clip[:1], plugin=False)
    file = clipsight.load(tmp_path / "x.pt")
    expected = insertion_auc(network, clip, tube, classes, 5)
    for model, frames in ((explained, clip), (file, clip), (file, clip.numpy()), (lambda c: [*file(c)], clip.numpy())):
        np.testing.assert_allclose(insertion_auc(model, frames, tube, classes, 5), expected, atol=1e-6)
    half = insertion_auc(seeded(net.ModulePool).bfloat16(), clip.bfloat16(), tube, classes, 5)
    np.testing.assert_allclose(half, expected, atol=0.02)
    assert (half != expected).all()
