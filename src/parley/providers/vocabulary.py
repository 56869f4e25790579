"""The words that upstreams use for errors and finish reasons, in lower case, and what known hosts refuse."""

from __future__ import annotations

import re
from typing import Final

from parley.chat.events import FinishReason


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names: the codes and types of errors.

QUOTA: Final = _words(
    """accountoverdueerror allocationquota.freetieronly arrearage billing_error billing_hard_limit_reached
    billing_not_active budget_exceeded credit_balance_exhausted creditlimitexceeded credits_exhausted
    enforced_spend_limit_reached exceeded_current_quota_error insufficient_balance insufficient_balance_error
    insufficient_credits insufficient_quota insufficient_user_quota not_enough_balance pre_consume_token_quota_failed
    project_spend_limit_exceeded quota_exceeded setlimitexceeded"""
)
FILTERED: Final = _words(
    """censorship_blocked content_filter content_filtered content_moderation content_moderation_error
    content_policy_violation contentfilter cyber_policy data_inspection_failed datainspectionfailed
    inputtextriskdetection inputtextsensitivecontentdetected moderation moderation_blocked outputtextriskdetection
    outputtextsensitivecontentdetected prohibited_content responsibleaipolicyviolation safety sensitive
    sensitive_words_detected sensitivecontentdetected sensitivecontentdetected.severeviolation
    sensitivecontentdetected.violence"""
)
OVERFLOW: Final = _words(
    """content_length_exceeds_threshold context_length_exceeded context_window_exceeded contextwindowexceedederror
    exceed_context_size_error max_context_length_exceeded model_context_window_exceeded
    model_max_prompt_tokens_exceeded outofcontexterror prompt_too_long request_too_large string_above_max_length
    tokens_limit_reached"""
)
BAD_KEY: Final = _words(
    """account_deactivated api_key_invalid authentication_error incorrect_api_key invalid_api_key invalid_authentication
    invalid_authentication_error invalidapikey token_not_found_in_db unauthenticated"""
)
# Limits that soon pass, even if they come with status 402.
PASSING: Final = _words(
    """in_flight_budget_exhausted limit_burst_rate limit_requests openrouter_in_flight_budget
    service_tier_capacity_exceeded slow_down throttling throttling.allocationquota throttling.ratequota
    throttlingexception"""
)
# Names that leave no doubt, even if they come with a failure of the upstream itself.
CLEAR: Final = _words("context_length_exceeded exceed_context_size_error insufficient_quota invalid_api_key")
# The HTTP status that a name stands for, for errors that come without one.
STATUSES: Final = {
    name: status
    for status, names in {
        400: "badrequesterror invalid_argument invalid_request_error",
        429: "rate_limit_error rate_limit_exceeded rate_limited resource_exhausted too_many_requests "
        + " ".join(PASSING),
        500: "api_error internal_server_error internalservererror server_error",
        503: "server_is_overloaded service_unavailable serviceunavailableexception unavailable",
        504: "timeout",
        529: "engine_overloaded overloaded overloaded_error",
    }.items()
    for name in names.split()
}
# Names that are logged: any other name could be arbitrary text.
LOGGED: Final = _words(
    """account_deactivated api_error arrearage authentication_error bad_request billing_error
    billing_hard_limit_reached billing_not_active budget_exceeded capacity_exceeded censorship_blocked content_filter
    content_policy_violation context_length_exceeded credit_balance_exhausted data_inspection_failed deadline_exceeded
    engine_overloaded engine_overloaded_error exceed_context_size_error failed_precondition insufficient_balance
    insufficient_quota insufficient_user_quota internal internal_error internal_server_error invalid_api_key
    invalid_argument invalid_authentication_error invalid_parameter invalid_prompt invalid_request invalid_request_error
    invalid_value model_not_found model_overloaded not_found not_found_error organization_deactivated overloaded
    overloaded_error permission_denied permission_denied_error permission_error quota_exceeded rate_limit_error
    rate_limit_exceeded rate_limit_reached_error rate_limited requests request_timeout request_too_large
    resource_exhausted server_error service_unavailable string_above_max_length timeout timeout_error tokens
    too_many_requests unauthenticated unauthorized unavailable unavailable_error unknown_error unknown_model
    unsupported_parameter unsupported_value upstream_error validation_error"""
)

# Texts. Beside each pattern stand the upstreams that use its wording. The wordings were looked up in November 2026, in
# the providers' documentation, users' reports and other projects' patterns; `?` marks those that were not found there.

TOO_LONG: Final = re.compile(
    r"""
    (maximum|max|available|models?|model's|total|allowed|configured)[ ](context|prompt|input|sequence|model)[ _-]?
        (length|window|size|token[ ]limit)              # OpenAI, Azure, vLLM, SGLang, llama.cpp, DeepSeek, OpenRouter,
                                                        # Mistral, xAI, Fireworks, Databricks?, DeepInfra, Poolside
    | (exceed|longer[ ]than|greater[ ]than|larger[ ]than|overflow)[^.]{0,60}
        (context|max(imum)?[ ](input|prompt|length))    # OpenAI, Together, Novita, Ollama, LM Studio, Bedrock's Nova
    | context[ _-]?(length|window|size|limit)[^.]{0,40}
        (exceed|overflow|too[ ](long|small)|smaller)    # MiniMax, Cloudflare, NIM?
    | contextwindowexceeded                             # LiteLLM
    | (prompt|input|message|conversation|request|text)s?([ ]token)?([ ]length)?[ ]?(is|are|was|has)?[ ]?
        too[ ](long|large|many[ ]tokens)                # Anthropic, Bedrock, Z.ai, Moonshot, AI21, GitHub Models
    | \u8d85\u957f                                      # Z.ai: "too long"
    | too[ ]many[ ](input|prompt)[ ]tokens              # Bedrock
    | too[ ]many[ ]tokens[^.]{0,40}(prompt|model|request|input)   # Cohere
    | expected[ ]maxlength:                             # Bedrock
    | prompt:[ ]length                                  # Anthropic
    | current[ ]length[ ]is[ ][0-9]{1,9}[ ]while        # Cerebras
    | request([ ](payload|entity|body))?([ ]size)?[ ]exceeds[ ]the[ ](maximum[ ]size|limit)   # Anthropic, Vertex
    | reduce[ ]the[ ]length[ ]of[ ]the[ ]([a-z]{1,10}[ ])?(messages|prompt|input)   # OpenAI, Groq, Cerebras, vLLM
    | (input|prompt)[ _]?tokens?([ ]count)?[^.]{0,40}
        (exceed|more[ ]than|greater|larger|cannot|supports[ ]up|only[ ]supports)   # Gemini, Vertex, Copilot, watsonx,
                                                        # OpenAI, Bedrock
    | tokens[ ]in[ ]request[ ]more[ ]than               # OpenCode lists it without a name
    | maximum[ ]allowed[ ]number[ ]of[ ]input           # LobeHub lists it without a name
    | (input|prompt|text)([ ]text)?[ ]length[^.]{0,20}exceed   # Volcengine?, NLP Cloud
    | length[ ]limit[ ]exceeded                         # Hugging Face
    | context[ ]length[ ]of[ ]only                      # LM Studio
    | range[ ]of[ ]input[ ]length[ ]should[ ]be         # DashScope
    | exceed[^.]{0,40}(token[ ]limit|max[ ]length|max[ ]message[ ]tokens)   # Moonshot, Z.ai, Volcengine
    | tokens?[ ]\+[ ]`?max_new_tokens`?[ ]must[ ]be | `?inputs`?[ ]must[ ]have[ ]less[ ]than   # TGI, Together
    """,
    re.VERBOSE,
)
# Limits per unit of time, whose wording can resemble the above. DashScope calls such a token limit an exceeded quota.
PER_TIME: Final = re.compile(
    r"(token|request)s? per (min|day|hour|second)|\b[rt]p[dms]\b|rate[ -]limit|per-minute|too many requests"
    r"|error-code#token-limit|(?<!free )allocated quota exceeded"
)
# Limits on things other than the length of the conversation.
OTHER_LIMIT: Final = re.compile(r"array too long|concurrent|limit of [0-9]{1,9} (tools|images)|must be at least")
NO_CREDIT: Final = re.compile(
    r"""
    insufficient[ ](account[ ])?(credit|balance|fund|quota)   # DeepSeek, Z.ai, MiniMax, OpenRouter
    | out[ ]of[ ]credits?\b | not[ ]enough[ ](credit|balance) # xAI, Novita
    | (have|has|with)[ ]no[ ]credit | \bno[ ]credits?[ ](left|remaining|available)   # OpenAI
    | doesn't[ ]have[ ]any[ ]credits | all[ ]available[ ]credits   # xAI
    | (balance|quota)[ ]is[ ](not[ ]enough|insufficient|too[ ]low)   # Anthropic, Moonshot, SiliconFlow, One API
    | specified[ ](workspace[ ])?api[ ]usage[ ]limit | spend(ing)?[ ]limit   # Anthropic, xAI, Fireworks
    | credits?[ ](balance[ ])?(is|are|has[ ]been|have[ ]been)?[ ]?(exhausted|depleted)   # OpenAI, Gemini
    | (depleted|exceeded)[ ]your[ ]monthly              # Hugging Face, Copilot?
    | used[ ]up[ ]your[ ]daily[ ]free                   # Cloudflare
    | free[ ](tier[ ]of[ ]the[ ]model|allocated[ ]quota|quota)[ ](has[ ]been[ ])?(exhausted|exceeded)   # DashScope
    | overdue[ ]balance | account[ ]is[ ]in[ ]good[ ]standing   # Volcengine, DashScope
    | \bkey[ ]limit[ ]exceeded[ ]\(                     # OpenRouter
    | budget[ ]has[ ]been[ ]exceeded | exceededbudget   # LiteLLM
    | \u4f59\u989d\u4e0d\u8db3 | \u989d\u5ea6\u4e0d\u8db3   # Z.ai, New API: "balance" and "quota not enough"
    """,
    re.VERBOSE,
)
MODERATED: Final = re.compile(
    r"""
    (input|prompt|message|content|response)[ ](was|were|has[ ]been|is|got)[ ]
        (flagged|filtered|blocked)                      # OpenAI, Azure, OpenRouter, Bedrock
    | requires[ ]moderation                             # OpenRouter
    | content[ ](management[ ]|filtering[ ])?polic      # Azure, Anthropic
    | contentpolicyviolation                            # LiteLLM
    | safety[ ](system|filter|reasons) | safety_check_type   # OpenAI, xAI
    | violat[a-z]{1,4}[ ](of[ ])?([a-z]{1,10}[ ])?(usage[ ](polic|guideline)|terms[ ]of)   # OpenAI, xAI, OpenRouter
    | content[ ]exists[ ]risk                           # DeepSeek
    | considered[ ]high[ ]risk                          # Moonshot
    | inappropriate[ ]content | datainspectionfailed    # DashScope, SenseNova
    | (unsafe|prohibited|sensitive)[ ](or[ ]sensitive[ ])?(content|information|words)   # Z.ai, Volcengine, New API
    | new_sensitive                                     # MiniMax
    | you[ ]provided[ ]or[ ]machine[ ]outputted         # StepFun
    | \u654f\u611f\u5185\u5bb9                          # Z.ai: "sensitive content"
    """,
    re.VERBOSE,
)
CLOSED_ACCOUNT: Final = re.compile(
    r"\b(account|access|organi[sz]ation|workspace)\b[^.]{0,60}\b(suspended|terminated|deactivated|disabled|banned)"
)
WRONG_KEY: Final = re.compile(
    r"""
    (incorrect|invalid|wrong|missing|expired)[ ]api[ _-]?(key|token)   # OpenAI, xAI, MiniMax, Cohere
    | api[ _-]?key[ ](is[ ])?(not[ ]valid|not[ ]found|invalid|expired)   # Gemini
    | (missing[ ]or[ ]invalid|invalid[ ]or[ ]missing|bad[ ]or[ ]missing)[ ](authorization|api)   # Gemini?, AI21
    | invalid[ ](private[ ]key|proxy[ ]server[ ]token)  # Together, LiteLLM
    | security[ ]token[ ]included[ ]in[ ]the[ ]request[ ]is[ ]invalid   # Bedrock
    | ^authentication[ ](failed|error) | ^login[ ]fail  # Z.ai, LiteLLM, MiniMax
    """,
    re.VERBOSE | re.MULTILINE,
)
OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")

# Parameters that some upstreams refuse, and that a request can do without; the first two can replace each other. The
# keys have no underscores, as xAI writes the names without them.
PARAMETERS: Final = {
    name.replace("_", ""): name
    for name in (
        "max_tokens",
        "max_completion_tokens",
        "stream_options",
        "temperature",
        "reasoning_effort",
        "parallel_tool_calls",
        "verbosity",
    )
}
UNWANTED: Final = re.compile(
    r"unsupported|(not|n't) support|unknown|unrecognized|unexpected|not (permitted|allowed)(?! to)"
    r"|extra[_ ](inputs|fields|forbidden|parameters)|extraneous|only the default|additional propert"
    r"|invalid (parameter|field|argument)|no such (parameter|field)|not a valid (parameter|field)"
    r"|deprecated|only [0-9.]{1,8} is allowed|may only be set|cannot both"
)

_PARAMETER: Final = rf"['\"`]?\b({'|'.join(name.replace('_', '_?') for name in PARAMETERS.values())})\b['\"`]?"
# The parameter's name must be close to the keyword: farther away, it could be in a message that the upstream quotes.
UNWANTED_PARAMETER: Final = re.compile(
    rf"""
    (?:unsupported|unknown|unrecognized|unexpected|invalid)[a-z_\ ]{{0,30}}(?:\(s\))?:?[ ]{{0,3}}
        (?:parameter[ ])?{_PARAMETER}                   # OpenAI, Azure, Gemini, NIM, Cohere, TGI, Databricks, Moonshot
    | (?:not|n't)[ ]support(?:ed)?(?:[ ]on[ ]this[ ]model)?(?:[ ]parameters?)?:?[ ]?[\[{{]?{_PARAMETER}   # xAI, LiteLLM
    | (?:extra|extraneous|additional)[_ ][a-z_\ :,()'"\[\]]{{1,50}}?{_PARAMETER}
        # vLLM, Fireworks?, Bedrock, Azure's Foundry
    | {_PARAMETER}(?:[a-z_,:'"`\]\ ]|\.(?=[a-z])){{0,30}}
        (?:unsupported|not[ ]supported|not[ ]support|unknown|not[ ]permitted|not[ ]allowed(?![ ]to)|extra|deprecated
        |not[ ]a[ ]valid|may[ ]only[ ]be|cannot[ ]both)  # OpenAI, Groq, Cerebras, Anthropic, Pydantic's errors
    """,
    re.VERBOSE,
)

# The parameters that hosts and their subdomains refuse; Parley learns at run time what depends on the model.
_REFUSED_BY_HOST: Final = {
    "api.openai.com": _words("max_tokens"),  # its newer models refuse it; its older ones accept both names
    "openai.azure.com": _words("max_tokens"),
    "cognitiveservices.azure.com": _words("max_tokens"),
    "api.mistral.ai": _words("max_completion_tokens stream_options"),  # it reports token counts unasked
}


def refused_by(host: str) -> frozenset[str]:
    """Return the parameters that a host is known to refuse."""
    suffixes = (suffix for suffix in _REFUSED_BY_HOST if f".{host}".endswith(f".{suffix}"))
    return _REFUSED_BY_HOST.get(next(suffixes, ""), frozenset())


# Finish reasons.

FINISH_REASONS: Final = {
    word: reason
    for reason, words in {
        FinishReason.STOP: """complete completed end end_turn eos eos_token finish finished stop stop_sequence
            stop_token""",
        FinishReason.LENGTH: """length max_output_tokens max_tokens model_context_window_exceeded model_length
            token_limit""",
        FinishReason.CONTENT_FILTER: """blocklist content_filter content_filtered contentfilter error_toxic escalation
            guardrail_intervened image_safety language prohibited_content recitation refusal safety sensitive spii""",
    }.items()
    for word in words.split()
}
# Finish reasons that mean that the upstream failed, perhaps only for a moment.
BROKEN_OFF: Final = _words(
    """abort aborted cancelled error failed insufficient_system_resource malformed_function_call
    malformed_model_output malformed_response malformed_tool_use missing_thought_signature network_error timeout
    unexpected_tool_call"""
)
TOOL_CALLS: Final = _words("function_call tool_calls tool_use")
