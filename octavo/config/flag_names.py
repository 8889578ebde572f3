"""Flags that Octavo accepts so that existing command lines keep working, with the reason why nothing changes.

One word per flag. Marks: ``name?`` takes no value (or true/false), ``name*`` takes several words, ``name{}``
takes JSON, ``name#1`` is a count that may only be 1 here, a bare name takes one text; ``|-x`` adds an alias.
"""

from __future__ import annotations

GPU = """
enforce-eager? enable-cumem-allocator? enable-nccl-comm-suspend? enable-sleep-mode? use-fp64-gumbel?
disable-cascade-attn? disable-custom-all-reduce? attention-backend attention-config{}|-ac kernel-config{}
compilation-config{}|-cc|-O optimization-level performance-mode cudagraph-capture-sizes*|--cuda-graph-sizes
max-cudagraph-capture-size cudagraph-metrics? ir-op-priority{} enable-flashinfer-autotune?
enable-bf16x3-router-gemm? moe-backend linear-backend mamba-backend mamba-ssu-algorithm
enable-mamba-cache-stochastic-rounding? mamba-cache-philox-rounds mamba-cache-dtype mamba-ssm-cache-dtype
mamba-block-size mamba-cache-mode gdn-prefill-backend kda-prefill-backend replayssm-buffer-len use-replayssm?
kv-cache-dtype-skip-layers* kv-sharing-fast-prefill? kv-offloading-size kv-offloading-backend offload-backend
cpu-offload-gb cpu-offload-params* offload-group-size offload-num-in-group offload-prefetch-step
offload-params* enable-dbo? ubatch-size dbo-decode-token-threshold dbo-prefill-token-threshold
enable-layerwise-nvtx-tracing? enable-mfu-metrics? jit-monitor-mode jit-monitor-verbose?
pt-load-map-location safetensors-load-strategy safetensors-prefetch-num-threads
safetensors-prefetch-block-size device-ids max-parallel-loading-workers enable-flash-late-interaction?
"""

MULTI_NODE_COUNTS = """
pipeline-parallel-size#1|-pp data-parallel-size#1|-dp data-parallel-size-local#1|-dpl
prefill-context-parallel-size#1|-pcp decode-context-parallel-size#1|-dcp nnodes#1|-n
api-server-count#1|-asc
"""

MULTI_NODE = """
master-addr master-port node-rank|-r distributed-executor-backend distributed-timeout-seconds
cpu-distributed-timeout-seconds numa-bind? numa-bind-nodes* numa-bind-cpus* dcp-comm-backend dcp-q-replicate?
dcp-kv-cache-interleave-size cp-kv-cache-interleave-size data-parallel-rank|-dpn data-parallel-start-rank|-dpr
data-parallel-address|-dpa data-parallel-rpc-port|-dpp data-parallel-backend|-dpb
data-parallel-hybrid-lb?|-dph data-parallel-external-lb?|-dpe data-parallel-multi-port-external-lb?|-dpm
data-parallel-supervisor-port dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s
dp-supervisor-probe-failure-threshold enable-expert-parallel?|-ep enable-batch-sharded-sampling?
enable-ep-weight-filter? all2all-backend enable-elastic-ep? dp-sync-interval
disable-nccl-for-dp-synchronization? enable-eplb? eplb-config{} num-redundant-experts
eplb-window-size eplb-step-interval eplb-log-balancedness? expert-placement-strategy ray-workers-use-nsight?
worker-cls worker-extension-cls enable-fault-tolerance? fault-tolerance-config{} kv-transfer-config{}
kv-events-config{} ec-transfer-config{} ec-manager-config{} headless? enable-scale-out?
aggregate-engine-logging? tokens-only? weight-transfer-config{}
"""

LATER = """
fully-sharded-loras?
lora-target-modules* default-mm-loras{} specialize-active-lora? enable-mixed-moe-lora-format?
enable-moe-shared-loras? enable-tower-connector-lora?
speculative-config{}|-sc spec-method spec-model spec-tokens speculative-model num-speculative-tokens
ngram-prompt-lookup-max ngram-prompt-lookup-min
structured-outputs-config{} guided-decoding-backend reasoning-parser-plugin
reasoning-config{} tool-parser-plugin tool-call-parser-plugin
tool-strict-level tool-server
limit-mm-per-prompt{} mm-processor-kwargs{} media-io-kwargs{} allowed-local-media-path allowed-media-domains*
mm-processor-cache-gb mm-processor-cache-type mm-shm-cache-max-object-size-mb mm-hasher-algorithm
mm-processor-device language-model-only? mm-encoder-only? mm-encoder-tp-mode mm-encoder-attn-backend
mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-path
mm-encoder-fp8-scale-save-margin interleave-mm-strings? skip-mm-profiling? video-pruning-rate
video-pruning-method mm-tensor-ipc mm-ipc-gpu-memory-gb mm-device-do-normalize? enable-mm-embeds?
disable-chunked-mm-input? trust-request-mm-kwargs? enable-prompt-embeds?
io-processor-plugin enable-return-routed-experts? return-sampling-mask?
collect-detailed-traces profiler-config{}
per-request-spec-decode-metrics? show-hidden-metrics-for-version enable-logging-iteration-details?
fingerprint-mode fingerprint-value enable-ssl-refresh?
enable-server-load-tracking?
enable-log-outputs? enable-log-deltas? max-log-len log-config-file
"""

DECIDED = """
tokenizer-mode enable-auto-tool-choice? enable-reasoning? code-revision hf-config-path quantization-config{}
allow-deprecated-quantization? config-format model-impl model-class-overrides{} disable-sliding-window?
model-loader-extra-config ignore-patterns* use-tqdm-on-load? prefix-caching-hash-algo
prefix-cache-retention-interval prefix-match-unit enable-chunked-prefill?
max-num-scheduled-tokens scheduler-cls scheduler-reserve-full-isl? watermark prefill-schedule-interval
disable-hybrid-kv-cache-manager? async-scheduling? renderer-num-workers
chat-template-content-format h11-max-incomplete-event-size h11-max-header-count
enable-offline-docs? log-error-stack? fail-on-environ-validation? additional-config{}
"""

NICHE = """
cohere-is-reasoning-model? cohere-format diffusion-config{}|-dc watermark-config{}
enable-trace-replay? aux-output-config{} engram-config{} snapshot-config{}
"""

OLDER = """
calculate-kv-scales? disable-async-output-proc? disable-frontend-multiprocessing? disable-log-requests?
disable-logprobs-during-spec-decoding? disable-mm-preprocessor-cache? enable-lora-bias?
enable-prompt-adapter? engine-use-ray? logits-processor-pattern long-lora-scaling-factors
lora-extra-vocab-size max-context-len-to-capture max-long-partial-prefills max-num-partial-prefills
max-paddings max-prompt-adapter-token max-prompt-adapters max-seq-len-to-capture
multi-step-stream-outputs? num-lookahead-slots num-scheduler-steps override-neuron-config{}
preemption-mode prompt-adapters* qlora-adapter-name-or-path
quantization-param-path scheduler-delay-factor spec-decoding-acceptance-method
speculative-disable-by-batch-size speculative-disable-mqa-scorer?
speculative-draft-tensor-parallel-size|-spec-draft-tp speculative-max-model-len
speculative-model-quantization swap-space tokenizer-pool-extra-config tokenizer-pool-size
tokenizer-pool-type typical-acceptance-sampler-posterior-alpha
typical-acceptance-sampler-posterior-threshold use-v2-block-manager? worker-use-ray?
intial-incremental-detokenization-offset
"""

ACCEPTED: tuple[tuple[str, str, str], ...] = (
    ("gpu", GPU, "it tunes a GPU or torch, and Octavo runs its own kernels on the CPU."),
    ("multi-node", MULTI_NODE_COUNTS, "Octavo runs one engine on one machine."),
    ("multi-node", MULTI_NODE, "Octavo runs one engine on one machine."),
    ("later", LATER, "this version of Octavo does not have it yet."),
    ("decided", DECIDED, "Octavo decides this from the checkpoint and the machine."),
    ("niche", NICHE, "Octavo does not have this feature."),
    ("older", OLDER, "a flag of an older vLLM; nothing here needs it."),
)
"""(help group, names, why it has no effect)."""

REASONS: dict[str, str] = {
    "enforce-eager": "Octavo has no graphs to capture.",
    "disable-log-requests": "requests are not logged unless --enable-log-requests is given.",
    "enable-chunked-prefill": "prompts are always computed in chunks.",
    "swap-space": "preempted requests are recomputed, never swapped.",
    "preemption-mode": "preempted requests are recomputed, never swapped.",
    "headless": "this process serves the API and runs the engine.",
    "disable-sliding-window": "windows are computed as the checkpoint says.",
    "tokenizer-mode": "the tokenizer is chosen from the checkpoint's files.",
    "use-v2-block-manager": "there is one block manager.",
    "chat-template-content-format": "the template shows whether it wants a text or a list of parts.",
    "enable-offline-docs": "/docs never needs another host.",
    "enable-sleep-mode": "LLM.sleep and the development routes work without it.",
    "enable-server-load-tracking": "/load always counts.",
    "guided-decoding-backend": "there is one, llguidance.",
    "structured-outputs-config": "there is one backend, llguidance.",
    "language-model-only": "there are only language models.",
    "profiler-config": "LLM.start_profile and stop_profile work without it.",
    "numa-bind": "the kernels' threads stay where the process may run.",
    "enable-auto-tool-choice": "tool calls are always looked for when a request brings tools.",
    "enable-reasoning": "reasoning is always looked for; --reasoning-parser none turns that off.",
}
"""Reasons that say more than the group's."""
