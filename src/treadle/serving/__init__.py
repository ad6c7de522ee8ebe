"""A policy behind a websocket: messages (`packing`), observations (`observations`), and the server (`server`)."""
