"""Secrets are told by their names, and blank wherever settings are written."""

import enum
from typing import Any

import pytest

from holdfast.state.secrets import blanked, filled, is_secret

SECRETS = """
hub_token HF_TOKEN HFToken hftoken accesstoken session_token push_to_hub_token launchpad_token ipadtoken token tokens
token2 tracker_api_key apikey apiKey APIKey API-KEY wandb.api.key wandbAPIKey x-api-key accessKey
aws_secret_access_key private_key sshKey key keys wandb_key proxy_password passwd passphrase passwords db_pass pwd
MASTER_PASSWORD client_secret clientSecret hub_auth auth basicauth Authorization bearer bearerToken credentials
credential webhook_url cookie github_pat jwt SENTRY_DSN tokenizer_token tokenizer_api_key
"""
OTHERS = """
pad_token padToken eos_token eostoken bos_token unk_token sep_token cls_token mask_token image_token boi_token
stop_token additional_special_tokens extra_special_tokens max_new_tokens num_virtual_tokens begin_suppress_tokens
decoder_start_token_id eos_token_id token_type_ids token_dim tokenizer tokenizer_class tokenizer_name_or_path tokenize
include_num_input_tokens_seen average_tokens_across_devices num_assistant_tokens_schedule primary_key dataset_text_key
learning_rate output_dir max_steps label_names monkeys turkey keyword keyed author authors bypass compass path
rank_pattern model_name_or_path processing_class
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_security_s13_s25_an_argument_of_such_a_name_is_taken_for_a_secret(name: str) -> None:
    """Names of arguments."""
    assert is_secret(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_an_argument_of_another_name_is_kept(name: str) -> None:
    assert not is_secret(name)


class Way(enum.StrEnum):
    OAUTH = "oauth"


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ({"token": "abc", "rate": 0.1}, {"token": None, "rate": 0.1}),
        ({"token": b"abc", "apikey": bytearray(b"abc")}, {"token": None, "apikey": None}),
        ({"tokens": 3, "use_auth": True, "key": None}, {"tokens": 3, "use_auth": True, "key": None}),
        ({"wandb": {"api_key": "abc", "project": "p"}}, {"wandb": {"api_key": None, "project": "p"}}),
        ([({"deep": [{"passwd": "abc"}]},)], [[{"deep": [{"passwd": None}]}]]),
        ({"credentials": {"user": "u", "more": ["x", 2]}}, {"credentials": {"user": None, "more": [None, 2]}}),
        ({"auth_type": Way.OAUTH}, {"auth_type": Way.OAUTH}),
        ({1: {"token": "abc"}}, {1: {"token": None}}),
        ("token", "token"),
    ],
)
def test_texts_and_bytes_of_such_a_name_are_blank_however_deep_and_nothing_else_is(content: Any, written: Any) -> None:
    assert blanked(content) == written


def test_what_was_blank_is_filled_with_what_is_there_now_and_everything_else_stays_as_recorded() -> None:
    live = {
        "token": "abc",
        "count": 7,
        "session": {"cookie": "c", "tries": 1},
        "list": [{"key": "k", "n": 1}],
        "new": 1,
    }
    recorded = blanked({**live, "count": 3, "gone": 2})
    recorded["session"]["tries"] = 5
    assert filled(recorded, live) == {
        "token": "abc",
        "count": 3,
        "session": {"cookie": "c", "tries": 5},
        "list": [{"key": "k", "n": 1}],
        "new": 1,
        "gone": 2,
    }
    assert filled({"token": None, "rate": None}, {}) == {"token": None, "rate": None}
