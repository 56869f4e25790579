"""The examples that are pages: what each one shows, and how to send it a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from playwright.async_api import Page


class Example(NamedTuple):
    """An example, and what its page shows."""

    name: str
    answer: str
    """The selector of the answer."""
    done: str
    stopped: str


AI_SDK_REACT = Example("ai-sdk-react", answer=".assistant p", done="ready", stopped="The answer is incomplete.")
FETCH_EVENT_SOURCE = Example("fetch-event-source", answer="#answer", done="Done.", stopped="Stopped.")


class Opened(NamedTuple):
    """An example's page in a browser, and the origin that serves it."""

    example: Example
    page: Page
    origin: str

    async def open(self, parley: object) -> None:
        """Open the page for the Parley with this URL."""
        await self.page.goto(f"{self.origin}/?parley={str(parley).rstrip('/')}")

    async def ask(self, parley: object, until: str | None = None) -> None:
        """Open the page, send a message, and wait until this text is shown."""
        await self.open(parley)
        await self.send("hi")
        if until is not None:
            await self.page.get_by_text(until, exact=True).wait_for()

    async def send(self, message: str) -> None:
        """Send a message to Parley."""
        await self.page.get_by_role("textbox").fill(message)
        await self.page.get_by_role("button", name="Send").click()

    async def answers(self) -> list[str]:
        """Return the text of each answer that the page shows."""
        return await self.page.locator(self.example.answer).all_text_contents()
