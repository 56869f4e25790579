"""An OpenAI-compatible upstream: its connections, its requests, and whether it can be reached."""

from __future__ import annotations

import asyncio
import urllib.parse
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import msgspec
import structlog

from parley.chat.errors import ChatError, ErrorCode
from parley.chat.run import Attempt
from parley.providers.connections import Connector, Request, UnsentError, proxy, trusted
from parley.providers.failures import no_response, refusal, unwanted_parameter
from parley.providers.limited_reads import beginning, error_body, is_compressed
from parley.providers.parameters import Parameters
from parley.providers.upstream_log import UpstreamLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from parley.chat.watch import Tracer, Watch
    from parley.providers.exchange import CompletionRequest

_log: Final = structlog.stdlib.get_logger(__name__)

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
MAX_STREAMS: Final = 100

_CHECK_TIMEOUT_S: Final = 3.0
_CHECK_KEPT_S: Final = 5.0
# Reading pauses at twice this size; a larger buffer would only let a client that does not read occupy more memory.
_READ_BUFFER_BYTES: Final = 16_384
# A shorter header value is not a secret, and hiding it would hide ordinary words.
_SHORTEST_SECRET: Final = 16
_SUCCESS: Final = range(200, 300)
_REFUSED_PARAMETERS: Final = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
# Some proxies set many long cookies.
_MOST_HEADER_BYTES: Final = 65_536


class Upstream:
    """An OpenAI-compatible chat completions API; open it as an async context manager."""

    def __init__(  # noqa: PLR0913  # all are keywords
        self,
        *,
        base_url: str,
        api_key: str | None,
        model_name: str,
        instructions: str | None,
        temperature: float | None,
        max_streams: int = MAX_STREAMS,
        connect_timeout_s: float,
        watch: Watch,
        tracer: Tracer,
        reasoning_effort: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        log_text: bool = False,
        trust_env: bool = True,
        neutralise: Callable[[str], str] = str,
    ) -> None:
        """Configure the upstream.

        `log_text` logs the text of its errors, `trust_env` allows the environment's proxies, and `neutralise` rewrites
        the text of each message.
        """
        self.model_name = model_name
        self.instructions = instructions
        self.temperature = temperature
        self.max_streams = max_streams
        self._base_url = base_url.rstrip("/")
        address = urllib.parse.urlsplit(base_url)
        self._host = address.hostname or ""
        self._port = address.port or (443 if address.scheme == "https" else 80)
        self._headers = {
            "Accept-Encoding": "identity",  # compression would delay the stream
            "Content-Type": "application/json",
            "User-Agent": "parley",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        given = {name.lower() for name in extra_headers or ()}
        self._headers = {name: value for name, value in self._headers.items() if name.lower() not in given}
        self._headers.update(extra_headers or {})
        self._extra_body = dict(extra_body or {})
        if reasoning_effort is not None:
            self._extra_body.setdefault("reasoning_effort", reasoning_effort)
        self._connect_timeout_s = connect_timeout_s
        self.watch = watch
        self.tracer = tracer
        headers = [value for value in (extra_headers or {}).values() if len(value) >= _SHORTEST_SECRET]
        self.log = UpstreamLog([api_key, *headers] if api_key else headers, has_text=log_text)
        self._proxy = proxy(base_url) if trust_env else None
        self._neutralise = neutralise
        self._parameters = Parameters(self._host)
        self._checked: tuple[float, ErrorCode | None] | None = None
        self._checking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # A small body could decompress to a huge one, on the event loop; `post` refuses compressed responses.
            auto_decompress=False,
            connector=Connector(trusted(self._base_url)),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            proxy=self._proxy,
            max_field_size=_MOST_HEADER_BYTES,
            max_line_size=_MOST_HEADER_BYTES,
            read_bufsize=_READ_BUFFER_BYTES,
            request_class=Request,
            # No read timeout, which would watch bytes: the run's deadlines watch text.
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._connect_timeout_s, sock_connect=self._connect_timeout_s
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def upstream(self) -> Upstream:
        """Return this upstream itself."""
        return self

    def attempt(self, request: CompletionRequest, *, call: int, is_fallback: bool) -> Attempt:
        """Return a new attempt at this request, with the upstream's defaults filled in."""
        return Attempt(
            model=self.model_name if is_fallback else request.model or self.model_name,
            host=self._host,
            port=self._port,
            max_tokens=request.max_tokens,
            temperature=self.temperature if request.temperature is None else request.temperature,
            is_fallback=is_fallback,
            call=call,
            is_reply=request.is_reply,
        )

    async def check(self) -> ErrorCode | None:
        """Return the upstream's problem, if any: list its models, at most every few seconds; only 401 is a problem."""
        async with self._checking:  # concurrent callers wait for one check and share its result
            now = asyncio.get_running_loop().time
            if self._checked is None or now() - self._checked[0] > _CHECK_KEPT_S:
                problem = await self._check()
                self._checked = now(), problem
            return self._checked[1]

    async def _check(self) -> ErrorCode | None:
        try:
            async with (
                asyncio.timeout(_CHECK_TIMEOUT_S),
                self._session.get(f"{self._base_url}/models", allow_redirects=False) as response,
            ):
                await beginning(response.content)  # so that the connection can be used again
        except (aiohttp.ClientError, OSError):  # `TimeoutError` is an `OSError`
            return ErrorCode.UPSTREAM_UNREACHABLE
        # Some upstreams cannot list their models, and answer with various statuses.
        return ErrorCode.UPSTREAM_AUTH if response.status == HTTPStatus.UNAUTHORIZED else None

    async def post(
        self, request: CompletionRequest, attempt: Attempt, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Return the response, which the caller closes; raise `ChatError` if there is none, or it is an error."""
        unwanted = set(self._parameters.unwanted)
        while True:
            body = self._body(request, attempt, unwanted)
            response = await self._send(msgspec.json.encode(body), {**headers, **_correlation()}, attempt)
            attempt.status = response.status
            self.watch.upstream_answered(attempt.model, response.status)
            try:
                refused = await self._refused_parameter(response, body)
            except BaseException:
                response.close()
                raise
            if refused is None:
                self._parameters.unwanted |= unwanted  # the upstream has accepted a request without them
                return response
            response.close()
            unwanted.add(refused)

    def _body(self, request: CompletionRequest, attempt: Attempt, unwanted: set[str]) -> dict[str, Any]:
        instructions = self.instructions if request.instructions is None else request.instructions
        messages = [{"role": "system", "content": instructions}] if instructions else []
        messages += [self._neutral(message) for message in request.messages]
        body = {
            **self._extra_body,
            **request.options,
            "model": attempt.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if attempt.temperature is not None:
            body["temperature"] = attempt.temperature
        return self._parameters.fit(body, attempt.max_tokens, unwanted)

    def _neutral(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        return {**message, "content": self._neutralise(content)} if isinstance(content, str) else message

    async def _refused_parameter(self, response: aiohttp.ClientResponse, body: dict[str, Any]) -> str | None:
        """Return `None` for an answer, or the refused parameter, without which the request can be sent again.

        Raises:
            ChatError: if the response is an error.
        """
        if response.status not in _SUCCESS:
            text = await error_body(response)
            self.log.refused(response, text)
            name = unwanted_parameter(text) if response.status in _REFUSED_PARAMETERS else None
            if name is not None and name in body and self._parameters.can_do_without(name):
                _log.warning("upstream_parameter_refused", parameter=name)
                return name
            raise refusal(response.status, text, response.headers)
        if is_compressed(response):
            detail = "The upstream compressed its response, although Parley asked for `identity`."
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail=detail, retryable=False)
        if response.status == HTTPStatus.NO_CONTENT:
            raise ChatError(ErrorCode.UPSTREAM_ERROR, detail="The upstream's response has no content.")
        return None

    async def _send(self, body: bytes, headers: Mapping[str, str], attempt: Attempt) -> aiohttp.ClientResponse:
        """Send a request, on one connection after another if need be; a new one is always trusted, so this ends.

        Raises:
            ChatError: if there is no response.
        """
        while True:
            try:
                return await self._session.post(
                    f"{self._base_url}/chat/completions", data=body, headers=headers, allow_redirects=False
                )
            except UnsentError:
                continue
            except aiohttp.ClientError as error:
                self.watch.upstream_answered(attempt.model, None)
                raise no_response(error) from error


def _correlation() -> dict[str, str]:
    """Return the header with the correlation id, by which the request can be found in the upstream's logs, too."""
    correlation_id = structlog.contextvars.get_contextvars().get("correlation_id")
    return {} if correlation_id is None else {"X-Correlation-ID": correlation_id}
