"""accelerate's files: no key is misspelt, and each says what has been run with it and what has not."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers.models.t5 import modeling_t5

CONFIGS = sorted((Path(__file__).parents[2] / "training_scripts" / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_it(path):
    config = load_config_from_file(str(path))  # refuses unknown keys and kinds
    assert config.num_processes == 2

    # What is nested it does not look at: there each key must be an option of `accelerate launch`.
    options = {action.dest: action for action in launch_command_parser()._actions}
    for name, value in {**config.fsdp_config, **config.deepspeed_config}.items():
        assert name in options, name
        choices = options[name].choices
        assert choices is None or str(value) in map(str, choices), name


def test_fsdp_wraps_layers_that_there_are(generators):
    content = yaml.safe_load(next(path for path in CONFIGS if path.stem == "fsdp").read_text(encoding="utf-8"))
    wrapped = getattr(modeling_t5, content["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"])
    model = generators["events"]
    layers = [module for module in model.modules() if isinstance(module, wrapped)]
    assert len(layers) == 4
    # The tied table stays outside of them, in one unit with the head.
    table = model.get_input_embeddings().weight
    assert model.lm_head.weight is table
    assert not any(parameter is table for layer in layers for parameter in layer.parameters())
