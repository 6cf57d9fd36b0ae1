"""What QK-Clip costs a training step while no head comes near tau.

    python benchmarks/qk_clip.py [--quick] [--json FILE]

The same model with tau at 100 and without QK-Clip, full steps in turn, 16,384 tokens. Both sides' attention finds each
row's maximum, for the softmax needs it; the clip adds keeping and comparing it. The ratio is time without by time with:
0.98 is a cost of 2%.
"""

from __future__ import annotations

from _rows import Rows, in_turn
from train_step import TOKENS, Ours

from openk2.config import MODEL_PRESETS


def main() -> None:
    rows = Rows(__doc__.splitlines()[0])
    for name, preset in (("tiny", "tiny"), ("100m", "small")):
        if (rows.quick and name != "tiny") or not rows.missing(f"qk_clip/{name}"):
            continue
        config = MODEL_PRESETS[preset]
        sides = {"ours": Ours(config).step, "peer": Ours(config, qk_clip_tau=None).step}
        # So many rounds because 2% is less than the difference between two steps of the same side.
        taken = in_turn(sides, 5 if rows.quick else {"tiny": 81, "100m": 25}[name], warm=2)
        rows.times(f"qk_clip/{name}", taken, "the same without QK-Clip", unit="tokens/s", amount=TOKENS)


if __name__ == "__main__":
    main()
