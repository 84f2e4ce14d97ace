"""`edgectl`, the operator's side. May import core, wire and link."""
