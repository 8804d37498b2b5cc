"""Train the network `movers` on fresh clips of moving shapes and write its weights: about four minutes on two cores.

    python examples/train_movers.py --out movers.safetensors

Every batch is generated anew, so there is no training set to overfit; masks are never shown to the network.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from clipsight.models.movers import Movers
from clipsight.synthetic import moving_shapes

_TEST_SEED = 1_000_000  # above every seed of training


def clips_to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 [N, T, H, W, 3] -> float32 [N, 3, T, H, W], normalised as the network wants it."""
    wanted = Movers.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (wanted.mean, wanted.std))
    return (torch.from_numpy(frames).permute(0, 4, 1, 2, 3) * wanted.scale - mean) / std


def train(model: Movers, steps: int, batch: int, seed: int, sparsity: float, learning_rate: float) -> None:
    """`steps` batches of new clips.

    `sparsity` is an L1 penalty on the features, which saliency tubes are made of: evidence where something moves, and
    nothing elsewhere. It sets in once the network has begun to tell the classes apart.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    start, right = time.perf_counter(), 0
    model.train()
    for step in range(1, steps + 1):
        clips = moving_shapes(batch, seed=seed * steps + step)
        labels = torch.from_numpy(clips.labels)
        features = model.features(clips_to_tensor(clips.frames))
        logits = model.classifier(model.pool(features).flatten(1))
        loss = F.cross_entropy(logits, labels) + sparsity * (step > 0.3 * steps) * features.mean()
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


def test(model: Movers, count: int) -> float:
    """Share of `count` new clips whose motion is named correctly."""
    model.eval()
    right = 0
    for start in range(0, count, 40):
        clips = moving_shapes(min(40, count - start), seed=_TEST_SEED + start)
        with torch.inference_mode():
            right += (model(clips_to_tensor(clips.frames)).argmax(1).numpy() == clips.labels).sum()
    return float(right / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("movers.safetensors"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = Movers()
    start = time.perf_counter()
    train(model, args.steps, args.batch, args.seed, args.sparsity, args.learning_rate)
    accuracy = test(model, 1000)
    print(f"accuracy on 1000 new clips {accuracy:.3f}; {time.perf_counter() - start:.0f} s in all")

    notes = {key: value for key, value in vars(args).items() if key not in ("out", "threads")} | {"accuracy": accuracy}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, args.out, metadata={key: str(value) for key, value in notes.items()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
