"""Logs, correlation ids, metrics and traces."""
