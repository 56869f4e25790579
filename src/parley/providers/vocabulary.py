"""Owns the words that upstreams use for their errors and endings; all are in small letters."""

from __future__ import annotations

import re
from typing import Final

from parley.chat.events import FinishReason


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names, which are codes and types.

QUOTA: Final = _words(
    """arrearage billing_error billing_hard_limit_reached billing_not_active credits_exhausted
    exceeded_current_quota_error insufficient_balance insufficient_credits insufficient_quota quota_exceeded"""
)
FILTERED: Final = _words(
    """content_filter content_filtered content_moderation content_moderation_error content_policy_violation
    contentfilter data_inspection_failed datainspectionfailed moderation moderation_blocked prohibited_content
    responsibleaipolicyviolation safety sensitive"""
)
OVERFLOW: Final = _words(
    """context_length_exceeded context_window_exceeded contextwindowexceedederror exceed_context_size_error
    max_context_length_exceeded model_context_window_exceeded model_max_prompt_tokens_exceeded prompt_too_long
    request_too_large string_above_max_length tokens_limit_reached"""
)
BAD_KEY: Final = _words(
    """account_deactivated api_key_invalid authentication_error incorrect_api_key invalid_api_key invalid_authentication
    invalid_authentication_error invalidapikey unauthenticated"""
)
# They leave no doubt, also if they come with a failure of the upstream itself.
CLEAR: Final = _words("context_length_exceeded exceed_context_size_error insufficient_quota invalid_api_key")
# The HTTP status that a name stands for, for errors that come without one.
STATUSES: Final = {
    name: status
    for status, names in {
        400: "badrequesterror invalid_argument invalid_request_error",
        429: "rate_limit_error rate_limit_exceeded rate_limited resource_exhausted too_many_requests",
        500: "api_error internal_server_error internalservererror server_error",
        503: "service_unavailable unavailable",
        504: "timeout",
        529: "engine_overloaded overloaded overloaded_error",
    }.items()
    for name in names.split()
}
# Those that are logged: any other name could be anybody's text.
LOGGED: Final = _words(
    """account_deactivated api_error authentication_error bad_request billing_error billing_hard_limit_reached
    billing_not_active capacity_exceeded content_filter content_policy_violation context_length_exceeded
    deadline_exceeded engine_overloaded engine_overloaded_error exceed_context_size_error failed_precondition
    insufficient_balance insufficient_quota internal internal_error internal_server_error invalid_api_key
    invalid_argument invalid_authentication_error invalid_parameter invalid_prompt invalid_request invalid_request_error
    invalid_value model_not_found model_overloaded not_found not_found_error organization_deactivated overloaded
    overloaded_error permission_denied permission_denied_error permission_error quota_exceeded rate_limit_error
    rate_limit_exceeded rate_limit_reached_error rate_limited requests request_timeout request_too_large
    resource_exhausted server_error service_unavailable string_above_max_length timeout timeout_error tokens
    too_many_requests unauthenticated unauthorized unavailable unavailable_error unknown_error unknown_model
    unsupported_parameter unsupported_value upstream_error validation_error"""
)

# Texts. Whose wording a pattern is for stands beside it, as far as it is known.

TOO_LONG: Final = re.compile(
    r"""
    (maximum|max|available|models?|model's|total|allowed)[ ](context|prompt|input|sequence|model)[ _-]?
        (length|window|size|token[ ]limit)              # OpenAI, Azure, vLLM, llama.cpp, DeepSeek, OpenRouter, Mistral,
                                                        # xAI, Fireworks, AI21, Databricks
    | (exceed|longer[ ]than|greater[ ]than|larger[ ]than|overflow)[^.]{0,60}
        (context|max(imum)?[ ](input|prompt))           # SGLang, Together, Ollama, LM Studio
    | context[ _-]?(length|window|size|limit)[^.]{0,40}
        (exceed|overflow|too[ ](long|small)|smaller)    # MiniMax, NIM
    | contextwindowexceeded                             # LiteLLM
    | (prompt|input|message|conversation|request|text)s?([ ]length)?[ ]?(is|are|was)?[ ]?
        too[ ](long|large|many[ ]tokens)                # Anthropic, Bedrock, Ollama, Baidu
    | request[ ]exceeds[ ]the[ ]maximum[ ]size          # Anthropic, by its status 413
    | reduce[ ]the[ ]length[ ]of[ ]the[ ](messages|prompt|input)   # Groq, Cerebras
    | (input|prompt)[ _]?tokens?([ ]count)?[^.]{0,40}
        (exceed|more[ ]than|greater|larger|cannot|only[ ]supports)   # Gemini, Vertex, Copilot, watsonx
    | (input|prompt)[ ]length[^.]{0,20}exceed           # Volcengine
    | context[ ]length[ ]of[ ]only                      # LM Studio
    | range[ ]of[ ]input[ ]length[ ]should[ ]be         # DashScope
    | exceed[^.]{0,40}(token[ ]limit|max[ ]length|max[ ]message[ ]tokens)   # Moonshot, GLM, Volcengine
    | too[ ]many[ ](input[ ]|prompt[ ])?tokens[^.]{0,40}(prompt|model|request|input)   # Cohere, Bedrock
    | tokens?[ ]\+[ ]`?max_new_tokens`?[ ]must[ ]be | `?inputs`?[ ]must[ ]have[ ]less[ ]than   # TGI, Together
    """,
    re.VERBOSE,
)
# Limits on all requests of a time, which can be worded alike.
PER_TIME: Final = re.compile(r"tokens? per (min|day|hour|second)|\b[rt]p[dm]\b|rate limit|per-minute")
NO_CREDIT: Final = re.compile(r"insufficient (credit|balance|fund|quota)|(out of|no|not enough) credits?\b")
MODERATED: Final = re.compile(
    r"(input|prompt|message|content|response) (was|were|has been|is|got) (flagged|filtered|blocked)"
    r"|requires moderation|content (management )?policy|safety (system|filter)"
)
WRONG_KEY: Final = re.compile(
    r"(incorrect|invalid|wrong|missing|expired) api[ -_]?key|api[ -_]?key (is )?(not valid|invalid|expired)"
)
OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")

# Parameters that upstreams refuse, and can do without; or, of the first two, with the other one.
PARAMETERS: Final = (
    "max_tokens",
    "max_completion_tokens",
    "stream_options",
    "temperature",
    "reasoning_effort",
    "parallel_tool_calls",
    "verbosity",
)
UNWANTED: Final = re.compile(
    r"unsupported|(not|n't) support|unknown|unrecognized|unexpected|not (permitted|allowed)"
    r"|extra[_ ](inputs|fields|forbidden)|only the default|additional propert"
    r"|invalid (parameter|field|argument)|no such (parameter|field)"
)

_PARAMETER: Final = rf"['\"`]?\b({'|'.join(PARAMETERS)})\b['\"`]?"
# The name stands close to the word: anything else could be a message that the upstream quotes.
UNWANTED_PARAMETER: Final = re.compile(
    rf"(?:unsupported|unknown|unrecognized|unexpected|invalid)[a-z_ ]{{0,30}}:? {{0,3}}{_PARAMETER}"
    rf"|{_PARAMETER}[a-z_,: ]{{0,30}}(?:unsupported|not supported|not support|unknown|not permitted|not allowed|extra)"
)

# Endings.

FINISH_REASONS: Final = {
    word: reason
    for reason, words in {
        FinishReason.STOP: """complete completed end end_turn eos eos_token finish finished stop stop_sequence
            stop_token""",
        FinishReason.LENGTH: """length max_output_tokens max_tokens model_context_window_exceeded model_length
            token_limit""",
        FinishReason.CONTENT_FILTER: """blocklist content_filter content_filtered contentfilter guardrail_intervened
            image_safety prohibited_content recitation refusal safety sensitive spii""",
    }.items()
    for word in words.split()
}
# The upstream failed, which may pass.
BROKEN_OFF: Final = _words(
    """abort aborted cancelled error failed insufficient_system_resource malformed_function_call network_error
    timeout"""
)
TOOL_CALLS: Final = _words("function_call tool_calls tool_use")
