"""Conversations while they are held: played, followed and measured turn by turn."""
