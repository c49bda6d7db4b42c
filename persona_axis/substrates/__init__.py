"""The same read and edit for people who live in another toolkit: nnsight, TransformerLens. Each needs its own extra."""
