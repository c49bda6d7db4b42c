"""The inside of a model: where its layers are, whose words its tokens are, what it remembers and can read."""
