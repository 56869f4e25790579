"""The domain: messages, the events of a reply, named errors, and the service that produces them. No HTTP here."""
