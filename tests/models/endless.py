"""A child of `template_check` whose template takes all memory."""

from __future__ import annotations

from edged.models.tokenizer import template_check


def _greedy(*_: object) -> str:
    return str(len([bytes(1 << 20) for _ in range(1 << 20)]))


if __name__ == "__main__":
    template_check.trial = _greedy
    template_check.main()
