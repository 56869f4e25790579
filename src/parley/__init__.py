"""Parley: a streaming chat API. POST a message, read the model's answer as typed server-sent events."""
