import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions, pool_events
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

INPUTS = torch.tensor([[5, 9, 31, 40, 41, 42, 7], [8, 50, 51, 0, 0, 0, 0]])
EVENT_IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, -1, -1, -1, -1]])
DECODER_INPUTS = torch.tensor([[0, 28, 33], [0, 30, 35]])


@pytest.fixture
def model(generators: dict[str, GenSARForConditionalGeneration]) -> GenSARForConditionalGeneration:
    return generators["events"]


def test_pooling_sums_an_event_and_divides_by_the_root_of_its_length() -> None:
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 9.0]]])
    pooled, is_event = pool_events(embeddings, torch.tensor([[0, 1, 1, 1, -1]]), 2)
    expected = torch.tensor([[[1.0, 2.0], [15 / 3**0.5, 18 / 3**0.5]]])
    torch.testing.assert_close(pooled, expected)
    assert is_event.tolist() == [[True, True]]


def test_pooling_leaves_padding_out_in_every_row() -> None:
    embeddings = torch.arange(8.0).view(2, 4, 1)
    pooled, is_event = pool_events(embeddings, torch.tensor([[0, 1, 2, 2], [0, 0, -1, -1]]), 3)
    torch.testing.assert_close(pooled[:, :, 0], torch.tensor([[0.0, 1.0, 5 / 2**0.5], [9 / 2**0.5, 0.0, 0.0]]))
    assert is_event.tolist() == [[True, True, True], [True, False, False]]


def test_event_positions_count_the_events_of_each_row() -> None:
    assert event_positions(EVENT_IDS, 4).tolist() == [[True] * 4, [True, True, False, False]]


def test_the_encoder_has_one_position_for_each_event(model: GenSARForConditionalGeneration) -> None:
    with torch.no_grad():
        output = model(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS)
    assert output.encoder_last_hidden_state.shape == (2, 4, 16)
    assert output.logits.shape == (2, 3, model.config.vocab_size)


def test_the_words_of_an_event_have_no_order(model: GenSARForConditionalGeneration) -> None:
    shuffled = INPUTS[:, [1, 0, 4, 2, 3, 5, 6]]
    with torch.no_grad():
        states = model.encoder(INPUTS[:1], event_ids=EVENT_IDS[:1])[0]
        same = model.encoder(shuffled[:1], event_ids=EVENT_IDS[:1])[0]
    torch.testing.assert_close(states, same, atol=1e-5, rtol=0)


def test_a_later_event_changes_no_earlier_position(model: GenSARForConditionalGeneration) -> None:
    with torch.no_grad():
        states = model.encoder(INPUTS[:1], event_ids=EVENT_IDS[:1])[0]
        for event in range(4):
            changed = torch.where(EVENT_IDS[:1] == event, INPUTS[:1] + 60, INPUTS[:1])
            difference = (model.encoder(changed, event_ids=EVENT_IDS[:1])[0] - states)[0].abs().amax(dim=1)
            assert (difference[:event] == 0).all()
            assert (difference[event:] > 1e-3).all()


def test_padding_and_other_rows_change_nothing(model: GenSARForConditionalGeneration) -> None:
    with torch.no_grad():
        batch = model(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS)
        for row, num_tokens in enumerate((7, 3)):
            single = model(
                INPUTS[row : row + 1, :num_tokens],
                event_ids=EVENT_IDS[row : row + 1, :num_tokens],
                decoder_input_ids=DECODER_INPUTS[row : row + 1],
            )
            num_positions = single.encoder_last_hidden_state.shape[1]
            states = batch.encoder_last_hidden_state[row, :num_positions]
            torch.testing.assert_close(states, single.encoder_last_hidden_state[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.logits[row], single.logits[0], atol=1e-5, rtol=0)


def test_the_tokens_under_padding_do_not_matter(model: GenSARForConditionalGeneration) -> None:
    other_padding = torch.where(EVENT_IDS < 0, 77, INPUTS)
    with torch.no_grad():
        logits = model(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits
        assert torch.equal(model(other_padding, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits, logits)


def test_embeddings_may_be_given_instead_of_tokens(model: GenSARForConditionalGeneration) -> None:
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(INPUTS)
        logits = model(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits
        same = model(inputs_embeds=embeddings, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits
    assert torch.equal(logits, same)


def test_without_event_ids_it_computes_what_t5_computes(
    generators: dict[str, GenSARForConditionalGeneration],
) -> None:
    model = generators["tokens"]
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "dtype")}
    t5 = T5ForConditionalGeneration(T5Config(**config)).eval()
    t5.load_state_dict(model.state_dict())
    labels = torch.tensor([[28, 33, -100], [30, 35, 60]])
    inputs = {"input_ids": INPUTS, "attention_mask": (INPUTS != 0).long(), "labels": labels}
    with torch.no_grad():
        ours, theirs = model(**inputs), t5(**inputs)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=0)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6)


def test_the_loss_is_the_mean_over_labels_and_the_sum_over_those_of_the_whole_batch(
    model: GenSARForConditionalGeneration,
) -> None:
    labels = torch.tensor([[28, 33, -100], [30, 35, 60]])
    inputs = {
        "input_ids": INPUTS,
        "event_ids": EVENT_IDS,
        "decoder_input_ids": torch.tensor([[0, 28, 33]]).repeat(2, 1),
    }
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        over_twenty = model(**inputs, labels=labels, num_items_in_batch=20).loss
    log_probabilities = output.logits.double().log_softmax(dim=-1)
    total = -sum(
        log_probabilities[row, position, labels[row, position]].item()
        for row, position in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    )
    assert output.loss.item() == pytest.approx(total / 5, rel=1e-5)
    assert over_twenty.item() == pytest.approx(total / 20, rel=1e-5)


def test_labels_without_decoder_inputs_are_shifted_into_decoder_inputs(model: GenSARForConditionalGeneration) -> None:
    labels = torch.tensor([[28, 33, 60], [30, 35, -100]])
    with torch.no_grad():
        implied = model(INPUTS, event_ids=EVENT_IDS, labels=labels).loss
        given = model(
            INPUTS, event_ids=EVENT_IDS, labels=labels, decoder_input_ids=torch.tensor([[0, 28, 33], [0, 30, 35]])
        ).loss
    assert implied.item() == given.item()


def test_a_batch_without_a_label_has_no_loss_rather_than_nan(model: GenSARForConditionalGeneration) -> None:
    with torch.no_grad():
        loss = model(INPUTS, event_ids=EVENT_IDS, labels=torch.full((2, 3), -100)).loss
    assert loss.item() == 0


def test_a_saved_model_answers_the_same_to_the_last_bit(model: GenSARForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(loaded) is GenSARForConditionalGeneration
    assert loaded.config.history_encoding == "events"
    assert loaded.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
    with torch.no_grad():
        expected = model(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits
        assert torch.equal(loaded(INPUTS, event_ids=EVENT_IDS, decoder_input_ids=DECODER_INPUTS).logits, expected)


def test_one_embedding_table_serves_encoder_decoder_and_output(model: GenSARForConditionalGeneration) -> None:
    table = model.shared.weight
    assert model.encoder.embed_tokens.weight is table
    assert model.decoder.embed_tokens.weight is table
    assert model.lm_head.weight is table


def test_resized_embeddings_reach_every_part(tokenizers: dict[str, GenSARTokenizer], make_generator: Callable) -> None:
    model = make_generator(tokenizers["events"])
    model.resize_token_embeddings(200, mean_resizing=False)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    with torch.no_grad():
        logits = model(
            torch.tensor([[199]]), event_ids=torch.tensor([[0]]), decoder_input_ids=torch.tensor([[0]])
        ).logits
    assert logits.shape == (1, 1, 200)


def test_an_unknown_history_encoding_is_refused() -> None:
    with pytest.raises(Exception, match="must be one of events, tokens; got 'words'"):
        GenSARConfig(history_encoding="words")


def test_settings_of_version_0_1_are_ignored_and_saved_values_kept(tmp_path: Path) -> None:
    """Its files hold all fields of T5, and a slope that no longer exists."""
    settings = {"d_model": 512, "num_layers": 6, "dropout_rate": 0.1, "history_encoding": "tokens", "num_items": 0}
    GenSARConfig(**settings, num_decoder_layers=3).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert settings.items() <= written.items()
    (tmp_path / "config.json").write_text(json.dumps({**written, "recency_slope": 0.5}))
    config = GenSARConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.num_decoder_layers == 3
    assert not hasattr(config, "recency_slope")
    assert "recency_slope" not in config.to_dict()


def test_the_defaults_are_the_published_model() -> None:
    config = GenSARConfig(num_items=1682)
    assert (config.d_model, config.d_kv, config.d_ff, config.num_heads) == (128, 32, 256, 4)
    assert (config.num_layers, config.num_decoder_layers, config.dropout_rate) == (2, 1, 0.0)
    assert (config.item_dropout, config.item_weight, config.history_encoding) == (0.35, 2.0, "events")


@pytest.mark.parametrize(("num_layers", "num_decoder_layers"), [(1, 2), (2, 1)])
def test_decoders_of_any_depth_generate(num_layers: int, num_decoder_layers: int) -> None:
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "history_encoding": "tokens"}
    config = GenSARConfig(**sizes, num_layers=num_layers, num_decoder_layers=num_decoder_layers)
    model = GenSARForConditionalGeneration(config).eval()
    cached, plain = (
        model.generate(torch.tensor([[3, 4]]), max_new_tokens=5, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)
