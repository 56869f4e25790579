"""The wire's shapes, and how they are encoded and decoded: what the server, its clients and their tests share."""
