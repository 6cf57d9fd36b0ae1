"""`openk2 show-sample`: a dialogue as the model is trained on it, what counts in the loss coloured."""

from __future__ import annotations

import itertools

from openk2.chat.codec import Codec
from openk2.data.dialogues import Dialogue
from openk2.observe.console import printable

LEARNED, GIVEN, RESET = "\033[1;32m", "\033[2m", "\033[0m"


def coloured(dialogue: Dialogue, codec: Codec, *, styled: bool) -> str:
    """The dialogue's text, learned spans green and given ones dim; unstyled, learned spans stand in «guillemets».

    Text that merely spells a control token is shown with a backslash: <\\|im_end|>.
    """
    encoded = codec.encode(dialogue.messages, dialogue.tools or None)
    first_control = codec.tokenizer.num_ordinary
    parts = []
    for learned, pairs in itertools.groupby(zip(encoded.mask, encoded.ids, strict=True), key=lambda pair: pair[0]):
        text = ""
        for control, run in itertools.groupby((token for _, token in pairs), key=lambda token: token >= first_control):
            spelt = printable(codec.tokenizer.decode(list(run)))
            text += spelt if control else spelt.replace("<|", "<\\|")
        if styled:
            parts.append(f"{LEARNED if learned else GIVEN}{text}{RESET}")
        else:
            parts.append(f"«{text}»" if learned else text)
    return "".join(parts) + f"\n{sum(encoded.mask)} of {len(encoded.ids)} tokens count in the loss"
