"""Logs and correlation ids."""
