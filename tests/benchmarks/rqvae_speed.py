"""How much faster the package trains a joint RQ-VAE than the obvious loop: to the same quality, in one run.

    python tests/benchmarks/rqvae_speed.py --output_dir results/rqvae_speed
    python tests/benchmarks/rqvae_speed.py --run_dir runs/mine --epochs 100 --output_dir results/rqvae_speed

The obvious loop is what published code does: a DataLoader that yields single items, encoders and decoders with random
weights, codebooks from k-means (scikit-learn, on the CPU) over the first batch, level by level, codes converted to
NumPy arrays in every step. It trains for `--epochs`. Its final quality, the sum of both reconstruction errors and the
larger of both collision rates, is the goal of the package's training, which stops at the first epoch that reaches both.
The package's options are those of `amazon-beauty.yaml`, the sizes are the same for both.
The two take turns, `--repetitions` times. Evaluation is not timed.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments, set_seed

from gensar_hf.files import write_json
from gensar_hf.identifiers.assignment import collision_rate
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.item_embeddings import load_item_embeddings

BATCH_SIZE, LEARNING_RATE, NUM_LEVELS, ALPHA = 1024, 1e-3, 2, 0.25
HIDDEN = (512, 256, 128)


@dataclass(frozen=True)
class Quality:
    """reconstruction_error: of both kinds, summed. collision_rate: the larger one of both kinds, before assignment."""

    reconstruction_error: float
    collision_rate: float

    def reaches(self, goal: "Quality") -> bool:
        """At least as good in both."""
        return self.reconstruction_error <= goal.reconstruction_error and self.collision_rate <= goal.collision_rate


class Rows(Dataset):
    """One item at a time, as NumPy rows."""

    def __init__(self, semantic: np.ndarray, collaborative: np.ndarray) -> None:
        self.semantic, self.collaborative = semantic, collaborative

    def __len__(self) -> int:
        return len(self.semantic)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.semantic[index]), torch.tensor(self.collaborative[index])


class ObviousCodebooks(nn.Module):
    """Residual codebooks as lists of embeddings, started by k-means on the first batch that comes."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.books = nn.ModuleList([nn.Embedding(codebook_size, dim) for _ in range(NUM_LEVELS)])
        self.is_started = False

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
        """The quantized latents, the loss, and each level's codes."""
        residual, quantized, loss, codes = latents, torch.zeros_like(latents), torch.zeros(()), []
        for book in self.books:
            if not self.is_started:
                size = book.num_embeddings
                points = residual.detach().cpu().numpy()
                centres = KMeans(size, n_init=1, max_iter=10, random_state=0).fit(points).cluster_centers_
                book.weight.data.copy_(torch.from_numpy(centres))
            distances = (residual**2).sum(1, keepdim=True) + (book.weight**2).sum(1) - 2 * residual @ book.weight.t()
            index = distances.argmin(dim=1)
            chosen = book(index)
            loss = (
                loss + ((residual.detach() - chosen) ** 2).mean() + ALPHA * ((residual - chosen.detach()) ** 2).mean()
            )
            residual, quantized = residual - chosen.detach(), quantized + chosen
            codes.append(index.cpu().numpy())
        self.is_started = True
        return quantized, loss, codes


class ObviousJointRQVAE(nn.Module):
    """The paper's joint RQ-VAE, written down as it is read."""

    def __init__(self, semantic_dim: int, collaborative_dim: int, latent_dim: int, codebook_size: int) -> None:
        super().__init__()

        def network(sizes: list[int]) -> nn.Sequential:
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise(sizes):
                layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            return nn.Sequential(*layers[:-1])

        dims = (semantic_dim, collaborative_dim)
        self.encoders = nn.ModuleList([network([dim, *HIDDEN, latent_dim]) for dim in dims])
        self.decoders = nn.ModuleList([network([latent_dim, *HIDDEN[::-1], dim]) for dim in dims])
        self.shared = ObviousCodebooks(codebook_size, 2 * latent_dim)
        self.specific = nn.ModuleList([ObviousCodebooks(codebook_size, latent_dim) for _ in dims])

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
        """The loss, the reconstruction errors `(2,)`, and both kinds' codes `(batch_size, 4)`."""
        latents = torch.cat([encoder(rows) for encoder, rows in zip(self.encoders, inputs, strict=True)], dim=1)
        quantized, loss, shared_codes = self.shared(latents)
        halves = (latents - quantized.detach()).chunk(2, dim=1)
        errors, codes = [], []
        for kind, (half, shared_half) in enumerate(zip(halves, quantized.chunk(2, dim=1), strict=True)):
            own, own_loss, own_codes = self.specific[kind](half)
            total = shared_half + own
            latent = latents.chunk(2, dim=1)[kind]
            decoded = self.decoders[kind](latent + (total - latent).detach())
            errors.append(((decoded - inputs[kind]) ** 2).mean())
            loss = loss + own_loss + errors[-1]
            codes.append(np.stack([*shared_codes, *own_codes], axis=1))
        return loss, torch.stack(errors), codes


def train_obvious(
    semantic: np.ndarray, collaborative: np.ndarray, latent_dim: int, codebook_size: int, epochs: int, seed: int
) -> tuple[float, Quality]:
    """Seconds of training, and what it reached; embeddings are standardized first, as ours are."""
    torch.manual_seed(seed)
    tables = [(table - table.mean(0)) / (table.std(0) + 1e-6) for table in (semantic, collaborative)]
    start = time.perf_counter()
    model = ObviousJointRQVAE(semantic.shape[1], collaborative.shape[1], latent_dim, codebook_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(Rows(*tables), batch_size=BATCH_SIZE, shuffle=True)
    for _ in tqdm(range(epochs), desc="obvious loop", leave=False):
        losses = []
        for batch in loader:
            loss, _, _ = model(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    with torch.no_grad():
        _, errors, codes = model(*map(torch.from_numpy, tables))
    return seconds, Quality(float(errors.sum()), max(map(collision_rate, codes)))


class StopAtGoal(TrainerCallback):
    """Notes quality and seconds after every epoch, evaluation not counted, and stops at the goal."""

    def __init__(self, semantic: np.ndarray, collaborative: np.ndarray, goal: Quality, start: float) -> None:
        self.tables, self.goal, self.start = (semantic, collaborative), goal, start
        self.history: list[tuple[float, Quality]] = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Evaluate."""
        now = time.perf_counter()
        seconds = now - self.start
        quality = package_quality(model, *self.tables)
        self.history.append((seconds, quality))
        self.start += time.perf_counter() - now
        control.should_training_stop = quality.reaches(self.goal)
        return control


def package_quality(model: JointRQVAE, semantic: np.ndarray, collaborative: np.ndarray) -> Quality:
    """Of the codes as they are."""
    codes = model.encode(semantic, collaborative)
    quantized = codes.quantized(codes.semantic_codes, codes.collaborative_codes)
    errors = model.reconstruction_error(semantic, collaborative, quantized)
    return Quality(sum(errors.values()), max(map(collision_rate, (codes.semantic_codes, codes.collaborative_codes))))


def train_package(
    semantic: np.ndarray, collaborative: np.ndarray, config: JointRQVAEConfig, epochs: int, seed: int, goal: Quality
) -> tuple[float, Quality]:
    """Seconds until the goal (or of all epochs), and what was reached."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH_SIZE, seed=seed,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", save_strategy="no", logging_strategy="no",
            report_to="none", dataloader_pin_memory=torch.cuda.is_available(), disable_tqdm=True,
        )  # fmt: skip
        start = time.perf_counter()
        model = JointRQVAE(config)
        callback = StopAtGoal(semantic, collaborative, goal, start)
        with contextlib.redirect_stdout(io.StringIO()):  # the Trainer prints its metrics at the end
            train_joint_rqvae(model, semantic, collaborative, arguments, callbacks=[callback])
    if callback.history:
        return callback.history[-1]
    return time.perf_counter() - start, package_quality(model, semantic, collaborative)  # fitted, nothing to train


def synthetic_embeddings(num_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters with noise, `(num_items, 384)` and `(num_items, 64)`."""
    generator = np.random.default_rng(seed)
    tables = []
    for dim in (384, 64):
        centres = generator.standard_normal((max(2, num_items // 20), dim))
        mixing = generator.standard_normal((32, dim)) / 32**0.5
        cluster = generator.integers(len(centres), size=num_items)
        noise = generator.standard_normal((num_items, 32)) @ mixing
        tables.append((centres[cluster] + noise + 0.3 * generator.standard_normal((num_items, dim))).astype(np.float32))
    return tables[0], tables[1]


def read_run(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Both embeddings of a run's items."""
    from gensar_hf.data.dataset import InteractionDataset

    item_ids = InteractionDataset.load(run_dir / "data").item_ids
    semantic, collaborative = (
        load_item_embeddings(run_dir / stage / "item_embeddings.safetensors", item_ids)
        for stage in ("semantic", "collaborative")
    )
    return semantic, collaborative


def measure(arguments: argparse.Namespace) -> Iterator[dict]:
    """One repetition after another."""
    tables = read_run(arguments.run_dir) if arguments.run_dir else synthetic_embeddings(arguments.items, seed=0)
    config = JointRQVAEConfig(
        semantic_dim=tables[0].shape[1], collaborative_dim=tables[1].shape[1], latent_dim=arguments.latent_dim,
        codebook_size=arguments.codebook_size, sinkhorn_epsilon=0.0, ema_decay=0.99, collaborative_scale=0.8,
        commitment_weight=0.1,
    )  # fmt: skip
    for seed in range(arguments.repetitions):
        seconds, goal = train_obvious(*tables, arguments.latent_dim, arguments.codebook_size, arguments.epochs, seed)
        ours, reached = train_package(*tables, config, arguments.epochs, seed, goal)
        yield {
            "seed": seed,
            "obvious": {"seconds": seconds, **asdict(goal)},
            "package": {"seconds": ours, **asdict(reached), "reached": reached.reaches(goal)},
            "ratio": seconds / ours,
        }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="a run whose embeddings are taken; synthetic ones by default")
    parser.add_argument("--items", type=int, default=12_000, help="synthetic items")
    parser.add_argument("--epochs", type=int, default=100, help="of the obvious loop, and at most of the package")
    parser.add_argument("--latent_dim", type=int, default=32)
    parser.add_argument("--codebook_size", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(json.dumps(row), flush=True)
    ratios = [row["ratio"] for row in rows]
    is_reached = all(row["package"]["reached"] for row in rows)
    print(
        f"ratio of the times to the same quality: {np.median(ratios):.1f} (of {[f'{ratio:.1f}' for ratio in ratios]})"
    )
    print("the package reached the obvious loop's quality" if is_reached else "NOT REACHED: the ratio does not count")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    write_json(arguments.output_dir / "rqvae_speed.json", {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
