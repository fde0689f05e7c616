"""Models behind OpenAI-compatible endpoints: one client, whose requests end and whose replies are read with care."""
