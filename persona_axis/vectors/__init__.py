"""Vectors that other people made: read, told apart, turned into an axis or a cap, and written in their forms again.

Nothing here guesses. What a file does not say (its sign, which layer a row belongs to, its model) is said by the
user or proven by a check, and the axis or cap records which.
"""
