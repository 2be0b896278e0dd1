"""Text embeddings by several workers, on Ray Data."""

from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.item_embeddings import save_item_embeddings
from gensar_hf.ray_workers import work_on_ray


class _Worker:
    """An actor with its own text encoder."""

    def __init__(self, encoder: str) -> None:
        self.encoder = TextEncoder.load(encoder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of rows with `texts` and the `path` for their embeddings."""
        for path, texts in zip(batch["path"], batch["texts"], strict=True):
            save_item_embeddings(Path(path), self.encoder.encode(list(texts)), list(texts))
        return {"path": batch["path"]}


def encode_on_ray(
    encoder: TextEncoder, parts: dict[Path, list[str]], folder: Path, num_workers: int, num_gpus: float
) -> None:
    """Write the embeddings of each part's texts to its path; errors of `work_on_ray`.

    Args:
        encoder: of which each worker loads a copy.
        parts: path → distinct texts.
        folder: for that copy; it and the paths must be visible from all machines.
        num_workers: copies of the encoder.
        num_gpus: GPUs of each.
    """
    if not parts:
        return
    encoder.save(folder)
    rows = [{"path": str(path.resolve()), "texts": texts} for path, texts in parts.items()]
    made = work_on_ray(_Worker, {"encoder": str(folder.resolve())}, rows, num_workers, num_gpus)
    for _ in tqdm(made, desc="parts of the texts", total=len(rows)):
        pass
