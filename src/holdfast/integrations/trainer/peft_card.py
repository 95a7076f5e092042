"""The model card that peft writes beside adapters, rendered once a process.

peft renders it anew for each save, from a template that is compiled each time: half of the time that a save of adapters
takes, and training wants the interpreter meanwhile. What peft begins with is the same every time; what it adds to that
is its own to add.
"""

from typing import Any, ClassVar

from huggingface_hub import ModelCard, ModelCardData


class BlankCard(ModelCard):
    """Replaces `ModelCard`, and remembers the card of which nothing is known yet."""

    _text: ClassVar[str | None] = None

    @classmethod
    def from_template(cls, card_data: ModelCardData, *args: Any, **kwargs: Any) -> ModelCard:  # type: ignore[override]
        """Returns what `ModelCard.from_template` does."""
        if args or kwargs or card_data.to_dict():  # type: ignore[no-untyped-call]
            card: ModelCard = ModelCard.from_template(card_data, *args, **kwargs)
            return card
        if cls._text is None:
            cls._text = str(ModelCard.from_template(card_data))
        return ModelCard(cls._text)
