"""The sources of replies: any OpenAI-compatible upstream, or the model embedded in Parley."""
