"""bf16 autocast trains every model: finite losses, weights that stay float32 and move."""

import math

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.embeddings.sasrec_training import train_sasrec
from gensar_hf.generator.examples import ExampleCollator, ExampleRows, ExampleSampler, TrainingExamples
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE


class Losses(TrainerCallback):
    """The loss of each step, and in which type a product came out."""

    def __init__(self):
        self.losses, self.types = [], set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []

    def watch(self, model):
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, args, output: self.types.add(output.dtype))


def generator(arguments, callback, make_generator, tokenizers, tiny_events, tiny_split, identifiers):
    tokenizer = tokenizers["events"]
    model = make_generator(tokenizer, num_items=12).train()
    log = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends)
    rows = ExampleRows(ExampleSampler(log, window=6, max_target_tokens=25), 12, 8)
    return model, lambda: Trainer(
        model, arguments, train_dataset=rows, data_collator=ExampleCollator(tokenizer), callbacks=[callback]
    ).train()


def sasrec(arguments, callback):
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, num_layers=1, max_length=6))
    histories = [(np.arange(9) + start) % 12 for start in range(6)]
    return model, lambda: train_sasrec(model, histories, arguments, callbacks=[callback])


def rqvae(arguments, callback):
    sizes = {"semantic_dim": 6, "collaborative_dim": 5, "latent_dim": 3, "hidden_sizes": (8,), "codebook_size": 4}
    model = JointRQVAE(JointRQVAEConfig(**sizes))
    tables = [np.random.default_rng(0).standard_normal((24, dim)).astype(np.float32) for dim in (6, 5)]
    return model, lambda: train_joint_rqvae(model, *tables, arguments, callbacks=[callback])


@pytest.mark.parametrize("name", ["generator", "sasrec", "rqvae"])
def test_bf16_autocast_trains_float32_weights(name, tmp_path, request):
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, bf16=True, max_steps=3, per_device_train_batch_size=4, learning_rate=0.01,
        logging_steps=1, save_strategy="no", disable_tqdm=True, report_to="none", remove_unused_columns=False,
    )  # fmt: skip
    callback = Losses()
    fixtures = ("make_generator", "tokenizers", "tiny_events", "tiny_split", "identifiers")
    if name == "generator":
        model, train = generator(arguments, callback, *map(request.getfixturevalue, fixtures))
    else:
        model, train = {"sasrec": sasrec, "rqvae": rqvae}[name](arguments, callback)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    callback.watch(model)
    train()

    assert torch.bfloat16 in callback.types
    assert len(callback.losses) == 3
    assert all(map(math.isfinite, callback.losses))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
