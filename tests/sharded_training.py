"""GenSAR's layers spread over processes by torch's FSDP2, beside a whole copy: what differs is JSON on the last line.

torchrun --nproc_per_node 2 tests/sharded_training.py
"""

import copy
import json
import sys
from pathlib import Path

import torch
import yaml
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.t5 import modeling_t5

sys.path.insert(0, str(Path(__file__).parent))
from conftest import QUERIES, TRAIN_LENGTHS, USERS, build_events, build_generator, build_identifiers

from gensar_hf.generator.examples import ExampleCollator, ExampleRows, ExampleSampler, TrainingExamples
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

CONFIG = Path(__file__).parents[1] / "training_scripts" / "configs" / "accelerate" / "fsdp.yaml"
NUM_STEPS, NUM_ROWS = 4, 8

torch.distributed.init_process_group("gloo")
rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
identifiers = build_identifiers()
tokenizer = GenSARTokenizer.train_from_texts(
    [*(identifiers.texts or []), *QUERIES], identifiers, vocab_size=120, history_encoding="events", max_history_events=8
)
events = build_events(USERS, identifiers.item_ids)
log = TrainingExamples(tokenizer, events, events.offsets[:-1] + list(TRAIN_LENGTHS.values()))
sampler = ExampleSampler(log, window=6, max_target_tokens=25)
rows, collate = ExampleRows(sampler, NUM_STEPS * NUM_ROWS, 8), ExampleCollator(tokenizer)

whole = build_generator(tokenizer, num_items=12, item_dropout=0.0).train()
sharded = copy.deepcopy(whole)
layer = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
mesh = init_device_mesh("cpu", (count,))
for module in [*sharded.modules()]:
    if isinstance(module, getattr(modeling_t5, layer)):
        fully_shard(module, mesh=mesh)
fully_shard(sharded, mesh=mesh)

optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (whole, sharded)]
differences = []
for step in range(NUM_STEPS):
    step_rows = [rows[index] for index in range(step * NUM_ROWS, (step + 1) * NUM_ROWS)]
    batch = collate(step_rows)
    num_labels = int((batch["labels"] != -100).sum())
    loss = whole(**batch, num_items_in_batch=num_labels).loss
    part = sharded(**collate(step_rows[rank::count]), num_items_in_batch=num_labels).loss
    loss.backward()
    (part * count).backward()  # FSDP averages the gradients
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    total = part.detach().clone()
    torch.distributed.all_reduce(total)
    differences.append(float((total - loss.detach()).abs()))
weights = {name: value.full_tensor() for name, value in sharded.state_dict().items()}
if rank == 0:
    answer = {
        "loss": max(differences),
        "weights": max(float((weights[name] - value).abs().max()) for name, value in whole.state_dict().items()),
        "is_tied": sharded.lm_head.weight is sharded.shared.weight,
        "num_sharded": sum(type(parameter).__name__ == "DTensor" for parameter in sharded.parameters()),
        "num_parameters": len(list(whole.parameters())),
    }
    sys.stdout.write(json.dumps(answer) + "\n")
torch.distributed.destroy_process_group()
