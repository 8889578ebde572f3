"""Conversations, one and many, and a template of one's own."""

from vllm import LLM, SamplingParams

llm = LLM(max_model_len=256)
params = SamplingParams(temperature=0, max_tokens=12)
talk = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Why is the sky blue?"},
]
one = llm.chat(talk, params, use_tqdm=False)
many = llm.chat([talk for _ in range(3)], sampling_params=params, use_tqdm=True)
template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
own = llm.chat(talk, params, chat_template=template, add_generation_prompt=False)
assert own[0].prompt.startswith("system: You are")
assert [o.outputs[0].text for o in many] == [one[0].outputs[0].text] * 3
print("chat", len(many))
