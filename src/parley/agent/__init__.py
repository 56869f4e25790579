"""The agents that write replies, and their models. Nothing else in Parley imports openai-agents or openai."""
