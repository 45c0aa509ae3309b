"""Refusals as the SDK shows them."""

import openai
import pytest


def refusal(client, error=openai.BadRequestError, **body):
    with pytest.raises(error) as caught:
        client.responses.create(model=body.pop("model", "starter"), input=body.pop("input", "Hello!"), extra_body=body)
    assert caught.value.request_id
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value


def test_unknown_model(client):
    error = refusal(client, openai.NotFoundError, model="missing")
    assert (error.code, error.param) == ("model_not_found", "model")
    assert "missing" in error.message


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("input", 5),
        ("temperature", "hot"),
        ("temperature", 3),
        ("top_p", -1),
        ("max_output_tokens", 0),
        ("max_output_tokens", "many"),
        ("metadata", "none"),
        ("tools", {}),
        ("stream", "yes"),
        ("instructions", 5),
    ],
)
def test_wrong_values_name_their_field(client, param, value):
    error = refusal(client, **{param: value})
    assert error.param == param
    assert error.code in ("invalid_type", "invalid_value")
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("error", "param", "value", "code"),
    [
        (openai.BadRequestError, "moderation", {}, "unsupported_parameter"),
        (openai.BadRequestError, "previous_response_id", "resp_1", "previous_response_not_found"),
        (openai.NotFoundError, "conversation", "conv_1", "conversation_not_found"),
    ],
)
def test_what_is_not_there_is_refused_by_its_code(client, error, param, value, code):
    assert refusal(client, error, **{param: value}).code == code


def test_a_prompt_that_is_not_kept(client):
    error = refusal(client, prompt={"id": "pmpt_1"})
    assert (error.code, error.param) == ("invalid_value", "prompt.id")


def test_a_result_without_its_call(client):
    result = {"type": "function_call_output", "call_id": "call_1", "output": "21"}
    error = refusal(client, input=[{"role": "user", "content": "Hello!"}, result])
    assert "call_1" in error.message


def test_a_prompt_longer_than_the_context(client):
    error = refusal(client, input="many words " * 10_000)
    assert (error.code, error.param) == ("context_length_exceeded", "input")


def test_a_refused_stream_is_an_error_and_not_a_stream(client):
    assert refusal(client, openai.NotFoundError, model="missing", stream=True).code == "model_not_found"
