"""The encoder and a step of the decoder compile whole, and export with the same outputs."""

from collections.abc import Iterator

import pytest
import torch
from pipeline_requests import HISTORY
from transformers.modeling_outputs import BaseModelOutput

from gensar_hf import GenSARPipeline

LONGER = [*HISTORY, {"item_id": "film-9"}, {"query": "space"}, {"item_id": "film-1", "query": "space"}]
NUM_POSITIONS = 9  # the instruction and eight events


@pytest.fixture(params=["events", "vectors"])
def exported_pipe(pipelines: dict[str, GenSARPipeline], request: pytest.FixtureRequest) -> GenSARPipeline:
    return pipelines[request.param]


def inputs_of(pipe: GenSARPipeline, histories: list) -> tuple[dict, dict]:
    """Of the encoder, and of the first step of the decoder after it."""
    inputs = dict(pipe.tokenizer.encode_request(histories, behavior="<R_I>"))
    missing = NUM_POSITIONS - inputs["event_items"].shape[1]
    inputs["event_items"] = torch.nn.functional.pad(inputs["event_items"], (0, missing), value=-1)
    decoder_input_ids = inputs.pop("decoder_input_ids")
    with torch.no_grad():
        states = BaseModelOutput(pipe.model.encoder(**inputs).last_hidden_state)
    places = {name: inputs[name] for name in ("attention_mask", "event_ids")}
    return inputs, {"encoder_outputs": states, "decoder_input_ids": decoder_input_ids, **places}


@pytest.fixture
def recurrent_layers_compile() -> Iterator[None]:
    before = torch._dynamo.config.allow_rnn
    torch._dynamo.config.allow_rnn = True
    yield
    torch._dynamo.config.allow_rnn = before
    torch._dynamo.reset()


@pytest.mark.slow
def test_encoder_and_decoder_compile_without_a_break(
    exported_pipe: GenSARPipeline, recurrent_layers_compile: None
) -> None:
    model: torch.nn.Module = exported_pipe.model
    encoder, decoder = (
        torch.compile(part, fullgraph=True, dynamic=True, backend="eager") for part in (model.encoder, model)
    )
    for histories in ([HISTORY, LONGER], [LONGER, HISTORY, HISTORY[:1]]):
        inputs, step = inputs_of(exported_pipe, histories)
        with torch.no_grad():
            torch.testing.assert_close(encoder(**inputs).last_hidden_state, step["encoder_outputs"].last_hidden_state)
            torch.testing.assert_close(decoder(**step).logits, model(**step).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DynamoExporter", "OnnxExporter"])
def test_exports_give_the_same_states_and_logits(exported_pipe: GenSARPipeline, kind: str) -> None:
    exporters = pytest.importorskip("transformers.exporters")
    if kind == "OnnxExporter":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    exporter = getattr(exporters, kind)()
    config = getattr(exporters, kind.replace("Exporter", "Config"))(dynamic=True)
    inputs, step = inputs_of(exported_pipe, [HISTORY, LONGER])
    encoder = exporter.export(exported_pipe.model.encoder, inputs, config=config)
    decoder = exporter.export(exported_pipe.model, step, config=config)
    for histories in ([HISTORY, LONGER], [LONGER, HISTORY, LONGER[:4]]):
        inputs, step = inputs_of(exported_pipe, histories)
        states = step["encoder_outputs"].last_hidden_state
        torch.testing.assert_close(encoder(**inputs).last_hidden_state, states, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            logits = exported_pipe.model(**step).logits
        torch.testing.assert_close(decoder(**step).logits, logits, atol=1e-4, rtol=1e-4)
