"""A conversation in the terminal: streamed answers, tools that run, calls shown as they happen.

The same codec, engine and tools as everywhere else. Text from the model or a
tool is printed with control characters shown, so it cannot drive the terminal.
Left out: history across sessions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from openk2.chat.codec import Codec
from openk2.chat.grammar import Lexicon, TurnGrammar
from openk2.chat.parser import StreamParser
from openk2.environments.environment import open_environment
from openk2.environments.episode import run_tools
from openk2.observe.console import printable
from openk2.protocols import Generate, Message, SamplingParams, Task

DIM, BOLD, RESET = "\033[2m", "\033[1m", "\033[0m"
MAX_ROUNDS = 4  # assistant messages that may answer one user turn


class Chat:
    """One conversation; `say` answers one user turn and prints it as it comes."""

    def __init__(
        self,
        generate: Generate,
        codec: Codec,
        *,
        system: str,
        tools: Sequence[str],
        params: SamplingParams,
        context_length: int,
        out: TextIO,
        constrained: bool = True,
    ) -> None:
        """`constrained`: calls obey their schema token by token, where `generate` takes grammars."""
        if params.max_new_tokens >= context_length:
            raise ValueError(
                f"chat: saw {params.max_new_tokens} new tokens a message, expected fewer than the {context_length} "
                "of the model's context"
            )
        self.generate, self.codec, self.params, self.context_length, self.out = (
            generate,
            codec,
            params,
            context_length,
            out,
        )
        self.environment = open_environment(Task(id="chat", domain="chat", system=system, tools=tuple(tools), turns=()))
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        self._styled = out.isatty()
        self._lexicon = Lexicon(codec.tokenizer) if constrained else None

    def say(self, text: str) -> bool:
        """Answer `text`, running the tools that the model calls; False where it does not fit and was dropped."""
        self.messages.append({"role": "user", "content": text})
        for round_number in range(MAX_ROUNDS):
            prompt = self._prompt()
            if len(prompt) >= self.context_length:
                self._line(f"(too long for the context of {self.context_length} tokens; this turn was dropped)", DIM)
                self._forget_last_turn()
                return False
            reply = self._reply(prompt, round_number)
            self.messages.append(reply)
            if reply.get("malformed"):
                self._line(f"(malformed: {reply.pop('malformed')})", DIM)
            if not reply.get("tool_calls"):
                return True
            for call in reply["tool_calls"]:
                self._line(f"→ {call['function']['name']}({call['function']['arguments']})", BOLD)
            for result in run_tools(self.environment, reply):
                self._line(f"← {result['content']}", DIM)
                self.messages.append(result)
        self._line(f"(stopped after {MAX_ROUNDS} rounds of calls)", DIM)
        return True

    def reset(self) -> None:
        self.messages.clear()

    def close(self) -> None:
        self.environment.close()

    def _forget_last_turn(self) -> None:
        last = max(index for index, message in enumerate(self.messages) if message["role"] == "user")
        del self.messages[last:]

    def _reply(self, prompt: list[int], round_number: int) -> Message:
        parser = StreamParser(self.codec)

        def show(_sequence: int, token: int) -> None:
            for delta in parser.feed([token]):
                if delta.get("content"):
                    self._print(delta["content"])

        params = SamplingParams(
            max_new_tokens=self.params.max_new_tokens,
            temperature=self.params.temperature,
            top_p=self.params.top_p,
            seed=self.params.seed + len(self.messages) + round_number,
            stop_ids=self.codec.stop_ids,
        )
        self.generate([prompt], params, on_token=show, grammars=[self._grammar()])
        message = parser.finish()
        if message.get("content"):
            self._print("\n")
        return message

    def _grammar(self) -> TurnGrammar | None:
        if self._lexicon is None:
            return None
        num_calls = sum(len(message.get("tool_calls") or ()) for message in self.messages)
        return TurnGrammar(self._lexicon, self.environment.declarations(), first_call_index=num_calls)

    def _prompt(self) -> list[int]:
        """The dialogue's ids; whole old turns are dropped from its front while it does not fit."""
        room = self.context_length - self.params.max_new_tokens
        while True:
            declared = self.environment.declarations() or None
            ids = list(self.codec.encode(self.system + self.messages, declared, add_generation_prompt=True).ids)
            later = [index for index, message in enumerate(self.messages) if message["role"] == "user"][1:]
            if len(ids) <= room or not later:
                return ids
            self._line("(the context is full; the oldest turn was dropped)", DIM)
            del self.messages[: later[0]]

    def _print(self, text: str, style: str = "") -> None:
        text = printable(text)
        self.out.write(f"{style}{text}{RESET}" if style and self._styled else text)
        self.out.flush()

    def _line(self, text: str, style: str) -> None:
        self._print(text, style)
        self.out.write("\n")
        self.out.flush()


def converse(chat: Chat, lines: Iterable[str]) -> None:
    """Answer each line; /reset begins anew, /quit ends."""
    for line in lines:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif re.fullmatch(r"/[a-z]+", text):
            print(f"unknown command {text}; /reset begins anew, /quit ends", file=chat.out)
        elif text:
            chat.say(text)


def prompt_lines(ask: Callable[[str], str] = input) -> Iterator[str]:
    """Lines typed at a prompt, until end of file."""
    while True:
        try:
            yield ask("> ")
        except EOFError:
            return
