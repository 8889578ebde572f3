"""Answers in a form."""

import json

from vllm import LLM, SamplingParams
from vllm.sampling_params import GuidedDecodingParams, StructuredOutputsParams

llm = LLM(max_model_len=512)


def ask(prompt, **form):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**form), max_tokens=96, temperature=0)
    return llm.generate(prompt, params)[0].outputs[0].text


assert ask("Classify: vLLM is wonderful!", choice=["Positive", "Negative"]) in ("Positive", "Negative")
assert ask("An email address:", regex=r"\w{1,8}@\w{1,8}\.com").endswith(".com")
schema = {
    "type": "object",
    "properties": {"brand": {"type": "string", "maxLength": 8}, "doors": {"enum": [2, 4]}},
    "required": ["brand", "doors"],
    "additionalProperties": False,
}
assert json.loads(ask("A car as JSON:", json=schema))["doors"] in (2, 4)
grammar = '''root ::= "SELECT " column " from " table
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "'''
assert ask("A query:", grammar=grammar).startswith("SELECT col_")
old = SamplingParams(guided_decoding=GuidedDecodingParams(choice=["yes", "no"]), temperature=0)
assert llm.generate("Yes or no?", old)[0].outputs[0].text in ("yes", "no")
print("structured")
