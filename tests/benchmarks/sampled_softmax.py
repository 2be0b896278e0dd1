"""What a sampled softmax costs in quality: SASRec with the exact loss and with a sampled one, on validation clicks.

    python tests/benchmarks/sampled_softmax.py --items items.parquet --interactions clicks.parquet

Catalogues of more than 16,384 items are sampled. Here the sample is forced on a smaller one, with as many draws an item
as in a catalogue of `--as_if` items. Prints NDCG@10 with its interval over users, for each seed.
"""

import argparse
import tempfile

import torch
from transformers import set_seed

from gensar_hf import GenSARTrainingArguments, InteractionDataset, catalogue_loss
from gensar_hf.baselines import NextItemScorer
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import num_training_steps, sasrec_training_arguments, train_sasrec
from gensar_hf.evaluation import Evaluation
from gensar_hf.training_defaults import machine_defaults


def trained(data: InteractionDataset, seed: int, max_steps: int) -> SASRecModel:
    """SASRec on the training clicks, as in a run."""
    events, split = data.events, data.split
    histories = [events.items[a:b] for a, b in zip(events.offsets[:-1], split.train_ends, strict=True)]
    histories = [items[items >= 0] for items in histories]
    set_seed(seed)
    defaults = GenSARTrainingArguments("unused", text_encoder=None)
    model = SASRecModel(defaults.sasrec(events.num_items))
    with tempfile.TemporaryDirectory() as folder:
        settings = sasrec_training_arguments(
            folder, num_train_epochs=defaults.sasrec_epochs, seed=seed, logging_strategy="no", **machine_defaults()
        )
        settings.max_steps = max_steps or num_training_steps(histories, settings, model.config.max_length)
        train_sasrec(model, histories, settings)
    return model


def main() -> None:
    """Train both for each seed, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", required=True)
    parser.add_argument("--interactions", required=True)
    parser.add_argument("--text_columns", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--as_if", type=int, default=62_883, help="items of the catalogue that this one stands for")
    parser.add_argument("--max_steps", type=int, default=0, help="default: as in a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = InteractionDataset(options.items, options.interactions, text_columns=options.text_columns)
    evaluation = Evaluation(data, part="validation", tasks=["recommendation"])
    exact, draws = catalogue_loss.EXACT_ITEMS, catalogue_loss.NUM_NEGATIVES
    few = max(1, round(draws * len(data.item_ids) / options.as_if))
    for seed in options.seeds:
        for name, items, negatives in (("exact", exact, draws), (f"sampled, {few} draws", 0, few)):
            catalogue_loss.EXACT_ITEMS, catalogue_loss.NUM_NEGATIVES = items, negatives
            scorer = NextItemScorer(trained(data, seed, options.max_steps), name)
            systems = evaluation.run([scorer]).metrics()["tasks"]["recommendation"]["systems"]
            value = systems[name]["NDCG@10"]
            print(
                f"seed {seed}, {name}: NDCG@10 {value['value']:.3f} ({value['low']:.3f} … {value['high']:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
