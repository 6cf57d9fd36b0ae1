"""Batched generation and scoring with the latent cache, in this process.

What it is: the `Generate` and `Score` callables that chat, evaluation and RL
are given. Equal prompts are prefilled once; a sequence that ends leaves the
batch; a prompt that goes on from a sequence of the last call (the next turn of
a dialogue) is read from where that one stopped. The cache holds
kv_lora_rank + rope values a token and layer.

Invariants: the engine owns its weights (`sync` copies them in and forgets what
was cached), so training never changes them between two calls; a sequence's
draws do not depend on its company. Left out: paging, continuous batching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from openk2.engine.sampler import Sampler
from openk2.model.model import Model
from openk2.model.moe import Router
from openk2.protocols import Completion, Constraint, Grammar, SamplingParams

PREFILL_TOKENS = 8192  # padded tokens of one prefill or scoring pass
CATCH_UP_TOKENS = 1024  # padded tokens of one pass over the rests of continued prompts


class Engine:
    """`engine(prompts, params)` is `protocols.Generate`; `engine.score(sequences)` is `protocols.Score`."""

    def __init__(self, model: Model) -> None:
        """A copy of `model` for inference, its matrices stored in the compute dtype, its routers in fp32."""
        self.model = Model(model.config, compute_dtype=model.compute_dtype).to(model.compute_dtype).eval()
        for module in self.model.modules():
            if isinstance(module, Router):
                module.float()
        self._kept: _Kept = {}
        self.sync(model)

    @torch.no_grad()
    def sync(self, model: Model) -> None:
        """Take over `model`'s weights in place."""
        self.model.load_state_dict(model.state_dict())
        self._kept = {}

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        if params.max_new_tokens < 1:
            raise ValueError(f"engine: saw max_new_tokens {params.max_new_tokens}, expected at least 1")
        limits = [self._room(len(prompt), params.max_new_tokens) for prompt in prompts]
        if not prompts:
            return []
        batch = _Batch(self.model, prompts, max(limits), self._kept)
        sampler = Sampler(
            len(prompts), max(limits), temperature=params.temperature, top_p=params.top_p, seed=params.seed
        )
        stop_ids = frozenset(params.stop_ids)
        drafts = [
            _Draft(limit, stop_ids, grammar.start(limit) if grammar else None)
            for limit, grammar in zip(limits, grammars or [None] * len(prompts), strict=True)
        ]
        logits, experts = batch.begin()
        going = batch.keep(drafts)  # where nothing legal fits, nothing is drawn
        logits, experts = logits[going], experts[:, going]
        tokens = torch.empty(0, dtype=torch.int64)
        for draw in range(max(limits)):
            if not going:
                break
            if draw:
                logits, experts = batch.decode(tokens[going])
            running = [drafts[index] for index in batch.sequences.tolist()]
            tokens, log_probs = sampler(logits, batch.sequences, draw, _allowed(running, logits.shape[1]))
            for row, (index, draft) in enumerate(zip(batch.sequences.tolist(), running, strict=True)):
                tokens[row] = draft.add(int(tokens[row]), log_probs[row], experts[:, row])
                if on_token is not None:
                    on_token(index, int(tokens[row]))
            going = batch.keep(drafts)
        self._kept = {
            (*prompts[index], *drafts[index].ids[:-1]): latents for index, latents in sorted(batch.ended.items())
        }
        return [draft.completion() for draft in drafts]

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Natural log-probabilities of ids[1:] for each sequence."""
        found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        for sequence in sequences:
            self._room(len(sequence), 0)
        for rows in _by_length([len(s) for s in sequences], PREFILL_TOKENS):
            ids = _padded([sequences[row] for row in rows])
            targets = torch.full_like(ids, -100)
            for place, row in enumerate(rows):
                targets[place, : len(sequences[row]) - 1] = ids[place, 1 : len(sequences[row])]
            log_probs, _ = self.model.log_probs(ids, targets)
            for place, row in enumerate(rows):
                found[row] = log_probs[place, : len(sequences[row]) - 1].numpy()
        return found

    def _room(self, length: int, wanted: int) -> int:
        """How many tokens may follow a prompt of `length`."""
        limit = self.model.config.max_position_embeddings
        if not 1 <= length <= limit - min(wanted, 1):
            raise ValueError(f"engine: saw a prompt of {length} tokens, expected 1 to {limit - min(wanted, 1)}")
        return min(wanted, limit - length)


class _Draft:
    """What one sequence has sampled so far, and what it may be."""

    def __init__(self, limit: int, stop_ids: frozenset[int], constraint: Constraint | None) -> None:
        self.limit, self.stop_ids, self.constraint = limit, stop_ids, constraint
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.experts: list[np.ndarray] = []
        self.finish_reason = "length" if constraint is not None and constraint.hopeless else ""

    def add(self, token: int, log_probs: Tensor, experts: Tensor) -> int:
        """Take a sampled token, or what its constraint puts in its place, which is returned; log_probs [V]."""
        if self.constraint is not None:
            token = self.constraint.accept(token)
        self.ids.append(token)
        self.log_probs.append(float(log_probs[token]))
        self.experts.append(experts.numpy())
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) == self.limit:
            self.finish_reason = "length"
        return token

    def completion(self) -> Completion:
        experts = np.stack(self.experts) if self.experts else None
        return Completion(tuple(self.ids), tuple(self.log_probs), self.finish_reason, experts)


def _allowed(running: Sequence[_Draft], vocabulary: int) -> Tensor | None:
    """Bool [B, V], or None where everything is allowed to all."""
    if all(draft.constraint is None for draft in running):
        return None
    everything = np.ones(vocabulary, dtype=bool)
    masks = [everything if draft.constraint is None else draft.constraint.mask() for draft in running]
    return torch.from_numpy(np.stack(masks))


# The ids that were read -> their latents [n, C + r], one tensor a layer.
_Kept = dict[tuple[int, ...], list[Tensor]]


class _Batch:
    """The running sequences: their cache, one tensor [B, S, C + r] a layer, and their lengths [B].

    `sequences[row]` is the prompt's index; rows that continue a kept sequence come first.
    """

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int, kept: _Kept) -> None:
        self.model, self.prompts = model, prompts
        # A long suffix is cheaper to prefill anew with its prompt: decoding it against the cache holds the scores of
        # all its tokens at once.
        found = [_longest_prefix(prompt, kept, CATCH_UP_TOKENS) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: not found[i])
        self.sequences = torch.tensor(order)
        self.num_continued = sum(bool(prefix) for prefix in found)
        self.lengths = torch.tensor([len(found[index]) or len(prompts[index]) for index in order])
        size = (len(prompts), max(map(len, prompts)) + room, model.config.latent_dim)
        self.cache = [torch.zeros(size, dtype=model.compute_dtype) for _ in model.layers]
        self.ended: dict[int, list[Tensor]] = {}
        for row, index in enumerate(order[: self.num_continued]):
            for layer, latents in zip(self.cache, kept[found[index]], strict=True):
                layer[row, : len(latents)] = latents

    def begin(self) -> tuple[Tensor, Tensor]:
        """Logits [B, V] after each prompt and the experts [L_moe, B, K] chosen there."""
        continued = [self.prompts[index] for index in self.sequences[: self.num_continued].tolist()]
        fresh = [self.prompts[index] for index in self.sequences[self.num_continued :].tolist()]
        parts = [self._catch_up(continued)] if continued else []
        parts += [self._prefill(fresh)] if fresh else []
        return torch.cat([logits for logits, _ in parts]), torch.cat([experts for _, experts in parts], dim=1)

    def _catch_up(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Read what is left of continued prompts in a few passes of similar length, each against its cache."""
        starts = self.lengths[: self.num_continued].tolist()
        ends = [len(prompt) for prompt in prompts]
        logits, experts = self._room_for(len(prompts))
        for rows in _by_length([end - start for start, end in zip(starts, ends, strict=True)], CATCH_UP_TOKENS):
            index = torch.tensor(rows)
            length = max(ends[row] - starts[row] for row in rows)
            # A shorter rest repeats its last token at the same place: the last column is every row's last token.
            places = [[min(starts[row] + step, ends[row] - 1) for step in range(length)] for row in rows]
            tokens = [[prompts[row][place] for place in line] for row, line in zip(rows, places, strict=True)]
            cache = [layer[index, : max(ends[row] for row in rows)] for layer in self.cache]
            logits[index], experts[:, index] = self.model.decode(torch.tensor(tokens), cache, torch.tensor(places))
            for layer, read in zip(self.cache, cache, strict=True):
                layer[index, : read.shape[1]] = read
        self.lengths[: self.num_continued] = torch.tensor(ends)
        return logits, experts

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Read whole prompts in a few large passes; equal ones once."""
        distinct: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            distinct.setdefault(tuple(prompt), []).append(index)
        keys = list(distinct)
        logits, experts = self._room_for(len(prompts))
        for rows in _by_length([len(key) for key in keys], PREFILL_TOKENS):
            ids = _padded([keys[row] for row in rows])
            latents: list[Tensor] = []
            last = torch.tensor([place * ids.shape[1] + len(keys[row]) - 1 for place, row in enumerate(rows)])
            hidden, stats = self.model.hidden_states(ids, cache=latents, read=last)
            last_logits = self.model.logits(hidden)
            for place, row in enumerate(rows):
                users = torch.tensor(distinct[keys[row]])
                logits[users] = last_logits[place]
                experts[:, users] = stats.chosen[:, last[place], None]
                for layer, values in zip(self.cache, latents, strict=True):
                    values = values.view(len(rows), ids.shape[1], -1)[place, : len(keys[row])]
                    layer[self.num_continued + users, : len(values)] = values
        return logits, experts

    def _room_for(self, count: int) -> tuple[Tensor, Tensor]:
        """Logits [count, V] and chosen experts [L_moe, count, K], to be filled in."""
        config = self.model.config
        logits = torch.empty(count, config.vocab_size, dtype=self.model.compute_dtype)
        return logits, torch.empty(config.num_moe_layers, count, config.num_experts_per_tok, dtype=torch.int64)

    def decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One step for the running sequences: logits [B, V] and chosen experts [L_moe, B, K]."""
        self.lengths += 1
        longest = int(self.lengths.max())
        cache = [layer[:, :longest] for layer in self.cache]
        return self.model.decode(tokens[:, None], cache, self.lengths[:, None] - 1)

    def keep(self, drafts: Sequence[_Draft]) -> list[int]:
        """Keep the rows whose drafts go on, which are returned; the others' latents are put by for the next call."""
        going = [row for row, index in enumerate(self.sequences.tolist()) if not drafts[index].finish_reason]
        if len(going) == len(self.sequences):
            return going
        for row in sorted(set(range(len(self.sequences))) - set(going)):
            length = int(self.lengths[row])
            self.ended[int(self.sequences[row])] = [layer[row, :length].clone() for layer in self.cache]
        index = torch.tensor(going, dtype=torch.int64)
        self.sequences, self.lengths = self.sequences[index], self.lengths[index]
        self.cache = [layer[index] for layer in self.cache]
        return going


def _longest_prefix(prompt: Sequence[int], kept: _Kept, most: int) -> tuple[int, ...]:
    """The longest kept sequence that `prompt` goes on from by at most `most` ids; () if there is none."""
    for length in sorted({len(key) for key in kept if 1 <= len(prompt) - len(key) <= most}, reverse=True):
        head = tuple(prompt[:length])
        if head in kept:
            return head
    return ()


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Right-padded ids [B, T]: causal attention never looks at the padding."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids


def _by_length(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices in groups of similar length whose padded tokens stay within `limit` (one at least)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= limit:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
