"""OpenAI's HTTP interface over the engine: bodies to requests, pieces to replies, refusals that name the parameter."""
