"""The transport: requests, chunks, frames, status codes."""
