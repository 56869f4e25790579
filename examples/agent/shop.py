"""A shop's assistant: it looks up the status of an order, and hands returns over to a second agent."""

import re
from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    RunContextWrapper,
    TResponseInputItem,
    function_tool,
    input_guardrail,
)

# Replace these with your own database.
ORDERS = {
    "A-1001": "Shipped on Monday. It arrives tomorrow.",
    "A-1002": "Delivered on Friday.",
}


@function_tool
async def order_status(number: str) -> str:
    """Return the status of an order.

    Args:
        number: The number of the order, such as A-1001.
    """
    return ORDERS.get(number.strip().upper(), "There is no order with this number.")


@input_guardrail(run_in_parallel=False)  # it checks the conversation before any model sees it
async def no_card_numbers(
    _: RunContextWrapper[None], __: Agent[Any], conversation: str | list[TResponseInputItem]
) -> GuardrailFunctionOutput:
    """Refuse a conversation that contains the number of a payment card."""
    numbers = re.findall(r"\d(?:[ -]?\d){12,18}", str(conversation))
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=any(map(is_card_number, numbers)))


def is_card_number(number: str) -> bool:
    """Return whether the last digit is the check digit of the others (the Luhn algorithm)."""
    digits = [int(digit) for digit in reversed(number) if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


returns = Agent[None](
    "Returns",
    handoff_description="Helps to return or exchange an order.",
    instructions=(
        "You help customers of a shop to return or exchange an order. They can return an order within 30 days "
        "after it was delivered. Ask for its number, and look up its status."
    ),
    tools=[order_status],
)

agent = Agent[None](
    "Shop",
    instructions=(
        "You answer the customers of a shop. Look up the status of an order; never guess it. "
        "Hand over to Returns if a customer wants to return or exchange an order."
    ),
    tools=[order_status],
    handoffs=[returns],
    input_guardrails=[no_card_numbers],
)
