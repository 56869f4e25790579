"""Owns the way to any OpenAI-compatible upstream: the client, and the model that reads its raw stream."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, suppress
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httpx2
import msgspec
import openai
from agents import Model, ModelResponse
from openai.types.responses import Response, ResponseCompletedEvent, ResponseOutputMessage, ResponseTextDeltaEvent

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.events import Usage, UsageSource
from parley.providers.failures import named, named_finish, refusal
from parley.providers.wire import Chunk, EventDecoder, NotACompletionError, decode_chunk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from types import TracebackType
    from typing import Self

    from agents import ModelSettings, TResponseInputItem, TResponseStreamEvent

    from parley.chat.run import Run

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"

MAX_STREAMS: Final = 100

_CHECK_TIMEOUT_S: Final = 3.0
_CHECK_KEPT_S: Final = 5.0
_LAST_BYTES_TIMEOUT_S: Final = 0.1


class UpstreamProvider:
    """Replies from an OpenAI-compatible chat completions API."""

    def __init__(  # noqa: PLR0913  # each is named where it is given
        self,
        *,
        base_url: str,
        api_key: str,
        model_name: str,
        instructions: str | None,
        temperature: float | None,
        connect_timeout_s: float,
        trust_env: bool = True,
        neutralise: Callable[[str], str] = str,
    ) -> None:
        """Make the client; `trust_env` lets it use the environment's proxies, `neutralise` rewrites each message."""
        self.model_name = model_name
        self.instructions = instructions
        self.temperature = temperature
        self.max_streams = MAX_STREAMS
        self._neutralise = neutralise
        # The deadlines on text are the run's, which knows what is text; a read timeout would count bytes.
        timeout = httpx2.Timeout(None, connect=connect_timeout_s, pool=connect_timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=trust_env),
        )
        # OpenAI's newer models refuse the old name, other servers don't know the new one.
        self._max_tokens = "max_completion_tokens" if base_url.rstrip("/") == OPENAI_BASE_URL else "max_tokens"
        self._checked: tuple[float, ErrorCode | None] | None = None
        _completed()  # the first costs 60 ms to build, which no request should wait for

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def model(self, run: Run) -> Model:
        """Make the model for one run."""
        return UpstreamModel(self._client, self.model_name, self._max_tokens, self._neutralise, run)

    async def check(self) -> ErrorCode | None:
        """Ask the upstream for its models, at most every few seconds; any answer but a refusal will do."""
        if self._checked is None or time.monotonic() - self._checked[0] > _CHECK_KEPT_S:
            self._checked = time.monotonic(), await self._check()
        return self._checked[1]

    async def _check(self) -> ErrorCode | None:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                await self._client.models.with_raw_response.list()
        except openai.APIStatusError as error:
            code = refusal(error).code
            unusable = code is ErrorCode.UPSTREAM_AUTH or error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            return code if unusable else None
        except (openai.APIError, TimeoutError):
            return ErrorCode.UPSTREAM_UNREACHABLE
        return None


class UpstreamModel(Model):
    """One run's model: the truth about the ending is read from the upstream's own chunks, not from openai-agents."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        name: str,
        max_tokens: str,
        neutralise: Callable[[str], str],
        run: Run,
    ) -> None:
        self._client = client
        self._name = name
        self._max_tokens = max_tokens
        self._neutralise = neutralise
        self._run = run

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        """Refuse: Parley only streams."""
        raise NotImplementedError

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002  # named by openai-agents
        model_settings: ModelSettings,
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Yield a text event for each delta, then one completed event.

        Raises:
            ChatError: where it fails before the first text; later failures are noted in the run.
        """
        turns: Any = input  # the service's own: each a role and a text
        messages = [{"role": turn["role"], "content": self._neutralise(turn["content"])} for turn in turns]
        if system_instructions:
            messages.insert(0, {"role": "system", "content": system_instructions})
        body: dict[str, Any] = {
            "model": self._name,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            self._max_tokens: model_settings.max_tokens,
        }
        if model_settings.temperature is not None:
            body["temperature"] = model_settings.temperature
        self._run.begin()
        create: Any = self._client.chat.completions.with_streaming_response.create  # its overloads ask for literals
        try:
            async with AsyncExitStack() as stack:
                response = await self._run.within(stack.enter_async_context(create(**body)))
                texts = await stack.enter_async_context(aclosing(self._texts(response)))
                async for text in texts:
                    self._run.saw(text)
                    yield _text_event(text)
                    await self._run.room()
        except (ChatError, openai.OpenAIError, httpx2.HTTPError, NotACompletionError) as error:
            failure = named(error)
            if not self._run.deltas and self._run.finish_reason is None:
                raise failure from error
            self._run.failure = failure
        yield _completed()

    async def _texts(self, response: openai.AsyncAPIResponse[Any]) -> AsyncGenerator[str, None]:
        """Yield the text of each delta up to the stream's end, noting finish reason and usage on the way."""
        decoder = EventDecoder()
        is_completion = is_done = False
        async with aclosing(response.http_response.aiter_bytes()) as reads:
            while not is_done and (data := await self._run.within(anext(reads, None))) is not None:
                for payload in decoder.feed(data):
                    if payload == b"[DONE]":
                        is_done = True
                        break
                    is_completion = True
                    if text := self._read(decode_chunk(payload)):
                        yield text
            if is_done:
                await _read_to_end(reads)
        if not is_completion:
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream answered with something else than a stream.")
        if self._run.finish_reason is None:
            raise ChatError(ErrorCode.UPSTREAM_TRUNCATED)

    def _read(self, chunk: Chunk) -> str | None:
        if chunk.error is not None and chunk.error != b"null":
            raise ChatError(ErrorCode.UPSTREAM_ERROR)
        if chunk.usage is not None and any(count is not None for count in msgspec.structs.astuple(chunk.usage)):
            self._run.usage = Usage(
                input_tokens=chunk.usage.prompt_tokens,
                output_tokens=chunk.usage.completion_tokens,
                total_tokens=chunk.usage.total_tokens,
                source=UsageSource.UPSTREAM,
            )
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason:
            self._run.finish(named_finish(choice.finish_reason))
        return (choice.delta.content or choice.delta.refusal) if choice.delta else None


async def _read_to_end(reads: AsyncIterator[bytes]) -> None:
    """Read what follows the last event, which is there at once or not waited for: then the connection can be reused."""
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_LAST_BYTES_TIMEOUT_S):
            async for _ in reads:
                pass


def _text_event(text: str) -> ResponseTextDeltaEvent:
    return ResponseTextDeltaEvent(
        content_index=0,
        delta=text,
        item_id="reply",
        logprobs=[],
        output_index=0,
        sequence_number=0,
        type="response.output_text.delta",
    )


@cache
def _completed() -> ResponseCompletedEvent:
    """Return the event that ends a run: the Runner wants one, and nobody reads it."""
    message = ResponseOutputMessage(id="reply", content=[], role="assistant", status="completed", type="message")
    response = Response(
        id="reply",
        created_at=0,
        model="reply",
        object="response",
        output=[message],
        parallel_tool_calls=False,
        tool_choice="none",
        tools=[],
    )
    return ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")
