"""A place becomes an answer: the prompt, the claim, the engine, the choices; or vectors, one after the other."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from schemas.jobs import Job
from workers.attempt import Attempt
from workers.engines.base import EngineCrashed, Generation, Piece, PromptTooLong, Sampling
from workers.engines.vocabulary import TextAssembler
from workers.outbox import Lane
from workers.served import Served, Work

#: Vectors wait while the lane holds more than this without an ack: they are made faster than Kafka takes them.
VECTOR_BYTES_HELD_MAX = 256 * 1024
#: Below it a draw is greedy in effect; and far below (1e-38) llama.cpp divides into infinity and says anything.
TEMPERATURE_MIN = 1e-6
_PACE_S = 0.005


class Serving:
    """One job on one model.

    Args:
        attempt: writes the answer.
        served: the model; a place at it is taken.
        lane: where the answer goes, for its pace.
        generating: told +1 and -1 as generations begin and end.
    """

    def __init__(self, attempt: Attempt, served: Served, lane: Lane, generating: Callable[[int], None]) -> None:
        self._attempt = attempt
        self._served = served
        self._lane = lane
        self._generating = generating

    async def run(self) -> None:
        """To the end. Raises what `Served.prepare` and `Engine.generate` raise, before or after the claim."""
        if self._attempt.job.task == "embedding":
            await self._embed()
        else:
            await self._answer()

    async def _answer(self) -> None:
        attempt, job, served = self._attempt, self._attempt.job, self._served
        work = await served.prepare(job)
        attempt.token_bytes = served.engine.token_bytes
        if work.prompt_tokens >= served.context_tokens:
            raise PromptTooLong(work.prompt_tokens, served.context_tokens - 1)
        room = served.context_tokens - work.prompt_tokens - len(job.prefix_ids)
        budget = max(0, min(job.max_tokens, room))
        if work.form is not None:
            attempt.read_calls(work.form, work.controls, sure=work.sure)
        if not work.images or budget == 0:
            attempt.claim(work.prompt_tokens)
        attempt.say(work.echo)
        stopped = bool(job.prefix_ids) and attempt.resume(self._pieces(job))
        if budget == 0 or stopped:
            for choice in range(job.n):
                attempt.finish("stop" if stopped else "length", choice)
            return
        await self._choices(work, budget)

    def _pieces(self, job: Job) -> list[tuple[int, str]]:
        """The ids that were delivered, with the text that each completed."""
        table = self._served.engine.token_bytes
        size = self._served.engine.facts.vocabulary_size
        if any(token_id >= size for token_id in job.prefix_ids):
            return []  # the engine refuses it
        assembler = TextAssembler(_Bytes(table))
        return [(token_id, assembler.feed((token_id,))) for token_id in job.prefix_ids]

    async def _choices(self, work: Work, budget: int) -> None:
        """All choices, as many at once as there are free places beside the one that the job has."""
        job, slots = self._attempt.job, self._served.slots
        waiting = deque(range(job.n))
        helpers: set[asyncio.Task[None]] = set()

        async def help_out() -> None:
            while waiting:
                await self._generate(work, budget, waiting.popleft())

        def gone(_: asyncio.Task[None]) -> None:  # not a `finally`: a task cancelled before it began runs none
            self._attempt.places -= 1
            slots.give()

        def call_helpers() -> None:
            while len(helpers) < len(waiting) and slots.take_now():
                self._attempt.places += 1
                task = asyncio.create_task(help_out())
                task.add_done_callback(gone)
                helpers.add(task)

        try:
            while waiting:
                # With images the first one's beginning is the claim; before it nothing may be written.
                await self._generate(work, budget, waiting.popleft(), call_helpers)
            if helpers:
                await asyncio.gather(*helpers)
        finally:
            for task in helpers:
                task.cancel()
            # Every one is asked, or asyncio would log what it raised, and with it perhaps what a user wrote.
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _generate(self, work: Work, budget: int, choice: int, claimed: Callable[[], None] = lambda: None) -> None:
        """One choice. `claimed` is called once the claim is written."""
        attempt, job = self._attempt, self._attempt.job
        seed = job.sampling.seed
        sampling = Sampling(**job.sampling.model_dump())
        if sampling.temperature < TEMPERATURE_MIN:
            sampling = replace(sampling, temperature=0.0)
        generation = Generation(
            prompt_ids=work.prompt_ids,
            prefix_ids=job.prefix_ids,
            max_tokens=budget,
            sampling=replace(sampling, seed=None if seed is None else (seed + choice) % 2**32),
            constraint=work.constraint,
            logprobs=job.logprobs,
            images=work.images,
        )
        if attempt.claimed:
            claimed()
        self._generating(1)
        try:
            pieces: AsyncGenerator[Piece, None] = self._served.engine.generate(generation)
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.image_tokens is not None and not attempt.claimed:
                        attempt.claim(work.prompt_tokens, piece.image_tokens)
                        claimed()
                    if attempt.feed(piece.ids, piece.text, choice=choice, chances=piece.chances, whole=piece.whole):
                        attempt.finish("stop", choice)
                        return
                    if piece.finish is not None:
                        attempt.finish(piece.finish, choice)
                        return
        finally:
            self._generating(-1)
        raise EngineCrashed("the engine ended without saying how")

    async def _embed(self) -> None:
        attempt, served = self._attempt, self._served
        inputs = await served.embedding_inputs(attempt.job)
        for ids in inputs:
            if len(ids) >= served.context_tokens:
                raise PromptTooLong(len(ids), served.context_tokens - 1)
        attempt.claim(sum(map(len, inputs)))
        self._generating(1)
        try:
            for index, ids in enumerate(inputs):
                while self._lane.held_bytes > VECTOR_BYTES_HELD_MAX:
                    await asyncio.sleep(_PACE_S)
                vector = await served.engine.embed(ids)
                attempt.embedded(index, shortened(vector, attempt.job.dimensions), len(ids))
        finally:
            self._generating(-1)
        attempt.embedded_all()


def shortened(vector: array[float], dimensions: int | None) -> array[float]:
    """The first numbers of a vector, scaled to length 1 again."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    cut = vector[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in cut))
    return array("f", (number / length for number in cut)) if length else cut


class _Bytes:
    """Bytes by id, over a function."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes

    def __getitem__(self, token_id: int) -> bytes:
        return self._token_bytes(token_id)
