"""A scheduler for vLLM that spends less Python on each token that a rollout decodes.

vLLM 0.24 takes some 14 microseconds of Python for each sequence of a decoding step to plan it and
to hand its token on (benchmarks/decode_steps.py). While all that runs decodes, a step differs from
the last in one token a sequence; this scheduler plans it so, and hands a completion's tokens on
when it ends, which is when vllm.LLM looks at them. The plans are vLLM's own to the last field. What
is not plain decoding by full attention (prefills, preemption, speculation, structured output,
log-probabilities, adapters, tokens that are streamed) is left to vLLM.

    runtime.vllm.scheduler_cls=pipeline.serving.decode_scheduler.DecodeScheduler
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm import __version__
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request, RequestStatus

CHECKED = "0.24."
"""Releases of vLLM whose plans it was compared with; their scheduler's inside is no interface."""


class Ends(NamedTuple):
    """What ends a completion: a token, or a length of prompt and completion in tokens."""

    tokens: frozenset[int]
    length: int


class DecodeScheduler(AsyncScheduler):
    """vLLM's asynchronous scheduler with a short way for steps that only decode.

    Raises ValueError with another release than CHECKED, or if asynchronous scheduling is off.
    """

    running: list[Request]
    finished_req_ids: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not __version__.startswith(CHECKED):
            raise ValueError(f"DecodeScheduler knows vLLM {CHECKED}x, and this is {__version__}; "
                             "leave runtime.vllm.scheduler_cls out")
        if not self.scheduler_config.async_scheduling:
            raise ValueError("DecodeScheduler needs vLLM's async_scheduling, which is off here")
        self._ends: dict[str, Ends | None] = {}
        self._told: dict[str, int] = {}     # tokens of a completion that were handed on
        groups = [type(group.kv_cache_spec) for group in self.kv_cache_config.kv_cache_groups]
        self._short = groups == [FullAttentionSpec] and not (
            self.connector or self.ec_connector or self.num_spec_tokens or self.log_stats
            or self.defer_block_free or self.needs_kv_cache_zeroing or self.lora_config
            or self.enable_return_routed_experts or self.use_pp
            or getattr(self.vllm_config, "kv_events_config", None))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Plan a step."""
        if self._short and not (self.waiting or self.skipped_waiting or self._inflight_prefills
                                or self._pause_state.value) and (step := self._decode_all()):
            return step
        return super().schedule(throttle_prefills)

    def _decode_all(self) -> SchedulerOutput | None:
        """Plan one token for all that run, or nothing if some need more."""
        manager, size, ends = self.kv_cache_manager, self.block_size, self._ends
        if not self.running or len(self.running) > min(self.max_num_scheduled_tokens,
                                                       manager.block_pool.get_num_free_blocks()):
            return None
        planned, full = list[Request](), list[Request]()
        for request in self.running:
            computed, waited = request.num_computed_tokens, request.num_output_placeholders
            if not (ends.get(request.request_id) or self._admitted(request)) \
                    or len(request._all_token_ids) + waited - computed != 1 \
                    or computed >= self.max_model_len - 1:
                return None
            # Its last token is on its way.
            if waited and computed + 2 - waited >= request.num_prompt_tokens + request.max_tokens:
                continue
            planned.append(request)
            if computed % size == 0:
                full.append(request)
        if not planned:
            return None
        self.current_step += 1
        manager.new_step_starts()
        blocks = {request.request_id: manager.allocate_slots(
            request, 1, num_lookahead_tokens=self.num_lookahead_tokens).get_block_ids(
                allow_none=True) for request in full}
        names = [request.request_id for request in planned]
        # The second model runner keeps the tokens of what its last step did not hold.
        fresh = [] if self.use_v2_model_runner else [
            request for request in planned
            if request.request_id not in self.prev_step_scheduled_req_ids]
        step = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=names, resumed_req_ids=set(), new_token_ids=[],
                all_token_ids={request.request_id: request.all_token_ids.copy()
                               for request in fresh},
                new_block_ids=[blocks.get(name) for name in names],
                num_computed_tokens=[request.num_computed_tokens for request in planned],
                num_output_tokens=[len(request._output_token_ids) + request.num_output_placeholders
                                   for request in planned]),
            num_scheduled_tokens=dict.fromkeys(names, 1), total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={}, scheduled_encoder_inputs={},
            num_common_prefix_blocks=manager.get_num_common_prefix_blocks(names[0]),
            finished_req_ids=self.finished_req_ids, preempted_req_ids=set(),
            free_encoder_mm_hashes=self.encoder_cache_manager.get_freed_mm_hashes())
        for request in planned:
            request.num_computed_tokens += 1
            request.num_output_placeholders += 1
            if self.use_v2_model_runner:
                request.next_decode_eligible_step = self.current_step + self.pp_size
        if not self.use_v2_model_runner:
            self.prev_step_scheduled_req_ids.clear()
            self.prev_step_scheduled_req_ids.update(names)
        self.finished_req_ids = set()
        return step

    def _admitted(self, request: Request) -> bool:
        """Note what ends `request`; returns whether the short way may decode it."""
        if request.request_id in self._ends:
            return self._ends[request.request_id] is not None
        asked = request.sampling_params
        plain = asked is not None and not (
            asked.output_kind != RequestOutputKind.FINAL_ONLY or asked.min_tokens or asked.stop
            or asked.num_logprobs is not None or asked.prompt_logprobs is not None
            or asked.repetition_detection or request.use_structured_output or request.resumable
            or request.has_encoder_inputs)
        self._ends[request.request_id] = Ends(
            frozenset(asked.stop_token_ids or ()) | {asked.eos_token_id},
            min(request.num_prompt_tokens + request.max_tokens, self.max_model_len),
        ) if plain else None
        return plain

    def update_from_output(self, scheduler_output: SchedulerOutput,
                           model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        """Take the tokens of a step; returns those of completions that ended."""
        if not self._short:
            return super().update_from_output(scheduler_output, model_runner_output)
        requests = {name: self.requests.get(name) for name in scheduler_output.num_scheduled_tokens}
        size, places = self.block_size, model_runner_output.req_id_to_index
        sampled = model_runner_output.sampled_token_ids
        if not sampled or any(
                request and (not self._ends.get(name) or request.async_tokens_to_discard
                             or request.status != RequestStatus.RUNNING
                             or len(sampled[places[name]]) != 1)
                for name, request in requests.items()):
            return self._told_late(requests, super().update_from_output(
                scheduler_output, model_runner_output))
        ended, told = set[Request](), dict[int, list[EngineCoreOutput]]()
        for name, request in requests.items():
            if request is None:
                continue
            [token] = sampled[places[name]]
            tokens, ends = request._all_token_ids, self._ends[name]
            tokens.append(token)
            request._output_token_ids.append(token)
            request.num_output_placeholders -= 1
            if len(tokens) % size < 2:      # the newest token is not computed yet
                request.update_block_hashes()
                self.kv_cache_manager.cache_blocks(
                    request, request.num_computed_tokens - request.num_output_placeholders)
            if ends and token not in ends.tokens and len(tokens) < ends.length:
                continue
            check_stop(request, self.max_model_len)
            reason = request.get_finished_reason()
            self._free_request(request)
            ended.add(request)
            told.setdefault(request.client_index, []).append(EngineCoreOutput(
                request_id=name, new_token_ids=request._output_token_ids[self._forget(name):],
                finish_reason=reason, stop_reason=request.stop_reason,
                events=request.take_events(), prefill_stats=request.take_prefill_stats(),
                trace_headers=request.trace_headers))
        if ended:
            self.running = remove_all(self.running, ended)
        outputs = {client: EngineCoreOutputs(outputs=some) for client, some in told.items()}
        for client, names in (self.finished_req_ids_dict or {}).items():
            outputs.setdefault(client, EngineCoreOutputs()).finished_requests = names
        if self.finished_req_ids_dict:
            self.finished_req_ids_dict.clear()
        return outputs

    def _told_late(self, requests: dict[str, Request | None],
                   outputs: dict[int, EngineCoreOutputs]) -> dict[int, EngineCoreOutputs]:
        """`outputs` of vLLM's way, with the tokens that the short way has not handed on."""
        for some in outputs.values():
            for output in some.outputs:
                request = requests.get(output.request_id)
                if request is not None and self._admitted(request):
                    tokens = request._output_token_ids
                    output.new_token_ids = tokens[self._told.get(output.request_id, 0):]
                    self._told[output.request_id] = len(tokens)
                if output.finish_reason is not None:
                    self._forget(output.request_id)
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[tuple[str, int]]:
        """End requests from outside, by all that is known of them."""
        ended = super().finish_requests(request_ids, finished_status)
        for name, _ in ended:
            self._forget(name)
        return ended

    def _forget(self, name: str) -> int:
        """Drop what is known of a completion; returns how many of its tokens were handed on."""
        self._ends.pop(name, None)
        return self._told.pop(name, 0)
