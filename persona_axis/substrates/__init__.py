"""The same read and edit for people who live in another library: one module for each."""
