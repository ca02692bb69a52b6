"""Command-line tools: launcher, client, serve, infer, chat, doctor. Never imported by the server side."""
