"""The HTTP transport: operations, keys, streams and the contract."""
