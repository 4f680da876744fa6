"""A judge behind an OpenAI-compatible endpoint, such as `vllm serve`: a vision model says whether a picture fits."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from policy.prompts import PromptRecord
from rewards.base import Reward
from rewards.models.yes_no import QUESTION

if TYPE_CHECKING:
    import httpx


class JudgeError(RuntimeError):
    """An endpoint gave no verdict; names its address and the reason."""


class Judge(Reward):
    """P(yes) / (P(yes) + P(no)) of the first answer token, in [0, 1].

    It sends one request per picture, `parallel` requests at a time. Probabilities come from the endpoint's
    `top_logprobs`, summed over the tokens that spell yes or no. A picture without a verdict fails the batch: the
    reward is then missing, never 0.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        question: str = QUESTION,
        deadline_s: float = 30.0,
        parallel: int = 16,
        top_logprobs: int = 20,
    ) -> None:
        """
        Args:
            base_url: where `/chat/completions` is, e.g. http://127.0.0.1:8000/v1.
            model: the model's name at the endpoint.
            api_key_env: environment variable that holds the key, in the replica's process.
            question: what to ask; `{prompt}` stands for the prompt.
            deadline_s: seconds for one request, connecting included.
            parallel: most requests at a time.
            top_logprobs: most likely tokens to ask for; OpenAI and vLLM give up to 20.
        """
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Authorization": f"Bearer {os.environ[api_key_env]}"} if api_key_env else {}
        self._body = {
            "model": model,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": top_logprobs,
        }
        self._question, self._deadline_s, self._parallel = question, deadline_s, parallel

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check that the address is valid, the question has the prompt's slot, and the environment has the key."""
        if not str(options["base_url"]).startswith(("http://", "https://")):
            raise ValueError(f"base_url: {options['base_url']!r} does not start with http:// or https://")
        if "{prompt}" not in options.get("question", QUESTION):
            raise ValueError("question: it does not contain {prompt}")
        name = options.get("api_key_env")
        if name and not os.environ.get(name):
            raise ValueError(f"api_key_env: the environment variable {name} is not set")
        for key, least in (("deadline_s", 0.001), ("parallel", 1), ("top_logprobs", 1)):
            if options.get(key, least) < least:
                raise ValueError(f"{key}: {options[key]} is below {least}")

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One verdict a picture.

        Raises:
            JudgeError: a request failed, took too long, or was answered with neither yes nor no.
        """
        return asyncio.run(self._all([self._request(*these) for these in zip(pictures, prompts, strict=True)]))

    def _request(self, picture: np.ndarray, prompt: PromptRecord) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": png_data_url(picture)}}
        text = {"type": "text", "text": self._question.replace("{prompt}", prompt.prompt)}
        return {**self._body, "messages": [{"role": "user", "content": [image, text]}]}

    async def _all(self, requests: list[dict[str, Any]]) -> list[float | None]:
        import httpx

        room = asyncio.Semaphore(self._parallel)
        limits = httpx.Limits(max_connections=self._parallel)
        async with httpx.AsyncClient(headers=self._headers, timeout=None, limits=limits) as client:
            return list(await asyncio.gather(*(self._verdict(client, room, request) for request in requests)))

    async def _verdict(self, client: httpx.AsyncClient, room: asyncio.Semaphore, request: dict[str, Any]) -> float:
        import httpx

        async with room:
            try:
                async with asyncio.timeout(self._deadline_s):
                    response = await client.post(self._url, json=request)
            except TimeoutError as error:
                raise JudgeError(f"{self._url}: no answer within {self._deadline_s:g} s") from error
            except httpx.HTTPError as error:
                raise JudgeError(f"{self._url}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise JudgeError(f"{self._url}: status {response.status_code}: {' '.join(response.text.split())[:200]}")
        return share_of_yes(_top_tokens(response, self._url))


def share_of_yes(top: list[tuple[str, float]]) -> float:
    """P(yes) / (P(yes) + P(no)) from tokens and their log-probs, as far as they spell one of both.

    Raises:
        JudgeError: no token spells either.
    """
    said: dict[str, float] = {"yes": 0.0, "no": 0.0}
    for token, logprob in top:
        word = token.strip().lower()
        if word in said:
            said[word] += math.exp(logprob)
    if not sum(said.values()):
        likely = ", ".join(repr(token) for token, _ in top[:5])
        raise JudgeError(f"neither yes nor no among the {len(top)} most likely tokens ({likely}, ...)")
    return said["yes"] / sum(said.values())


def png_data_url(picture: np.ndarray) -> str:
    """A picture (uint8 [H, W, 3]) as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _top_tokens(response: httpx.Response, url: str) -> list[tuple[str, float]]:
    try:
        first = response.json()["choices"][0]["logprobs"]["content"][0]
        return [(str(entry["token"]), float(entry["logprob"])) for entry in first["top_logprobs"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise JudgeError(
            f"{url}: the answer has no choices[0].logprobs.content[0].top_logprobs; the endpoint must support them"
        ) from error
