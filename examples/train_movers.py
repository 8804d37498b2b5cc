"""Train a shipped network on fresh clips of moving shapes and write its weights: about four minutes on two cores.

    python examples/train_movers.py --network movers --out movers.safetensors
    python examples/train_movers.py --network movers2d --out movers2d.safetensors
    python examples/train_movers.py --network movers_biased --out movers_biased.safetensors --half

The last one can cheat: in its clips the colour of the still shape tells the class (`--bias`, see
:func:`clipsight.synthetic.moving_shapes`). How well it does where the colour tells nothing says whether it did.

Every batch is generated anew, so there is no training set to overfit; masks are never shown to the network.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from clipsight import models
from clipsight.models.movers import Movers
from clipsight.synthetic import moving_shapes

_TEST_SEED = 1_000_000  # above every seed of training
_SETTINGS = {
    "movers": {"steps": 600, "batch": 32, "frames": 16, "learning_rate": 4e-3, "sparsity": 0.2},
    "movers_biased": {"steps": 600, "batch": 32, "frames": 16, "learning_rate": 4e-3, "sparsity": 0.2, "bias": 1.0},
    # Time is nothing to a 2-D network: the ends of a clip, which differ most, and more clips instead.
    "movers2d": {"steps": 600, "batch": 64, "frames": 2, "learning_rate": 2e-3, "sparsity": 0.02},
}


def clips_to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] -> float32 [N, 3, T, H, W], normalised as the network wants it."""
    wanted = Movers.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (wanted.mean, wanted.std))
    return (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) * wanted.scale - mean) / std


def train(
    model: nn.Module,
    steps: int,
    batch: int,
    frames: int,
    seed: int,
    sparsity: float,
    learning_rate: float,
    flat: bool,
    bias: float | None = None,
) -> None:
    """`steps` batches of new clips of `frames` frames, with the `bias` of `moving_shapes`.

    `sparsity` is an L1 penalty on the features, which saliency tubes are made of: evidence where something moves, and
    nothing elsewhere. It sets in once the network has begun to tell the classes apart. Played backwards, a clip shows
    the opposite motion, and a network that is `flat`, blind to the order of the frames, answers the same: it is
    taught both labels at once, which spares it half the noise.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    start, right, seen = time.perf_counter(), 0, {}
    model.features.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    model.train()
    for step in range(1, steps + 1):
        clips = moving_shapes(batch, seed=seed * steps + step, frames=frames, bias=bias)
        labels = torch.from_numpy(clips.labels)
        logits = model(clips_to_tensor(clips.frames))
        loss = sum(F.cross_entropy(logits, y) for y in (labels, labels ^ 1)[: 1 + flat]) / (1 + flat)
        loss = loss + sparsity * (step > 0.3 * steps) * seen["features"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right += (logits.argmax(1) == labels).sum().item()
        if step % 50 == 0:
            seconds = time.perf_counter() - start
            print(
                f"step {step}: accuracy {right / (50 * batch):.3f}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True
            )
            right = 0


def test(model: nn.Module, count: int, bias: float | None) -> float:
    """Share of `count` new clips, the same for every `bias` but for its colour, whose motion is named correctly."""
    model.eval()
    right = 0
    for start in range(0, count, 40):
        clips = moving_shapes(min(40, count - start), seed=_TEST_SEED + start, bias=bias)
        with torch.inference_mode():
            right += (model(clips_to_tensor(clips.frames)).argmax(1).numpy() == clips.labels).sum()
    return float(right / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=tuple(_SETTINGS), default="movers")
    parser.add_argument("--out", type=Path, help="default: the network's name and .safetensors")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--bias", type=float, help="probability that the colour of the still shape tells the class")
    parser.add_argument("--half", action="store_true", help="round the weights to float16, for a file of half the size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(**_SETTINGS[parser.parse_known_args()[0].network])
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = models.load(args.network, pretrained=False)
    start = time.perf_counter()
    settings = {name: getattr(args, name) for name in ("seed", "bias", *_SETTINGS["movers"])}
    train(model, **settings, flat=args.network == "movers2d")
    state = model.state_dict()
    if args.half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        model.load_state_dict(state)  # what is tested is what is written
    accuracies = {"accuracy": test(model, 1000, None)}
    if args.bias is not None:
        accuracies |= {f"accuracy, bias {bias:g}": test(model, 1000, bias) for bias in (args.bias, 0.0)}
    print(f"on 1000 new clips: {accuracies}; {time.perf_counter() - start:.0f} s in all")

    out = args.out or Path(f"{args.network}.safetensors")
    notes = settings | accuracies
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, out, metadata={key: str(value) for key, value in notes.items()})
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
