"""Generation and scoring with the latent cache, in this process.

`step()` is the whole engine: schedule which tokens are read, run them, take a
token for each sequence that is ready for one, collect what ended. Sequences
come and go between steps (continuous batching), long prompts are read in
pieces, beginnings that were read before are found in a prefix tree, and where
the cache is full the youngest sequence waits. Called with prompts the engine is
the `Generate` that chat, evaluation and RL are given; `score` is their `Score`.

Invariants: the engine owns its weights (`sync` copies them in, compares hashes
and forgets what was cached); a sequence's draws do not depend on its company;
with `attention="invariant"` neither do its logits, bit for bit. One thread.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openk2.engine import sampler
from openk2.engine.block_pool import BLOCK, BlockPool
from openk2.engine.latent_store import Int8Store, LatentStore, PlainStore
from openk2.engine.native import NativeDecoder
from openk2.engine.prefix_tree import PrefixTree
from openk2.engine.runner import run
from openk2.engine.scheduler import Piece, Scheduler
from openk2.engine.scoring import score
from openk2.engine.sequence import Request, Sequence, Status
from openk2.engine.weights import check_alike, engine_weights, model_like, weights_hash
from openk2.model.model import Model
from openk2.ops.fused import fusion_available, fusion_on_this_thread, set_fusion
from openk2.protocols import Completion, Grammar, SamplingParams

CACHE_BYTES = 1 << 30
WARM_TOKENS = 512  # enough for every kernel to be worth its call


@dataclass(frozen=True)
class EngineSettings:
    """`cache_tokens` None: a gibibyte's at most, and one whole context at least. `step_tokens` are read at most in one
    step, which `max_running` sequences at most share; of prompts at most `beside_tokens`, while more sequences wait for
    their next token than for their first one. `native`, decoding in C++: from the first token on ("wait", some
    seconds the first time on a machine), once it is compiled ("background": no token waits for it, and with which one
    it takes over is a matter of chance), or never ("off")."""

    cache_tokens: int | None = None
    max_running: int = 256
    step_tokens: int = 4096
    beside_tokens: int = 512
    eight_bit_cache: bool = False
    attention: str = "auto"
    native: str = "wait"

    def __post_init__(self) -> None:
        if self.native not in ("wait", "background", "off"):
            raise ValueError(f"engine: saw native {self.native!r}, expected wait, background or off")
        for name in ("max_running", "step_tokens", "beside_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine: saw {name} {getattr(self, name)}, expected at least 1")
        if self.cache_tokens is not None and self.cache_tokens < 2 * BLOCK:
            raise ValueError(f"engine: saw cache_tokens {self.cache_tokens}, expected at least {2 * BLOCK}")
        if self.eight_bit_cache and self.attention == "invariant":
            raise ValueError("engine: saw an 8-bit cache with invariant attention, expected one of the two")


@dataclass(frozen=True)
class Usage:
    """Cache blocks (of `block_pool.BLOCK` tokens) and sequences; `kept` blocks are held by the prefix tree alone."""

    blocks: int
    free: int
    kept: int
    running: int
    waiting: int


class Engine:
    """`engine(prompts, params)` is `protocols.Generate`; `engine.score(sequences)` is `protocols.Score`."""

    def __init__(self, model: Model, settings: EngineSettings | None = None) -> None:
        """A copy of `model` for inference, its matrices stored in the compute dtype, its routers in fp32."""
        self.settings = settings or EngineSettings()
        if self.settings.attention == "invariant" and model.compute_dtype != torch.bfloat16:
            raise ValueError("engine: saw invariant attention for a model that does not compute in bf16, expected one")
        self.model = model_like(model)
        self.model.attention = self.settings.attention
        per_token = model.config.num_hidden_layers * model.config.latent_dim * model.compute_dtype.itemsize
        context = model.config.max_position_embeddings
        most = min(CACHE_BYTES // per_token, context * self.settings.max_running)  # more could not be used
        tokens = self.settings.cache_tokens or max(most, context)
        self.pool = BlockPool(-(-tokens // BLOCK))
        make_store = Int8Store if self.settings.eight_bit_cache else PlainStore
        self.store: LatentStore = make_store(model.config, self.pool.size * BLOCK, model.compute_dtype)
        self.tree = PrefixTree(self.pool)
        self.scheduler = Scheduler(
            self.pool,
            self.tree,
            max_running=self.settings.max_running,
            step_tokens=self.settings.step_tokens,
            beside_tokens=self.settings.beside_tokens,
        )
        wanted = self.settings.native
        self.native = None if wanted == "off" else NativeDecoder.make(self.model, self.store, wait=wanted == "wait")
        self._cancelled: list[Sequence] = []
        self.sync(model)

    def sync(self, model: Model) -> str:
        """Take over `model`'s weights in place; returns their SHA-256. Raises as `load` does."""
        weights = engine_weights(model)
        return self.load(weights, weights_hash(weights))

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], sha256: str) -> str:
        """Take over `engine_weights` in place, and compare the copy's SHA-256 with the one they should have.

        Raises `RuntimeError` where sequences run, which were begun with other weights, or where the copy differs, and
        `ValueError` for weights of another model.
        """
        if self.has_work:
            raise RuntimeError("engine: saw new weights while sequences run, expected none; finish or cancel them")
        check_alike(self.model.state_dict(), weights)
        self.tree.clear()
        self.model.load_state_dict(weights)
        if weights_hash(self.model.state_dict()) != sha256:
            raise RuntimeError("engine: saw weights that differ from those they were copied from")
        return sha256

    @torch.inference_mode()
    def compile_kernels(self) -> None:
        """Compile what prompts are read with, then read with it; where that cannot be done, nothing changes.

        Takes seconds, and may run on another thread while the engine steps: no token waits for it.
        """
        if self.settings.attention == "invariant" or not fusion_available()[0]:
            return
        config = self.model.config
        tokens = [0] * min(WARM_TOKENS, config.max_position_embeddings)
        blocks = list(range(-(-len(tokens) // BLOCK)))
        sequence = Sequence(Request(tuple(tokens), SamplingParams()), 1, None, sampler.stream(0, 0), tokens=tokens)
        sequence.blocks = blocks
        store = PlainStore(config, len(blocks) * BLOCK, self.model.compute_dtype)
        with fusion_on_this_thread(True):
            run(self.model, store, [Piece(sequence, 0, len(tokens))])
        set_fusion(True)

    # One sequence after the other -----------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running or self._cancelled)

    def submit(self, request: Request) -> Sequence:
        """Take a request on. Raises `ValueError` for a prompt that does not fit or parameters that mean nothing."""
        sampler.check(request.params)
        limit = self._room(len(request.prompt), request.params.max_new_tokens)
        if len(request.prompt) + limit > self.pool.size * BLOCK:
            raise ValueError(
                f"engine: saw a prompt of {len(request.prompt)} tokens and up to {limit} new ones, expected at most "
                f"{self.pool.size * BLOCK}, the cache's; make it larger or ask for fewer"
            )
        outside = next((id for id in request.prompt if not 0 <= id < self.model.config.vocab_size), None)
        if outside is not None:
            raise ValueError(f"engine: saw the token {outside}, expected 0 to {self.model.config.vocab_size - 1}")
        constraint = request.grammar.start(limit) if request.grammar else None
        draws = sampler.stream(request.params.seed, request.stream)
        sequence = Sequence(request, limit, constraint, draws, tokens=list(request.prompt))
        if constraint is not None and constraint.hopeless:
            sequence.status, sequence.finish_reason = Status.FINISHED, "length"
        else:
            self.scheduler.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step; of one that has ended already, nothing changes."""
        if sequence.status is not Status.FINISHED:
            self._cancelled.append(sequence)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Read the next tokens; returns the sequences that ended."""
        ended = self._drop_cancelled()
        pieces, copies = self.scheduler.schedule()  # schedule
        if not pieces:
            return ended
        for copy in copies:
            self.store.copy(copy.source * BLOCK, copy.target * BLOCK, copy.num_rows)
        logits, experts = self._run(pieces)  # run
        ready = self._advance(pieces)  # postprocess
        if ready:
            self._take(ready, logits, experts)
        return ended + self._collect(ready)  # collect

    def usage(self) -> Usage:
        held = {block for sequence in self.scheduler.running for block in sequence.blocks}
        free = self.pool.num_free
        return Usage(
            self.pool.size,
            free,
            self.pool.size - free - len(held),
            len(self.scheduler.running),
            len(self.scheduler.waiting),
        )

    def check(self) -> None:
        """AssertionError where a cache block is lost or held by nobody who knows of it."""
        running = [block for sequence in self.scheduler.running for block in sequence.blocks]
        self.pool.check([*running, *self.tree.blocks()])

    def _run(self, pieces: abc.Sequence[Piece]) -> tuple[Tensor, Tensor]:
        if self.native is not None and self.native.can(pieces):
            return self.native.decode(pieces)
        return run(self.model, self.store, pieces)

    def _drop_cancelled(self) -> list[Sequence]:
        ended = [sequence for sequence in dict.fromkeys(self._cancelled) if sequence.status is not Status.FINISHED]
        for sequence in ended:
            if sequence.status is Status.RUNNING:
                self.scheduler.release(sequence)
            else:
                self.scheduler.waiting.remove(sequence)
            sequence.status, sequence.finish_reason = Status.FINISHED, "cancelled"
        self._cancelled = []
        return ended

    def _advance(self, pieces: abc.Sequence[Piece]) -> list[Sequence]:
        """The pieces are in the cache now; returns the sequences that can go on."""
        ready = []
        for piece in pieces:
            sequence = piece.sequence
            sequence.num_computed = piece.last
            if piece.predicts:
                ready.append(sequence)
                if sequence.num_sampled == 0:  # others with this prompt need not wait for the answer
                    self.tree.insert(sequence.tokens, sequence.blocks)
        return ready

    def _take(self, ready: abc.Sequence[Sequence], logits: Tensor, experts: Tensor) -> None:
        """A token for each sequence."""
        drawn = sampler.sample(logits, ready)
        tokens = [sequence.standing(token) for sequence, token in zip(ready, drawn.tokens, strict=True)]
        log_probs = drawn.log_probs.gather(1, torch.tensor(tokens)[:, None]).squeeze(1).tolist()
        chosen = experts.transpose(0, 1).numpy()
        for row, (sequence, token) in enumerate(zip(ready, tokens, strict=True)):
            sequence.tokens.append(token)
            sequence.log_probs.append(log_probs[row])
            sequence.experts.append(chosen[row].copy())  # a view would keep what others chose
            wanted = sequence.request.params.top_log_probs
            if wanted:
                best = drawn.log_probs[row].topk(min(wanted, drawn.log_probs.shape[1]))
                sequence.top.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            if sequence.is_whole() or token in sequence.request.params.stop_ids:
                sequence.finish_reason = "stop"
            elif sequence.num_sampled == sequence.limit:
                sequence.finish_reason = "length"
            if sequence.tell():
                sequence.finish_reason = "stop"
            if sequence.error is not None:
                sequence.finish_reason = "error"

    def _collect(self, ready: abc.Sequence[Sequence]) -> list[Sequence]:
        ended = [sequence for sequence in ready if sequence.finish_reason]
        for sequence in ended:
            self.scheduler.release(sequence)
            sequence.status = Status.FINISHED
        return ended

    # Many at once: what other packages are given ---------------------------------------------------

    def __call__(
        self,
        prompts: abc.Sequence[abc.Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: abc.Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        sequences: list[Sequence] = []
        try:
            for index, (prompt, grammar) in enumerate(zip(prompts, grammars or [None] * len(prompts), strict=True)):
                tell = None if on_token is None else _telling(on_token, index)
                sequences.append(self.submit(Request(tuple(prompt), params, index, grammar, tell)))
            while any(sequence.status is not Status.FINISHED for sequence in sequences):
                for ended in self.step():
                    if ended.error is not None:
                        raise ended.error
        except BaseException:  # an interrupted call leaves nothing running behind
            for sequence in sequences:
                self.cancel(sequence)
            self._drop_cancelled()
            raise
        return [sequence.completion() for sequence in sequences]

    @torch.no_grad()
    def score(self, sequences: abc.Sequence[abc.Sequence[int]]) -> list[np.ndarray]:
        """Natural log-probabilities of ids[1:] for each sequence."""
        for sequence in sequences:
            self._room(len(sequence), 0)
        if self.settings.eight_bit_cache:
            return [self._score_through_cache(sequence) for sequence in sequences]
        return score(self.model, sequences)

    def _score_through_cache(self, ids: abc.Sequence[int]) -> np.ndarray:
        """`score` of one sequence as generation would see it, each token attending to what the cache gives back."""
        request = Request(tuple(ids), SamplingParams())
        sequence = Sequence(request, 0, None, sampler.stream(0, 0), tokens=list(ids))
        self.scheduler.admit_alone(sequence)
        found: list[Tensor] = []
        for first in range(0, len(ids), self.settings.step_tokens):
            piece = Piece(sequence, first, min(first + self.settings.step_tokens, len(ids)))
            logits, _ = run(self.model, self.store, [piece], read_all=True)
            sequence.num_computed = piece.last
            following = torch.tensor(ids[piece.first + 1 : piece.last + 1])
            log_probs = logits[: len(following)].float().log_softmax(-1)
            found.append(log_probs.gather(1, following[:, None]).squeeze(1))
        self.scheduler.release(sequence)
        return torch.cat(found).numpy()

    def _room(self, length: int, wanted: int) -> int:
        """How many tokens may follow a prompt of `length`."""
        limit = self.model.config.max_position_embeddings
        if not 1 <= length <= limit - min(wanted, 1):
            raise ValueError(f"engine: saw a prompt of {length} tokens, expected 1 to {limit - min(wanted, 1)}")
        return min(wanted, limit - length)


def _telling(on_token: Callable[[int, int], None], index: int) -> Callable[[Sequence], None]:
    return lambda sequence: on_token(index, sequence.tokens[-1])
