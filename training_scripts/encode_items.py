"""Stage 2: item texts → semantic embeddings, with any sentence-transformers model.

python training_scripts/encode_items.py --output_dir runs/mine --semantic.model BAAI/bge-base-en-v1.5
"""

from dataclasses import dataclass, field
from pathlib import Path

from console import main
from sections import Section
from settings import Settings
from stages import DATA, SEMANTIC, StageReport, load_data, run_stage

from gensar_hf.embeddings.item_embeddings import save_item_embeddings
from gensar_hf.embeddings.semantic import PACKAGED_MINILM, encode_texts
from gensar_hf.files import write_json

EMBEDDINGS_FILE = "item_embeddings.safetensors"


@dataclass
class SemanticArguments:
    """The text encoder."""

    model: str = field(
        default=PACKAGED_MINILM,
        metadata={"help": "sentence-transformers model: a folder, a Hub name, or packaged-minilm."},
    )
    batch_size: int = field(default=64, metadata={"help": "texts per forward pass."})
    max_length: int | None = field(default=None, metadata={"help": "tokens read of each text."})


SECTION = Section(SEMANTIC, SemanticArguments)


def run(settings: Settings) -> StageReport:
    """Encode the catalogue."""
    run_dir, (arguments, _) = settings.run_dir, settings[SEMANTIC]

    def work(folder: Path, checkpoints: Path) -> dict:
        log, events, _ = load_data(run_dir)
        embeddings = encode_texts(log.item_texts(), arguments.model, arguments.batch_size, arguments.max_length)
        save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, events.item_ids)
        write_json(folder / "config.json", {"model": arguments.model, "text_columns": list(log.text_columns)})
        return {"model": arguments.model, "dimensions": embeddings.shape[1]}

    inputs = [arguments, run_dir / DATA / "items.parquet", run_dir / DATA / "log.json"]
    if Path(arguments.model).is_dir():
        inputs.append(Path(arguments.model))
    return run_stage(run_dir, SEMANTIC, inputs, work)


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
