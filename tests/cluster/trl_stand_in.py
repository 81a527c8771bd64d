"""What of vLLM a TRL trainer asks in server mode, for tests without GPUs.

As the command `vllm serve MODEL --host HOST --port PORT` it samples from the small model MODEL; as
an import in a training process it lets TRL's client run without vLLM and sends the weights in a
file, as NCCL needs GPUs.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from trl.generation import vllm_client, vllm_generation

from pipeline.student.decode import decode


def without_vllm():
    """Let TRL's client of this process talk to the stand-in."""
    def send(client, metadata, weights):
        path = Path(f"weights-{os.getpid()}.safetensors").resolve()
        save_file({name: weight.detach().clone() for name, weight in weights}, path)
        client._post(f"{client.base_url}/update_weights", json={"path": str(path)})

    for module in (vllm_client, vllm_generation):
        module.is_vllm_available = lambda *_, **__: True
    vllm_client.VLLMClient.init_communicator = lambda client, device: None
    vllm_client.VLLMClient.update_named_params = send


@torch.no_grad()
def choices(model, prompt, count, asked):
    """`count` completions of `prompt`, the same ones whenever the weights are the same."""
    seed = int(hashlib.sha256(str(prompt).encode()).hexdigest()[:8], 16)
    draws = torch.rand([count, asked["max_tokens"]], generator=torch.Generator().manual_seed(seed))
    rows = decode(model, [prompt] * count, max_tokens=asked["max_tokens"], draws=draws,
                  temperature=asked["temperature"],
                  eos_token_ids=[model.generation_config.eos_token_id])
    for row in rows:
        logits = model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1:-1]
        scores = logits.log_softmax(-1).gather(-1, torch.tensor(row)[:, None])[:, 0].tolist()
        yield {"prompt_token_ids": prompt, "token_ids": row, "logprobs": {
            "tokens": [f"token_id:{token}" for token in row], "token_logprobs": scores,
            "top_logprobs": [None] * len(row)}}


def serve(words):
    from transformers import AutoModelForCausalLM

    from tests.fault_server import Answer, FaultServer

    model = AutoModelForCausalLM.from_pretrained(words[1]).eval()
    host, port, mode = (words[words.index(f"--{name}") + 1]
                        for name in ("host", "port", "logprobs-mode"))

    def script(call):
        reply = {"data": [{"id": "m"}], "vllm_config": {"model_config": {"logprobs_mode": mode}}}
        if call.path == "/update_weights":
            model.load_state_dict(load_file(call.body["path"]), strict=False)
        elif call.path == "/v1/completions":
            reply = {"choices": [one for prompt in call.body["prompt"]
                                 for one in choices(model, prompt, call.body["n"], call.body)]}
        return Answer(json.dumps(reply).encode())

    with FaultServer(script, int(port), host).running():
        time.sleep(3600)


def install(folder):
    """Write the command `vllm` into `folder`/bin; returns that."""
    path = folder / "bin" / "vllm"
    path.parent.mkdir()
    root = str(Path(__file__).parents[2])
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {root!r})\n"
                    "from tests.cluster import trl_stand_in\ntrl_stand_in.serve(sys.argv[1:])\n")
    path.chmod(0o755)
    return path.parent
