"""Text ↔ token ids, chat templates, token tables for constrained output."""
