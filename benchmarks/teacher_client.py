"""The teacher client beside the openai client's default transport, in one run, on loopback.

    python benchmarks/teacher_client.py                requests/s, CPU and memory, 2,000 in flight
    python benchmarks/teacher_client.py --makespan     512 slots under heavy-tailed lengths

The server is a process of its own that writes one prepared body after a delay. Ours is the whole
way: paced, read in any dialect, journalled and folded into Parquet. Theirs only reads the answer.
"""

import argparse
import asyncio
import heapq
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CAP = 20.0


def delay_of(text: str, seconds: float, sigma: float) -> float:
    """Lognormal with this mean, cut at CAP times it; the same text always takes the same time."""
    if not sigma:
        return seconds
    mean = math.log(seconds) - sigma * sigma / 2
    return min(random.Random(text).lognormvariate(mean, sigma), CAP * seconds)


async def serve(kilobytes: int, seconds: float, sigma: float) -> None:
    text = " ".join(f"step {i} gives {i * 7}" for i in range(kilobytes * 60))[:kilobytes * 1000]
    message = {"role": "assistant", "content": "42", "reasoning_content": text}
    usage = {"prompt_tokens": 9, "completion_tokens": 9000, "total_tokens": 9009}
    body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                       "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                       "usage": usage}).encode()
    answer = (f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
              f"Content-Length: {len(body)}\r\n\r\n").encode() + body

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                question = json.loads(await reader.readexactly(length))["messages"][0]["content"]
                await asyncio.sleep(delay_of(question, seconds, sigma))
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def ours(url: str, count: int, in_flight: int) -> float:
    """Seconds that generate says it took."""
    from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
    from pipeline.teacher import Request, TraceStore, generate

    requests = [Request(str(i), 0, [{"role": "user", "content": f"question {i}"}])
                for i in range(count)]
    with tempfile.TemporaryDirectory() as folder, TraceStore(Path(folder)) as store:
        outcome = generate(requests, teacher=OpenAITeacher(model="m"), sampling=Sampling(),
                           runtime=TeacherRuntime(base_url=url, concurrency=in_flight), store=store)
        assert outcome.asked == count and not outcome.failed
    return outcome.seconds


def theirs(url: str, count: int, in_flight: int, connections: int | None = None) -> None:
    """The openai client; by default its pool holds 1,000 connections, so no more are in flight."""
    import httpx2
    import openai

    async def run() -> None:
        slots = asyncio.Semaphore(in_flight)
        http = connections and openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(
            max_connections=connections, max_keepalive_connections=connections))
        # Its 5 s to connect pass on a busy machine: one patience for all.
        async with openai.AsyncOpenAI(api_key="none", base_url=url, http_client=http,
                                      timeout=600) as client:
            async def ask(i: int) -> None:
                async with slots:
                    chat = [{"role": "user", "content": f"question {i}"}]
                    await client.chat.completions.create(model="m", messages=chat)

            await asyncio.gather(*map(ask, range(count)))

    asyncio.run(run())


def measure(client: str, url: str, count: int, in_flight: int) -> dict:
    """Run one client in a process of its own."""
    command = [sys.executable, __file__, "--client", client, "--url", url, "--requests", str(count),
               "--in-flight", str(in_flight)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def one_client(args: argparse.Namespace) -> None:
    began = time.monotonic()
    run = {"ours": ours, "theirs": theirs,
           "opened": partial(theirs, connections=args.in_flight)}[args.client]
    asking = run(args.url, args.requests, args.in_flight)
    seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"client": args.client, "requests": args.requests, "asking": asking,
                      "requests_per_s": args.requests / seconds,
                      "cpu_ms": (used.ru_utime + used.ru_stime) / args.requests * 1e3,
                      "peak_mb": used.ru_maxrss / 1024}))


def show(row: dict) -> None:
    print(f"{row['client']:7} {row['requests']:6} requests  {row['requests_per_s']:7.1f} /s  "
          f"{row['cpu_ms']:6.2f} ms CPU each  {row['peak_mb']:6.0f} MB peak", flush=True)


def throughput(url: str, args: argparse.Namespace) -> None:
    fewer = max(args.requests // 4, args.in_flight)
    theirs_row = measure("theirs", url, fewer, args.in_flight)
    opened = measure("opened", url, fewer, args.in_flight)
    mine = measure("ours", url, args.requests, args.in_flight)
    for row in (theirs_row, opened, mine):
        show(row)
    for row, name in ((theirs_row, "its default pool of 1,000"), (opened, "a pool that is opened")):
        print(f"{mine['requests_per_s'] / row['requests_per_s']:.1f} x the openai client, {name}")


def makespan(url: str, args: argparse.Namespace) -> None:
    """Time taken beside two ideals: all slots full to the end, and in this order without delay."""
    delays = [delay_of(f"question {i}", args.latency, args.sigma) for i in range(args.requests)]
    bound = max(sum(delays) / args.in_flight, max(delays))
    free = [0.0] * args.in_flight
    for delay in delays:
        heapq.heappush(free, heapq.heappop(free) + delay)
    row = measure("ours", url, args.requests, args.in_flight)
    show(row)
    print(f"longest {max(delays):.1f} s; took {row['asking']:.1f} s: "
          f"{row['asking'] / max(free):.3f} x refilling each slot at once in this order, "
          f"{row['asking'] / bound:.3f} x the bound that knows every length beforehand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--client", choices=["ours", "theirs", "opened"])
    parser.add_argument("--url")
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--makespan", action="store_true")
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--in-flight", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=30)
    parser.add_argument("--latency", type=float, default=1.0, help="mean seconds an answer takes")
    parser.add_argument("--sigma", type=float, default=0.0, help="of the lognormal; 0: all equal")
    args = parser.parse_args()
    if args.client:
        return one_client(args)
    if args.server:
        return asyncio.run(serve(args.kilobytes, args.latency, args.sigma))
    command = [sys.executable, __file__, "--server", "--kilobytes", str(args.kilobytes),
               "--latency", str(args.latency), "--sigma", str(args.sigma)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            (makespan if args.makespan else throughput)(url, args)
        finally:
            server.kill()
    return None


if __name__ == "__main__":
    main()
