"""The HTTP transport: requests, chunks, frames, status codes."""
