"""Chat templates in the shapes in use, written for these tests, and what is rendered with them."""
