"""Where replies come from: any OpenAI-compatible upstream, or the model embedded in Parley."""
