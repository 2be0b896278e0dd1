"""Stage 2: item texts → semantic embeddings, with any sentence-transformers model.

python training_scripts/encode_items.py --output_dir runs/mine --semantic.model BAAI/bge-base-en-v1.5
"""

from dataclasses import dataclass, field
from pathlib import Path

from stages import DATA, SEMANTIC, StageReport, load_data, main, run_stage, section_arguments

from gensar_hf.artifacts import write_json
from gensar_hf.embeddings.item_embeddings import save_item_embeddings
from gensar_hf.embeddings.semantic import PACKAGED_MINILM, encode_texts

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


def run(sections: dict[str, dict]) -> StageReport:
    """Encode the catalogue."""
    run_dir = Path(sections[""]["output_dir"])
    arguments = section_arguments(sections.get(SEMANTIC, {}), SemanticArguments, SEMANTIC)

    def work(folder: Path, checkpoints: Path) -> dict:
        log, events, _ = load_data(run_dir)
        embeddings = encode_texts(log.item_texts(), arguments.model, arguments.batch_size, arguments.max_length)
        save_item_embeddings(folder / EMBEDDINGS_FILE, embeddings, events.item_ids)
        write_json(folder / "config.json", {"model": arguments.model, "text_columns": list(log.text_columns)})
        return {"model": arguments.model, "dimensions": embeddings.shape[1]}

    return run_stage(run_dir, SEMANTIC, [arguments, run_dir / DATA / "items.parquet"], work)


if __name__ == "__main__":
    main(run, __doc__)
