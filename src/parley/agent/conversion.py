"""The conversion between openai-agents' types and the chat completions API."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from agents import ModelSettings
from agents.models.chatcmpl_converter import Converter
from agents.models.default_models import get_default_model_settings
from agents.models.fake_id import FAKE_RESPONSES_ID
from openai import Omit
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningTextDeltaEvent,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from parley.chat.events import FinishReason, ReplyReasoning, ReplyText, Usage
from parley.providers.exchange import CompletionRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents import AgentOutputSchemaBase, Handoff, Tool, TResponseInputItem

    from parley.providers.tool_calls import ToolCall

# Settings that have the same name in the chat completions API.
_SAME: Final = ("top_p", "frequency_penalty", "presence_penalty", "verbosity", "prompt_cache_retention", "metadata")
_PLAIN_ROLES: Final = ("user", "assistant")
_INCOMPLETE: Final = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}

PLAIN: Final = ModelSettings()
"""The settings of a request for text only."""


def to_request(  # noqa: PLR0913, PLR0917  # openai-agents passes all of these to a model
    instructions: str | None,
    items: str | list[TResponseInputItem],
    settings: ModelSettings,
    tools: Sequence[Tool],
    output_schema: AgentOutputSchemaBase | None,
    handoffs: Sequence[Handoff[Any, Any]],
    *,
    model: str | None,
    max_tokens: int,
    is_reply: bool,
    include_reasoning: bool,
) -> CompletionRequest:
    """Return the request for a model's next turn."""
    return CompletionRequest(
        messages=_messages(items),
        instructions=instructions,
        max_tokens=min(max_tokens, settings.max_tokens or max_tokens),
        temperature=settings.temperature,
        model=model,
        is_reply=is_reply,
        include_reasoning=include_reasoning,
        options={} if settings is PLAIN else _options(settings, tools, output_schema, handoffs, model),
    )


def _messages(items: str | list[TResponseInputItem]) -> list[Any]:
    if isinstance(items, list) and all(len(item) == 2 and item.get("role") in _PLAIN_ROLES for item in items):  # noqa: PLR2004
        return items
    return list(Converter.items_to_messages(items))


def _options(
    settings: ModelSettings,
    tools: Sequence[Tool],
    output_schema: AgentOutputSchemaBase | None,
    handoffs: Sequence[Handoff[Any, Any]],
    model: str | None,
) -> dict[str, Any]:
    functions = [
        *(Converter.tool_to_openai(tool) for tool in tools),
        *(Converter.convert_handoff_tool(handoff) for handoff in handoffs),
    ]
    options: dict[str, Any] = {name: getattr(settings, name) for name in _SAME}
    if settings.reasoning is not None:
        options["reasoning_effort"] = settings.reasoning.effort
    if model is None:
        # openai-agents fills in the defaults for OpenAI's newest model; the upstream's model may be another one.
        implied = get_default_model_settings()
        if settings.reasoning == implied.reasoning and settings.verbosity == implied.verbosity:
            options["reasoning_effort"] = options["verbosity"] = None
    options["response_format"] = Converter.convert_response_format(output_schema)
    if functions:
        options["tools"] = functions
        options["tool_choice"] = Converter.convert_tool_choice(settings.tool_choice)
        options["parallel_tool_calls"] = settings.parallel_tool_calls
    extra: Any = settings.extra_body or {}
    return {
        **{name: value for name, value in options.items() if value is not None and not isinstance(value, Omit)},
        **(settings.extra_args or {}),
        **extra,
    }


# Make the event for a piece of text, given as `delta`.
text_delta: Final = partial(
    ResponseTextDeltaEvent,
    content_index=0,
    item_id=FAKE_RESPONSES_ID,
    logprobs=[],
    output_index=0,
    type="response.output_text.delta",
)


# Make the event for a piece of the model's reasoning, given as `delta`.
reasoning_delta: Final = partial(
    ResponseReasoningTextDeltaEvent,
    content_index=0,
    item_id=FAKE_RESPONSES_ID,
    output_index=0,
    type="response.reasoning_text.delta",
)


# The pieces of a reply: openai-agents' event types, and the domain's.
PIECES: Final[dict[type, type[ReplyText | ReplyReasoning]]] = {
    ResponseTextDeltaEvent: ReplyText,
    ResponseReasoningTextDeltaEvent: ReplyReasoning,
}


def completed(  # noqa: PLR0913, PLR0917  # all parts of the event
    text: str,
    calls: Sequence[ToolCall],
    model: str,
    finish_reason: FinishReason | None,
    usage: Usage | None,
    number: int,
) -> ResponseCompletedEvent:
    """Return the event for the end of an answer: the whole answer, whether it is complete, and its token usage."""
    reason = _INCOMPLETE.get(finish_reason) if finish_reason else None
    response = Response(
        id=FAKE_RESPONSES_ID,
        created_at=time.time(),
        model=model,
        object="response",
        output=_output(text, calls),
        parallel_tool_calls=False,
        tool_choice="auto",
        tools=[],
        status="completed" if reason is None else "incomplete",
        incomplete_details=None if reason is None else IncompleteDetails.model_validate({"reason": reason}),
        usage=_usage(usage) if usage else None,
    )
    return ResponseCompletedEvent(response=response, sequence_number=number, type="response.completed")


def _output(text: str, calls: Sequence[ToolCall]) -> list[ResponseOutputItem]:
    """Return the items of an answer; an empty answer gets an empty text, or openai-agents would ask again."""
    items: list[ResponseOutputItem] = []
    if text or not calls:
        content = ResponseOutputText(annotations=[], text=text, type="output_text", logprobs=[])
        items.append(
            ResponseOutputMessage(
                id=FAKE_RESPONSES_ID, content=[content], role="assistant", status="completed", type="message"
            )
        )
    items += [
        ResponseFunctionToolCall(
            id=FAKE_RESPONSES_ID, call_id=call.id, name=call.name, arguments=call.arguments, type="function_call"
        )
        for call in calls
    ]
    return items


def _usage(usage: Usage) -> ResponseUsage:
    """Return token counts in openai-agents' type, in which an unknown count is 0."""
    read, written = usage.input_tokens or 0, usage.output_tokens or 0
    return ResponseUsage(
        input_tokens=read,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_input_tokens or 0, cache_write_tokens=0),
        output_tokens=written,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens or 0),
        total_tokens=usage.total_tokens or read + written,
    )


def warm_up() -> None:
    """Make one text event and one completed event: the first ones take 60 ms, which no request should wait for."""
    text_delta(delta="", sequence_number=0)
    completed("text", (), "model", None, None, 0)
