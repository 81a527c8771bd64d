"""One run of generate as a process of its own, for tests that kill it.

Arguments: base_url, store folder, number of problems, concurrency; max_usd and a price file may
follow.
"""

import sys

from pipeline.config.teacher import OpenAITeacher, Sampling, TeacherRuntime
from pipeline.errors import UserError
from pipeline.objects import local_copy
from pipeline.teacher import Request, TraceStore, generate
from tests.bucket_server import join

TEACHER, SAMPLING = OpenAITeacher(model="m"), Sampling(max_tokens=100)


def requests(count):
    return [Request(f"p{i}", 0, [{"role": "user", "content": f"question {i}"}])
            for i in range(count)]


def main():
    join()
    url, folder, count, concurrency, *budget = sys.argv[1:]
    runtime = TeacherRuntime(base_url=url, concurrency=int(concurrency), max_attempts=2,
                             max_wait=0.1, **dict(zip(("max_usd", "prices"), budget,
                                                    strict=False)))
    try:
        with TraceStore(local_copy(folder)) as store:
            print("started", flush=True)
            generate(requests(int(count)), teacher=TEACHER, sampling=SAMPLING, runtime=runtime,
                     store=store)
    except UserError as error:
        sys.exit(f"limbeck: {error}")


if __name__ == "__main__":
    main()
