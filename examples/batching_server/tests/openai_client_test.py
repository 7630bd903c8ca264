"""The official openai client, unchanged, against a running server: plain, streamed, choices, errors, disconnect.

Usage: openai_client_test.py SERVER_BINARY [server options...]
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import unittest
import urllib.request

import openai

SERVER = sys.argv[1:]
del sys.argv[1:]


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.process = subprocess.Popen(SERVER + ["--port", "0"], stdout=subprocess.PIPE, text=True)
        line = cls.process.stdout.readline()
        cls.url = re.search(r"http://[^/]+", line).group(0)
        cls.client = openai.OpenAI(base_url=cls.url + "/v1", api_key="none", max_retries=0, timeout=60)
        cls.model = cls.client.models.list().data[0].id

    @classmethod
    def tearDownClass(cls):
        cls.process.send_signal(signal.SIGTERM)
        output, _ = cls.process.communicate(timeout=60)
        assert "drained; 0 pages still held" in output, output
        assert cls.process.returncode == 0, cls.process.returncode

    def metric(self, name):
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))

    def wait_until_no_page_is_used(self):
        deadline = time.monotonic() + 30
        while self.metric("pagedkv_pages_used") > 0:
            self.assertLess(time.monotonic(), deadline, "pages stay in use")
            time.sleep(0.01)

    def test_completion_is_the_same_plain_and_streamed(self):
        arguments = dict(model=self.model, prompt="Once upon a time", max_tokens=40, temperature=0)
        plain = self.client.completions.create(**arguments)
        streamed = "".join(c.choices[0].text for c in self.client.completions.create(stream=True, **arguments))
        self.assertEqual(plain.choices[0].text, streamed)
        self.assertEqual(plain.choices[0].finish_reason, "length")
        self.assertEqual(plain.usage.completion_tokens, 40)
        self.assertEqual(plain.usage.total_tokens, plain.usage.prompt_tokens + 40)

    def test_chat_is_the_same_plain_and_streamed_with_usage(self):
        arguments = dict(model=self.model, messages=[{"role": "user", "content": "Hello there"}], max_tokens=30, seed=7)
        plain = self.client.chat.completions.create(**arguments)
        text, usage, finish = "", None, None
        for chunk in self.client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **arguments
        ):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
            usage = chunk.usage or usage
        self.assertEqual(plain.choices[0].message.content, text)
        self.assertEqual(plain.choices[0].message.role, "assistant")
        self.assertEqual(plain.choices[0].finish_reason, finish)
        self.assertEqual(plain.usage.completion_tokens, usage.completion_tokens)

    def test_choices_prompts_and_seeds(self):
        answer = self.client.completions.create(
            model=self.model, prompt=["One day", "The sun"], n=3, max_tokens=12, temperature=1, seed=5
        )
        self.assertEqual([c.index for c in answer.choices], list(range(6)))
        again = self.client.completions.create(model=self.model, prompt="One day", n=3, max_tokens=12, seed=5)
        self.assertEqual([c.text for c in answer.choices[:3]], [c.text for c in again.choices])
        self.assertGreater(len({c.text for c in again.choices}), 1)

    def test_logprobs_add_up(self):
        answer = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": "Once"}],
            max_tokens=5,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
        tokens = answer.choices[0].logprobs.content
        self.assertEqual(len(tokens), 5)
        for token in tokens:
            self.assertEqual(token.logprob, token.top_logprobs[0].logprob)
            self.assertLessEqual(token.logprob, 0)

    def test_stop_strings_are_cut_out(self):
        whole = self.client.completions.create(
            model=self.model, prompt="Once upon a time", max_tokens=60, temperature=0
        ).choices[0].text
        stop = whole[20:26]
        cut = self.client.completions.create(
            model=self.model, prompt="Once upon a time", max_tokens=60, temperature=0, stop=[stop]
        ).choices[0]
        self.assertEqual(cut.text, whole[: whole.index(stop)])
        self.assertEqual(cut.finish_reason, "stop")

    def test_extensions_beams_drafts_salts_priorities(self):
        plain = self.client.completions.create(model=self.model, prompt="Once upon", max_tokens=30, temperature=0)
        drafted = self.client.completions.create(
            model=self.model,
            prompt="Once upon",
            max_tokens=30,
            temperature=0,
            extra_body={"draft_tokens": 5, "cache_salt": "tenant", "priority": 3},
        )
        self.assertEqual(plain.choices[0].text, drafted.choices[0].text)
        beams = self.client.completions.create(
            model=self.model, prompt="Once upon", n=2, best_of=4, max_tokens=10, extra_body={"use_beam_search": True}
        )
        self.assertEqual(len(beams.choices), 2)

    def test_prefix_of_an_earlier_prompt_is_found(self):
        prompt = "Tom and Lily like to play with the big red ball in the park. " * 3
        self.client.completions.create(model=self.model, prompt=prompt, max_tokens=1)
        again = self.client.completions.create(model=self.model, prompt=prompt, max_tokens=1)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 0)

    def test_errors_are_the_clients_own_exceptions(self):
        def create(**changes):
            arguments = dict(model=self.model, prompt="a", max_tokens=2)
            arguments.update(changes)
            return self.client.completions.create(**arguments)

        with self.assertRaises(openai.NotFoundError) as error:
            create(model="no-such-model")
        self.assertEqual(error.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as error:
            create(max_tokens=10_000_000)
        self.assertEqual(error.exception.code, "context_length_exceeded")
        for wrong in (dict(temperature=9), dict(n=0), dict(prompt=[[-1]]), dict(prompt={}), dict(stop=[1])):
            with self.assertRaises(openai.BadRequestError, msg=wrong):
                create(**wrong)
        with self.assertRaises(openai.BadRequestError) as error:
            self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": "x"}],
                tools=[{"type": "function", "function": {"name": "f"}}],
            )
        self.assertEqual(error.exception.param, "tools")

    def test_closed_stream_frees_its_pages(self):
        before = self.metric("pagedkv_disconnects_total")
        stream = self.client.completions.create(
            model=self.model, prompt="Once", max_tokens=450, stream=True, n=16, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        deadline = time.monotonic() + 30
        while self.metric("pagedkv_disconnects_total") == before:
            self.assertLess(time.monotonic(), deadline, "nobody noticed")
            time.sleep(0.01)
        self.wait_until_no_page_is_used()

    def test_many_at_once_all_get_their_own_answer(self):
        async def all_at_once():
            client = openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=120)

            async def one(i):
                text = ""
                stream = await client.completions.create(
                    model=self.model, prompt=f"Story number {i % 10}", max_tokens=20, temperature=0, stream=True
                )
                async for chunk in stream:
                    text += chunk.choices[0].text
                return text

            return await asyncio.gather(*(one(i) for i in range(60)))

        texts = asyncio.run(all_at_once())
        for i, text in enumerate(texts):
            self.assertEqual(text, texts[i % 10])
        self.wait_until_no_page_is_used()


if __name__ == "__main__":
    unittest.main()
