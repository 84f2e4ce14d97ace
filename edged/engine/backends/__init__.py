"""What computes logits: `base` is the interface, the others implement it. Only a chosen one is imported."""
