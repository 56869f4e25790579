"""The domain: messages, the events of a reply, the errors by name, and the service that produces them. No HTTP here."""
