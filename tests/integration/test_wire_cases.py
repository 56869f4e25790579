"""Every wire case, replayed over both operations: Parley tells what the upstream meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx
import msgspec
import openai
import pytest

from parley.settings import Secret, Settings
from tests.support.canaries import CANARY, CANARY_KEY
from tests.support.logs import Logs
from tests.support.outcomes import ask, differing
from tests.support.replay import Replay
from tests.support.running import running
from tests.support.upstream import ScriptedUpstream
from tests.support.wire_cases import WireCase, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

CASES: Final = load()
PATHS: Final = ("/chat", "/chat/complete")

# The cases that are not yet right. One that becomes right fails until it is taken off this list.
_NOT_YET: Final = """
eos eos_token stop_sequence stop_in_capitals max_tokens_as_reason max_tokens_in_capitals sensitive
content_filtered_as_reason network_error_as_reason done_without_a_reason end_turn complete_in_capitals
stop_sequence_in_mixed_case length_in_capitals model_length model_context_window_exceeded token_limit
safety_in_capitals recitation prohibited_content blocklist guardrail_intervened refusal_as_reason abort
insufficient_system_resource error_as_reason_before_text error_as_reason_at_the_first_try a_word_nobody_knows
a_word_nobody_knows_without_done reason_is_a_number reason_is_an_object null_as_a_word_with_each_text
unknown_word_after_text_then_silence done_then_silence reason_withdrawn_by_text reason_before_text_only
thinks_25s_as_reasoning_content thinks_25s_as_reasoning thinking_in_parts thinking_in_summary_parts
thinking_used_up_is_counted thinks_25s_in_parts thinks_25s_slowly thinks_in_the_middle
thinks_beyond_the_time_of_the_request thinking_in_a_whole_completion thinking_parts_in_a_whole_completion
usage_in_x_groq usage_is_a_string usage_false_empty_and_a_list usage_with_a_fraction usage_of_zeros
usage_as_whole_floats usage_with_details usage_with_cache_hits usage_with_null_details usage_with_unreadable_details
usage_in_the_choice usage_as_text usage_as_whole_floats_at_the_end usage_as_floats_written_as_text counts_then_zeros
usage_of_truths usage_of_a_whole_completion_with_details
event_of_null surrogates_in_two_events nan_in_another_field whole_completion_printed_prettily
last_event_without_a_line_end event_without_data pings_as_events_of_text gzip empty_body content_in_parts
content_in_parts_with_others content_is_an_empty_list text_in_the_place_of_the_delta messages_in_the_place_of_deltas
message_beside_an_empty_delta whole_completion whole_completion_said_to_be_a_stream whole_completion_said_to_be_text
whole_completion_that_reached_its_limit whole_completion_with_parts whole_completion_without_a_reason
whole_completion_of_two_choices whole_completion_in_pieces events_of_blanks cr_alone cr_alone_in_pieces
line_ends_of_all_kinds byte_order_mark_before_a_whole_completion last_text_without_a_line_end done_without_a_line_end
broken_utf8 latin_1 character_cut_between_events lone_surrogate lone_surrogate_in_another_field
infinities_in_other_fields a_long_header_line
error_in_the_choice_after_text flat_error_after_text quota_in_the_stream capacity_498 tokens_per_minute_413
prompt_filtered_400 prompt_flagged_403 rate_limit_for_a_fraction rate_limit_in_an_array
overflow_of_sglang_in_the_stream overflow_of_vllm_flat_in_the_stream overflow_of_llama_cpp_as_an_error_field
overflow_of_vllm_flat overflow_of_sglang_flat overflow_of_anthropic overflow_of_anthropic_413 overflow_of_gemini
overflow_of_together overflow_of_lm_studio_as_a_string overflow_of_dashscope overflow_of_bedrock overflow_of_copilot
overflow_of_litellm overflow_of_ollama overflow_of_mistral overflow_of_xai overflow_of_moonshot overflow_of_cohere
overflow_of_tgi overflow_of_zhipu overflow_of_minimax overflow_of_watsonx overflow_of_github_models
overflow_of_cerebras overflow_of_gemini_in_an_array overflow_in_a_nested_message overflow_as_a_detail overflow_as_text
overflow_as_json_with_200 overflow_in_the_choice overflow_with_500 overflow_by_the_output rate_limit_in_the_stream
rate_limit_in_the_stream_by_its_code unavailable_in_the_stream overloaded_as_an_event
unavailable_in_the_stream_at_the_first_try rate_limit_in_the_choice_at_the_first_try
rate_limit_with_200_at_the_first_try bad_key_in_the_stream bad_key_in_the_stream_by_401 bad_key_with_400
bad_key_with_200 quota_429 credits_402_in_the_stream prompt_filtered_in_the_stream prompt_filtered_by_its_policy
prompt_filtered_by_an_inner_error prompt_filtered_with_200 error_with_200 wait_in_milliseconds wait_until_a_date
wait_until_the_tokens_reset wait_until_the_requests_reset wait_of_a_retry_delay_with_a_fraction
wait_with_529_in_milliseconds rate_limit_in_the_stream_as_text rate_limit_in_the_stream_by_its_status
error_of_no_text_with_each_text wait_until_a_date_with_503 wait_in_the_stream overflow_of_volcengine
overflow_of_vertex overflow_of_lm_studio overflow_of_anthropic_by_the_output too_much_output_for_the_model
wants_max_completion_tokens forbids_stream_options remembers_max_completion_tokens names_max_tokens_in_its_text_only
forbids_max_tokens_as_extra_input does_not_know_stream_options does_not_know_stream_options_as_a_detail
does_not_know_stream_options_as_text wants_its_own_temperature names_a_parameter_always
"""
NOT_YET: Final = frozenset(_NOT_YET.split())
# The same for the requests that ask for what the model thought.
_NO_REASONING_YET: Final = """
thinking_in_parts thinking_used_up_is_counted thinking_as_reasoning_content thinking_as_reasoning
thinking_under_two_names thinking_with_details thinking_blocks_beside null_thinking_with_each_text
thinking_and_text_in_one_event thinking_in_a_whole_completion thinking_parts_in_a_whole_completion
"""
NO_REASONING_YET: Final = frozenset(_NO_REASONING_YET.split())
# Parley fails these on purpose, although openai-python reads a whole answer in them.
OPENAI_READS_BETTER: Final = frozenset({"comments_for_25s", "deflate"})


def named(cases: Iterable[WireCase]) -> list[Any]:
    """Return the cases as parameters."""
    return [pytest.param(case, id=case.name) for case in cases]


def check(case: WireCase, differences: list[str], not_yet: frozenset[str]) -> None:
    """Fail where there are differences; or where there are none any more."""
    if case.name in not_yet:
        assert differences, "This case is right now: take it off the list."
    else:
        assert not differences


def test_the_lists_name_cases() -> None:
    """A name that is misspelt would never be missed."""
    assert CASES.keys() >= NOT_YET | NO_REASONING_YET | OPENAI_READS_BETTER


@pytest.fixture(scope="module")
async def replaying() -> AsyncIterator[ScriptedUpstream]:
    """Run the upstream that replays."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def parley(replaying: ScriptedUpstream) -> AsyncIterator[httpx.AsyncClient]:
    """Run one Parley for all cases but those that it may learn from."""
    async with running(settings(replaying), Logs()) as client:
        yield client


@pytest.fixture(scope="module")
async def openai_client(replaying: ScriptedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    """Make one openai-python client for all cases."""
    transport = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=replaying.url, api_key=CANARY_KEY, timeout=30, http_client=transport
    ) as client:
        yield client


def settings(upstream: ScriptedUpstream, **more: Any) -> Settings:
    """Make settings with the timeouts and the retries of production."""
    return Settings(
        openai_base_url=upstream.url,
        openai_api_key=Secret(CANARY_KEY),
        model="scripted-1",
        log_level="debug",
        log_format="json",
        **more,
    )


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.kind != "requests"))
async def test_every_answer_is_read_as_it_is_meant(
    parley: httpx.AsyncClient, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """Text, ending, usage, tries; over both operations alike."""
    differences = []
    for path in PATHS:
        replaying.script = replay = Replay(case)
        outcome = await ask(parley, path)
        differences += [f"{path}: {one}" for one in differing(case.expect, outcome, replay.tries)]
        assert not outcome.reasoning, "nobody asked what the model thought"
    check(case, differences, NOT_YET)


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.kind == "requests"))
async def test_every_upstream_is_asked_as_it_can_be_asked(replaying: ScriptedUpstream, case: WireCase) -> None:
    """A parameter that is refused is not sent again, and the next request is right at once."""
    differences = []
    expected = case.expect
    async with running(settings(replaying, **case.settings), Logs()) as client:
        for path in PATHS:
            replaying.script = replay = Replay(case)
            outcome = await ask(client, path)
            differences += [f"{path}: {one}" for one in differing(expected, outcome, replay.tries)]
            expected = msgspec.structs.replace(expected, tries=expected.tries_again or expected.tries)
    check(case, differences, NOT_YET)


@pytest.mark.parametrize("case", named(case for case in CASES.values() if case.expect.reasoning is not None))
async def test_what_the_model_thought_is_told_to_who_asks(
    parley: httpx.AsyncClient, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """All else is as it is without."""
    differences = []
    for path in PATHS:
        replaying.script = replay = Replay(case)
        outcome = await ask(parley, path, include_reasoning=True)
        differences += [f"{path}: {one}" for one in differing(case.expect, outcome, replay.tries)]
        if outcome.reasoning != case.expect.reasoning:
            differences.append(f"{path}: reasoning {outcome.reasoning!r} instead of {case.expect.reasoning!r}")
    check(case, differences, NO_REASONING_YET)


@pytest.mark.parametrize(
    "case", named(case for case in CASES.values() if case.has_an_answer and case.name not in NOT_YET)
)
async def test_openai_python_reads_no_case_better(
    parley: httpx.AsyncClient, openai_client: openai.AsyncOpenAI, replaying: ScriptedUpstream, case: WireCase
) -> None:
    """Better is: it finds the whole text and a reason for its end, and Parley not all of the text."""
    replaying.script = Replay(case)
    is_better = await openai_reads_all(openai_client, case.expect.whole_text)
    if is_better:
        replaying.script = Replay(case)
        outcome = await ask(parley, "/chat")
        is_better = outcome.text is None or case.expect.whole_text not in {outcome.text, "*"}

    assert is_better == (case.name in OPENAI_READS_BETTER)


async def openai_reads_all(client: openai.AsyncOpenAI, whole: str) -> bool:
    """Return whether openai-python's user would have this text, and a reason for its end."""
    text, reason = "", None
    try:
        with anyio.fail_after(120):
            stream = await client.chat.completions.create(
                model="scripted-1",
                messages=[{"role": "user", "content": CANARY}],
                max_tokens=2000,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices or ():
                        text += (choice.delta.content or "") + (choice.delta.refusal or "")
                        reason = choice.finish_reason or reason
    except (openai.OpenAIError, httpx.HTTPError, ValueError, AttributeError, TypeError, TimeoutError):
        return False
    return reason is not None and whole in {text, "*"}
